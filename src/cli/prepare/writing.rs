//! Encodes pictures and writes their shards. A shard holds pictures of one size, in the order in which they were found, and is
//! written when it is full; the number of every picture is kept in it. A run that is started again makes the pictures that
//! are in no shard yet, in the same order, and so the same shards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use image::RgbImage;
use rayon::prelude::*;

use crate::cli::common::{Encoders, Outcome, Progress, interrupt};
use crate::data::prepare::{Fitted, Fitting, Library, Picture, Skipped, Source};
use crate::data::{DatasetSettings, Origin, Preparation, ShardWriter, unique_prompts};
use crate::format::Dtype;
use crate::vae::CodecConfig;
use crate::{Error, Result};

/// Pictures that are decoded together.
const CHUNK: usize = 32;
/// Pictures of a bucket on the contact sheet.
const SHOWN: usize = 9;

/// Pictures that become one data set.
pub struct Set<'a> {
    pub sources: &'a [Source],
    /// With their numbers, which `texts` is indexed by.
    pub pictures: Vec<(usize, &'a Picture)>,
    /// How many were skipped before.
    pub skipped: usize,
    pub texts: &'a [String],
    pub folder: PathBuf,
    pub encoders: &'a Encoders<'a>,
    pub fitting: &'a Fitting,
    pub preparation: &'a Preparation,
    pub seed: u64,
    pub shard_size: usize,
}

/// What was written.
#[derive(Default)]
pub struct Written {
    /// By width and height.
    pub buckets: BTreeMap<(u32, u32), Bucket>,
    pub skipped: Vec<Skipped>,
    /// The captions of the pictures in the data set, in their order.
    pub texts: Vec<String>,
}

/// The pictures of one size.
#[derive(Default)]
pub struct Bucket {
    pub count: usize,
    /// The first of them, by number.
    pub pictures: BTreeMap<usize, RgbImage>,
}

impl Written {
    /// Pictures in the data set.
    pub fn count(&self) -> usize {
        self.buckets.values().map(|bucket| bucket.count).sum()
    }
}

/// A latent with its shape.
type Latent = (Vec<f32>, [usize; 3]);
/// A latent, the place of its caption, its number.
type Waiting = Vec<(Vec<f32>, u32, u64)>;
/// Latents that wait for their shard to be full.
type Pending = BTreeMap<[usize; 3], Waiting>;

impl Set<'_> {
    /// Writes the data set, or what is still missing of it.
    pub fn write(self, label: &str) -> Outcome<Written> {
        let texts: Vec<String> = self.pictures.iter().filter_map(|(number, _)| self.texts.get(*number).cloned()).collect();
        let (prompts, places) = unique_prompts(&texts);
        let mut writer = ShardWriter::open(&self.folder, self.settings(prompts), self.shard_size)?;
        let (done, shown) = already(&writer)?;
        let mut written = Written::default();
        let mut unused = BTreeSet::new();
        let mut pending = Pending::new();
        // What is in a shard is only looked at again for the contact sheet.
        let wanted = |number: &usize| !done.contains(number) || shown.contains(number);
        let todo: Vec<_> = self.pictures.iter().zip(places).filter(|((number, _), _)| wanted(number)).collect();
        let before = (self.pictures.len() - todo.len()) as u64;
        let mut progress = Progress::new(label, self.pictures.len() as u64, before);
        let mut library = Library::new(self.sources);
        for (part, chunk) in todo.chunks(CHUNK).enumerate() {
            interrupt::check()?;
            let pictures: Vec<&Picture> = chunk.iter().map(|((_, picture), _)| *picture).collect();
            let images = library.pictures(&pictures, self.fitting);
            let new = |number: &usize| !done.contains(number);
            let latents =
                self.encode(chunk.iter().zip(&images).map(|(((number, _), _), fitted)| fitted.as_ref().ok().filter(|_| new(number))))?;
            for ((((number, picture), place), fitted), latent) in chunk.iter().zip(images).zip(latents) {
                match fitted {
                    Err(_) if !new(number) => {} // its latent is there
                    Err(reason) => {
                        unused.insert(*number);
                        written.skip(self.sources, picture, reason);
                    }
                    Ok(fitted) => written.show(*number, fitted),
                }
                if let Some((latent, shape)) = latent {
                    let waiting = pending.entry(shape).or_default();
                    waiting.push((latent, *place, *number as u64));
                    if waiting.len() == self.shard_size {
                        flush(&mut writer, shape, std::mem::take(waiting))?;
                    }
                }
            }
            progress.set(before + (part * CHUNK + chunk.len()) as u64, || format!("{} skipped", self.skipped + written.skipped.len()));
        }
        for (shape, waiting) in pending {
            flush(&mut writer, shape, waiting)?;
        }
        self.finish(writer, &mut written)?;
        let used = self.pictures.iter().zip(texts).filter(|((number, _), _)| !unused.contains(number));
        written.texts = used.map(|(_, text)| text).collect();
        progress.finish(&written.count().to_string()); // how many are skipped in all is told at the end
        Ok(written)
    }

    fn settings(&self, prompts: Vec<String>) -> DatasetSettings {
        DatasetSettings {
            origin: Origin::Prepared(self.preparation.clone()),
            pipeline: self.encoders.pipeline.clone(),
            seed: self.seed,
            dtype: Dtype::F16,
            total: self.pictures.len(),
            prompts,
        }
    }

    /// Completes the data set, and counts what is in it.
    fn finish(&self, writer: ShardWriter, written: &mut Written) -> Result<()> {
        if writer.written() == 0 {
            let reason = written.skipped.first().map_or("there are none", |skipped| skipped.reason.as_str());
            let first = written.skipped.first().map_or("", |skipped| skipped.picture.as_str());
            return Err(Error::Usage(format!("no picture of {} can be used; the first, {first}, {reason}", self.pictures.len())));
        }
        let manifest = writer.finish_without(written.skipped.len())?;
        for shard in manifest.shards {
            let [_, rows, columns] = shard.shape;
            let [_, height, width] = self.encoders.image_shape([self.encoders.pipeline.codec.latent_channels(), rows, columns])?;
            written.buckets.entry((width as u32, height as u32)).or_default().count += shard.count;
        }
        Ok(())
    }

    /// The latents of pictures, with their shapes. The autoencoder uses all threads for one; the stand-in one for each.
    fn encode<'i>(&self, images: impl Iterator<Item = Option<&'i Fitted>>) -> Result<Vec<Option<Latent>>> {
        let images: Vec<_> = images.collect();
        let encode = |fitted: &Option<&Fitted>| fitted.map(|fitted| self.latents(fitted)).transpose();
        match &self.encoders.pipeline.codec {
            CodecConfig::External { .. } => images.iter().map(encode).collect(),
            CodecConfig::Dct { .. } => images.par_iter().map(encode).collect(),
        }
    }

    /// The latent of a picture; of an edit with that of its source behind it.
    fn latents(&self, fitted: &Fitted) -> Result<Latent> {
        let (mut latent, shape) = self.latent(&fitted.image)?;
        let Some(original) = &fitted.original else { return Ok((latent, shape)) };
        latent.extend(self.latent(original)?.0);
        Ok((latent, [2 * shape[0], shape[1], shape[2]]))
    }

    fn latent(&self, image: &RgbImage) -> Result<Latent> {
        let (height, width) = (image.height() as usize, image.width() as usize);
        let (channels, factor) = match &self.encoders.pipeline.codec {
            CodecConfig::Dct { channels, block, .. } => (*channels, *block),
            CodecConfig::External { downscale, .. } => (3, *downscale),
        };
        let latent = self.encoders.encode(&pixels(image, channels), [channels, height, width])?;
        Ok((latent, [self.encoders.pipeline.codec.latent_channels(), height / factor, width / factor]))
    }
}

