//! Images to latents and back.
//!
//! [`CodecConfig::Dct`] is a stand-in for the VAE: an orthonormal block DCT, a fixed linear map without weights. It
//! spreads an image over `block * block` channels per colour at a `block`-th of the resolution, as a VAE does, but
//! compresses nothing, and decoding inverts it exactly. Each channel is shifted and scaled towards unit variance.
//! Stable Diffusion 3's is `Autoencoder`, with the feature `text`.

#[cfg(feature = "text")]
mod autoencoder;
#[cfg(feature = "text")]
mod ldm_names;
#[cfg(feature = "text")]
mod tiles;

#[cfg(feature = "text")]
pub use autoencoder::{Autoencoder, AutoencoderConfig, Moments};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Smallest standard deviation of a channel before whitening: nearly empty channels must not be blown up.
const STD_FLOOR: f64 = 0.05;
/// Largest block.
const MAX_BLOCK: usize = 32;

/// How images become latents. Images are `[C, H, W]` in [-1, 1], latents `[C', H', W']`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum CodecConfig {
    /// Orthonormal block DCT, the stand-in described above. Latent channel `(c * block + ky) * block + kx` holds the
    /// vertical frequency `ky` and the horizontal frequency `kx` of colour `c`, as `(coefficient - mean) / std`.
    Dct {
        /// Side of a block in pixels.
        block: usize,
        /// Channels of the image: 1 grey, 3 colour.
        channels: usize,
        /// Mean per latent channel.
        mean: Vec<f32>,
        /// Scale per latent channel.
        std: Vec<f32>,
    },
    /// Stable Diffusion 3's, by an autoencoder that is no part of the network's file.
    External {
        /// Channels of the latent (SD3: 16).
        channels: usize,
        /// Pixels per latent position and axis (SD3: 8).
        downscale: usize,
    },
}

