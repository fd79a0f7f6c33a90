//! Prompts to latents and images, in batches, with one sampler plan per use.

use image::{Rgb, RgbImage};

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;

use super::{Encoders, Outcome, interrupt};
use crate::Result;
use crate::device::Backend;
use crate::flow::{SampleSettings, Sampler, TextBatch};
use crate::model::{Mmdit, Shape};
use crate::text::TextEmbedding;

/// Encoded prompts, to be put together into batches.
#[derive(Clone, Debug)]
pub struct Prompts {
    /// The prompts.
    pub names: Vec<String>,
    embeddings: Embeddings,
}

/// Where the encoded prompts are.
#[derive(Clone, Debug)]
enum Embeddings {
    Memory(Vec<TextEmbedding>),
    /// One file each.
    #[cfg_attr(not(feature = "text"), expect(dead_code, reason = "only the text encoders write such files"))]
    Disk(Vec<PathBuf>),
}

impl Prompts {
    /// Prompts whose embeddings are in memory.
    pub fn in_memory(names: &[String], embeddings: Vec<TextEmbedding>) -> Self {
        Self { names: names.to_vec(), embeddings: Embeddings::Memory(embeddings) }
    }

    /// Prompts whose embeddings are in files, too many for memory.
    #[cfg(feature = "text")]
    pub fn on_disk(names: &[String], files: Vec<PathBuf>) -> Self {
        Self { names: names.to_vec(), embeddings: Embeddings::Disk(files) }
    }

    /// Context `[n, L, d]` and pooled text `[n, p]` of the prompts at `which`, into memory that is used again.
    pub fn gather(&self, which: impl Iterator<Item = usize>, context: &mut Vec<f32>, pooled: &mut Vec<f32>) -> Result<()> {
        context.clear();
        pooled.clear();
        for index in which {
            match &self.embeddings {
                Embeddings::Memory(embeddings) => {
                    context.extend_from_slice(&embeddings[index].context);
                    pooled.extend_from_slice(&embeddings[index].pooled);
                }
                #[cfg(feature = "text")]
                Embeddings::Disk(files) => crate::text::sd3::append(&files[index], context, pooled)?,
                #[cfg(not(feature = "text"))]
                Embeddings::Disk(_) => {}
            }
        }
        Ok(())
    }
}

/// Draws with one architecture and size; the weights are passed to each call.
#[derive(Debug)]
pub struct Painter<'a, B: Backend> {
    b: &'a B,
    model: Mmdit<B>,
    encoders: &'a Encoders<'a>,
    latent: [usize; 3],
    tokens: usize,
    batch: usize,
    negative: (Vec<f32>, Vec<f32>),
    /// Plans by latent shape, batch, and whether they are guided.
    samplers: HashMap<([usize; 3], usize, bool), Sampler<B>>,
}

/// What to draw: prompt `which[i]` with the noise of sample `first + i` of `seed`.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// The sampler.
    pub settings: &'a SampleSettings,
    /// Seed.
    pub seed: u64,
    /// Number of the first sample.
    pub first: u32,
    /// The prompts.
    pub prompts: &'a Prompts,
    /// Which of them.
    pub which: &'a [usize],
    /// What each is conditioned on, `[n, K, H, W]`, for networks that read it.
    pub conditioning: Option<&'a [f32]>,
}

impl<'a, B: Backend> Painter<'a, B> {
    /// Plans drawing of `latent` `[C, H, W]`, up to `batch` at once; guidance steers away from `negative`.
    pub fn new(b: &'a B, model: Mmdit<B>, encoders: &'a Encoders<'a>, latent: [usize; 3], batch: usize, negative: &str) -> Outcome<Self> {
        let (mut context, mut pooled) = (Vec::new(), Vec::new());
        encoders.prompts(&[negative.to_owned()])?.gather(std::iter::once(0), &mut context, &mut pooled)?;
        let negative = (context, pooled);
        Ok(Self { b, model, encoders, latent, tokens: encoders.tokens()?, batch, negative, samplers: HashMap::new() })
    }

