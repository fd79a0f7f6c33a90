//! Pictures in a folder, at any depth: captions beside them (`.txt`, `.json`) or in lists (`metadata.jsonl`, `metadata.csv`).
//! In the order of their names. Links to folders are not followed, and what the call itself writes is no source. Called by
//! [`super::find`].

use std::collections::HashMap;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use walkdir::WalkDir;

use super::metadata::{self, Listed};
use super::names::{self, Kind};
use super::{Found, LARGEST_CAPTION, Picture, Place, caption_of, foreign};
use crate::{Error, Result};

/// How deep folders may lie in each other.
const DEEPEST: usize = 64;
/// Largest list of captions.
const LARGEST_LIST: u64 = 1 << 32;

struct File {
    name: String,
    path: PathBuf,
    bytes: u64,
}

pub(super) fn find(folder: &Path, out: &Path, source: usize, found: &mut Found) -> Result<()> {
    let files = files(folder, out)?;
    let mut listed = lists(folder, &files, found)?;
    let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
    let read = |place: usize| read_caption(&files[place].path);
    for sample in names::samples(&names) {
        let file = &files[sample.picture];
        let (list, original) = listed.remove(&file.name).map_or((None, None), |(captions, original)| (Some(captions), original));
        if names::kind(&file.name) == Kind::Foreign {
            found.skip(folder, &file.name, foreign(&file.name));
            continue;
        }
        match caption_of(sample.text.map(read), sample.json.map(read), list) {
            Ok(captions) => found.pictures.push(Picture {
                source,
                name: file.name.clone(),
                bytes: file.bytes,
                captions,
                held_out: false,
                original: None,
                named_original: original,
                place: Place::File(file.path.clone()),
            }),
            Err(reason) => found.skip(folder, &file.name, reason),
        }
    }
    let mut missing: Vec<String> = listed.into_keys().collect();
    missing.sort_unstable();
    missing.into_iter().for_each(|name| found.skip(folder, name, "is listed with a caption, but is no picture of this folder"));
    Ok(())
}

/// All files but those below `out`.
fn files(folder: &Path, out: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    // Without links; a folder that is not there yet holds nothing.
    let out = out.canonicalize().ok();
    let is_out =
        |path: &Path| out.is_some() && path.file_name() == out.as_deref().and_then(Path::file_name) && path.canonicalize().ok() == out;
    if out.is_some() && folder.canonicalize().ok() == out {
        return Err(Error::file(folder, "is the folder of --out too: choose another one for the shards"));
    }
    let walk = WalkDir::new(folder).follow_root_links(true).max_depth(DEEPEST).sort_by_file_name().into_iter();
    for entry in walk.filter_entry(|entry| !(entry.file_type().is_dir() && is_out(entry.path()))) {
        let entry = entry.map_err(|error| Error::file(folder, format!("cannot be read: {error}")))?;
        let Ok(about) = std::fs::metadata(entry.path()) else { continue }; // a link to nothing
        let Some(name) = entry.path().strip_prefix(folder).ok().and_then(|path| label(Path::new(""), path)) else { continue };
        if about.is_file() {
            files.push(File { name, path: entry.into_path(), bytes: about.len() });
        }
    }
    Ok(files)
}

/// A path below a folder with `/` between its parts; nothing if it leads out of it.
fn label(folder: &Path, path: &Path) -> Option<String> {
    let whole = folder.join(path);
    let parts = whole.components().filter(|part| *part != Component::CurDir).map(|part| match part {
        Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
        _ => None,
    });
    parts.collect::<Option<Vec<_>>>().map(|parts| parts.join("/"))
}

/// The captions of a listed picture, and the picture it is an edit of.
type Entry = (Result<Vec<String>, String>, Option<String>);

/// What all lists in the folder say, by the name of the picture.
fn lists(folder: &Path, files: &[File], found: &mut Found) -> Result<HashMap<String, Entry>> {
    let mut listed = HashMap::new();
    for file in files {
        let parse: fn(&[u8]) -> Result<Vec<Listed>, String> = match file.name.rsplit('/').next() {
            Some("metadata.jsonl") => metadata::from_jsonl,
            Some("metadata.csv") => metadata::from_csv,
            _ => continue,
        };
        if file.bytes > LARGEST_LIST {
            return Err(Error::file(&file.path, format!("has {} bytes, too many for a list of captions", file.bytes)));
        }
        let bytes = std::fs::read(&file.path).map_err(|source| Error::io("read", &file.path, source))?;
        let beside = Path::new(&file.name).parent().unwrap_or(Path::new(""));
        for entry in parse(&bytes).map_err(|cause| Error::file(&file.path, cause))? {
            // A source outside of the folder keeps its name, under which none will be found.
            let original = entry.source.map(|name| label(beside, Path::new(&name)).unwrap_or(name));
            match label(beside, Path::new(&entry.file_name)) {
                Some(name) => drop(listed.insert(name, (entry.captions, original))),
                None => found.skip(folder, entry.file_name, format!("lies outside of the folder of {}", file.name)),
            }
        }
    }
    Ok(listed)
}

fn read_caption(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(LARGEST_CAPTION + 1).read_to_end(&mut bytes));
    match read {
        Err(error) => Err(format!("its caption cannot be read ({error})")),
        Ok(_) if bytes.len() as u64 > LARGEST_CAPTION => Err(format!("its caption has more than {LARGEST_CAPTION} bytes")),
        Ok(_) => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_never_lead_out() {
        let of = |folder: &str, path: &str| label(Path::new(folder), Path::new(path));
        assert_eq!(of("a", "./b/c.png").as_deref(), Some("a/b/c.png"));
        assert_eq!(of("", "c.png").as_deref(), Some("c.png"));
        assert_eq!((of("a", "../c.png"), of("a", "/etc/passwd")), (None, None));
    }
}
