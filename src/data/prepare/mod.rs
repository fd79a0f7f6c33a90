//! Pictures of any size, kind and colour to what a network is trained on: found in folders, WebDataset archives and sets of
//! icons ([`find`]), decoded upright in sRGB, brought to aspect buckets ([`Library`]). Parsers are pure functions over bytes or
//! readers, each in a file of its own. `ladd-fast prepare` encodes the result and writes the shards.

mod archive;
mod buckets;
pub mod captions;
mod colour;
mod crop;
mod emoji;
mod folder;
pub mod iconify;
pub mod jpeg;
mod library;
pub mod metadata;
pub mod names;
mod pairs;
pub mod picture;
pub mod tar_members;

pub use buckets::AspectBuckets;
pub use crop::Crop;
pub use emoji::EmojiChoice;
pub use library::{Fitted, Fitting, Library};
pub use pairs::pair_up;

use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::format::hex;
use crate::{Error, Result};

/// Largest caption file that is read.
const LARGEST_CAPTION: u64 = 1 << 20;

/// Where pictures are.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A folder with pictures and their captions, at any depth.
    Folder(PathBuf),
    /// A WebDataset tar archive, perhaps gzipped.
    Archive(PathBuf),
    /// A folder of Iconify's packages of emoji.
    Emoji(PathBuf, EmojiChoice),
}

impl Source {
    /// The source at a path: a folder or, by its ending, an archive.
    ///
    /// # Errors
    /// When there is nothing, or something else.
    pub fn at(path: &Path) -> Result<Self> {
        let about = std::fs::metadata(path).map_err(|source| Error::io("read", path, source))?;
        let name = path.to_string_lossy().to_ascii_lowercase();
        let archive = [".tar", ".tar.gz", ".tgz"].iter().any(|ending| name.ends_with(ending));
        match (about.is_dir(), archive) {
            (true, _) => Ok(Self::Folder(path.to_owned())),
            (false, true) => Ok(Self::Archive(path.to_owned())),
            (false, false) => {
                Err(Error::file(path, "is neither a folder nor a .tar, .tar.gz or .tgz archive: name one that holds the pictures"))
            }
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::Archive(path) | Self::Emoji(path, _) => path,
        }
    }
}

/// A picture that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// Which of the sources it is from.
    pub source: usize,
    /// Its name there.
    pub name: String,
    /// How many bytes it has.
    pub bytes: u64,
    /// Its captions; empty if there are none.
    pub captions: Vec<String>,
    /// Whether it belongs to those that are kept from training.
    pub held_out: bool,
    /// The picture that it is an edit of; only [`pair_up`] looks for it.
    pub original: Option<Box<Picture>>,
    /// That one's name, where a list says it.
    named_original: Option<String>,
    place: Place,
}

impl Picture {
    /// Where it begins in its archive.
    fn offset(&self) -> Option<u64> {
        match self.place {
            Place::Member(offset) => Some(offset),
            Place::File(_) | Place::Svg(_) => None,
        }
    }
}

/// Where the bytes of a picture are.
#[derive(Clone, Debug, PartialEq)]
enum Place {
    File(PathBuf),
    /// Where they begin in the unpacked archive.
    Member(u64),
    /// An SVG document.
    Svg(String),
}

/// A picture that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Its folder or archive.
    pub source: String,
    /// Its name there.
    pub picture: String,
    /// Why it cannot be used.
    pub reason: String,
}

/// What was found in all sources, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// The pictures.
    pub pictures: Vec<Picture>,
    /// What was passed over.
    pub skipped: Vec<Skipped>,
    /// Sources that are damaged, in words.
    pub damaged: Vec<String>,
}

impl Found {
    fn skip(&mut self, source: &Path, picture: impl Into<String>, reason: impl Into<String>) {
        self.skipped.push(Skipped { source: source.display().to_string(), picture: picture.into(), reason: reason.into() });
    }

    /// SHA-256 over names and sizes, by which a changed source is noticed.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for picture in &self.pictures {
            hash.update(format!("{}\0{}\0{}\n", picture.source, picture.name, picture.bytes));
            if let Some(original) = &picture.original {
                hash.update(format!("of {}\0{}\n", original.name, original.bytes));
            }
        }
        hex(&hash.finalize())
    }
}

/// Looks for pictures and captions in all sources, but not in the folder `out`, where they go. Reads archives through, but no
/// picture.
///
/// # Errors
/// When a source cannot be read, its list of captions is damaged, or it holds no picture.
pub fn find(sources: &[Source], out: &Path) -> Result<Found> {
    let mut found = Found::default();
    for (number, source) in sources.iter().enumerate() {
        let before = found.pictures.len() + found.skipped.len();
        match source {
            Source::Folder(path) => folder::find(path, out, number, &mut found)?,
            Source::Archive(path) => archive::find(path, number, &mut found)?,
            Source::Emoji(path, choice) => emoji::find(path, choice, number, &mut found)?,
        }
        if found.pictures.len() + found.skipped.len() == before {
            return Err(Error::file(source.path(), "holds no pictures: they are looked for as .jpg, .jpeg, .png and .webp"));
        }
    }
    if u32::try_from(found.pictures.len()).is_err() {
        return Err(Error::Usage(format!("{} pictures are more than one data set can hold: prepare them in parts", found.pictures.len())));
    }
    Ok(found)
}

/// The captions of a picture, from its text file, its JSON, or a list.
fn caption_of(
    text: Option<Result<Vec<u8>, String>>,
    json: Option<Result<Vec<u8>, String>>,
    listed: Option<Result<Vec<String>, String>>,
) -> Result<Vec<String>, String> {
    match (text, json, listed) {
        (Some(bytes), _, _) => captions::from_text(&bytes?),
        (None, Some(bytes), _) => captions::from_json(&bytes?),
        (None, None, listed) => listed.unwrap_or(Ok(Vec::new())),
    }
}

/// Why a picture of a known but unread format is passed over.
fn foreign(name: &str) -> String {
    let ending = name.rsplit('.').next().unwrap_or_default();
    format!("is a .{} picture, which is not read: save it as JPEG, PNG or WebP", ending.to_ascii_lowercase())
}

/// Whether a label belongs to the `share` that is held out: by its SHA-256, so that it is the same everywhere and always.
pub fn held_out(label: &str, share: f64) -> bool {
    let digest = Sha256::digest(label);
    let word = digest.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    (word as f64) < share * 2f64.powi(64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_the_share_is_held_out_and_always_the_same() {
        let held = |share: f64| (0..2000).filter(|i| held_out(&format!("label {i}"), share)).count();
        assert_eq!((held(0.0), held(1.0)), (0, 2000));
        assert!((150..250).contains(&held(0.1)), "{}", held(0.1));
        assert!(!held_out("noto/red-apple", 0.1));
    }
}
