//! Captions as people store them beside their pictures: a text file, or JSON as image scrapers and WebDataset write it.
//! Pure functions over bytes; they return what is wrong in words. Called by `archive` and `folder`.

use serde_json::Value;
use sha2::{Digest, Sha256};

/// Keys under which JSON files keep captions, the first that is there counts.
const KEYS: [&str; 4] = ["caption", "captions", "text", "prompt"];

/// The caption of a text file: all of it, white space made single.
///
/// # Errors
/// When it is not UTF-8 or empty.
pub fn from_text(bytes: &[u8]) -> Result<Vec<String>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "its caption is not UTF-8 text".to_owned())?;
    some(vec![tidy(text.strip_prefix('\u{feff}').unwrap_or(text))])
}

/// The captions of a JSON file: a text, a list of texts, or an object that holds one of them as `caption`, `captions`, `text`
/// or `prompt`.
///
/// # Errors
/// When it is no JSON, or holds no caption.
pub fn from_json(bytes: &[u8]) -> Result<Vec<String>, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| format!("its JSON cannot be read ({error})"))?;
    from_value(&value)
}

/// As [`from_json`], of a value.
///
/// # Errors
/// When it holds no caption.
pub fn from_value(value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::String(text) => some(vec![tidy(text)]),
        Value::Array(list) => some(list.iter().filter_map(Value::as_str).map(tidy).collect()),
        Value::Object(fields) => match KEYS.iter().find_map(|key| fields.get(*key)) {
            Some(Value::Object(_)) | None => Err(format!("its JSON has no caption: it is looked for as {}", KEYS.join(", "))),
            Some(inner) => from_value(inner),
        },
        _ => Err("its JSON has no caption".into()),
    }
}

/// One of the captions of a picture; which depends on the seed and the picture's name alone.
pub fn choose<'a>(captions: &'a [String], seed: u64, name: &str) -> Option<&'a str> {
    let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize();
    let word = digest.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let count = u64::try_from(captions.len()).ok().filter(|count| *count > 0)?;
    captions.get((word % count) as usize).map(String::as_str)
}

fn tidy(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn some(mut captions: Vec<String>) -> Result<Vec<String>, String> {
    captions.retain(|caption| !caption.is_empty());
    if captions.is_empty() { Err("its caption is empty".into()) } else { Ok(captions) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_found_where_people_put_them() {
        assert_eq!(from_text("\u{feff} a red\r\n apple\n".as_bytes()).unwrap(), ["a red apple"]);
        for (json, expected) in [
            (r#""one""#, vec!["one"]),
            (r#"["one", "  ", 3, "two"]"#, vec!["one", "two"]),
            (r#"{"width": 4, "caption": "one", "text": "two"}"#, vec!["one"]),
            (r#"{"captions": ["one", "two"]}"#, vec!["one", "two"]),
            (r#"{"prompt": "one"}"#, vec!["one"]),
        ] {
            assert_eq!(from_json(json.as_bytes()).unwrap(), expected, "{json}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (json, cause) in [
            ("{", "cannot be read"),
            ("{}", "no caption"),
            ("3", "no caption"),
            ("[]", "empty"),
            (r#"{"text": {"text": "x"}}"#, "no caption"),
        ] {
            assert!(from_json(json.as_bytes()).unwrap_err().contains(cause), "{json}");
        }
        assert!(from_text(b"\xff").unwrap_err().contains("UTF-8"));
        assert!(from_text(b" \n").unwrap_err().contains("empty"));
    }

    #[test]
    fn the_choice_depends_on_seed_and_name() {
        let captions = ["a", "b", "c"].map(String::from);
        let all = |seed: u64| (0..50).map(|i| choose(&captions, seed, &format!("{i}")).unwrap()).collect::<String>();
        assert_eq!(all(1), all(1));
        assert_ne!(all(1), all(2));
        assert!(["a", "b", "c"].iter().all(|c| all(1).contains(c)));
        assert_eq!(choose(&[], 0, "x"), None);
    }
}
