//! The configuration: one struct for every command, read from TOML.
//!
//! Layers, later ones win: built-in defaults, a named preset, `--config FILE`, command-line flags, `--set key=value`
//! (see [`Sources`]). Every key is listed with its default and meaning in `docs/configuration.md`, which is generated
//! by [`reference_markdown`]. An unknown key is an error that names the key, the file and the line.

mod layers;
mod method;
mod prepare;
mod presets;
mod reference;
mod sections;
mod tasks;

pub use layers::{Flag, Sources};
pub use prepare::PrepareConfig;
pub use presets::{PRESETS, Preset, preset};
pub use reference::reference_markdown;
pub use sections::{
    DataConfig, DistillConfig, EncodersConfig, EvalConfig, GemmAlgorithms, OptimSections, PretrainConfig, SampleConfig, SamplerChoice,
    SynthesizeConfig, TeacherConfig,
};

pub use tasks::{EditConfig, InpaintConfig};

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::edit::Task;
use crate::ladd::{AddConfig, LaddConfig, LcmConfig, Method};
use crate::lora::LoraConfig;
use crate::model::ModelConfig;
use crate::{Error, Result};

/// Everything a run can be told. The top-level keys come first, then one field per TOML section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The preset that the values began from.
    pub preset: String,
    /// Seed of every random draw. The same seed gives the same run.
    pub seed: u64,
    /// What the network is for: pictures from prompts, edits, or filled holes.
    pub task: Task,
    /// Worker threads; 0 means all cores.
    pub threads: usize,
    /// Where to compute: `auto` (the first usable GPU, else the processor), `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Whether a GPU adds up sums in a fixed order, so that the same run has the same bits. The processor always does.
    pub deterministic: bool,
    /// How cuBLASLt's algorithms are chosen on a GPU.
    pub gemm_algorithms: GemmAlgorithms,
    /// Folder in which every run gets a folder of its own.
    pub run_dir: PathBuf,
    /// Shape of the network that `pretrain` trains.
    pub model: ModelConfig,
    /// The teacher.
    pub teacher: TeacherConfig,
    /// Where images and latents come from.
    pub data: DataConfig,
    /// Text encoders and autoencoder of a Stable Diffusion 3 pipeline.
    pub encoders: EncodersConfig,
    /// Pictures to latents.
    pub prepare: PrepareConfig,
    /// Training latents made by the teacher.
    pub synthesize: SynthesizeConfig,
    /// Rectified-flow training of a teacher.
    pub pretrain: PretrainConfig,
    /// Pairs for editing.
    pub edit: EditConfig,
    /// Masks for inpainting.
    pub inpaint: InpaintConfig,
    /// The distillation run.
    pub distill: DistillConfig,
    /// Adapters (LoRA) of the student.
    pub lora: LoraConfig,
    /// The LADD step.
    pub ladd: LaddConfig,
    /// The distillation loss of the baseline `add`.
    pub add: AddConfig,
    /// The baseline `lcm`.
    pub lcm: LcmConfig,
    /// Optimisers of the distillation.
    pub optim: OptimSections,
    /// Drawing images with `sample`.
    pub sample: SampleConfig,
    /// Measuring quality.
    pub eval: EvalConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            preset: "demo".into(),
            seed: 0,
            task: Task::Generate,
            threads: 0,
            device: "auto".into(),
            deterministic: true,
            gemm_algorithms: GemmAlgorithms::Heuristic,
            run_dir: "runs".into(),
            model: sections::demo_model(),
            teacher: TeacherConfig::default(),
            data: DataConfig::default(),
            encoders: EncodersConfig::default(),
            prepare: PrepareConfig::default(),
            synthesize: SynthesizeConfig::default(),
            pretrain: PretrainConfig::default(),
            edit: EditConfig::default(),
            inpaint: InpaintConfig::default(),
            distill: DistillConfig::default(),
            lora: LoraConfig::default(),
            ladd: LaddConfig::default(),
            add: AddConfig::default(),
            lcm: LcmConfig::default(),
            optim: OptimSections::default(),
            sample: SampleConfig::default(),
            eval: EvalConfig::default(),
        }
    }
}

