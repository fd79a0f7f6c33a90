//! The second demo's pictures: emoji drawn in several styles, from a folder with one Iconify package per style
//! (`scripts/get-emoji` fetches them). An object is used if every style draws it. Called by [`super::find`].

use std::collections::BTreeSet;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::iconify::{self, IconSet};
use super::{Found, Picture, Place, held_out};
use crate::{Error, Result};

/// Styles in which an object must be seen, for another of its pictures to be held out.
const SEEN: usize = 2;

/// Which emoji.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EmojiChoice {
    /// The styles, by their folders' names; empty means all there are.
    pub styles: Vec<String>,
    /// The categories, as the styles' metadata name them; empty means all.
    pub categories: Vec<String>,
    /// Share of the (style, object) pairs that is held out.
    pub hold_out: f64,
}

pub(super) fn find(folder: &Path, choice: &EmojiChoice, source: usize, found: &mut Found) -> Result<()> {
    let styles = if choice.styles.is_empty() { all_styles(folder)? } else { choice.styles.clone() };
    let sets = styles.iter().map(|style| read_set(folder, style)).collect::<Result<Vec<_>>>()?;
    let mut objects: BTreeSet<&str> = sets.first().map(|set| set.names().collect()).unwrap_or_default();
    for set in &sets[1..] {
        let names: BTreeSet<&str> = set.names().collect();
        objects.retain(|object| names.contains(object));
    }
    if !choice.categories.is_empty() {
        let wanted = wanted(folder, &styles, &choice.categories)?;
        objects.retain(|object| wanted.contains(*object));
    }
    let mut pictures = Vec::new();
    for object in objects {
        let held = held(&sets, object, choice.hold_out);
        for (set, held_out) in sets.iter().zip(held) {
            let Some(svg) = set.svg(object) else { continue };
            let name = format!("{}/{object}", set.prefix);
            let caption = format!("{} style {object}", set.prefix).replace('-', " ");
            let (bytes, captions) = (svg.len() as u64, vec![caption]);
            let place = Place::Svg(svg);
            pictures.push(Picture { source, name, bytes, captions, held_out, original: None, named_original: None, place });
        }
    }
    pictures.sort_by_cached_key(|picture| Sha256::digest(&picture.name)); // mixed, the same always
    found.pictures.extend(pictures);
    Ok(())
}

/// Which of the pictures of an object are held out, in the order of the styles: none, if it would be seen too seldom.
fn held(sets: &[IconSet], object: &str, share: f64) -> Vec<bool> {
    let held: Vec<bool> = sets.iter().map(|set| held_out(&format!("{}/{object}", set.prefix), share)).collect();
    let seen = held.iter().filter(|held| !**held).count();
    if seen >= SEEN { held } else { vec![false; sets.len()] }
}

/// Names of the folders that hold an icon set.
fn all_styles(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).map_err(|source| Error::io("read", folder, source))?;
    let sets = entries.flatten().filter(|entry| entry.path().join("icons.json").is_file());
    let mut styles: Vec<String> = sets.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    styles.sort_unstable();
    if styles.is_empty() { Err(Error::file(folder, format!("holds no icon sets: {FETCH}"))) } else { Ok(styles) }
}

/// What to do where emoji are missing.
const FETCH: &str = "run `scripts/get-emoji`, which fetches them from npm, or name the folder that holds them";

fn read_set(folder: &Path, style: &str) -> Result<IconSet> {
    let path = folder.join(style).join("icons.json");
    let bytes = std::fs::read(&path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::file(&path, format!("is missing: {FETCH}")),
        _ => Error::io("read", &path, source),
    })?;
    IconSet::parse(&bytes).map_err(|cause| Error::file(path, cause))
}

/// The objects that some style has in one of the categories.
fn wanted(folder: &Path, styles: &[String], categories: &[String]) -> Result<BTreeSet<String>> {
    let (mut wanted, mut known) = (BTreeSet::new(), BTreeSet::new());
    for style in styles {
        let path = folder.join(style).join("metadata.json");
        let Ok(bytes) = std::fs::read(&path) else { continue };
        for (category, names) in iconify::categories(&bytes).map_err(|cause| Error::file(&path, cause))? {
            if categories.contains(&category) {
                wanted.extend(names);
            }
            known.insert(category);
        }
    }
    match categories.iter().find(|category| !known.contains(*category)) {
        Some(missing) => {
            let known: Vec<_> = known.into_iter().collect();
            Err(Error::Config(format!("prepare.emoji_categories: no style has the category {missing:?}; there are {}", known.join(", "))))
        }
        None => Ok(wanted),
    }
}
