//! Where the encoders' files are: a pipeline's folder, or an original single file with the tokenizers of a folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::DType;

use super::{Clip, ClipConfig, PromptTokenizer, T5};
use crate::format::SafetensorsFile;
use crate::format::parts::{Part, read_config};
use crate::{Error, Result};

/// Folders of a pipeline, CLIP-L, CLIP-G, T5.
const ENCODERS: [&str; 3] = ["text_encoder", "text_encoder_2", "text_encoder_3"];
const TOKENIZERS: [&str; 3] = ["tokenizer", "tokenizer_2", "tokenizer_3"];
/// What stands before their tensors in an original single file.
const PREFIXES: [&str; 3] = ["text_encoders.clip_l.transformer.", "text_encoders.clip_g.transformer.", "text_encoders.t5xxl.transformer."];
const NAMES: [&str; 3] = ["CLIP-L", "CLIP-G", "T5"];

/// Where the encoders are.
#[derive(Clone, Debug)]
pub struct EncoderSources {
    /// The pipeline's folder; with a single file, the folder of the tokenizers.
    folder: PathBuf,
    file: Option<Arc<SafetensorsFile>>,
}

impl EncoderSources {
    /// The folder of a diffusers pipeline: `text_encoder`, `text_encoder_2`, `text_encoder_3` and their tokenizers.
    ///
    /// # Errors
    /// When there is no such folder.
    pub fn pipeline(folder: &Path) -> Result<Self> {
        if !folder.is_dir() {
            return Err(Error::file(folder, "is not a folder: name the folder of a diffusers pipeline"));
        }
        Ok(Self { folder: folder.to_owned(), file: None })
    }

    /// An original single file that holds the encoders' weights. Tokenizers are not part of such files: `tokenizers` is a
    /// folder that holds `tokenizer`, `tokenizer_2` and `tokenizer_3`.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn single(file: &Path, tokenizers: &Path) -> Result<Self> {
        Ok(Self { folder: tokenizers.to_owned(), file: Some(Arc::new(SafetensorsFile::open(file)?)) })
    }

    /// Whether T5's weights are there.
    pub fn has_t5(&self) -> bool {
        match &self.file {
            Some(file) => file.names().iter().any(|name| name.starts_with(PREFIXES[2])),
            None => self.folder.join(ENCODERS[2]).is_dir(),
        }
    }

    /// CLIP-L (0) or CLIP-G (1), with a tokenizer to `length` tokens.
    pub(super) fn clip(&self, which: usize, length: usize) -> Result<(PromptTokenizer, Clip)> {
        let part = self.part(which)?;
        let config = match (&self.file, which) {
            (None, _) => read_config(&self.folder.join(ENCODERS[which]))?,
            (Some(_), 0) => ClipConfig::clip_l(),
            (Some(_), _) => ClipConfig::clip_g(),
        };
        check(&part, "num_attention_heads", config.hidden_size, config.num_attention_heads)?;
        if config.max_position_embeddings < length {
            return Err(Error::file(
                part.origin(),
                format!("has positions for {} tokens where {length} are needed", config.max_position_embeddings),
            ));
        }
        let clip = part.build(DType::F32, |weights| Clip::new(weights, &config))?;
        Ok((PromptTokenizer::open(&self.folder.join(TOKENIZERS[which]), length)?, clip))
    }

    /// T5, with a tokenizer to `length` tokens. Its weights stay in 16 bits: in f32 T5-XXL would take 19 GB.
    pub(super) fn t5(&self, length: usize) -> Result<(PromptTokenizer, T5)> {
        let part = self.part(2)?;
        let config = if self.file.is_none() { read_config(&self.folder.join(ENCODERS[2]))? } else { T5::xxl() };
        let t5 = part.build(part.kept_in(), |weights| T5::new(weights, &config))?;
        Ok((PromptTokenizer::open(&self.folder.join(TOKENIZERS[2]), length)?, t5))
    }

    /// Tells these weights from others.
    pub(super) fn fingerprint(&self, with_t5: bool) -> Result<String> {
        let parts = if with_t5 { 3 } else { 2 };
        let prints: Vec<String> = (0..parts).map(|which| self.part(which)?.fingerprint()).collect::<Result<_>>()?;
        Ok(prints.join("/"))
    }

    fn part(&self, which: usize) -> Result<Part> {
        let Some(file) = &self.file else { return Part::folder(&self.folder.join(ENCODERS[which])) };
        let part = Part::within(file, |name| name.strip_prefix(PREFIXES[which]).map(str::to_owned))?;
        if part.is_empty() {
            let name = NAMES[which];
            return Err(Error::file(
                file.path(),
                format!(
                    "does not hold {name} (no tensor begins with `{}`): take the file that includes the text encoders, or a diffusers folder",
                    PREFIXES[which]
                ),
            ));
        }
        Ok(part)
    }
}

fn check(part: &Part, what: &str, hidden: usize, heads: usize) -> Result<()> {
    if heads == 0 || !hidden.is_multiple_of(heads) {
        return Err(Error::file(part.origin(), format!("says {what} = {heads}, which does not divide the width {hidden}")));
    }
    Ok(())
}