impl Config {
    /// Reads and validates the layers.
    ///
    /// # Errors
    /// An unreadable file, an unknown key, a value of the wrong type or out of range; the message says where it was set.
    pub fn load(sources: &Sources<'_>) -> Result<Self> {
        let config = layers::load(sources)?;
        config.validate()?;
        Ok(config)
    }

    /// Reads what [`Config::resolved`] wrote, here or in a version of this program that had fewer keys: those have their defaults.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str) -> Result<Self> {
        let config = layers::lay_over(&Sources::default(), Some(("the saved settings".as_ref(), text.to_owned())))?;
        config.validate()?;
        Ok(config)
    }

    /// The configuration as TOML, with every key. Reading it back gives the same configuration.
    ///
    /// # Errors
    /// When a value cannot be written as TOML (a seed beyond 63 bits).
    pub fn resolved(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::Config(format!("cannot be written as TOML: {e}")))
    }

    /// Checks every section, and warns about settings that are legal but known to fail.
    ///
    /// # Errors
    /// Names the first key that is out of range, or the two that exclude each other.
    pub fn validate(&self) -> Result<()> {
        self.model.validate()?;
        self.ladd.validate()?;
        self.lora.validate()?;
        self.add.validate()?;
        self.lcm.validate()?;
        self.step().validate()?;
        self.optim.student.validate("optim.student")?;
        self.optim.heads.validate("optim.heads")?;
        self.data.validate()?;
        self.encoders.validate()?;
        self.prepare.validate()?;
        self.synthesize.validate()?;
        self.pretrain.validate()?;
        self.edit.validate()?;
        self.inpaint.validate()?;
        self.distill.validate()?;
        self.sample.validate()?;
        self.eval.validate()?;
        let plain = [Method::Ladd, Method::Regression].contains(&self.distill.method) && self.distill.student.is_empty();
        if self.task != Task::Generate && !plain {
            return Err(Error::Config(format!(
                "task = \"{}\" takes distill.method = \"ladd\" or \"regression\" and no distill.student: baselines draw from prompts alone",
                self.task.name()
            )));
        }
        if self.model.conditioning_channels != 0 {
            return Err(Error::Config("model.conditioning_channels is no setting: `task` decides what a network reads".into()));
        }
        if self.seed > i64::MAX as u64 {
            return Err(Error::Config(format!("seed = {} must be below 2^63", self.seed)));
        }
        if self.threads > 4096 {
            return Err(Error::Config(format!("threads = {} is far out of range; 0 means all cores", self.threads)));
        }
        let gpu = |name: &str| name.strip_prefix("cuda:").is_some_and(|n| n.parse::<u8>().is_ok());
        // "emulated" is there in builds for tests only; elsewhere opening it says so.
        if !matches!(self.device.as_str(), "auto" | "cpu" | "cuda" | "emulated") && !gpu(&self.device) {
            return Err(Error::Config(format!("device = {:?} must be auto, cpu, cuda or cuda:N with a number", self.device)));
        }
        Ok(())
    }

    /// Settings that are legal but known to fail, in words; `distill` prints them before it begins.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let micro_batch = self.distill.micro_batch();
        if micro_batch < 2 && self.step().adversarial_weight > 0.0 {
            warnings.push(format!(
                "distill.batch / distill.accumulate = {micro_batch}: with one sample at a time the hinge loss is all or nothing; use micro-batches of at least 2"
            ));
        }
        if self.ladd.adversarial_weight == 0.0 && self.distill.method == Method::Ladd {
            warnings.push("ladd.adversarial_weight = 0: this is the regression control, not LADD; expect blurry one-step images".into());
        }
        warnings
    }
}

#[cfg(test)]
mod tests;