impl CodecConfig {
    /// Channels of a latent.
    pub fn latent_channels(&self) -> usize {
        match self {
            Self::Dct { block, channels, .. } => channels * block * block,
            Self::External { channels, .. } => *channels,
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// Names the key and the value that is out of range.
    pub fn validate(&self) -> Result<()> {
        let positive = match self {
            Self::Dct { block, channels, .. } => [("block", *block, MAX_BLOCK), ("channels", *channels, 4)],
            Self::External { channels, downscale } => [("channels", *channels, 1 << 10), ("downscale", *downscale, 1 << 10)],
        };
        if let Some((key, value, most)) = positive.iter().find(|(_, value, most)| !(1..=*most).contains(value)) {
            return Err(Error::Config(format!("codec.{key} = {value} must be between 1 and {most}")));
        }
        let Self::Dct { mean, std, .. } = self else { return Ok(()) };
        for (key, values) in [("mean", mean), ("std", std)] {
            if values.len() != self.latent_channels() {
                return Err(Error::Config(format!(
                    "codec.{key} has {} numbers for {} latent channels",
                    values.len(),
                    self.latent_channels()
                )));
            }
        }
        if let Some(bad) = mean.iter().chain(std).find(|v| !v.is_finite()).or_else(|| std.iter().find(|v| **v <= 0.0)) {
            return Err(Error::Config(format!("codec.mean and codec.std must be finite, std positive, but one is {bad}")));
        }
        Ok(())
    }

    /// Shape of the latent of an image.
    ///
    /// # Errors
    /// When the image has other channels or is not a multiple of the block.
    pub fn latent_shape(&self, [c, h, w]: [usize; 3]) -> Result<[usize; 3]> {
        let (block, channels) = self.dct()?;
        if c != channels {
            return Err(Error::Usage(format!("the images have {c} channels, the codec takes {channels}")));
        }
        if h == 0 || w == 0 || !h.is_multiple_of(block) || !w.is_multiple_of(block) {
            return Err(Error::Usage(format!("an image of {h}x{w} cannot be cut into {block}x{block} blocks: pad it first")));
        }
        Ok([c * block * block, h / block, w / block])
    }

    /// Shape of the image of a latent.
    ///
    /// # Errors
    /// When the latent has other channels.
    pub fn image_shape(&self, [c, h, w]: [usize; 3]) -> Result<[usize; 3]> {
        let (block, channels) = self.dct()?;
        if c != self.latent_channels() {
            return Err(Error::Usage(format!("the latents have {c} channels, the codec makes {}", self.latent_channels())));
        }
        Ok([channels, h * block, w * block])
    }

    /// Encodes a batch of images of one shape, `[n, C, H, W]`, in parallel.
    ///
    /// # Errors
    /// When the shape does not suit the codec, or `images` is not a whole number of images.
    pub fn encode(&self, images: &[f32], shape: [usize; 3]) -> Result<Vec<f32>> {
        let Self::Dct { block, mean, std, .. } = self else { return Err(external()) };
        self.latent_shape(shape)?;
        let basis = Basis::new(*block);
        map_images(images, shape, |image, latent| {
            basis.forward(image, shape, latent);
            for (plane, (mean, std)) in planes(latent, mean.len()).zip(mean.iter().zip(std)) {
                plane.iter_mut().for_each(|z| *z = (*z - mean) / std);
            }
        })
    }

    /// Decodes a batch of latents of one shape, `[n, C', H', W']`, in parallel. Pixels are not clamped.
    ///
    /// # Errors
    /// When the shape does not suit the codec, or `latents` is not a whole number of latents.
    pub fn decode(&self, latents: &[f32], shape: [usize; 3]) -> Result<Vec<f32>> {
        let Self::Dct { block, mean, std, .. } = self else { return Err(external()) };
        let image_shape = self.image_shape(shape)?;
        let basis = Basis::new(*block);
        map_images(latents, shape, |latent, image| {
            let mut raw = latent.to_vec();
            for (plane, (mean, std)) in planes(&mut raw, mean.len()).zip(mean.iter().zip(std)) {
                plane.iter_mut().for_each(|z| *z = *z * std + mean);
            }
            basis.inverse(&raw, image_shape, image);
        })
    }

    /// Fits a DCT codec to images of one shape, `[n, C, H, W]`. With `whiten` = 1 every channel gets unit variance; with 0
    /// all are scaled alike; the demo's 0.5 leaves low frequencies, which matter most, half their weight. With `g` the
    /// root mean square of the channels' deviations `s`, the scale is `g (s / g)^whiten`.
    ///
    /// # Errors
    /// When there are no images, their shape does not suit, or `whiten` is not in [0, 1].
    pub fn fit(block: usize, images: &[f32], shape: [usize; 3], whiten: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&whiten) {
            return Err(Error::Config(format!("codec.whiten = {whiten} must be between 0 and 1")));
        }
        let channels = shape[0];
        let identity = vec![0.0; channels * block * block];
        let raw = Self::Dct { block, channels, mean: identity.clone(), std: vec![1.0; identity.len()] };
        raw.validate()?;
        let [latent_channels, h, w] = raw.latent_shape(shape)?;
        let latents = raw.encode(images, shape)?;
        let samples = latents.len() / latent_channels;
        if samples < 2 {
            return Err(Error::Usage("a codec cannot be fitted to fewer than two blocks of pixels: give more images".into()));
        }
        let channel = |c: usize| latents.chunks_exact(h * w).skip(c).step_by(latent_channels).flatten().map(|z| f64::from(*z));
        let mean: Vec<f64> = (0..latent_channels).into_par_iter().map(|c| channel(c).sum::<f64>() / samples as f64).collect();
        let deviation = |c: usize| (channel(c).map(|z| (z - mean[c]).powi(2)).sum::<f64>() / (samples - 1) as f64).sqrt();
        let std: Vec<f64> = (0..latent_channels).into_par_iter().map(|c| deviation(c).max(STD_FLOOR)).collect();
        let g = (std.iter().map(|s| s * s).sum::<f64>() / std.len() as f64).sqrt();
        let std = std.iter().map(|s| (g * (s / g).powf(whiten)) as f32).collect();
        let fitted = Self::Dct { block, channels, mean: mean.iter().map(|m| *m as f32).collect(), std };
        fitted.validate().map_err(|error| Error::Usage(format!("the images are not finite numbers ({error})")))?;
        Ok(fitted)
    }

    fn dct(&self) -> Result<(usize, usize)> {
        match self {
            Self::Dct { block, channels, .. } => Ok((*block, *channels)),
            Self::External { .. } => Err(external()),
        }
    }
}

fn external() -> Error {
    Error::Usage("this network's latents belong to an autoencoder, which this build of ladd-fast has not: build it with `--features text` (docs/sd3.md)".into())
}

/// Applies `map` to every image of a batch; input and output have equally many numbers per image.
fn map_images(input: &[f32], shape: [usize; 3], map: impl Fn(&[f32], &mut [f32]) + Sync) -> Result<Vec<f32>> {
    let size: usize = shape.iter().product();
    if size == 0 || !input.len().is_multiple_of(size) {
        return Err(Error::Usage(format!("{} numbers are no whole number of {shape:?} images or latents", input.len())));
    }
    let mut output = vec![0.0; input.len()];
    output.par_chunks_exact_mut(size).zip(input.par_chunks_exact(size)).for_each(|(out, image)| map(image, out));
    Ok(output)
}

fn planes(latent: &mut [f32], channels: usize) -> impl Iterator<Item = &mut [f32]> {
    let plane = latent.len() / channels;
    latent.chunks_exact_mut(plane)
}

/// The orthonormal DCT-II of length `block`.
struct Basis {
    block: usize,
    /// `cosines[k * block + i]`: the value of frequency k at position i.
    cosines: Vec<f32>,
}

impl Basis {
    fn new(block: usize) -> Self {
        let n = block as f64;
        let entry = |k: usize, i: usize| {
            let scale = if k == 0 { (1.0 / n).sqrt() } else { (2.0 / n).sqrt() };
            (scale * (std::f64::consts::PI * (i as f64 + 0.5) * k as f64 / n).cos()) as f32
        };
        Self { block, cosines: (0..block * block).map(|e| entry(e / block, e % block)).collect() }
    }

