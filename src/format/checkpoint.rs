//! The project's own checkpoint: one safetensors file with the tensors of a network and, as JSON in its metadata,
//! all that is needed to draw pictures with it. It opens in any program that reads original Stable Diffusion 3 names.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::stored::{Piece, views};
use super::{Dtype, Entry, SafetensorsFile, StoredTensors, Tensor, TensorViews, Tensors, prepare_safetensors, write_atomically};
use crate::flow::Spacing;
use crate::model::ModelConfig;
use crate::text::TextConfig;
use crate::vae::CodecConfig;
use crate::{Error, Result};

/// Metadata key under which the [`Pipeline`] is stored.
const KEY: &str = "ladd_fast";

/// What a network is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Samples in many steps, with guidance.
    Teacher,
    /// Samples in one to four steps, without guidance.
    Student,
}

/// Everything around the network: how prompts become its input, and its output images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// Architecture of the network.
    pub model: ModelConfig,
    /// Images to latents and back.
    pub codec: CodecConfig,
    /// Prompts to context and pooled embedding.
    pub text: TextConfig,
    /// The sampler's shift of the times, `shift t / (1 + (shift - 1) t)`; SD3 uses 3 at 1024 x 1024, 1 shifts nothing.
    pub shift: f32,
    /// How Euler's times are spaced before the shift.
    #[serde(default, skip_serializing_if = "is_default")]
    pub spacing: Spacing,
    /// Teacher or student.
    pub role: Role,
    /// Where the network comes from: free text for people.
    #[serde(default)]
    pub notes: BTreeMap<String, String>,
}

/// Settings that are as they always were are not written: the fingerprints of older files stay true.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Pipeline {
    /// Checks each part, and that they fit each other.
    ///
    /// # Errors
    /// Names the setting that is out of range, or the two that contradict each other.
    pub fn validate(&self) -> Result<()> {
        self.model.validate()?;
        self.codec.validate()?;
        self.text.validate()?;
        if !(self.shift > 0.0 && self.shift.is_finite()) {
            return Err(Error::Config(format!("shift = {} must be positive", self.shift)));
        }
        let pairs = [
            ("model.in_channels", self.model.in_channels, "latent channels of the codec", self.codec.latent_channels()),
            ("model.context_dim", self.model.context_dim, "width of the text context", self.text.context_dim()),
            ("model.pooled_dim", self.model.pooled_dim, "width of the pooled text", self.text.pooled_dim()),
        ];
        match pairs.iter().find(|(_, model, _, other)| model != other) {
            Some((name, model, what, other)) => Err(Error::Config(format!("{name} = {model}, but the {what} is {other}"))),
            None => Ok(()),
        }
    }
}

/// A network with its settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The settings.
    pub pipeline: Pipeline,
    /// The tensors, by original Stable Diffusion 3 name. Whether they are complete is checked by who builds the model.
    pub tensors: Tensors,
}

impl Checkpoint {
    /// Reads a checkpoint written by [`Checkpoint::save`].
    ///
    /// # Errors
    /// When the file is damaged, is no checkpoint of this project, or holds settings that do not fit together.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::read(&SafetensorsFile::open(path)?)
    }

    /// Reads a checkpoint compiled into the program; `name` stands for the path in messages.
    ///
    /// # Errors
    /// As [`Checkpoint::load`].
    pub fn from_bytes(name: &str, bytes: &'static [u8]) -> Result<Self> {
        Self::read(&SafetensorsFile::from_bytes(name, bytes)?)
    }

    fn read(file: &SafetensorsFile) -> Result<Self> {
        let pipeline = read_pipeline(file)?;
        let tensors = file.names().par_iter().map(|name| Ok((name.clone(), read_tensor(file, name)?))).collect::<Result<_>>()?;
        Ok(Self { pipeline, tensors })
    }

    /// Writes the checkpoint, replacing the file atomically: it is never seen half written.
    ///
    /// # Errors
    /// As [`save`].
    pub fn save(&self, path: impl AsRef<Path>, dtype: Dtype) -> Result<()> {
        save(&self.pipeline, &views(&self.tensors), path, dtype)
    }

    /// SHA-256 over the architecture and all tensors, in hexadecimal: the same for the same network, whatever its file
    /// and its notes. (Saved as f16 or bf16 and read back, it is another network.)
    pub fn fingerprint(&self) -> String {
        let digests: Vec<_> = self.tensors.par_iter().map(|(name, tensor)| tensor_digest(name, tensor)).collect();
        let mut all = Sha256::new();
        // Networks without conditioning keep the fingerprints that they had before there was any.
        all.update(format!("{:?}", self.pipeline.model).replace(", conditioning_channels: 0", ""));
        digests.iter().for_each(|digest| all.update(digest));
        hex(&all.finalize())
    }
}

