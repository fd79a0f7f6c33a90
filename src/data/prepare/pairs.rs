//! Pairs of pictures for editing: a picture, and the one that it is an edit of, its source. A list names the source, or it has
//! the picture's name with `.source` before the ending: `a.source.jpg` beside `a.jpg`, in folders and in archives.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::{Found, Picture, Source, names};

/// What the name of a source ends in, before the ending that tells its format.
const MARK: &str = ".source";

/// Gives every picture its source. Pictures that are nothing but sources are no longer pictures of their own; those that have
/// none are passed over.
pub fn pair_up(found: &mut Found, sources: &[Source]) {
    let pictures = std::mem::take(&mut found.pictures);
    let by_name: HashMap<(usize, &str), &Picture> = pictures.iter().map(|p| ((p.source, p.name.as_str()), p)).collect();
    let by_key: HashMap<(usize, &str), &Picture> = pictures.iter().filter_map(|p| Some(((p.source, marked(&p.name)?), p))).collect();
    let original = |picture: &Picture| match &picture.named_original {
        Some(name) => by_name.get(&(picture.source, name.as_str())).copied(),
        None => by_key.get(&(picture.source, names::key(&picture.name))).copied(),
    };
    let used: HashSet<(usize, &str)> = pictures.iter().filter_map(original).map(|p| (p.source, p.name.as_str())).collect();
    for picture in &pictures {
        let reason = match (original(picture), &picture.named_original) {
            (Some(original), _) => {
                found.pictures.push(Picture { original: Some(Box::new(original.clone())), ..picture.clone() });
                continue;
            }
            (None, Some(_)) => "is listed with a source that is no picture of this folder",
            (None, None) if used.contains(&(picture.source, picture.name.as_str())) => continue,
            (None, None) if marked(&picture.name).is_some() => "is the source of a picture that is not there",
            (None, None) => "has no source: it is looked for as NAME.source.jpg, or as `source` in the list of captions",
        };
        let place = sources.get(picture.source).map_or(Path::new(""), Source::path);
        found.skip(place, &picture.name, reason);
    }
}

/// What the picture is the source of: the name of that one, without ending.
fn marked(name: &str) -> Option<&str> {
    names::key(name).strip_suffix(MARK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::prepare::Place;

    fn picture(name: &str, named: Option<&str>) -> Picture {
        Picture {
            source: 0,
            name: name.to_owned(),
            bytes: name.len() as u64,
            captions: Vec::new(),
            held_out: false,
            original: None,
            named_original: named.map(str::to_owned),
            place: Place::Member(0),
        }
    }

    #[test]
    fn sources_are_found_by_list_and_by_name() {
        let pictures = vec![
            picture("a.jpg", None),
            picture("a.source.png", None),
            picture("b/one.png", None),
            picture("b/two.png", Some("b/one.png")),
            picture("b/three.png", Some("b/two.png")),
            picture("alone.jpg", None),
            picture("c.source.jpg", None),
            picture("d.jpg", Some("../d.jpg")),
        ];
        let mut found = Found { pictures, ..Found::default() };
        let before = found.fingerprint();
        pair_up(&mut found, &[Source::Folder("pairs".into())]);
        let pairs: Vec<_> = found.pictures.iter().map(|p| (p.name.as_str(), p.original.as_ref().unwrap().name.as_str())).collect();
        assert_eq!(pairs, [("a.jpg", "a.source.png"), ("b/two.png", "b/one.png"), ("b/three.png", "b/two.png")]);
        let skipped: Vec<_> = found.skipped.iter().map(|s| (s.picture.as_str(), s.reason.split(&[':', ','][..]).next().unwrap())).collect();
        let expected = [
            ("alone.jpg", "has no source"),
            ("c.source.jpg", "is the source of a picture that is not there"),
            ("d.jpg", "is listed with a source that is no picture of this folder"),
        ];
        assert_eq!(skipped, expected);
        assert_ne!(found.fingerprint(), before);
    }
}
