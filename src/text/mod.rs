//! Prompts to context and pooled embeddings.
//!
//! [`TextConfig::Words`] is a stand-in for CLIP and T5: every word has a frozen random vector, so that two prompts
//! differ exactly where their words do and no weights have to be downloaded. It knows nothing of meaning: `shoe` and
//! `sneaker` are as far apart as any two words. Enough for a data set with a few prompts, useless beyond it.
//! Stable Diffusion 3's CLIP and T5 are in `sd3`, with the feature `text`.

#[cfg(feature = "text")]
pub mod sd3;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::flow::philox;
use crate::{Error, Result};

/// Largest width or length that is taken for meant.
const LIMIT: usize = 1 << 16;

/// How prompts become the network's inputs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TextConfig {
    /// Frozen random word vectors, the stand-in described above.
    Words {
        /// Width of a vector, of the context and of the pooled embedding.
        dim: usize,
        /// Words of a prompt that are used, one context row each; the rest is cut off.
        tokens: usize,
    },
    /// Stable Diffusion 3's, by encoders that are no part of the network's file (module `sd3`, with the feature `text`).
    External {
        /// Width of the context (SD3: 4096).
        context_dim: usize,
        /// Width of the pooled embedding (SD3: 2048).
        pooled_dim: usize,
    },
}

/// A prompt as the network sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct TextEmbedding {
    /// One row per token, `[tokens, context_dim]`.
    pub context: Vec<f32>,
    /// The sum of the rows, `[pooled_dim]`.
    pub pooled: Vec<f32>,
}

impl TextConfig {
    /// Width of a context row.
    pub fn context_dim(&self) -> usize {
        match self {
            Self::Words { dim, .. } => *dim,
            Self::External { context_dim, .. } => *context_dim,
        }
    }

    /// Width of the pooled embedding.
    pub fn pooled_dim(&self) -> usize {
        match self {
            Self::Words { dim, .. } => *dim,
            Self::External { pooled_dim, .. } => *pooled_dim,
        }
    }

    /// Context rows of an encoded prompt.
    ///
    /// # Errors
    /// When prompts are not encoded here.
    pub fn tokens(&self) -> Result<usize> {
        match self {
            Self::Words { tokens, .. } => Ok(*tokens),
            Self::External { .. } => Err(external()),
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// Names the key and the value that is out of range.
    pub fn validate(&self) -> Result<()> {
        let numbers = match self {
            Self::Words { dim, tokens } => [("dim", *dim), ("tokens", *tokens)],
            Self::External { context_dim, pooled_dim } => [("context_dim", *context_dim), ("pooled_dim", *pooled_dim)],
        };
        match numbers.iter().find(|(_, value)| !(1..=LIMIT).contains(value)) {
            Some((key, value)) => Err(Error::Config(format!("text.{key} = {value} must be between 1 and {LIMIT}"))),
            None => Ok(()),
        }
    }

    /// Encodes prompts. Words beyond `tokens` are cut off, with one warning in the log; the empty prompt, which guidance
    /// steers away from, is all zeros.
    ///
    /// # Errors
    /// When prompts are not encoded here.
    pub fn encode<S: AsRef<str>>(&self, prompts: &[S]) -> Result<Vec<TextEmbedding>> {
        let Self::Words { dim, tokens } = *self else { return Err(external()) };
        let long = |prompt: &&S| words(prompt.as_ref()).nth(tokens).is_some();
        if let Some(example) = prompts.iter().find(long) {
            let count = prompts.iter().filter(long).count();
            tracing::warn!("{count} prompts have more than {tokens} words, the rest of which is ignored, as in {:?}", example.as_ref());
        }
        Ok(prompts.iter().map(|prompt| embed(prompt.as_ref(), dim, tokens)).collect())
    }
}

fn external() -> Error {
    Error::Usage(
        "this network's prompts are encoded by CLIP and T5, which this build of ladd-fast has not: build it with `--features text` (docs/sd3.md)"
            .into(),
    )
}

fn words(prompt: &str) -> impl Iterator<Item = String> {
    let separated = prompt.split(|c: char| c.is_whitespace() || c == '-');
    separated.filter(|word| !word.is_empty()).map(str::to_lowercase)
}

fn embed(prompt: &str, dim: usize, tokens: usize) -> TextEmbedding {
    let mut context = vec![0.0; tokens * dim]; // [tokens, dim]
    let mut pooled = vec![0.0; dim];
    for (word, row) in words(prompt).zip(context.chunks_exact_mut(dim)) {
        word_vector(&word, row);
        pooled.iter_mut().zip(row).for_each(|(sum, value)| *sum += *value);
    }
    TextEmbedding { context, pooled }
}

/// Standard normals from the Philox stream whose seed is the first eight bytes of the word's SHA-256.
fn word_vector(word: &str, out: &mut [f32]) {
    let digest: [u8; 32] = Sha256::digest(word.as_bytes()).into();
    let seed = digest.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    philox::fill_normals(seed, 0, philox::stream::WORDS, 0, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: TextConfig = TextConfig::Words { dim: 64, tokens: 4 };

    fn one(prompt: &str) -> TextEmbedding {
        WORDS.encode(&[prompt]).unwrap().remove(0)
    }

    #[test]
    fn words_fill_rows_and_sum_to_the_pooled_embedding() {
        let (boot, ankle_boot) = (one("boot"), one("Ankle-BOOT"));
        assert_eq!(ankle_boot, one("  ankle\tboot "));
        assert_eq!(ankle_boot.context[64..128], boot.context[..64]);
        assert!(ankle_boot.context[128..].iter().all(|v| *v == 0.0));
        for i in 0..64 {
            assert_eq!(ankle_boot.pooled[i], ankle_boot.context[i] + ankle_boot.context[64 + i]);
        }
        assert_ne!(one("boot"), one("bag"));
        assert_eq!(one("bag"), one("bag"));
    }

    #[test]
    fn vectors_are_standard_normal() {
        let values: Vec<f32> = (0..200).flat_map(|i| one(&format!("word{i}")).pooled).collect();
        let n = values.len() as f32;
        let mean = values.iter().sum::<f32>() / n;
        let variance = values.iter().map(|v| v * v).sum::<f32>() / n;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.04, "{mean} {variance}");
    }

    #[test]
    fn empty_prompts_are_zero_and_long_ones_are_cut() {
        assert_eq!(one(""), TextEmbedding { context: vec![0.0; 256], pooled: vec![0.0; 64] });
        assert_eq!(one(" - "), one(""));
        assert_eq!(one("a b c d e"), one("a b c d"));
    }

    #[test]
    fn settings_are_checked_and_survive_json() {
        let json = serde_json::to_string(&WORDS).unwrap();
        assert_eq!(json, r#"{"kind":"words","dim":64,"tokens":4}"#);
        assert_eq!(serde_json::from_str::<TextConfig>(&json).unwrap(), WORDS);
        let error = TextConfig::Words { dim: 64, tokens: 0 }.validate().unwrap_err().to_string();
        assert!(error.contains("text.tokens = 0"), "{error}");
        let external = TextConfig::External { context_dim: 4096, pooled_dim: 2048 };
        external.validate().unwrap();
        assert!(external.encode(&["x"]).unwrap_err().to_string().contains("--features text"));
    }
}
