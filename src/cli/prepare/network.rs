//! The network that latents are prepared for: a given one, or a new one of the demo's kind, whose codec is fitted to the
//! pictures; and the sizes that follow from it.

use crate::cli::common::network;
use crate::config::{Config, PrepareConfig};
use crate::data::Preparation;
use crate::data::prepare::{AspectBuckets, Fitting, Library, Picture, Source};
use crate::format::{Pipeline, Role};
use crate::text::TextConfig;
use crate::vae::CodecConfig;
use crate::{Error, Result};

use super::writing::pixels;

/// Sides of pictures for an autoencoder are multiples of it.
const USUAL_MULTIPLE: usize = 64;
/// A new codec is fitted to at most so many pictures, and to so many pixels.
const MOST_FITTED: usize = 2048;
const MOST_PIXELS: usize = 1 << 24;
/// Pictures that are read together.
const CHUNK: usize = 32;

/// What pictures are prepared for.
pub struct Target {
    pub pipeline: Pipeline,
    pub fitting: Fitting,
    area: usize,
    multiple: usize,
}

/// The network called `teacher`, or a new one.
pub fn target(config: &Config, teacher: Option<&str>, sources: &[Source], pictures: &[(usize, &Picture)]) -> Result<Target> {
    if let Some(name) = teacher {
        let pipeline = network::load(name)?.pipeline;
        return sized(config, pipeline);
    }
    if config.data.latent != "dct" || config.data.text != "words" {
        return Err(Error::Usage("the latents of Stable Diffusion 3 need its autoencoder: name the pipeline with --teacher".into()));
    }
    let (block, channels) = (config.data.block, config.model.in_channels / config.data.block.pow(2));
    let plain = vec![0.0; config.model.in_channels];
    let codec = CodecConfig::Dct { block, channels, mean: plain.clone(), std: vec![1.0; plain.len()] };
    if !matches!(channels, 1 | 3) || codec.latent_channels() != config.model.in_channels {
        let (grey, colour) = (block * block, 3 * block * block);
        return Err(Error::Config(format!(
            "model.in_channels = {}: pictures in blocks of {block} make {grey} channels in grey and {colour} in colour",
            config.model.in_channels
        )));
    }
    let text = TextConfig::Words { dim: config.model.context_dim, tokens: config.data.tokens };
    let notes = [("data", "pictures that `ladd-fast prepare` encoded".to_owned())];
    let notes = notes.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let model = config.model.clone();
    let pipeline = Pipeline { model, codec, text, shift: 1.0, spacing: Default::default(), role: Role::Teacher, notes };
    pipeline.validate()?;
    let mut target = sized(config, pipeline)?;
    target.pipeline.codec = fit(&target, sources, pictures, config.data.whiten, (block, channels))?;
    Ok(target)
}

/// The sizes for a network.
fn sized(config: &Config, pipeline: Pipeline) -> Result<Target> {
    let (factor, usual) = match &pipeline.codec {
        CodecConfig::Dct { block, .. } => (*block, *block * pipeline.model.patch),
        CodecConfig::External { downscale, .. } => (*downscale, USUAL_MULTIPLE),
    };
    let [_, height, width] = network::latent_shape(&pipeline, 0, 0)?;
    let or = |value: usize, usual: usize| if value == 0 { usual } else { value };
    let area = or(config.prepare.area, height * width * factor * factor);
    let multiple = or(config.prepare.multiple, usual);
    if !multiple.is_multiple_of(factor * pipeline.model.patch) {
        let patch = factor * pipeline.model.patch;
        return Err(Error::Config(format!(
            "prepare.multiple = {multiple} must be a multiple of {patch}, the patch of this network in pixels"
        )));
    }
    let longest = pipeline.model.pos_embed_max * pipeline.model.patch * factor;
    let buckets = AspectBuckets::new(area, multiple, config.prepare.max_ratio, longest)?;
    let min_side = or(config.prepare.min_side, (area as f64).sqrt() as usize / 2);
    let fitting = Fitting { buckets, min_side: min_side as u32, crop: config.prepare.crop()?, background: config.prepare.background()? };
    Ok(Target { pipeline, fitting, area, multiple })
}

/// Fits a codec to blocks of some of the pictures.
fn fit(
    target: &Target,
    sources: &[Source],
    pictures: &[(usize, &Picture)],
    whiten: f64,
    (block, channels): (usize, usize),
) -> Result<CodecConfig> {
    let most = (MOST_PIXELS / target.area.max(1)).clamp(16, MOST_FITTED);
    let step = pictures.len().div_ceil(most).max(1);
    let chosen: Vec<&Picture> = pictures.iter().step_by(step).map(|(_, picture)| *picture).collect();
    let mut library = Library::new(sources);
    let mut blocks = Vec::new(); // [n, C, block, block]
    for chunk in chosen.chunks(CHUNK) {
        let fitted = library.pictures(chunk, &target.fitting).into_iter().flatten();
        for image in fitted.flat_map(|fitted| [Some(fitted.image), fitted.original]).flatten() {
            cut(&pixels(&image, channels), [channels, image.height() as usize, image.width() as usize], block, &mut blocks);
        }
    }
    if blocks.is_empty() {
        return Err(Error::Usage(format!("no picture of {} can be used, so that no codec can be fitted to them", chosen.len())));
    }
    CodecConfig::fit(block, &blocks, [channels, block, block], whiten)
}

/// Cuts an image `[C, H, W]` into blocks `[C, block, block]`.
fn cut(image: &[f32], [c, h, w]: [usize; 3], block: usize, blocks: &mut Vec<f32>) {
    for (top, left) in (0..h).step_by(block).flat_map(|top| (0..w).step_by(block).map(move |left| (top, left))) {
        for row in (0..c * block).map(|row| (row / block * h + top + row % block) * w + left) {
            blocks.extend_from_slice(&image[row..row + block]);
        }
    }
}

impl Target {
    /// What the manifest says about it.
    pub fn preparation(&self, config: &PrepareConfig, pictures: String, autoencoder: String) -> Preparation {
        Preparation {
            pictures,
            autoencoder,
            area: self.area,
            multiple: self.multiple,
            max_ratio: config.max_ratio,
            min_side: self.fitting.min_side as usize,
            crop: config.crop.clone(),
            background: config.background.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_cut_row_by_row() {
        let image: Vec<f32> = (0..2 * 4 * 6).map(|i| i as f32).collect();
        let mut blocks = Vec::new();
        cut(&image, [2, 4, 6], 2, &mut blocks);
        assert_eq!(blocks.len(), image.len());
        assert_eq!(blocks[..8], [0.0, 1.0, 6.0, 7.0, 24.0, 25.0, 30.0, 31.0]);
        assert_eq!(blocks[8..12], [2.0, 3.0, 8.0, 9.0]);
    }
}