    /// Draws latents of another shape `[C, H, W]`, up to `batch` at once, from now on; returns what it drew before.
    pub fn change(&mut self, (latent, batch): ([usize; 3], usize)) -> ([usize; 3], usize) {
        (std::mem::replace(&mut self.latent, latent), std::mem::replace(&mut self.batch, batch))
    }

    /// Latents `[n, C, H, W]`. `drawn` hears how many are done.
    pub fn latents(&mut self, params: &B::Data, order: &Order<'_>, mut drawn: impl FnMut(usize)) -> Outcome<Vec<f32>> {
        let guided = order.settings.guided();
        let [_, height, width] = self.latent;
        let shape = Shape { batch: self.batch, height, width, text: self.tokens };
        let sampler = match self.samplers.entry((self.latent, self.batch, guided)) {
            Entry::Occupied(planned) => planned.into_mut(),
            Entry::Vacant(place) => place.insert(Sampler::new(self.b, &self.model, shape, guided)?),
        };
        let negative = TextBatch { context: &self.negative.0, pooled: &self.negative.1 };
        let mut latents = Vec::with_capacity(order.which.len() * self.latent.iter().product::<usize>());
        let (mut context, mut pooled) = (Vec::new(), Vec::new());
        for (index, which) in order.which.chunks(self.batch).enumerate() {
            interrupt::check()?;
            order.prompts.gather(which.iter().copied(), &mut context, &mut pooled)?;
            let text = TextBatch { context: &context, pooled: &pooled };
            if let Some(conditioning) = order.conditioning {
                let len = conditioning.len() / order.which.len();
                sampler.condition(self.b, &conditioning[index * self.batch * len..(index * self.batch + which.len()) * len]);
            }
            let first = order.first + (index * self.batch) as u32;
            let part = sampler.sample(self.b, &self.model, params, order.settings, order.seed, first, which.len(), text, negative)?;
            latents.extend(part);
            drawn(index * self.batch + which.len());
        }
        Ok(latents)
    }

    /// Pixels `[n, C, H, W]` in about [-1, 1], not clamped.
    pub fn pixels(&mut self, params: &B::Data, order: &Order<'_>, drawn: impl FnMut(usize)) -> Outcome<Vec<f32>> {
        let latents = self.latents(params, order, drawn)?;
        Ok(self.encoders.decode(&latents, self.latent)?)
    }

    /// Pictures to look at.
    pub fn pictures(&mut self, params: &B::Data, order: &Order<'_>) -> Outcome<Vec<RgbImage>> {
        let pixels = self.pixels(params, order, |_| ())?;
        Ok(pictures(&pixels, self.image_shape()?))
    }

    /// Shape of an image, `[C, H, W]`.
    pub fn image_shape(&self) -> Result<[usize; 3]> {
        self.encoders.image_shape(self.latent)
    }
}

/// Pixels `[n, C, H, W]` in [-1, 1] as pictures; one channel is grey, the first three of more are red, green and blue.
pub fn pictures(pixels: &[f32], [channels, height, width]: [usize; 3]) -> Vec<RgbImage> {
    let plane = height * width;
    let byte = |value: f32| ((value.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8;
    let picture = |image: &[f32]| {
        RgbImage::from_fn(width as u32, height as u32, |x, y| {
            let at = |channel: usize| byte(image[channel.min(channels - 1) * plane + y as usize * width + x as usize]);
            if channels < 3 { Rgb([at(0); 3]) } else { Rgb([at(0), at(1), at(2)]) }
        })
    };
    pixels.chunks_exact(channels * plane).map(picture).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_become_grey_or_coloured_pictures() {
        let grey = pictures(&[-1.0, 1.0, 3.0, f32::NAN], [1, 1, 2]);
        assert_eq!((grey.len(), grey[0].get_pixel(1, 0).0, grey[1].get_pixel(0, 0).0), (2, [255; 3], [255; 3]));
        let colour = pictures(&[1.0, -1.0, -1.0], [3, 1, 1]);
        assert_eq!(colour[0].get_pixel(0, 0).0, [255, 0, 0]);
    }
}
