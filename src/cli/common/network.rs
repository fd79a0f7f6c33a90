//! Reading networks by the names a user gives them, and writing results.

use std::path::{Path, PathBuf};

use crate::device::{Backend, Storage};
use crate::flow::Spacing;
use crate::format::{Checkpoint, Dtype, Pipeline, Role, SafetensorsFile, Tensor, Tensors, diffusers, original};
use crate::model::mmdit::POS_EMBED;
use crate::model::{Mmdit, ModelConfig};
use crate::text::TextConfig;
use crate::vae::CodecConfig;
use crate::{Error, Result};

/// Latent side at which the published models were trained, 1024 pixels.
const USUAL_SIDE: usize = 128;

/// Pixels of a latent position of the published autoencoder.
const DOWNSCALE: usize = 8;

/// A network in the host's memory.
#[derive(Debug)]
pub struct Loaded {
    /// What the user called it.
    pub name: String,
    /// Weights and settings.
    pub checkpoint: Checkpoint,
}

/// Reads a network: `builtin`, a file of this project or of Stable Diffusion 3, a diffusers folder, a run folder (its result).
///
/// # Errors
/// When there is no such network or the file is damaged.
pub fn load(name: &str) -> Result<Loaded> {
    let checkpoint = match name {
        "" => return Err(Error::Usage("no teacher is named: give its checkpoint with --teacher FILE or set teacher.checkpoint".into())),
        "builtin" => builtin()?,
        path => read(Path::new(path))?,
    };
    Ok(Loaded { name: name.to_owned(), checkpoint })
}

/// The demo's teacher, which is part of the program. `docs/teacher` holds the settings and metrics of its training.
fn builtin() -> Result<Checkpoint> {
    static TEACHER: &[u8] = include_bytes!("../../data/demo/teacher.safetensors");
    Checkpoint::from_bytes("the built-in teacher", TEACHER)
}

fn read(path: &Path) -> Result<Checkpoint> {
    if !path.is_dir() {
        return match SafetensorsFile::open(path)?.metadata().contains_key("ladd_fast") {
            true => Checkpoint::load(path),
            false => imported(original::import(path)?, DOWNSCALE),
        };
    }
    let results = ["student/student.safetensors", "teacher/teacher.safetensors", "student.safetensors", "teacher.safetensors"];
    if let Some(file) = results.iter().map(|name| path.join(name)).find(|file| file.is_file()) {
        return Checkpoint::load(file);
    }
    if path.join("config.toml").is_file() {
        return Err(Error::file(path, "this run has no result yet: finish it with `ladd-fast distill --run FOLDER --resume`"));
    }
    imported(diffusers::import(path)?, downscale(path)?)
}

/// Pixels of a latent position of a pipeline's autoencoder, each level but one of which halves the resolution.
fn downscale(pipeline: &Path) -> Result<usize> {
    #[derive(serde::Deserialize)]
    struct Levels {
        block_out_channels: Vec<usize>,
    }
    let path = pipeline.join("vae/config.json");
    if !path.is_file() {
        return Ok(DOWNSCALE);
    }
    let text = std::fs::read_to_string(&path).map_err(|source| Error::io("read", &path, source))?;
    let levels: Levels =
        serde_json::from_str(&text).map_err(|e| Error::file(&path, format!("is no configuration of an autoencoder: {e}")))?;
    match levels.block_out_channels.len() {
        levels @ 1..=8 => Ok(1 << (levels - 1)),
        levels => Err(Error::file(&path, format!("describes an autoencoder of {levels} levels; 1 to 8 can be"))),
    }
}

/// The settings of a network of the Stable Diffusion 3 family that another program wrote.
fn imported((model, tensors): (ModelConfig, Tensors), downscale: usize) -> Result<Checkpoint> {
    let codec = CodecConfig::External { channels: model.in_channels, downscale };
    let text = TextConfig::External { context_dim: model.context_dim, pooled_dim: model.pooled_dim };
    let pipeline = Pipeline { model, codec, text, shift: 3.0, spacing: Spacing::Linspace, role: Role::Teacher, notes: Default::default() };
    pipeline.validate()?;
    Ok(Checkpoint { pipeline, tensors })
}

impl Loaded {
    /// Its settings.
    pub fn pipeline(&self) -> &Pipeline {
        &self.checkpoint.pipeline
    }

    /// The network without weights, on a device.
    pub fn model<B: Backend>(&self, b: &B) -> Result<Mmdit<B>> {
        let grid = self.checkpoint.tensors.get(POS_EMBED);
        let grid = grid.ok_or_else(|| Error::Usage(format!("{}: the tensor `{POS_EMBED}` is missing", self.name)))?;
        Mmdit::new(b, self.pipeline().model.clone(), &grid.data)
    }

