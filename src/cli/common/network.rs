//! Reading networks by the names a user gives them, and writing results.
//!
//! A network stays in its mapped files until its weights are asked for, as one arena or straight onto the device.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::device::{Backend, Storage};
use crate::edit::Task;
use crate::flow::Spacing;
use crate::format::{
    Dtype, NetworkFile, Pipeline, Role, SafetensorsFile, StoredTensors, Tensor, TensorView, TensorViews, Tensors, diffusers, original,
    save as save_native,
};
use crate::model::mmdit::{MmditLayout, NamedTensor, PATCH_EMBEDDING, POS_EMBED, split, widened};
use crate::model::{Mmdit, ModelConfig};
use crate::text::TextConfig;
use crate::train::{Network, OptimConfig, Purpose, RunFolder};
use crate::vae::CodecConfig;
use crate::{Error, Result};

/// Latent side at which the published models were trained, 1024 pixels.
const USUAL_SIDE: usize = 128;

/// Pixels of a latent position of the published autoencoder.
const DOWNSCALE: usize = 8;

/// A network, opened.
#[derive(Debug)]
pub struct Loaded {
    /// What the user called it.
    pub name: String,
    /// Its settings.
    pub pipeline: Pipeline,
    /// Its tensors, all that the settings ask for.
    pub tensors: StoredTensors,
}

/// Opens a network: `builtin`, a file of this project or of Stable Diffusion 3, a diffusers folder, a run folder (its result).
///
/// # Errors
/// When there is no such network, the file is damaged, or tensors are missing, left over or misshapen.
pub fn load(name: &str) -> Result<Loaded> {
    let NetworkFile { pipeline, tensors } = match name {
        "" => return Err(Error::Usage("no teacher is named: give its checkpoint with --teacher FILE or set teacher.checkpoint".into())),
        "builtin" => builtin()?,
        path => read(Path::new(path))?,
    };
    Ok(Loaded { name: name.to_owned(), pipeline, tensors })
}

/// The demo's teacher, which is part of the program. `docs/teacher` holds the settings and metrics of its training.
fn builtin() -> Result<NetworkFile> {
    static TEACHER: &[u8] = include_bytes!("../../data/demo/teacher.safetensors");
    NetworkFile::from_bytes("the built-in teacher", TEACHER)
}

