//! Encoded prompts on disk, so that no prompt is encoded twice: one small file each, named by the SHA-256 of the encoders'
//! fingerprint and the prompt.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::format::{Dtype, Entry, SafetensorsFile, hex, prepare_safetensors, write_atomically};
use crate::text::TextEmbedding;
use crate::{Error, Result};

/// A folder of encoded prompts of one set of encoders.
#[derive(Clone, Debug)]
pub struct PromptCache {
    folder: PathBuf,
    fingerprint: String,
    /// Context `[tokens, width]` and pooled `[width]`.
    shapes: ([usize; 2], [usize; 1]),
}

impl PromptCache {
    /// The cache in `folder` for encoders of that fingerprint, whose contexts have the shape `[tokens, width]`.
    pub fn new(folder: &Path, fingerprint: &str, context: [usize; 2], pooled: usize) -> Self {
        Self { folder: folder.to_owned(), fingerprint: fingerprint.to_owned(), shapes: (context, [pooled]) }
    }

    /// The file of a prompt, whether it is there or not.
    pub fn file(&self, prompt: &str) -> PathBuf {
        let name = hex(&Sha256::new().chain_update(&self.fingerprint).chain_update([0]).chain_update(prompt).finalize());
        self.folder.join(&name[..2]).join(format!("{name}.safetensors"))
    }

    /// Whether a prompt is there, whole and of the right shape.
    pub fn holds(&self, prompt: &str) -> bool {
        let good = |file: SafetensorsFile| {
            let is = |name: &str, shape: &[usize]| file.shape(name).is_ok_and(|found| found == shape);
            is("context", &self.shapes.0) && is("pooled", &self.shapes.1)
        };
        SafetensorsFile::open(self.file(prompt)).is_ok_and(good)
    }

    /// Keeps an encoded prompt, in f16, or in f32 where a value is too large for that.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn store(&self, prompt: &str, embedding: &TextEmbedding) -> Result<()> {
        let path = self.file(prompt);
        let folder = path.parent().unwrap_or(&self.folder);
        std::fs::create_dir_all(folder).map_err(|source| Error::io("create", folder, source))?;
        let fits = |values: &[f32]| values.iter().all(|v| v.abs() <= 65504.0);
        let dtype = if fits(&embedding.context) && fits(&embedding.pooled) { Dtype::F16 } else { Dtype::F32 };
        let entries = vec![
            Entry::floats("context", &self.shapes.0, vec![&embedding.context], dtype),
            Entry::floats("pooled", &self.shapes.1, vec![&embedding.pooled], dtype),
        ];
        let about = BTreeMap::from([("prompt".to_owned(), prompt.to_owned())]);
        let prepared = prepare_safetensors(&about, entries).map_err(|error| Error::file(&path, format!("is not written: {error}")))?;
        write_atomically(&path, |out| prepared.write(out))
    }
}

/// Reads an encoded prompt's file, appending its values.
///
/// # Errors
/// When it is missing or damaged.
pub fn append(path: &Path, context: &mut Vec<f32>, pooled: &mut Vec<f32>) -> Result<()> {
    let file = SafetensorsFile::open(path)?;
    for (name, out) in [("context", context), ("pooled", pooled)] {
        out.extend(file.f32(name)?);
    }
    Ok(())
}