/// A checkpoint of this project on disk: its settings, and its tensors where they are.
#[derive(Clone, Debug)]
pub struct NetworkFile {
    /// The settings.
    pub pipeline: Pipeline,
    /// The tensors, complete.
    pub tensors: StoredTensors,
}

impl NetworkFile {
    /// Opens a checkpoint written by [`save`]; of the tensors only names and shapes are read.
    ///
    /// # Errors
    /// When the file is damaged, is no checkpoint of this project, holds settings that do not fit together, or tensors are
    /// missing, left over or misshapen.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::read(&Arc::new(SafetensorsFile::open(path)?))
    }

    /// Opens a checkpoint compiled into the program; `name` stands for the path in messages.
    ///
    /// # Errors
    /// As [`NetworkFile::open`].
    pub fn from_bytes(name: &str, bytes: &'static [u8]) -> Result<Self> {
        Self::read(&Arc::new(SafetensorsFile::from_bytes(name, bytes)?))
    }

    fn read(file: &Arc<SafetensorsFile>) -> Result<Self> {
        let pipeline = read_pipeline(file)?;
        let mut tensors = StoredTensors::default();
        for name in file.names() {
            let shape = file.shape(name)?.to_vec();
            let piece = Piece::of_file(file, name, 0..shape.iter().product(), 1.0);
            tensors.place(name.clone(), shape, vec![piece]);
        }
        tensors
            .check(&pipeline.model)
            .map_err(|wrong| Error::file(file.path(), format!("does not hold the model it describes: {wrong}")))?;
        Ok(Self { pipeline, tensors })
    }
}

/// Writes a checkpoint, replacing the file atomically; the tensors pass through a few megabytes of memory.
///
/// # Errors
/// When the settings are invalid, a value does not fit `dtype`, or the file cannot be written (the old one then stays).
pub fn save(pipeline: &Pipeline, tensors: &TensorViews<'_>, path: impl AsRef<Path>, dtype: Dtype) -> Result<()> {
    let path = path.as_ref();
    pipeline.validate()?;
    let settings = serde_json::to_string(pipeline).map_err(|error| Error::file(path, format!("cannot store the settings: {error}")))?;
    let metadata = BTreeMap::from([(KEY.to_owned(), settings), ("format".to_owned(), "pt".to_owned())]);
    let entries = tensors.iter().map(|(name, tensor)| Entry::view(name, tensor, dtype)).collect();
    let prepared = prepare_safetensors(&metadata, entries).map_err(|error| Error::file(path, format!("is not written: {error}")))?;
    write_atomically(path, |out| prepared.write(out))
}

fn read_pipeline(file: &SafetensorsFile) -> Result<Pipeline> {
    let Some(json) = file.metadata().get(KEY) else {
        return Err(Error::file(
            file.path(),
            format!(
                "has no `{KEY}` metadata, so it was not written by ladd-fast: a Stable Diffusion 3 file or a diffusers folder must be imported first"
            ),
        ));
    };
    let bad = |cause: String| {
        Error::file(
            file.path(),
            format!(
                "has bad settings in its `{KEY}` metadata ({cause}): it was written by another version of ladd-fast, or changed by hand"
            ),
        )
    };
    let pipeline: Pipeline = serde_json::from_str(json).map_err(|error| bad(error.to_string()))?;
    pipeline.validate().map_err(|error| bad(error.to_string()))?;
    Ok(pipeline)
}

/// One tensor of a file.
pub(crate) fn read_tensor(file: &SafetensorsFile, name: &str) -> Result<Tensor> {
    Ok(Tensor { shape: file.shape(name)?.to_vec(), data: file.f32(name)? })
}