    /// The weights as one arena.
    pub fn weights<B: Backend>(&self, model: &Mmdit<B>) -> Result<Vec<f32>> {
        let find = |name: &str| self.checkpoint.tensors.get(name).map(|t| (t.shape.as_slice(), t.data.as_slice()));
        model.layout().arena.gather(find).map_err(|e| Error::Usage(format!("{}: {e}", self.name)))
    }

    /// Number of weights, the positional grid left out.
    pub fn parameters(&self) -> usize {
        self.checkpoint.tensors.iter().filter(|(name, _)| *name != POS_EMBED).map(|(_, t)| t.data.len()).sum()
    }
}

/// A copy of host weights on the device.
pub fn upload<B: Backend>(b: &B, weights: &[f32]) -> Result<B::Data> {
    let mut buffer = b.alloc_data(weights.len())?;
    b.upload_data(weights, buffer.all_mut());
    Ok(buffer)
}

/// A checkpoint from an arena of weights.
pub fn checkpoint<B: Backend>(b: &B, model: &Mmdit<B>, weights: &[f32], pipeline: Pipeline) -> Result<Checkpoint> {
    let arena = &model.layout().arena;
    let mut tensors: Tensors = arena
        .scatter(weights)
        .map(|(entry, data)| (entry.name.clone(), Tensor { shape: entry.shape.clone(), data: data.to_vec() }))
        .collect();
    let (config, grid) = (model.config(), model.pos_embed(b)?);
    let shape = vec![1, config.pos_embed_max * config.pos_embed_max, config.hidden()];
    tensors.insert(POS_EMBED.to_owned(), Tensor { shape, data: grid });
    Ok(Checkpoint { pipeline, tensors })
}

/// Writes `FOLDER/NAME.safetensors` and, for diffusers and ComfyUI, `FOLDER/transformer/`.
pub fn save(checkpoint: &Checkpoint, folder: &Path, name: &str, dtype: Dtype) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    let file = folder.join(format!("{name}.safetensors"));
    checkpoint.save(&file, dtype)?;
    diffusers::export(&checkpoint.pipeline.model, &checkpoint.tensors, folder, dtype)?;
    Ok(file)
}

/// Latent `[C, H, W]` of an image of `height` x `width` pixels; 0 means the size the network was trained for.
///
/// # Errors
/// When the size cannot be cut into patches or exceeds the positional grid.
pub fn latent_shape(pipeline: &Pipeline, height: usize, width: usize) -> Result<[usize; 3]> {
    let model = &pipeline.model;
    let factor = match &pipeline.codec {
        CodecConfig::Dct { block, .. } => *block,
        CodecConfig::External { downscale, .. } => *downscale,
    };
    let usual = (model.pos_embed_max * model.patch).min(USUAL_SIDE);
    let side = |pixels: usize| match pixels {
        0 => Ok(usual),
        _ if pixels.is_multiple_of(factor * model.patch) => Ok(pixels / factor),
        _ => Err(Error::Usage(format!("an image side of {pixels} pixels is no multiple of {}", factor * model.patch))),
    };
    let (h, w) = (side(height)?, side(width)?);
    let most = model.pos_embed_max * model.patch;
    if h > most || w > most {
        let pixels = most * factor;
        return Err(Error::Usage(format!("an image of {height}x{width} pixels is too large: this network draws up to {pixels}x{pixels}")));
    }
    Ok([model.in_channels, h, w])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipeline() -> Pipeline {
        let model = crate::config::Config::default().model;
        let codec = CodecConfig::Dct { block: 4, channels: 1, mean: vec![0.0; 16], std: vec![1.0; 16] };
        let text = TextConfig::Words { dim: model.context_dim, tokens: 4 };
        Pipeline { model, codec, text, shift: 1.0, spacing: Default::default(), role: Role::Teacher, notes: Default::default() }
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(latent_shape(&pipeline(), 0, 0).unwrap(), [16, 8, 8]);
        assert_eq!(latent_shape(&pipeline(), 32, 16).unwrap(), [16, 8, 4]);
        assert!(latent_shape(&pipeline(), 30, 0).unwrap_err().to_string().contains("no multiple of 8"));
        assert!(latent_shape(&pipeline(), 64, 0).unwrap_err().to_string().contains("up to 32x32"));
    }

    #[test]
    fn networks_that_do_not_exist_are_named() {
        assert!(load("").unwrap_err().to_string().contains("--teacher"));
        assert!(load("no/such.safetensors").unwrap_err().to_string().contains("no/such.safetensors"));
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.toml"), "").unwrap();
        assert!(load(folder.path().to_str().unwrap()).unwrap_err().to_string().contains("no result yet"));
    }
}
