//! Stable Diffusion 3's text encoders (Esser et al., arXiv 2403.03206, section 4): two CLIPs and T5-XXL, on the CPU.
//!
//! Context: CLIP-L's and CLIP-G's last layer but one side by side, 77 rows, filled up with zeros to T5's width; then T5's
//! rows. Pooled: both projected outputs side by side. Without T5 its rows are zeros. As diffusers'
//! `StableDiffusion3Pipeline` computes them, to which the tests compare.

mod cache;
mod clip;
mod guard;
mod sources;
mod t5;
mod tokenizer;

use candle_core::{DType, Tensor};

pub use cache::{PromptCache, append};
pub use clip::{Activation, Clip, ClipConfig};
pub use sources::EncoderSources;
pub use t5::T5;
pub use tokenizer::PromptTokenizer;

use super::TextEmbedding;
use crate::format::parts::first_line;
use crate::{Error, Result};

/// Tokens of a prompt for CLIP.
pub const CLIP_TOKENS: usize = 77;
/// Prompts encoded at once.
const BATCH: usize = 8;

/// The encoders, loaded.
#[derive(Debug)]
pub struct Sd3Encoders {
    clips: Vec<(PromptTokenizer, Clip)>,
    t5: Option<(PromptTokenizer, T5)>,
    t5_tokens: usize,
    context_dim: usize,
    fingerprint: String,
}

impl Sd3Encoders {
    /// Loads them: with `t5_tokens` rows from T5, or of zeros where `with_t5` is false; `context_dim` is the width of the network's context.
    ///
    /// # Errors
    /// When a part is missing or damaged, or T5 has another width than the network's context.
    pub fn load(sources: &EncoderSources, t5_tokens: usize, with_t5: bool, context_dim: usize) -> Result<Self> {
        let clips = (0..2).map(|i| sources.clip(i, CLIP_TOKENS)).collect::<Result<Vec<_>>>()?;
        let t5 = with_t5.then(|| sources.t5(t5_tokens)).transpose()?;
        let width = |(_, clip): &(PromptTokenizer, Clip)| clip.width();
        let side_by_side: usize = clips.iter().map(width).sum();
        if let Some((_, t5)) = &t5
            && t5.width() != context_dim
        {
            return Err(Error::Usage(format!(
                "T5's rows are {} wide, the network's context {context_dim}: they do not belong together",
                t5.width()
            )));
        }
        if side_by_side > context_dim {
            return Err(Error::Usage(format!("both CLIPs together are {side_by_side} wide, the network's context only {context_dim}")));
        }
        let fingerprint = Self::fingerprint_of(sources, t5_tokens, with_t5, context_dim)?;
        Ok(Self { clips, t5, t5_tokens, context_dim, fingerprint })
    }

    /// Tells encoders of these sources and settings from others, without loading them.
    ///
    /// # Errors
    /// When a part is missing or damaged.
    pub fn fingerprint_of(sources: &EncoderSources, t5_tokens: usize, with_t5: bool, context_dim: usize) -> Result<String> {
        Ok(format!("{}/{t5_tokens}/{with_t5}/{context_dim}", sources.fingerprint(with_t5)?))
    }

    /// Rows of a context: both CLIPs' and T5's.
    pub fn tokens(&self) -> usize {
        CLIP_TOKENS + self.t5_tokens
    }

    /// Width of the pooled embedding.
    pub fn pooled_dim(&self) -> usize {
        self.clips.iter().map(|(_, clip)| clip.pooled_width()).sum()
    }

    /// Tells these encoders and settings from others.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Encodes prompts; `done` is told how many are.
    ///
    /// # Errors
    /// When a prompt cannot be cut into tokens.
    pub fn encode<S: AsRef<str>>(&mut self, prompts: &[S], mut done: impl FnMut(usize)) -> Result<Vec<TextEmbedding>> {
        let mut out = Vec::with_capacity(prompts.len());
        for part in prompts.chunks(BATCH) {
            out.extend(self.encode_batch(part)?);
            done(out.len());
        }
        Ok(out)
    }

    /// How many of the prompts are longer than CLIP's tokens, and than T5's; an example of each.
    ///
    /// # Errors
    /// When a prompt cannot be cut into tokens.
    pub fn cut<'a, S: AsRef<str>>(&self, prompts: &'a [S]) -> Result<[(usize, Option<&'a str>); 2]> {
        let mut found = [(0, None); 2];
        let tokenizers = [self.clips.first().map(|(tokenizer, _)| tokenizer), self.t5.as_ref().map(|(tokenizer, _)| tokenizer)];
        for (tokenizer, (count, example)) in tokenizers.into_iter().zip(&mut found) {
            let Some(tokenizer) = tokenizer else { continue };
            for prompt in prompts {
                if tokenizer.cuts(prompt.as_ref())? {
                    *count += 1;
                    example.get_or_insert(prompt.as_ref());
                }
            }
        }
        Ok(found)
    }

    fn encode_batch<S: AsRef<str>>(&mut self, prompts: &[S]) -> Result<Vec<TextEmbedding>> {
        let failed = |error: candle_core::Error| Error::Usage(format!("the text encoders fail: {}", first_line(&error)));
        let (mut rows, mut pooled) = (Vec::new(), Vec::new());
        for (tokenizer, clip) in &self.clips {
            let (penultimate, projected) = clip.forward(&tokenizer.encode(prompts)?).map_err(failed)?;
            rows.push(penultimate);
            pooled.push(projected);
        }
        let t5 = match &mut self.t5 {
            Some((tokenizer, t5)) => Some(t5.forward(&tokenizer.encode(prompts)?).map_err(failed)?),
            None => None,
        };
        self.assemble(&rows, &pooled, t5, prompts.len()).map_err(failed)
    }

    fn assemble(&self, rows: &[Tensor], pooled: &[Tensor], t5: Option<Tensor>, n: usize) -> candle_core::Result<Vec<TextEmbedding>> {
        let clips = Tensor::cat(rows, 2)?;
        let clips = clips.pad_with_zeros(2, 0, self.context_dim - clips.dim(2)?)?; // [n, 77, context_dim]
        let t5 = match t5 {
            Some(t5) => t5,
            None => Tensor::zeros((n, self.t5_tokens, self.context_dim), DType::F32, clips.device())?,
        };
        let context = Tensor::cat(&[clips, t5], 1)?;
        let pooled = Tensor::cat(pooled, 1)?;
        (0..n)
            .map(|i| Ok(TextEmbedding { context: context.get(i)?.flatten_all()?.to_vec1()?, pooled: pooled.get(i)?.to_vec1()? }))
            .collect()
    }
}