    /// Pixels `[C, H, W]` -> coefficients `[C b b, H/b, W/b]`.
    fn forward(&self, image: &[f32], shape: [usize; 3], latent: &mut [f32]) {
        let b = self.block;
        let mut block = vec![0.0; 2 * b * b];
        self.for_each_block(shape, |pixel, coefficient| {
            let (tile, spare) = block.split_at_mut(b * b);
            (0..b * b).for_each(|e| tile[e] = image[pixel(e)]);
            self.transform(tile, spare, |k, i| k * b + i);
            (0..b * b).for_each(|e| latent[coefficient(e)] = tile[e]);
        });
    }

    /// Coefficients `[C b b, H/b, W/b]` -> pixels `[C, H, W]`, `shape` being the image's.
    fn inverse(&self, latent: &[f32], shape: [usize; 3], image: &mut [f32]) {
        let b = self.block;
        let mut block = vec![0.0; 2 * b * b];
        self.for_each_block(shape, |pixel, coefficient| {
            let (tile, spare) = block.split_at_mut(b * b);
            (0..b * b).for_each(|e| tile[e] = latent[coefficient(e)]);
            self.transform(tile, spare, |i, k| k * b + i);
            (0..b * b).for_each(|e| image[pixel(e)] = tile[e]);
        });
    }

    /// Calls `visit` for each block with the place of its element e (row e / b, column e % b) in image and latent.
    fn for_each_block(&self, [c, h, w]: [usize; 3], mut visit: impl FnMut(&dyn Fn(usize) -> usize, &dyn Fn(usize) -> usize)) {
        let b = self.block;
        let (rows, columns) = (h / b, w / b);
        for channel in 0..c {
            for place in 0..rows * columns {
                let (row, column) = (place / columns, place % columns);
                let pixel = |e: usize| (channel * h + row * b + e / b) * w + column * b + e % b;
                let coefficient = |e: usize| (channel * b * b + e) * rows * columns + place;
                visit(&pixel, &coefficient);
            }
        }
    }

