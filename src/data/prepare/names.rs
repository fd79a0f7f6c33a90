//! Which files are pictures, and which captions belong to them: files of one name with different endings are one sample, in a
//! folder and in a WebDataset archive alike. Pure functions over names. Called by `folder` and `archive`.

use std::collections::HashMap;

/// Endings of pictures that are read.
const READ: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
/// Endings of pictures that are not.
const NOT_READ: [&str; 14] = ["avif", "bmp", "cr2", "dng", "exr", "gif", "heic", "heif", "jp2", "jxl", "nef", "svg", "tif", "tiff"];

/// What a file is, by its ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A picture.
    Picture,
    /// A picture of a format that is not read.
    Foreign,
    /// A caption as text.
    Text,
    /// A caption as JSON.
    Json,
    /// Anything else.
    Other,
}

/// What a file is. Files whose name begins with a dot are nothing.
pub fn kind(name: &str) -> Kind {
    let file = name.rsplit('/').next().unwrap_or(name);
    let Some((stem, ending)) = file.rsplit_once('.') else { return Kind::Other };
    let ending = ending.to_ascii_lowercase();
    match ending.as_str() {
        _ if stem.is_empty() || file.starts_with('.') => Kind::Other,
        "txt" => Kind::Text,
        "json" => Kind::Json,
        other if READ.contains(&other) => Kind::Picture,
        other if NOT_READ.contains(&other) => Kind::Foreign,
        _ => Kind::Other,
    }
}

/// A name without its ending: what the files of a sample share.
pub fn key(name: &str) -> &str {
    match (name.rfind('.'), name.rfind('/')) {
        (Some(dot), slash) if slash.is_none_or(|slash| dot > slash) => &name[..dot],
        _ => name,
    }
}

/// A picture with its captions, as places in the list of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The picture.
    pub picture: usize,
    /// Its `.txt`.
    pub text: Option<usize>,
    /// Its `.json`.
    pub json: Option<usize>,
}

/// The samples among the files of these names, in the order of their pictures.
pub fn samples(names: &[impl AsRef<str>]) -> Vec<Sample> {
    let mut captions: HashMap<(&str, bool), usize> = HashMap::new();
    for (place, name) in names.iter().enumerate() {
        let (name, kind) = (name.as_ref(), kind(name.as_ref()));
        if matches!(kind, Kind::Text | Kind::Json) {
            captions.entry((key(name), kind == Kind::Json)).or_insert(place);
        }
    }
    let pictures = names.iter().enumerate().filter(|(_, name)| matches!(kind(name.as_ref()), Kind::Picture | Kind::Foreign));
    let caption = |name: &str, json: bool| captions.get(&(key(name), json)).copied();
    pictures.map(|(picture, name)| Sample { picture, text: caption(name.as_ref(), false), json: caption(name.as_ref(), true) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_tell_what_a_file_is() {
        for (name, expected) in [
            ("a.JPG", Kind::Picture),
            ("x.y/a.b.webp", Kind::Picture),
            ("a.heic", Kind::Foreign),
            ("a.txt", Kind::Text),
            ("a.json", Kind::Json),
            (".hidden.png", Kind::Other),
            (".png", Kind::Other),
            ("folder.png/readme", Kind::Other),
            ("", Kind::Other),
        ] {
            assert_eq!(kind(name), expected, "{name}");
        }
        assert_eq!((key("a.b/c.d.jpg"), key("a.b/c"), key("c.jpg"), key("")), ("a.b/c.d", "a.b/c", "c", ""));
    }

    #[test]
    fn samples_share_their_name() {
        let names = ["a.txt", "a.jpg", "sub/a.png", "a.json", "b.webp", "sub/a.json", "notes.txt", "c.gif"];
        let sample = |picture, text, json| Sample { picture, text, json };
        let expected = [sample(1, Some(0), Some(3)), sample(2, None, Some(5)), sample(4, None, None), sample(7, None, None)];
        assert_eq!(samples(&names), expected);
        let none: [&str; 0] = [];
        assert!(samples(&none).is_empty());
    }
}