fn tensor_digest(name: &str, tensor: &Tensor) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(format!("{name} {:?}", tensor.shape));
    if cfg!(target_endian = "little") {
        hash.update(bytemuck::cast_slice::<f32, u8>(&tensor.data));
    } else {
        tensor.data.iter().for_each(|value| hash.update(value.to_le_bytes()));
    }
    hash.finalize().into()
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::format::names::tests::tiny;
    use crate::format::parameter_shapes;

    /// A checkpoint of the tiny model with reproducible values that bfloat16 and float16 can hold.
    pub fn example(qk_norm: bool, dual_attention_blocks: usize) -> Checkpoint {
        let model = tiny(qk_norm, dual_attention_blocks);
        let mut counter = 0u32;
        let mut next = || {
            counter = counter.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((counter >> 25) as f32 - 64.0) / 128.0
        };
        let tensors = parameter_shapes(&model).into_iter().map(|(name, shape)| {
            let data = (0..shape.iter().product()).map(|_| next()).collect();
            (name, Tensor { shape, data })
        });
        Checkpoint {
            tensors: tensors.collect(),
            pipeline: Pipeline {
                codec: CodecConfig::External { channels: model.in_channels, downscale: 8 },
                text: TextConfig::External { context_dim: model.context_dim, pooled_dim: model.pooled_dim },
                model,
                shift: 3.0,
                spacing: Default::default(),
                role: Role::Teacher,
                notes: BTreeMap::from([("made by".into(), "a test".into())]),
            },
        }
    }

    #[test]
    fn a_checkpoint_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("teacher.safetensors");
        let checkpoint = example(true, 1);
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            checkpoint.save(&path, dtype).unwrap();
            let loaded = Checkpoint::load(&path).unwrap();
            assert_eq!(loaded, checkpoint);
            assert_eq!(loaded.fingerprint(), checkpoint.fingerprint());
        }
        let first = std::fs::read(&path).unwrap();
        checkpoint.save(&path, Dtype::BF16).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first, "the same checkpoint must give the same bytes");
        let embedded = Checkpoint::from_bytes("embedded", Box::leak(first.into_boxed_slice())).unwrap();
        assert_eq!(embedded, checkpoint);
    }

    #[test]
    fn the_fingerprint_sees_weights_and_architecture_only() {
        let checkpoint = example(false, 0);
        let mut other = checkpoint.clone();
        other.pipeline.notes.clear();
        other.pipeline.shift = 1.0;
        assert_eq!(other.fingerprint(), checkpoint.fingerprint());
        other.tensors.get_mut("pos_embed").unwrap().data[7] += 0.5;
        assert_ne!(other.fingerprint(), checkpoint.fingerprint());
    }

    #[test]
    fn foreign_and_invalid_metadata_is_explained() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let write = |metadata: &[(&str, &str)]| {
            let metadata = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            let prepared = prepare_safetensors(&metadata, vec![]).unwrap();
            write_atomically(&path, |out| prepared.write(out)).unwrap();
            Checkpoint::load(&path).unwrap_err().to_string()
        };
        assert!(write(&[]).contains("no `ladd_fast` metadata"));
        assert!(write(&[(KEY, "{")]).contains("bad settings"));
        let mut json = serde_json::to_value(example(false, 0).pipeline).unwrap();
        json["novelty"] = 1.into();
        assert!(write(&[(KEY, &json.to_string())]).contains("unknown field `novelty`"));
        json.as_object_mut().unwrap().remove("novelty");
        json["model"]["in_channels"] = 5.into();
        let error = write(&[(KEY, &json.to_string())]);
        assert!(error.contains("model.in_channels = 5, but the latent channels of the codec is 4"), "{error}");
    }

    #[test]
    fn what_cannot_be_stored_is_refused_and_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("teacher.safetensors");
        let checkpoint = example(false, 0);
        checkpoint.save(&path, Dtype::F32).unwrap();
        let mut bad = checkpoint.clone();
        bad.tensors.get_mut("pos_embed").unwrap().data[0] = 1e6;
        let error = bad.save(&path, Dtype::F16).unwrap_err().to_string();
        assert!(error.contains("teacher.safetensors") && error.contains("`pos_embed` holds 1000000"), "{error}");
        bad.pipeline.shift = f32::NAN;
        assert!(bad.save(&path, Dtype::F32).unwrap_err().to_string().contains("shift = NaN"));
        assert_eq!(Checkpoint::load(&path).unwrap(), checkpoint);
    }
}
