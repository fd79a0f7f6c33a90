//! Lists of prompts: text files with one prompt a line, JSON Lines, and parquet tables with a column of text.
//!
//! The parsers take readers and bytes, trust nothing in them, and name the line of what is wrong. Called by `synthesize`.

mod parquet;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::Value;

pub use parquet::parse_parquet;

use crate::{Error, Result};

/// Longest line that is taken for meant, in bytes: much longer than any text encoder reads.
const LONGEST: usize = 1 << 20;
/// Keys that hold the prompt where none is named, in order of preference.
const USUAL: [&str; 3] = ["prompt", "text", "caption"];

/// What is wrong with a list of prompts, in words that begin with the line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadPrompts(String);

impl BadPrompts {
    fn at(line: usize, cause: impl std::fmt::Display) -> Self {
        Self(format!("line {line}: {cause}"))
    }
}

/// Reads prompts by the file's ending: `.jsonl` (one JSON object a line), `.parquet`, anything else as text with one prompt a
/// line. `key` names the key or column, empty stands for `prompt`, `text` or `caption`. Space around a prompt and empty prompts are
/// dropped; repeated prompts stay repeated.
///
/// # Errors
/// When the file cannot be read, is not UTF-8, lacks the key, or holds no prompt; the message names the line.
pub fn read_prompts(path: impl AsRef<Path>, key: &str) -> Result<Vec<String>> {
    let path = path.as_ref();
    let file = File::open(path).map_err(|source| Error::io("read", path, source))?;
    if file.metadata().is_ok_and(|about| about.is_dir()) {
        return Err(Error::file(path, "is a folder: name a file of prompts (.txt, .jsonl or .parquet)"));
    }
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let prompts = match ending.as_str() {
        "jsonl" | "ndjson" => parse_jsonl(BufReader::new(file), key),
        "parquet" => parquet::parse(file, key),
        _ => parse_text(BufReader::new(file)),
    };
    let prompts = prompts.map_err(|bad| Error::file(path, bad.to_string()))?;
    if prompts.is_empty() {
        return Err(Error::file(path, "holds no prompt: write one prompt a line"));
    }
    Ok(prompts)
}

/// Prompts of a text, one a line.
///
/// # Errors
/// When a line is not UTF-8 or endless, or reading fails.
pub fn parse_text(reader: impl BufRead) -> Result<Vec<String>, BadPrompts> {
    let mut prompts = Vec::new();
    for_each_line(reader, |_, line| {
        prompts.push(line.to_owned());
        Ok(())
    })?;
    Ok(prompts)
}

/// Prompts of JSON Lines, the value of `key` in each object; an empty `key` stands for the first of `prompt`, `text`, `caption`.
///
/// # Errors
/// When a line is no JSON object or lacks the key, the value is no text, or as [`parse_text`].
pub fn parse_jsonl(reader: impl BufRead, key: &str) -> Result<Vec<String>, BadPrompts> {
    let mut prompts = Vec::new();
    for_each_line(reader, |number, line| {
        let prompt = prompt_of(line, key).map_err(|cause| BadPrompts::at(number, cause))?;
        prompts.extend(kept(&prompt));
        Ok(())
    })?;
    Ok(prompts)
}

fn prompt_of(line: &str, key: &str) -> Result<String, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| format!("is no JSON ({error}): write one object a line"))?;
    let Value::Object(fields) = value else { return Err(r#"is no JSON object: write {"prompt": "..."}"#.into()) };
    let names = if key.is_empty() { &USUAL[..] } else { &[key][..] };
    let Some((name, value)) = names.iter().find_map(|name| Some((name, fields.get(*name)?))) else {
        return Err(missing(key, fields.keys().map(String::as_str)));
    };
    match value {
        Value::String(prompt) => Ok(prompt.clone()),
        other => Err(format!("`{name}` is {}, where a text is expected", kind(other))),
    }
}

/// What to say where no key or column is the prompt's.
fn missing<'a>(key: &str, found: impl Iterator<Item = &'a str>) -> String {
    const SHOWN: usize = 8;
    let short = |name: &str| name.chars().take(40).collect::<String>();
    let found: Vec<String> = found.take(SHOWN).map(short).collect();
    let wanted = if key.is_empty() { "none of `prompt`, `text` and `caption`".to_owned() } else { format!("no `{key}`") };
    format!("has {wanted} (there is: {}): name the right one with synthesize.prompt_key", found.join(", "))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A prompt without the space around it; none where nothing is left.
fn kept(prompt: &str) -> Option<String> {
    let prompt = prompt.trim();
    (!prompt.is_empty()).then(|| prompt.to_owned())
}

/// Hands out the lines that are not empty, trimmed, with their numbers. Never holds more than [`LONGEST`] bytes.
fn for_each_line(mut reader: impl BufRead, mut f: impl FnMut(usize, &str) -> Result<(), BadPrompts>) -> Result<(), BadPrompts> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = reader.by_ref().take(LONGEST as u64 + 1).read_until(b'\n', &mut line);
        match read.map_err(|error| BadPrompts::at(number, format!("cannot be read: {error}")))? {
            0 => break,
            length if length > LONGEST => {
                return Err(BadPrompts::at(number, format!("is longer than {LONGEST} bytes: write one prompt a line")));
            }
            _ => {}
        }
        let text = std::str::from_utf8(&line).map_err(|_| BadPrompts::at(number, "is not UTF-8 text: save the file as UTF-8"))?;
        let text = if number == 1 { text.strip_prefix('\u{feff}').unwrap_or(text) } else { text };
        if !text.trim().is_empty() {
            f(number, text.trim())?;
        }
    }
    Ok(())
}