    /// `tile <- M tile M^T`, with `M[out, in] = cosines[at(out, in)]`: rows first, then columns.
    fn transform(&self, tile: &mut [f32], spare: &mut [f32], at: impl Fn(usize, usize) -> usize) {
        let b = self.block;
        for (row, out) in tile.chunks_exact(b).zip(spare.chunks_exact_mut(b)) {
            for (x, value) in out.iter_mut().enumerate() {
                *value = (0..b).map(|i| self.cosines[at(x, i)] * row[i]).sum();
            }
        }
        for y in 0..b {
            for x in 0..b {
                tile[y * b + x] = (0..b).map(|i| self.cosines[at(y, i)] * spare[i * b + x]).sum();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn raw(block: usize, channels: usize) -> CodecConfig {
        let n = channels * block * block;
        CodecConfig::Dct { block, channels, mean: vec![0.0; n], std: vec![1.0; n] }
    }

    fn noise(count: usize) -> Vec<f32> {
        let mut state = 1u32;
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn coefficients_are_where_they_belong() {
        let mut image = vec![0.0; 2 * 8 * 8];
        image[64..].fill(0.5); // second colour: constant
        for (i, pixel) in image[..64].iter_mut().enumerate() {
            let x = (i % 8 % 4) as f32; // first colour: horizontal frequency 1 in every block
            *pixel = (std::f32::consts::PI * (x + 0.5) / 4.0).cos();
        }
        let latent = raw(4, 2).encode(&image, [2, 8, 8]).unwrap(); // [32, 2, 2]
        for (i, z) in latent.iter().enumerate() {
            let expected = match i / 4 {
                1 => 8f32.sqrt(), // ky = 0, kx = 1: sum over 4 rows (scale 1/2) of sqrt(1/2) * 2
                16 => 2.0,        // constant 0.5 over 16 pixels
                _ => 0.0,
            };
            approx::assert_abs_diff_eq!(*z, expected, epsilon = 1e-6);
        }
    }

    #[test]
    fn fitting_whitens() {
        let images: Vec<f32> = noise(64 * 256).iter().enumerate().map(|(i, v)| 0.3 + v * if i % 16 < 8 { 0.1 } else { 0.4 }).collect();
        let shape = [1, 16, 16];
        let full = CodecConfig::fit(4, &images, shape, 1.0).unwrap();
        let latents = full.encode(&images, shape).unwrap();
        for c in 0..16 {
            let values: Vec<f32> = latents.chunks_exact(16).skip(c).step_by(16).flatten().copied().collect();
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / (values.len() - 1) as f32;
            approx::assert_abs_diff_eq!(mean, 0.0, epsilon = 1e-4);
            approx::assert_abs_diff_eq!(variance, 1.0, epsilon = 1e-3);
        }
        let (CodecConfig::Dct { std: s, mean, .. }, CodecConfig::Dct { std: h, .. }, CodecConfig::Dct { std: none, .. }) =
            (&full, &CodecConfig::fit(4, &images, shape, 0.5).unwrap(), &CodecConfig::fit(4, &images, shape, 0.0).unwrap())
        else {
            panic!("fit makes a DCT codec")
        };
        approx::assert_abs_diff_eq!(mean[0], 1.2, epsilon = 0.02);
        let g = (s.iter().map(|s| s * s).sum::<f32>() / 16.0).sqrt();
        for c in 0..16 {
            approx::assert_relative_eq!(h[c], (g * s[c]).sqrt(), epsilon = 1e-5);
            approx::assert_relative_eq!(none[c], g, epsilon = 1e-5);
        }
        let flat = CodecConfig::fit(4, &vec![0.5; 1024], [1, 32, 32], 1.0).unwrap();
        let CodecConfig::Dct { std, .. } = flat else { panic!("fit makes a DCT codec") };
        assert!(std.iter().all(|s| (*s - 0.05).abs() < 1e-6), "constant images hit the floor");
    }

    #[test]
    fn shapes_that_do_not_suit_are_refused() {
        let codec = raw(4, 1);
        let says = |result: Result<Vec<f32>>, what: &str| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        says(codec.encode(&[0.0; 30], [1, 5, 6]), "5x6 cannot be cut");
        says(codec.encode(&[0.0; 48], [3, 4, 4]), "3 channels, the codec takes 1");
        says(codec.encode(&[0.0; 17], [1, 4, 4]), "17 numbers");
        says(codec.decode(&[0.0; 15], [15, 1, 1]), "15 channels, the codec makes 16");
        says(CodecConfig::External { channels: 16, downscale: 8 }.decode(&[], [16, 1, 1]), "--features text");
        assert!(CodecConfig::fit(4, &[], [1, 4, 4], 0.5).is_err());
        assert!(CodecConfig::fit(4, &[f32::NAN; 32], [1, 4, 8], 0.5).is_err());
        assert!(CodecConfig::fit(4, &[0.0; 32], [1, 4, 8], 2.0).is_err());
        assert!(CodecConfig::Dct { block: 2, channels: 1, mean: vec![0.0; 4], std: vec![0.0; 4] }.validate().is_err());
        assert!(CodecConfig::Dct { block: 2, channels: 1, mean: vec![0.0; 3], std: vec![1.0; 4] }.validate().is_err());
    }

    #[test]
    fn settings_survive_json() {
        let codec = CodecConfig::fit(2, &noise(64), [1, 8, 8], 0.5).unwrap();
        let json = serde_json::to_string(&codec).unwrap();
        assert_eq!(serde_json::from_str::<CodecConfig>(&json).unwrap(), codec);
        assert!(json.starts_with(r#"{"kind":"dct","block":2"#), "{json}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn decoding_inverts_encoding_and_keeps_the_energy(block in 1usize..9, channels in 1usize..4, rows in 1usize..4, columns in 1usize..4, n in 1usize..4) {
            let shape = [channels, rows * block, columns * block];
            let images = noise(n * shape.iter().product::<usize>());
            let codec = raw(block, channels);
            let latents = codec.encode(&images, shape).unwrap();
            let energy = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
            prop_assert!((energy(&images) - energy(&latents)).abs() <= 1e-5 * energy(&images));
            let fitted = CodecConfig::Dct { block, channels, mean: noise(channels * block * block), std: vec![0.3; channels * block * block] };
            let latents = fitted.encode(&images, shape).unwrap();
            let decoded = fitted.decode(&latents, fitted.latent_shape(shape).unwrap()).unwrap();
            prop_assert!(images.iter().zip(&decoded).all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }
}
