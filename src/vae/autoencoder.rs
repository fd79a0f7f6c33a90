//! Stable Diffusion 3's autoencoder on the CPU: the convolutional VAE of latent diffusion (Rombach et al., arXiv 2112.10752)
//! with 16 channels, from candle's blocks. Checked against diffusers' `AutoencoderKL`.
//!
//! Images larger than a tile are worked on in overlapping tiles, blended linearly: memory then depends on the tile alone
//! (the attention in the middle takes the square of its positions).

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Module, Result as CandleResult, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, GroupNorm, VarBuilder, conv2d, group_norm, ops};
use candle_transformers::models::stable_diffusion::unet_2d_blocks::{
    DownEncoderBlock2D, DownEncoderBlock2DConfig, UNetMidBlock2D, UNetMidBlock2DConfig, UpDecoderBlock2D, UpDecoderBlock2DConfig,
};
use serde::Deserialize;

use super::ldm_names;
use super::tiles::tiled;
use crate::format::SafetensorsFile;
use crate::format::parts::{Part, first_line, read_config};
use crate::{Error, Result};

/// Added to the variance of group norms.
const EPS: f64 = 1e-6;
/// The folder of a pipeline.
const FOLDER: &str = "vae";
/// What stands before the tensors in an original single file.
const PREFIX: &str = "first_stage_model.";

/// `config.json` of an autoencoder.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct AutoencoderConfig {
    /// Channels of an image.
    pub in_channels: usize,
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Channels of each level, finest first; each but the last halves the resolution.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of an encoder's level; a decoder's has one more.
    pub layers_per_block: usize,
    /// Groups of the group norms.
    pub norm_num_groups: usize,
    /// The network's latents are `(z - shift_factor) scaling_factor`.
    pub scaling_factor: f64,
    /// See `scaling_factor`.
    #[serde(default)]
    pub shift_factor: Option<f64>,
    /// Whether a 1x1 convolution follows the encoder: not in Stable Diffusion 3.
    #[serde(default = "yes")]
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder: not in Stable Diffusion 3.
    #[serde(default = "yes")]
    pub use_post_quant_conv: bool,
}

fn yes() -> bool {
    true
}

/// The autoencoder, loaded.
#[derive(Debug)]
pub struct Autoencoder {
    config: AutoencoderConfig,
    encoder: Encoder,
    decoder: Decoder,
    tile: usize,
    fingerprint: String,
}

/// Mean and standard deviation of the latents of an image, each `[n, C, H, W]`, unscaled.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Mean.
    pub mean: Vec<f32>,
    /// Standard deviation.
    pub std: Vec<f32>,
}

