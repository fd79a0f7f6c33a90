//! Lists of captions as Hugging Face's image folders have them: `metadata.jsonl` with `file_name` and `text`, one object a
//! line, or `metadata.csv` with these columns; for pairs of pictures also with the source of an edit. Pure functions over
//! bytes. Called by `folder`.

use serde_json::Value;

use super::captions;

/// Names of the columns of pictures, captions and sources, of each the first that is there counts.
const PICTURES: [&str; 3] = ["file_name", "edited_image_file_name", "edited_image"];
const CAPTIONS: [&str; 5] = ["text", "caption", "prompt", "edit_prompt", "instruction"];
const SOURCES: [&str; 4] = ["source", "source_file_name", "original_image_file_name", "original_image"];

/// A picture of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The picture, beside or below the list.
    pub file_name: String,
    /// Its captions, or why there are none.
    pub captions: Result<Vec<String>, String>,
    /// The picture that it is an edit of, if one is named.
    pub source: Option<String>,
}

/// Reads `metadata.jsonl`. Empty lines are dropped.
///
/// # Errors
/// Names the line that is no object with a `file_name`.
pub fn from_jsonl(bytes: &[u8]) -> Result<Vec<Listed>, String> {
    let text = text(bytes)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let listed = lines.map(|(number, line)| {
        let fail = |cause: String| format!("line {}: {cause}", number + 1);
        let value: Value = serde_json::from_str(line).map_err(|error| fail(format!("is no JSON ({error})")))?;
        let name = |columns: &[&str]| columns.iter().find_map(|column| value.get(*column)?.as_str().map(str::to_owned));
        let Some(file_name) = name(&PICTURES) else {
            return Err(fail("has no `file_name`".into()));
        };
        let found = CAPTIONS.iter().find_map(|column| value.get(*column));
        let captions = found.map_or_else(|| Err("its line has no `text`".into()), captions::from_value);
        Ok(Listed { file_name, captions, source: name(&SOURCES) })
    });
    listed.collect()
}

/// Reads `metadata.csv`: comma-separated, quoted where needed, with a header.
///
/// # Errors
/// When there is no column `file_name` or `text`; names the line that has another number of fields.
pub fn from_csv(bytes: &[u8]) -> Result<Vec<Listed>, String> {
    let mut reader = csv::ReaderBuilder::new().from_reader(text(bytes)?.as_bytes());
    let header = reader.headers().map_err(|error| error.to_string())?.clone();
    let column = |names: &[&str]| names.iter().find_map(|name| header.iter().position(|other| other.trim() == *name));
    let file_name = column(&PICTURES).ok_or("has no column `file_name`")?;
    let caption = column(&CAPTIONS).ok_or("has no column `text`")?;
    let source = column(&SOURCES);
    let listed = reader.records().map(|record| {
        let record = record.map_err(|error| error.to_string())?;
        let field = |place: usize| record.get(place).unwrap_or_default();
        let source = source.map(field).filter(|name| !name.is_empty()).map(str::to_owned);
        Ok(Listed { file_name: field(file_name).to_owned(), captions: captions::from_text(field(caption).as_bytes()), source })
    });
    listed.collect()
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        format!("line {line}: is not UTF-8 text")
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(listed: Vec<Listed>) -> Vec<(String, String)> {
        listed.into_iter().map(|l| (l.file_name, l.captions.map_or_else(|cause| format!("! {cause}"), |c| c.join("|")))).collect()
    }

    #[test]
    fn lists_are_read() {
        let jsonl = "{\"file_name\": \"a.jpg\", \"text\": \"a  cat\"}\n\n{\"file_name\": \"b/c.png\", \"text\": [\"x\", \"y\"]}\n{\"file_name\": \"d\"}";
        let expected = [("a.jpg", "a cat"), ("b/c.png", "x|y"), ("d", "! its line has no `text`")];
        assert_eq!(pairs(from_jsonl(jsonl.as_bytes()).unwrap()), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
        let csv = "\u{feff}id,file_name,text\n1,a.jpg,\"a cat, sleeping\"\n2,b.jpg,\n";
        let expected = [("a.jpg", "a cat, sleeping"), ("b.jpg", "! its caption is empty")];
        assert_eq!(pairs(from_csv(csv.as_bytes()).unwrap()), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn the_source_of_an_edit_is_read_where_people_put_it() {
        let sources = |listed: Vec<Listed>| listed.into_iter().map(|l| (l.file_name, l.source)).collect::<Vec<_>>();
        let expected = [("b.png".to_owned(), Some("a.png".to_owned())), ("c.png".to_owned(), None)];
        let jsonl = r#"{"edited_image_file_name": "b.png", "original_image_file_name": "a.png", "edit_prompt": "x"}
            {"file_name": "c.png", "text": "y"}"#;
        let listed = from_jsonl(jsonl.as_bytes()).unwrap();
        assert_eq!(listed[0].captions, Ok(vec!["x".to_owned()]));
        assert_eq!(sources(listed), expected);
        assert_eq!(sources(from_csv(b"source,file_name,instruction\na.png,b.png,x\n,c.png,y\n").unwrap()), expected);
    }

    #[test]
    fn damage_names_the_line() {
        let says = |outcome: Result<Vec<Listed>, String>, what: &str| {
            let cause = outcome.unwrap_err();
            assert!(cause.contains(what) && !cause.contains('\n'), "{cause}");
        };
        says(from_jsonl(b"{\"file_name\": \"a\", \"text\": \"b\"}\n{\"file_name\""), "line 2: is no JSON");
        says(from_jsonl(b"[]"), "line 1: has no `file_name`");
        says(from_jsonl(b"\n\xff"), "line 2: is not UTF-8");
        says(from_csv(b"file,text\na,b\n"), "file_name");
        says(from_csv(b"file_name,height\na,3\n"), "`text`");
        says(from_csv(b"file_name,text\na,b,c\n"), "line: 2");
        says(from_csv(b""), "file_name");
    }
}