impl Written {
    fn skip(&mut self, sources: &[Source], picture: &Picture, reason: String) {
        let source = sources.get(picture.source).map(|source| source.path().display().to_string()).unwrap_or_default();
        self.skipped.push(Skipped { source, picture: picture.name.clone(), reason });
    }

    fn show(&mut self, number: usize, fitted: Fitted) {
        let bucket = self.buckets.entry(fitted.image.dimensions()).or_default();
        if bucket.pictures.len() < SHOWN {
            bucket.pictures.insert(number, beside_source(fitted));
        }
    }
}

/// A picture as the contact sheet shows it: an edit to the right of its source.
fn beside_source(Fitted { image, original }: Fitted) -> RgbImage {
    let Some(original) = original else { return image };
    let (width, height) = image.dimensions();
    RgbImage::from_fn(2 * width, height, |x, y| *if x < width { original.get_pixel(x, y) } else { image.get_pixel(x - width, y) })
}

/// The numbers of the pictures that are in shards, and of those among them that the contact sheet shows.
fn already(writer: &ShardWriter) -> Result<(BTreeSet<usize>, BTreeSet<usize>)> {
    let mut by_shape: BTreeMap<[usize; 3], BTreeSet<usize>> = BTreeMap::new();
    for (shape, numbers) in writer.shards()? {
        by_shape.entry(shape).or_default().extend(numbers.into_iter().filter_map(|number| usize::try_from(number).ok()));
    }
    let shown = by_shape.values().flat_map(|numbers| numbers.iter().take(SHOWN)).copied().collect();
    Ok((by_shape.into_values().flatten().collect(), shown))
}

/// Writes a shard.
fn flush(writer: &mut ShardWriter, shape: [usize; 3], waiting: Waiting) -> Result<()> {
    for (latent, place, number) in waiting {
        writer.push(&latent, shape, place, number)?;
    }
    writer.flush()
}

/// Pixels `[C, H, W]` in [-1, 1]; with one channel the luma (Rec. 601).
pub fn pixels(image: &RgbImage, channels: usize) -> Vec<f32> {
    let scaled = |value: f32| value / 127.5 - 1.0;
    if channels == 1 {
        let luma = |pixel: &image::Rgb<u8>| 0.299 * f32::from(pixel.0[0]) + 0.587 * f32::from(pixel.0[1]) + 0.114 * f32::from(pixel.0[2]);
        return image.pixels().map(|pixel| scaled(luma(pixel))).collect();
    }
    (0..channels.min(3)).flat_map(|channel| image.pixels().map(move |pixel| scaled(f32::from(pixel.0[channel])))).collect()
}