/// The different prompts of a list in order of appearance, and for each entry of the list which of them it is.
pub fn unique_prompts<S: AsRef<str>>(prompts: &[S]) -> (Vec<String>, Vec<u32>) {
    let mut table = Vec::new();
    let mut known = HashMap::new();
    let indices = prompts.iter().map(|prompt| {
        *known.entry(prompt.as_ref()).or_insert_with(|| {
            table.push(prompt.as_ref().to_owned());
            (table.len() - 1) as u32
        })
    });
    let indices = indices.collect();
    (table, indices)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prompts_are_read_line_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts.txt");
        std::fs::write(&path, "\u{feff}a bag\r\n\n  ankle boot \na bag").unwrap();
        let prompts = read_prompts(&path, "").unwrap();
        assert_eq!(prompts, ["a bag", "ankle boot", "a bag"]);
        assert_eq!(unique_prompts(&prompts), (vec!["a bag".to_owned(), "ankle boot".to_owned()], vec![0, 1, 0]));
        std::fs::write(&path, b"fine\nb\xffd").unwrap();
        assert!(read_prompts(&path, "").unwrap_err().to_string().contains("line 2"));
        std::fs::write(&path, " \n").unwrap();
        assert!(read_prompts(&path, "").unwrap_err().to_string().contains("holds no prompt"));
        assert!(read_prompts(folder.path().join("none"), "").unwrap_err().to_string().contains("none"));
        assert!(read_prompts(folder.path(), "").unwrap_err().to_string().contains("is a folder"));
    }

    #[test]
    fn json_lines_hold_prompts_under_a_key() {
        let parse = |text: &str, key: &str| parse_jsonl(text.as_bytes(), key);
        let both = "{\"text\": \"a\", \"prompt\": \" b \"}\n\n{\"caption\": \"c\\nd\", \"n\": 1}\r\n{\"prompt\":\"\"}";
        assert_eq!(parse(both, "").unwrap(), ["b", "c\nd"]);
        assert_eq!(parse("{\"text\": \"a\", \"prompt\": \"b\"}", "text").unwrap(), ["a"]);
        let cases = [
            ("{\"prompt\":\"a\"}\n{\"x\":1}", "", "line 2: has none of `prompt`, `text` and `caption` (there is: x)"),
            ("{\"x\":1}", "title", "line 1: has no `title` (there is: x): name the right one with synthesize.prompt_key"),
            ("{\"prompt\":7}", "", "line 1: `prompt` is a number, where a text is expected"),
            ("{\"prompt\":null}", "", "line 1: `prompt` is null"),
            ("\n[1]", "", "line 2: is no JSON object"),
            ("{\"prompt\":", "", "line 1: is no JSON"),
        ];
        for (text, key, cause) in cases {
            let error = parse(text, key).unwrap_err().to_string();
            assert!(error.starts_with(cause) && !error.contains('\n'), "{error}");
        }
        assert!(parse(&"[".repeat(100_000), "").unwrap_err().to_string().contains("no JSON"));
    }

    /// A reader that never ends and never breaks a line: only a parser with a limit comes back.
    #[test]
    fn an_endless_line_is_refused() {
        let endless = || BufReader::new(std::io::repeat(b'x'));
        assert!(parse_text(endless()).unwrap_err().to_string().starts_with("line 1: is longer than 1048576 bytes"));
        let later = std::io::Cursor::new(b"fine\n").chain(endless());
        assert!(parse_jsonl(later, "").unwrap_err().to_string().starts_with("line 1: is no JSON"));
        let long = "a".repeat(LONGEST - 1) + "\n";
        assert_eq!(parse_text(long.as_bytes()).unwrap()[0].len(), LONGEST - 1);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, key in "[a-z]{0,3}") {
            let _ = parse_text(bytes.as_slice());
            let _ = parse_jsonl(bytes.as_slice(), &key);
        }
    }
}