impl Autoencoder {
    /// Opens the `vae` folder of a pipeline, that folder itself, or an original single file that holds the autoencoder.
    ///
    /// # Errors
    /// When a file is missing or damaged, or it is no autoencoder of Stable Diffusion 3's kind.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_file() {
            return Self::single(&Arc::new(SafetensorsFile::open(path)?));
        }
        let inner = path.join(FOLDER);
        let folder = if inner.is_dir() { inner.as_path() } else { path };
        Self::new(&Part::folder(folder)?, read_config(folder)?)
    }

    fn single(file: &Arc<SafetensorsFile>) -> Result<Self> {
        let prefix = if file.names().iter().any(|name| name.starts_with(PREFIX)) { PREFIX } else { "" };
        let levels = ldm_names::levels(file.names().iter().filter_map(|name| name.strip_prefix(prefix)));
        let part = Part::within(file, |name| ldm_names::to_diffusers(name.strip_prefix(prefix)?, levels))?;
        let config = ldm_names::detect(&part, levels)
            .ok_or_else(|| Error::file(file.path(), "holds no autoencoder of Stable Diffusion 3 (`first_stage_model.encoder...`)"))?;
        Self::new(&part, config)
    }

    fn new(part: &Part, config: AutoencoderConfig) -> Result<Self> {
        config.validate().map_err(|cause| Error::file(part.origin(), cause))?;
        let encoder = part.build(DType::F32, |weights| Encoder::new(weights.pp("encoder"), &config))?;
        let decoder = part.build(DType::F32, |weights| Decoder::new(weights.pp("decoder"), &config))?;
        Ok(Self { config, encoder, decoder, tile: 128, fingerprint: part.fingerprint()? })
    }

    /// Works on tiles of `tile` latent positions, a multiple of 4; 128, a megapixel for Stable Diffusion 3, unless said.
    #[must_use]
    pub fn with_tile(self, tile: usize) -> Self {
        assert!(tile > 0 && tile.is_multiple_of(4), "tiles of {tile} positions cannot overlap by a quarter");
        Self { tile, ..self }
    }

    /// The configuration.
    pub fn config(&self) -> &AutoencoderConfig {
        &self.config
    }

    /// Tells these weights from others.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Pixels per latent position and axis.
    pub fn downscale(&self) -> usize {
        1 << (self.config.block_out_channels.len() - 1)
    }

    /// Mean and deviation of the latents of images `[n, C, H, W]` in [-1, 1]; H and W are multiples of the downscale.
    ///
    /// # Errors
    /// When the images have other sizes or channels.
    pub fn moments(&self, images: &[f32], [c, h, w]: [usize; 3]) -> Result<Moments> {
        let scale = self.downscale();
        if c != self.config.in_channels || h == 0 || w == 0 || !h.is_multiple_of(scale) || !w.is_multiple_of(scale) {
            return Err(Error::Usage(format!(
                "the autoencoder takes images of {} channels whose sides are multiples of {scale} pixels, not {c}x{h}x{w}",
                self.config.in_channels
            )));
        }
        let (h, w, latent) = (h / scale, w / scale, self.config.latent_channels);
        let mut moments = Moments { mean: Vec::new(), std: Vec::new() };
        for image in images.chunks_exact(c * h * w * scale * scale) {
            let image = Tensor::from_slice(image, (1, c, h * scale, w * scale), &Device::Cpu).map_err(failed)?;
            let both = tiled(&image, (scale, 1), self.tile, 2 * latent, |tile| self.encoder.forward(tile)).map_err(failed)?;
            let (mean, log_variance) = both.split_at(latent * h * w);
            moments.mean.extend_from_slice(mean);
            moments.std.extend(log_variance.iter().map(|v| (0.5 * v.clamp(-30.0, 20.0)).exp()));
        }
        Ok(moments)
    }

    /// The network's latents of images: the means, shifted and scaled.
    ///
    /// # Errors
    /// As [`moments`](Self::moments).
    pub fn encode(&self, images: &[f32], shape: [usize; 3]) -> Result<Vec<f32>> {
        let (shift, scale) = self.shift_and_scale();
        Ok(self.moments(images, shape)?.mean.into_iter().map(|z| (z - shift) * scale).collect())
    }

    /// Images `[n, C, H, W]` in about [-1, 1], not clamped, of the network's latents `[n, C', H', W']`.
    ///
    /// # Errors
    /// When the latents have other channels.
    pub fn decode(&self, latents: &[f32], [c, h, w]: [usize; 3]) -> Result<Vec<f32>> {
        if c != self.config.latent_channels || h * w == 0 {
            return Err(Error::Usage(format!(
                "the autoencoder takes latents of {} channels, not {c}x{h}x{w}",
                self.config.latent_channels
            )));
        }
        let (shift, scale) = self.shift_and_scale();
        let mut images = Vec::new();
        for latent in latents.chunks_exact(c * h * w) {
            let z: Vec<f32> = latent.iter().map(|z| z / scale + shift).collect();
            let z = Tensor::from_vec(z, (1, c, h, w), &Device::Cpu).map_err(failed)?;
            let channels = self.config.in_channels;
            images.extend(tiled(&z, (1, self.downscale()), self.tile, channels, |tile| self.decoder.forward(tile)).map_err(failed)?);
        }
        Ok(images)
    }

    fn shift_and_scale(&self) -> (f32, f32) {
        (self.config.shift_factor.unwrap_or(0.0) as f32, self.config.scaling_factor as f32)
    }
}

fn failed(error: candle_core::Error) -> Error {
    Error::Usage(format!("the autoencoder fails: {}", first_line(&error)))
}

impl AutoencoderConfig {
    fn validate(&self) -> Result<(), String> {
        let Self { block_out_channels: channels, norm_num_groups: groups, .. } = self;
        if self.use_quant_conv || self.use_post_quant_conv {
            return Err("has quantisation convolutions, which Stable Diffusion 3's autoencoder has not".into());
        }
        if channels.is_empty() || channels.len() > 8 || *groups == 0 || channels.iter().any(|c| *c == 0 || !c.is_multiple_of(*groups)) {
            return Err(format!("has levels of {channels:?} channels in {groups} groups, which is no autoencoder that can be built"));
        }
        if self.layers_per_block == 0 || self.layers_per_block > 64 || self.scaling_factor == 0.0 || !self.scaling_factor.is_finite() {
            return Err(format!("has {} layers a level and the scaling factor {}", self.layers_per_block, self.scaling_factor));
        }
        Ok(())
    }
}

