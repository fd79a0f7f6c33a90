//! What the fuzz targets share: laying an input out as the files that a parser reads.
//!
//! Every parser is called as users reach it, over files, in a folder in memory. A parser may refuse its input with an error
//! of one line; a panic, an endless loop or memory beyond the fuzzer's limit is a finding.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ladd_fast::Result;
use tempfile::TempDir;

/// What stands between two files in an input: a line that mutations seldom make or break.
const BETWEEN: &[u8] = b"\n@@@@\n";
/// Bytes behind a made safetensors header: enough for the tiny networks of the seeds.
const BODY: usize = 1 << 18;

/// The folder that files are laid out in: in memory where the system has such a place.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let make = || {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }
    };
    FOLDER.get_or_init(|| make().expect("a folder for the inputs")).path()
}

/// Writes one file of the folder and returns its path.
pub fn file(name: &str, content: &[u8]) -> PathBuf {
    let path = folder().join(name);
    fs::create_dir_all(path.parent().expect("in the folder")).expect("the folder can be written");
    fs::write(&path, content).expect("the folder can be written");
    path
}

/// Cuts the input into files, one for each name; those it does not reach are absent. Names that end in `.safetensors` get a
/// true length before and zeros behind, so that mutations reach the header's meaning.
pub fn files(names: &[&str], input: &[u8]) {
    let mut rest = Some(input);
    for name in names {
        let _ = fs::remove_file(folder().join(name));
        let Some(input) = rest else { continue };
        let end = input.windows(BETWEEN.len()).position(|window| window == BETWEEN);
        let content = &input[..end.unwrap_or(input.len())];
        if name.ends_with(".safetensors") { file(name, &safetensors(content)) } else { file(name, content) };
        rest = end.map(|end| &input[end + BETWEEN.len()..]);
    }
}

/// The parts of [`files`] as one input.
pub fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.join(BETWEEN)
}

/// A safetensors file of this header: its length before it, zeros behind.
pub fn safetensors(header: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    // Exactly as many as the header claims, where that can be had: whether a file is as long as it says is another target's matter.
    bytes.resize(bytes.len() + claimed(header).min(BODY), 0);
    bytes
}

/// The largest end of a tensor's bytes that the header names.
fn claimed(header: &[u8]) -> usize {
    let text = String::from_utf8_lossy(header);
    let ends = text.split("\"data_offsets\"").skip(1).filter_map(|entry| {
        let pair = entry.split_once('[')?.1.split_once(']')?.0;
        pair.split_once(',')?.1.trim().parse().ok()
    });
    ends.max().unwrap_or(0)
}

/// Checks what every error owes: one line that says something.
pub fn judge<T>(outcome: Result<T>) -> Option<T> {
    match outcome {
        Ok(value) => Some(value),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.trim().is_empty() && !text.trim_end().contains('\n'), "an error of one line: {text:?}");
            None
        }
    }
}

/// As [`judge`], of parsers over bytes, which leave the file's name to their caller.
pub fn say<T>(outcome: std::result::Result<T, String>) -> Option<T> {
    match outcome {
        Ok(value) => Some(value),
        Err(text) => {
            assert!(!text.trim().is_empty() && !text.trim_end().contains('\n'), "an error of one line: {text:?}");
            None
        }
    }
}
