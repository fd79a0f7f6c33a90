//! Reads pictures that were found, in chunks and in parallel, and brings them to their buckets. Which pixels come out depends
//! on the picture alone, not on what is read with it. Called by `ladd-fast prepare`.

use std::io;

use image::RgbImage;
use rayon::prelude::*;

use super::archive::Stream;
use super::crop::{self, Crop};
use super::{AspectBuckets, Picture, Place, Source, iconify, picture};

/// Largest file of a picture.
const MOST_BYTES: u64 = 1 << 29;
/// How far the shapes of an edit and its source may differ, as a share of their ratio.
const ALIKE: f64 = 0.01;

/// How pictures are brought to their size.
#[derive(Clone, Debug)]
pub struct Fitting {
    /// The sizes.
    pub buckets: AspectBuckets,
    /// Shortest side of a picture that is used.
    pub min_side: u32,
    /// Which part is kept.
    pub crop: Crop,
    /// What is behind transparent pixels.
    pub background: [u8; 3],
}

/// A picture at the size of its bucket.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitted {
    /// The picture.
    pub image: RgbImage,
    /// What it is an edit of, cut in the same place.
    pub original: Option<RgbImage>,
}

/// The sources, open for reading.
#[derive(Debug)]
pub struct Library<'a> {
    sources: &'a [Source],
    open: Option<(usize, Stream)>,
}

/// The bytes of a picture, or where they are.
enum Raw<'a> {
    Bytes(io::Result<Vec<u8>>),
    File(&'a std::path::Path),
    Svg(&'a str),
}

impl<'a> Library<'a> {
    /// A library of what [`super::find`] found in these sources.
    pub fn new(sources: &'a [Source]) -> Self {
        Self { sources, open: None }
    }

    /// The pictures at the sizes of their buckets, or why they cannot be used. Archives are read fastest in their order.
    pub fn pictures(&mut self, chunk: &[&Picture], fitting: &Fitting) -> Vec<Result<Fitted, String>> {
        let raw: Vec<_> = chunk.iter().map(|picture| self.with_original(picture)).collect();
        chunk.par_iter().zip(raw).map(|(picture, (raw, original))| fitted(picture, raw, original, fitting)).collect()
    }

    /// The bytes of a picture and of what it is an edit of, in the order in which an archive holds them.
    fn with_original<'p>(&mut self, picture: &'p Picture) -> (Result<Raw<'p>, String>, Option<Result<Raw<'p>, String>>) {
        match picture.original.as_deref() {
            None => (self.raw(picture), None),
            Some(original) if original.offset() < picture.offset() => {
                let first = self.raw(original);
                (self.raw(picture), Some(first))
            }
            Some(original) => (self.raw(picture), Some(self.raw(original))),
        }
    }

    /// Archives are read here, one member after the other; files later, in parallel.
    fn raw<'p>(&mut self, picture: &'p Picture) -> Result<Raw<'p>, String> {
        if picture.bytes > MOST_BYTES {
            return Err(format!("has {} bytes; up to {MOST_BYTES} are read", picture.bytes));
        }
        Ok(match &picture.place {
            Place::File(path) => Raw::File(path),
            Place::Svg(svg) => Raw::Svg(svg),
            Place::Member(offset) => Raw::Bytes(self.member(picture.source, *offset, picture.bytes)),
        })
    }

    fn member(&mut self, source: usize, offset: u64, count: u64) -> io::Result<Vec<u8>> {
        let mut stream = match self.open.take() {
            Some((number, stream)) if number == source => stream,
            _ => Stream::open(self.sources.get(source).ok_or(io::ErrorKind::NotFound)?.path())?,
        };
        let bytes = stream.read(offset, count);
        self.open = Some((source, stream));
        bytes
    }
}

fn fitted(
    picture: &Picture,
    raw: Result<Raw<'_>, String>,
    original: Option<Result<Raw<'_>, String>>,
    fitting: &Fitting,
) -> Result<Fitted, String> {
    let image = decoded(&picture.name, raw?, fitting)?;
    let original = original.map(|raw| decoded(&picture.name, raw?, fitting).map_err(|cause| format!("its source {cause}"))).transpose()?;
    let ((width, height), size) = (image.dimensions(), fitting.buckets.nearest(image.width(), image.height()));
    if let Some((w, h)) = original.as_ref().map(RgbImage::dimensions) {
        let ratio = f64::from(width) * f64::from(h) / (f64::from(height) * f64::from(w));
        if (ratio - 1.0).abs() > ALIKE {
            return Err(format!("has {width}x{height} pixels and its source {w}x{h}: their shapes differ"));
        }
    }
    let corner = crop::choose(&image, size, fitting.crop)?;
    let cut = |image: RgbImage| crop::cut(&image, corner, size);
    Ok(Fitted { image: cut(image)?, original: original.map(cut).transpose()? })
}

/// A picture at its own size, which must be large enough.
fn decoded(name: &str, raw: Raw<'_>, fitting: &Fitting) -> Result<RgbImage, String> {
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    let image = match raw {
        Raw::Bytes(bytes) => picture::decode(&bytes.map_err(unreadable)?, fitting.background)?,
        Raw::File(path) => picture::decode(&std::fs::read(path).map_err(unreadable)?, fitting.background)?,
        Raw::Svg(svg) => {
            let (width, height) = fitting.buckets.nearest(1, 1);
            iconify::render(svg, width.max(height) as u32, fitting.background).map_err(|cause| format!("{name}: {cause}"))?
        }
    };
    let (width, height) = image.dimensions();
    if width.min(height) < fitting.min_side {
        return Err(format!("has {width}x{height} pixels: its shorter side is below {}", fitting.min_side));
    }
    Ok(image)
}