fn read(path: &Path) -> Result<NetworkFile> {
    if !path.is_dir() {
        let file = SafetensorsFile::open(path)?;
        if file.metadata().contains_key("ladd_fast") {
            return NetworkFile::open(path);
        }
        if file.names().iter().any(|name| name.contains("lora_")) {
            return Err(Error::file(
                path,
                "holds adapters (LoRA), no network: `ladd-fast lora inspect` describes them, --lora adds them to a network",
            ));
        }
        return imported(original::open(path)?, DOWNSCALE);
    }
    let results = ["student/student.safetensors", "teacher/teacher.safetensors", "student.safetensors", "teacher.safetensors"];
    if let Some(file) = results.iter().map(|name| path.join(name)).find(|file| file.is_file()) {
        return NetworkFile::open(file);
    }
    if path.join("config.toml").is_file() {
        let purpose = RunFolder::look_at(path)?.purpose()?.unwrap_or(Purpose::Distill);
        return Err(Error::file(path, format!("this run has no result yet: finish it with `{}`", purpose.resumption(path))));
    }
    if path.join("state.json").is_file() {
        return Err(Error::file(path, "is a checkpoint, from which a run goes on: name the run's folder"));
    }
    if !["transformer/config.json", "config.json"].iter().any(|name| path.join(name).is_file()) {
        return Err(Error::file(path, "holds no network: name a finished run, a folder of diffusers, or a .safetensors file"));
    }
    imported(diffusers::open(path)?, downscale(path)?)
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
fn imported((model, tensors): (ModelConfig, StoredTensors), downscale: usize) -> Result<NetworkFile> {
    let codec = CodecConfig::External { channels: model.in_channels, downscale };
    let text = TextConfig::External { context_dim: model.context_dim, pooled_dim: model.pooled_dim };
    let pipeline = Pipeline { model, codec, text, shift: 3.0, spacing: Spacing::Linspace, role: Role::Teacher, notes: Default::default() };
    pipeline.validate()?;
    Ok(NetworkFile { pipeline, tensors })
}

impl Loaded {
    /// Its settings.
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// SHA-256 of the network, see [`StoredTensors::fingerprint`].
    pub fn fingerprint(&self) -> Result<String> {
        self.tensors.fingerprint(&self.pipeline.model)
    }

    /// The network without weights, on a device.
    pub fn model<B: Backend>(&self, b: &B) -> Result<Mmdit<B>> {
        Mmdit::new(b, self.pipeline.model.clone(), &self.tensors.read(POS_EMBED)?.data)
    }

    /// The tensors under the names of arenas, in which a patch embedding that reads a conditioning too is in two parts.
    fn arena_tensors(&self) -> Result<Cow<'_, StoredTensors>> {
        let model = &self.pipeline.model;
        if Task::of(model) == Task::Generate {
            return Ok(Cow::Borrowed(&self.tensors));
        }
        let mut tensors = self.tensors.clone();
        for (name, shape, data) in split(model, &tensors.read(PATCH_EMBEDDING)?.data) {
            tensors.replace(name, Tensor { shape, data });
        }
        Ok(Cow::Owned(tensors))
    }

    /// The weights as one arena of the host.
    pub fn weights(&self) -> Result<Vec<f32>> {
        self.arena_tensors()?.gather(&MmditLayout::new(&self.pipeline.model).arena)
    }

    /// The same network for `task`: its patch embedding is widened by zeros, so that its output is the same to the bit, whatever it
    /// is conditioned on.
    ///
    /// # Errors
    /// When the network is conditioned on something already.
    pub fn widened(&self, task: Task) -> Result<Self> {
        let (old, mut pipeline) = (&self.pipeline.model, self.pipeline.clone());
        if Task::of(old) != Task::Generate {
            let found = Task::of(old).name();
            return Err(Error::Usage(format!("{} is for {found} already: begin from a network that draws from prompts alone", self.name)));
        }
        pipeline.model.conditioning_channels = task.conditioning_channels(old.in_channels);
        let mut embedding = self.tensors.read(PATCH_EMBEDDING)?;
        embedding.data = widened(&embedding.data, old, &pipeline.model);
        embedding.shape = vec![old.hidden(), old.in_channels + pipeline.model.conditioning_channels, old.patch, old.patch];
        let mut tensors = self.tensors.clone();
        tensors.replace(PATCH_EMBEDDING.to_owned(), embedding);
        Ok(Self { name: self.name.clone(), pipeline, tensors })
    }

    /// The weights on the device, where they go a few megabytes at a time.
    pub fn params<B: Backend>(&self, b: &B) -> Result<B::Data> {
        let layout = MmditLayout::new(&self.pipeline.model).arena;
        let mut params = b.alloc_data(layout.len())?;
        self.arena_tensors()?.stream(&layout, |at, values| {
            b.upload_data(values, params.part_mut(at..at + values.len()));
            Ok(())
        })?;
        Ok(params)
    }

    /// A network in training that begins as this one: weights, master weights and average, with a fresh optimiser.
    pub fn trained<B: Backend>(&self, b: &B, optim: &OptimConfig, lr_index: usize, ema_decay: f64) -> Result<Network<B>> {
        let layout = MmditLayout::new(&self.pipeline.model).arena;
        let mut network = Network::zeroed(b, layout.len(), optim, lr_index, ema_decay)?;
        self.arena_tensors()?.stream(&layout, |at, values| {
            network.set(b, at, values);
            Ok(())
        })?;
        Ok(network)
    }

    /// Writes it again as [`Finished::save`] does.
    pub fn save(&self, folder: &Path, name: &str, dtype: Dtype) -> Result<PathBuf> {
        save_both(&self.pipeline, &self.tensors.views(), folder, name, dtype)
    }

    /// Number of weights, the positional grid left out.
    pub fn parameters(&self) -> usize {
        let model = &self.pipeline.model;
        self.tensors.elements() - model.pos_embed_max * model.pos_embed_max * model.hidden()
    }
}

