//! Lists of prompts: text files with one prompt a line.

use std::collections::HashMap;
use std::path::Path;

use crate::{Error, Result};

/// Reads prompts, one a line. Space around a prompt and empty lines are dropped; repeated prompts stay repeated.
///
/// # Errors
/// When the file cannot be read, is not UTF-8, or holds no prompt.
pub fn read_prompts(path: impl AsRef<Path>) -> Result<Vec<String>> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|source| Error::io("read", path, source))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = 1 + error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        Error::file(path, format!("is not UTF-8 text in line {line}: save it as UTF-8"))
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let prompts: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if prompts.is_empty() {
        return Err(Error::file(path, "holds no prompt: write one prompt a line"));
    }
    Ok(prompts)
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

    #[test]
    fn prompts_are_read_line_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts.txt");
        std::fs::write(&path, "\u{feff}a bag\r\n\n  ankle boot \na bag").unwrap();
        let prompts = read_prompts(&path).unwrap();
        assert_eq!(prompts, ["a bag", "ankle boot", "a bag"]);
        assert_eq!(unique_prompts(&prompts), (vec!["a bag".to_owned(), "ankle boot".to_owned()], vec![0, 1, 0]));
        std::fs::write(&path, b"fine\nb\xffd").unwrap();
        assert!(read_prompts(&path).unwrap_err().to_string().contains("line 2"));
        std::fs::write(&path, " \n").unwrap();
        assert!(read_prompts(&path).unwrap_err().to_string().contains("holds no prompt"));
        assert!(read_prompts(folder.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
