//! Section `[prepare]`: pictures of one's own to latents.

use serde::{Deserialize, Serialize};

use crate::data::prepare::Crop;
use crate::{Error, Result};

/// Section `[prepare]`: pictures to latent shards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrepareConfig {
    /// Most pixels of a picture; 0 means the size the network was trained for.
    pub area: usize,
    /// Sides are multiples of it, in pixels; 0 means 64, or a patch where the codec is the stand-in.
    pub multiple: usize,
    /// Largest ratio of the sides.
    pub max_ratio: f64,
    /// Shortest side of a picture that is used, in pixels; 0 means half the side of a square of the area.
    pub min_side: usize,
    /// Which part of a picture is kept: `subject` or `center`.
    pub crop: String,
    /// Colour behind transparent pixels, `#rrggbb`.
    pub background: String,
    /// Where the caption of a picture comes from that has none beside it: `files` refuses, `filename`, `none`.
    pub captions: String,
    /// Share of the pictures that is kept from training, in a data set of its own.
    pub hold_out: f64,
    /// Whether every picture is an edit and has a source: `NAME.source.jpg`, or `source` in the list of captions.
    pub pairs: bool,
    /// Latents per shard file.
    pub shard_size: usize,
    /// Styles of emoji, by their folders' names; empty means all.
    pub emoji_styles: Vec<String>,
    /// Categories of emoji; empty means all.
    pub emoji_categories: Vec<String>,
}

impl Default for PrepareConfig {
    fn default() -> Self {
        Self {
            area: 0,
            multiple: 0,
            max_ratio: 2.0,
            min_side: 0,
            crop: "subject".into(),
            background: "#ffffff".into(),
            captions: "files".into(),
            hold_out: 0.0,
            pairs: false,
            shard_size: 256,
            emoji_styles: Vec::new(),
            emoji_categories: Vec::new(),
        }
    }
}

impl PrepareConfig {
    pub(super) fn validate(&self) -> Result<()> {
        let fail = |key: &str, cause: String| Err(Error::Config(format!("prepare.{key} = {cause}")));
        if !(1.0..=64.0).contains(&self.max_ratio) {
            return fail("max_ratio", format!("{} must be between 1 and 64", self.max_ratio));
        }
        if !(0.0..=0.9).contains(&self.hold_out) {
            return fail("hold_out", format!("{} must be between 0 and 0.9", self.hold_out));
        }
        if self.shard_size == 0 {
            return fail("shard_size", "0 must be at least 1".into());
        }
        if self.area > 1 << 32 || self.multiple > 1 << 16 || self.min_side > 1 << 16 {
            return fail(
                "area",
                format!("{}, multiple = {} and min_side = {} are far out of range", self.area, self.multiple, self.min_side),
            );
        }
        if !["files", "filename", "none"].contains(&self.captions.as_str()) {
            return fail("captions", format!("{:?} is not one of files, filename, none", self.captions));
        }
        self.crop()?;
        self.background().map(drop)
    }

    /// Which part of a picture is kept.
    ///
    /// # Errors
    /// When it is neither of the two.
    pub fn crop(&self) -> Result<Crop> {
        match self.crop.as_str() {
            "subject" => Ok(Crop::Subject),
            "center" => Ok(Crop::Center),
            other => Err(Error::Config(format!("prepare.crop = {other:?} is not one of subject, center"))),
        }
    }

    /// Red, green and blue behind transparent pixels.
    ///
    /// # Errors
    /// When it is no colour.
    pub fn background(&self) -> Result<[u8; 3]> {
        let digits = self.background.strip_prefix('#').filter(|digits| digits.len() == 6 && digits.is_ascii());
        let byte = |digits: &str, place: usize| digits.get(place..place + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        let colour = match self.background.as_str() {
            "white" => Some([255; 3]),
            "black" => Some([0; 3]),
            _ => digits.and_then(|d| Some([byte(d, 0)?, byte(d, 2)?, byte(d, 4)?])),
        };
        colour.ok_or_else(|| Error::Config(format!("prepare.background = {:?} is no colour: write it as #rrggbb", self.background)))
    }
}