/// A copy of host weights on the device.
pub fn upload<B: Backend>(b: &B, weights: &[f32]) -> Result<B::Data> {
    let mut buffer = b.alloc_data(weights.len())?;
    b.upload_data(weights, buffer.all_mut());
    Ok(buffer)
}

/// A network whose weights are an arena of the host, to be saved.
#[derive(Debug)]
pub struct Finished<'a> {
    pipeline: Pipeline,
    tensors: Vec<NamedTensor<'a>>,
    grid: Vec<f32>,
}

impl<'a> Finished<'a> {
    /// The network `model` with the host arena `weights`.
    pub fn new<B: Backend>(b: &B, model: &'a Mmdit<B>, weights: &'a [f32], pipeline: Pipeline) -> Result<Self> {
        Ok(Self { pipeline, tensors: model.layout().scatter(model.config(), weights), grid: model.pos_embed(b)? })
    }

    fn views(&self) -> TensorViews<'_> {
        let tensors = self.tensors.iter().map(|(name, shape, data)| (name.clone(), TensorView::new(shape, data)));
        let side = self.pipeline.model.pos_embed_max;
        let grid = TensorView::new(&[1, side * side, self.pipeline.model.hidden()], &self.grid);
        tensors.chain([(POS_EMBED.to_owned(), grid)]).collect()
    }

    /// The same as if it had been saved and opened again, in memory.
    pub fn loaded(&self, name: &str) -> Result<Loaded> {
        let tensors = self.views().into_iter().map(|(name, view)| Ok((name, view.read()?))).collect::<Result<Tensors>>()?;
        Ok(Loaded { name: name.to_owned(), pipeline: self.pipeline.clone(), tensors: tensors.into() })
    }

    /// Writes one file of this project.
    pub fn save_file(&self, file: &Path, dtype: Dtype) -> Result<()> {
        save_native(&self.pipeline, &self.views(), file, dtype)
    }

    /// Writes `FOLDER/NAME.safetensors` and, for diffusers and ComfyUI, `FOLDER/transformer/`.
    pub fn save(&self, folder: &Path, name: &str, dtype: Dtype) -> Result<PathBuf> {
        save_both(&self.pipeline, &self.views(), folder, name, dtype)
    }

    /// Its settings.
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }
}

fn save_both(pipeline: &Pipeline, tensors: &TensorViews<'_>, folder: &Path, name: &str, dtype: Dtype) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    let file = folder.join(format!("{name}.safetensors"));
    save_native(pipeline, tensors, &file, dtype)?;
    diffusers::export(&pipeline.model, tensors, folder, dtype, diffusers::SHARD_BYTES)?;
    Ok(file)
}

/// Pixels of a latent position, along each axis.
pub fn pixels_of_latent(pipeline: &Pipeline) -> usize {
    match &pipeline.codec {
        CodecConfig::Dct { block, .. } => *block,
        CodecConfig::External { downscale, .. } => *downscale,
    }
}

/// Latent `[C, H, W]` of an image of `height` x `width` pixels; 0 means the size the network was trained for.
///
/// # Errors
/// When the size cannot be cut into patches or exceeds the positional grid.
pub fn latent_shape(pipeline: &Pipeline, height: usize, width: usize) -> Result<[usize; 3]> {
    let model = &pipeline.model;
    let factor = pixels_of_latent(pipeline);
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
        let refused = || load(folder.path().to_str().unwrap()).unwrap_err().to_string();
        assert!(refused().contains("no result yet"));
        std::fs::remove_file(folder.path().join("config.toml")).unwrap();
        assert!(refused().contains("holds no network"));
        std::fs::write(folder.path().join("state.json"), "").unwrap();
        assert!(refused().contains("is a checkpoint"));
    }
}