fn conv(inputs: usize, outputs: usize, weights: VarBuilder<'_>) -> CandleResult<Conv2d> {
    conv2d(inputs, outputs, 3, Conv2dConfig { padding: 1, ..Conv2dConfig::default() }, weights)
}

fn middle(weights: VarBuilder<'_>, channels: usize, groups: usize) -> CandleResult<UNetMidBlock2D> {
    let config = UNetMidBlock2DConfig {
        resnet_eps: EPS,
        resnet_groups: Some(groups),
        attn_num_head_channels: None,
        ..UNetMidBlock2DConfig::default()
    };
    UNetMidBlock2D::new(weights, channels, None, config)
}

#[derive(Debug)]
struct Encoder {
    conv_in: Conv2d,
    down: Vec<DownEncoderBlock2D>,
    middle: UNetMidBlock2D,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn new(weights: VarBuilder<'_>, config: &AutoencoderConfig) -> CandleResult<Self> {
        let (channels, groups) = (&config.block_out_channels, config.norm_num_groups);
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let level = |i: usize| {
            let block = DownEncoderBlock2DConfig {
                num_layers: config.layers_per_block,
                resnet_eps: EPS,
                resnet_groups: groups,
                add_downsample: i + 1 < channels.len(),
                downsample_padding: 0,
                ..DownEncoderBlock2DConfig::default()
            };
            DownEncoderBlock2D::new(weights.pp(format!("down_blocks.{i}")), channels[i.saturating_sub(1)], channels[i], block)
        };
        Ok(Self {
            conv_in: conv(config.in_channels, first, weights.pp("conv_in"))?,
            down: (0..channels.len()).map(level).collect::<CandleResult<_>>()?,
            middle: middle(weights.pp("mid_block"), last, groups)?,
            norm_out: group_norm(groups, last, EPS, weights.pp("conv_norm_out"))?,
            conv_out: conv(last, 2 * config.latent_channels, weights.pp("conv_out"))?,
        })
    }

    /// Mean and log variance, one behind the other along the channels.
    fn forward(&self, image: &Tensor) -> CandleResult<Tensor> {
        let x = self.down.iter().try_fold(self.conv_in.forward(image)?, |x, level| level.forward(&x))?;
        let x = self.norm_out.forward(&self.middle.forward(&x, None)?)?;
        self.conv_out.forward(&ops::silu(&x)?)
    }
}

#[derive(Debug)]
struct Decoder {
    conv_in: Conv2d,
    middle: UNetMidBlock2D,
    up: Vec<UpDecoderBlock2D>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(weights: VarBuilder<'_>, config: &AutoencoderConfig) -> CandleResult<Self> {
        let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let groups = config.norm_num_groups;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let level = |i: usize| {
            let block = UpDecoderBlock2DConfig {
                num_layers: config.layers_per_block + 1,
                resnet_eps: EPS,
                resnet_groups: groups,
                add_upsample: i + 1 < channels.len(),
                ..UpDecoderBlock2DConfig::default()
            };
            UpDecoderBlock2D::new(weights.pp(format!("up_blocks.{i}")), channels[i.saturating_sub(1)], channels[i], block)
        };
        Ok(Self {
            conv_in: conv(config.latent_channels, first, weights.pp("conv_in"))?,
            middle: middle(weights.pp("mid_block"), first, groups)?,
            up: (0..channels.len()).map(level).collect::<CandleResult<_>>()?,
            norm_out: group_norm(groups, last, EPS, weights.pp("conv_norm_out"))?,
            conv_out: conv(last, config.in_channels, weights.pp("conv_out"))?,
        })
    }

    fn forward(&self, latent: &Tensor) -> CandleResult<Tensor> {
        let x = self.middle.forward(&self.conv_in.forward(latent)?, None)?;
        let x = self.up.iter().try_fold(x, |x, level| level.forward(&x))?;
        self.conv_out.forward(&ops::silu(&self.norm_out.forward(&x)?)?)
    }
}
