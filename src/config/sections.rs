//! The sections of the configuration that belong to no other module, with their defaults and their checks.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::data::{parse_aspect, parse_size};
use crate::flow::TimestepDistribution;
use crate::ladd::Method;
use crate::model::ModelConfig;
use crate::train::{Checkpointing, OptimConfig, Schedule};
use crate::{Error, Result};

/// How cuBLASLt's algorithms are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GemmAlgorithms {
    /// The heuristic's first proposal: two runs of the same settings have the same bits.
    Heuristic,
    /// The fastest of its first eight proposals on this device, kept beside the run.
    Measured,
}

/// Section `[teacher]`: the network that is distilled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TeacherConfig {
    /// A checkpoint, or `builtin` for the demo's teacher that is part of this program.
    pub checkpoint: String,
}

impl Default for TeacherConfig {
    fn default() -> Self {
        Self { checkpoint: "builtin".into() }
    }
}

/// Section `[data]`: where images and latents come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Folder of latent shards to distil on; empty means that the teacher synthesizes them into the run folder.
    pub shards: String,
    /// Folder of the Fashion-MNIST idx files, for `pretrain` and for editing and inpainting; or `builtin`.
    pub images: String,
    /// How images become latents: `dct` is the demo's stand-in for a VAE.
    pub latent: String,
    /// Side of the blocks of `dct`.
    pub block: usize,
    /// How much the channels of the latents are whitened: 1 gives each unit variance, 0 scales all alike.
    pub whiten: f64,
    /// How prompts become embeddings: `words` is the demo's stand-in for the text encoders.
    pub text: String,
    /// Words of a prompt that `words` uses.
    pub tokens: usize,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            shards: String::new(),
            images: "data/fashion-mnist".into(),
            latent: "dct".into(),
            block: 4,
            whiten: 0.5,
            text: "words".into(),
            tokens: 4,
        }
    }
}

impl DataConfig {
    pub(super) fn validate(&self) -> Result<()> {
        at_least_one("data.block", self.block)?;
        at_least_one("data.tokens", self.tokens)?;
        in_range("data.whiten", self.whiten as f32, (0.0..=1.0).contains(&self.whiten))?;
        one_of("data.latent", &self.latent, &["dct", "vae"])?;
        one_of("data.text", &self.text, &["words", "sd3"])
    }
}

/// Section `[encoders]`: text encoders and autoencoder around a Stable Diffusion 3 network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EncodersConfig {
    /// Folder of a diffusers pipeline, or an original single file that holds them; empty means where the network is from.
    pub path: String,
    /// Folder of `tokenizer`, `tokenizer_2` and `tokenizer_3`, which single files do not hold.
    pub tokenizers: String,
    /// Whether T5 encodes prompts; without it its rows are zeros.
    pub t5: bool,
    /// Rows of T5.
    pub t5_tokens: usize,
    /// Folder in which encoded prompts are kept; empty means the user's cache folder.
    pub cache: String,
}

impl Default for EncodersConfig {
    fn default() -> Self {
        Self { path: String::new(), tokenizers: String::new(), t5: true, t5_tokens: 256, cache: String::new() }
    }
}

impl EncodersConfig {
    /// The folder of encoded prompts.
    pub fn cache_folder(&self) -> PathBuf {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let usual = || set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache"))).unwrap_or_else(|| ".cache".into());
        if self.cache.is_empty() { usual().join("ladd-fast/prompts") } else { PathBuf::from(&self.cache) }
    }

    pub(super) fn validate(&self) -> Result<()> {
        match self.t5_tokens {
            1..=512 => Ok(()),
            other => Err(Error::Config(format!("encoders.t5_tokens = {other} must be between 1 and 512"))),
        }
    }
}

/// Section `[synthesize]`: latents drawn by the teacher at constant guidance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SynthesizeConfig {
    /// How many latents.
    pub count: usize,
    /// Euler steps per latent.
    pub steps: usize,
    /// Guidance scale; 1 is unguided.
    pub guidance: f32,
    /// Latents drawn at once.
    pub batch: usize,
    /// Latents per shard file.
    pub shard_size: usize,
    /// A file of prompts (text, JSON Lines or parquet); empty means the captions of the demo's classes.
    pub prompts: String,
    /// Key or column of the prompts; empty means `prompt`, `text` or `caption`.
    pub prompt_key: String,
    /// What guidance steers away from; empty means the empty prompt.
    pub negative_prompt: String,
    /// Image height in pixels; 0 means the size the teacher was trained for.
    pub height: usize,
    /// Image width in pixels; 0 means the size the teacher was trained for.
    pub width: usize,
    /// Several sizes, `HEIGHTxWIDTH` with weights; empty means one.
    pub sizes: Vec<String>,
    /// Several aspects, `WIDTH:HEIGHT` with weights, at the area of `height` times `width`; empty means one.
    pub aspects: Vec<String>,
    /// Shift of Euler's times; 0 means the one stored with the teacher.
    pub shift: f32,
}

impl Default for SynthesizeConfig {
    fn default() -> Self {
        Self {
            count: 4096,
            steps: 20,
            guidance: 3.0,
            batch: 64,
            shard_size: 1024,
            prompts: String::new(),
            prompt_key: String::new(),
            negative_prompt: String::new(),
            height: 0,
            width: 0,
            sizes: Vec::new(),
            aspects: Vec::new(),
            shift: 0.0,
        }
    }
}

impl SynthesizeConfig {
    pub(super) fn validate(&self) -> Result<()> {
        at_least_one("synthesize.count", self.count)?;
        at_least_one("synthesize.steps", self.steps)?;
        at_least_one("synthesize.batch", self.batch)?;
        at_least_one("synthesize.shard_size", self.shard_size)?;
        guidance_in_range("synthesize.guidance", self.guidance)?;
        in_range("synthesize.shift", self.shift, (0.0..=100.0).contains(&self.shift))?;
        if !self.sizes.is_empty() && !self.aspects.is_empty() {
            return Err(Error::Config("synthesize.sizes and synthesize.aspects exclude each other: set one of them to []".into()));
        }
        self.sizes.iter().try_for_each(|size| parse_size(size).map(drop)).map_err(|e| Error::Config(format!("synthesize.sizes: {e}")))?;
        let aspects = self.aspects.iter().try_for_each(|aspect| parse_aspect(aspect, 1 << 20, 64).map(drop));
        aspects.map_err(|e| Error::Config(format!("synthesize.aspects: {e}")))
    }
}

/// Section `[pretrain]`: rectified-flow training of a teacher, for those who have none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PretrainConfig {
    /// Optimiser steps.
    pub steps: u32,
    /// Samples per step.
    pub batch: usize,
    /// Share of samples trained without their caption, which is what guidance needs.
    pub caption_dropout: f32,
    /// Share of samples trained without what conditions them, which is what guidance by the image needs.
    pub image_dropout: f32,
    /// Distribution of the diffusion time.
    pub t: TimestepDistribution,
    /// Decay of the moving average of the weights that is saved.
    pub ema_decay: f64,
    /// Steps between checkpoints; 0 writes only the last.
    pub checkpoint_every: u32,
    /// How many checkpoints are kept.
    pub keep_checkpoints: usize,
    /// Steps between lines of progress where the output is no terminal, and between records in `metrics.jsonl`.
    pub log_every: u32,
    /// Steps between grids of samples; 0 draws only the last.
    pub sample_every: u32,
    /// Of which blocks only the inputs are kept and the rest is recomputed.
    pub activation_checkpointing: Checkpointing,
    /// AdamW.
    pub optim: OptimConfig,
}

impl Default for PretrainConfig {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch: 128,
            caption_dropout: 0.1,
            image_dropout: 0.1,
            t: TimestepDistribution::LogitNormal { mean: 0.0, std: 1.0 },
            ema_decay: 0.999,
            checkpoint_every: 500,
            keep_checkpoints: 2,
            log_every: 1,
            sample_every: 500,
            activation_checkpointing: Checkpointing::Auto,
            optim: OptimConfig {
                lr: 1.5e-3,
                beta1: 0.9,
                beta2: 0.99,
                weight_decay: 0.01,
                warmup_steps: 100,
                schedule: Schedule::Cosine,
                ..OptimConfig::default()
            },
        }
    }
}

impl PretrainConfig {
    pub(super) fn validate(&self) -> Result<()> {
        at_least_one("pretrain.steps", self.steps as usize)?;
        at_least_one("pretrain.batch", self.batch)?;
        at_least_one("pretrain.keep_checkpoints", self.keep_checkpoints)?;
        at_least_one("pretrain.log_every", self.log_every as usize)?;
        in_range("pretrain.caption_dropout", self.caption_dropout, (0.0..=1.0).contains(&self.caption_dropout))?;
        in_range("pretrain.image_dropout", self.image_dropout, (0.0..=1.0).contains(&self.image_dropout))?;
        in_range("pretrain.ema_decay", self.ema_decay as f32, (0.0..1.0).contains(&self.ema_decay))?;
        self.t.validate("pretrain.t")?;
        self.optim.validate("pretrain.optim")
    }
}

/// Section `[distill]`: the run around the LADD step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DistillConfig {
    /// What the student is trained by: LADD, or a baseline to compare with.
    pub method: Method,
    /// The network that the student begins as; empty means the teacher.
    pub student: String,
    /// Optimiser steps.
    pub steps: u32,
    /// Samples per optimiser step.
    pub batch: usize,
    /// Micro-batches a step is cut into; it must divide `batch`.
    pub accumulate: usize,
    /// Decay of the moving average of the student that is saved and measured.
    pub ema_decay: f64,
    /// Steps between checkpoints; 0 writes only the last.
    pub checkpoint_every: u32,
    /// How many checkpoints are kept.
    pub keep_checkpoints: usize,
    /// Steps between sample grids; 0 draws only the first and the last.
    pub sample_every: u32,
    /// Steps between measurements of quality; 0 measures only before and after.
    pub eval_every: u32,
    /// Steps between records in `metrics.jsonl`.
    pub log_every: u32,
    /// Of which blocks only the inputs are kept and the rest is recomputed.
    pub activation_checkpointing: Checkpointing,
    /// Also train the control: the same student by plain regression onto the same latents, for the table.
    pub control: bool,
    /// Steps of the control; 0 means as many as `steps`.
    pub control_steps: u32,
}

impl Default for DistillConfig {
    fn default() -> Self {
        Self {
            method: Method::Ladd,
            student: String::new(),
            steps: 3000,
            batch: 64,
            accumulate: 1,
            ema_decay: 0.99,
            checkpoint_every: 500,
            keep_checkpoints: 2,
            sample_every: 500,
            eval_every: 500,
            log_every: 1,
            activation_checkpointing: Checkpointing::Auto,
            control: false,
            control_steps: 0,
        }
    }
}

impl DistillConfig {
    /// Samples per micro-batch.
    pub fn micro_batch(&self) -> usize {
        self.batch / self.accumulate.max(1)
    }

    pub(super) fn validate(&self) -> Result<()> {
        at_least_one("distill.steps", self.steps as usize)?;
        at_least_one("distill.batch", self.batch)?;
        at_least_one("distill.accumulate", self.accumulate)?;
        at_least_one("distill.keep_checkpoints", self.keep_checkpoints)?;
        at_least_one("distill.log_every", self.log_every as usize)?;
        in_range("distill.ema_decay", self.ema_decay as f32, (0.0..1.0).contains(&self.ema_decay))?;
        if !self.batch.is_multiple_of(self.accumulate) {
            return Err(Error::Config(format!(
                "distill.accumulate = {} does not divide distill.batch = {}: every micro-batch must have the same size",
                self.accumulate, self.batch
            )));
        }
        Ok(())
    }
}

/// Section `[optim]`: the optimisers of the distillation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimSections {
    /// The student's.
    pub student: OptimConfig,
    /// The discriminator heads'.
    pub heads: OptimConfig,
}

impl Default for OptimSections {
    fn default() -> Self {
        Self { student: OptimConfig { lr: 1e-5, ..OptimConfig::default() }, heads: OptimConfig { lr: 2e-5, ..OptimConfig::default() } }
    }
}

/// Which sampler `sample` uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplerChoice {
    /// `renoise` for students, `euler` for teachers.
    Auto,
    /// `x_s = x_t + (s - t) v̂`.
    Euler,
    /// `x_s = (1 - s) x̂0 + s ε'`.
    Renoise,
}

/// Section `[sample]`: drawing images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SampleConfig {
    /// Sampling steps; 0 means 4 for students and 28 for teachers.
    pub steps: usize,
    /// Guidance scale, 1 is unguided; 0 means 1 for students and 3 for teachers.
    pub guidance: f32,
    /// Guidance scale of the image, for editing and inpainting, 1 is unguided; 0 means 1 for students and 1.5 for teachers.
    pub image_guidance: f32,
    /// Shift of Euler's times; 0 means the one stored with the network.
    pub shift: f32,
    /// The sampler.
    pub sampler: SamplerChoice,
    /// Image height in pixels; 0 means the size the network was trained for.
    pub height: usize,
    /// Image width in pixels; 0 means the size the network was trained for.
    pub width: usize,
    /// Images drawn at once.
    pub batch: usize,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self { steps: 0, guidance: 0.0, image_guidance: 0.0, shift: 0.0, sampler: SamplerChoice::Auto, height: 0, width: 0, batch: 64 }
    }
}

impl SampleConfig {
    pub(super) fn validate(&self) -> Result<()> {
        at_least_one("sample.batch", self.batch)?;
        in_range("sample.shift", self.shift, self.shift >= 0.0)?;
        guidance_in_range("sample.image_guidance", self.image_guidance)?;
        guidance_in_range("sample.guidance", self.guidance)
    }
}

/// Section `[eval]`: measuring quality against the test set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// Images drawn per setting. Fréchet distances from different numbers of images do not compare.
    pub samples: usize,
    /// Images drawn at once.
    pub batch: usize,
    /// Step counts at which the student is measured, unguided, with the renoise sampler.
    pub student_steps: Vec<usize>,
    /// Step counts at which the teacher is measured, guided and unguided, with Euler.
    pub teacher_steps: Vec<usize>,
    /// Guidance scale of the guided teacher.
    pub guidance: f32,
    /// Its guidance scale of the image, for editing and inpainting.
    pub image_guidance: f32,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            samples: 1000,
            batch: 100,
            student_steps: vec![1, 2, 4],
            teacher_steps: vec![1, 2, 4, 50],
            guidance: 3.0,
            image_guidance: 1.5,
        }
    }
}

impl EvalConfig {
    pub(super) fn validate(&self) -> Result<()> {
        at_least_one("eval.batch", self.batch)?;
        if self.samples < 2 {
            return Err(Error::Config(format!("eval.samples = {} must be at least 2: a covariance needs two images", self.samples)));
        }
        for (key, steps) in [("eval.student_steps", &self.student_steps), ("eval.teacher_steps", &self.teacher_steps)] {
            if steps.contains(&0) {
                return Err(Error::Config(format!("{key} = {steps:?} must hold numbers of at least 1")));
            }
        }
        guidance_in_range("eval.image_guidance", self.image_guidance)?;
        guidance_in_range("eval.guidance", self.guidance)
    }
}

/// Shape of the demo's teacher: about 2.3 million parameters.
pub(super) fn demo_model() -> ModelConfig {
    ModelConfig {
        depth: 4,
        heads: 2,
        head_dim: 64,
        in_channels: 16,
        patch: 2,
        context_dim: 64,
        pooled_dim: 64,
        pos_embed_max: 4,
        qk_norm: true,
        dual_attention_blocks: 0,
        conditioning_channels: 0,
    }
}

pub(super) fn at_least_one(key: &str, value: usize) -> Result<()> {
    if value == 0 { Err(Error::Config(format!("{key} = 0 must be at least 1"))) } else { Ok(()) }
}

pub(super) fn guidance_in_range(key: &str, value: f32) -> Result<()> {
    in_range(key, value, (0.0..=100.0).contains(&value))
}

pub(super) fn in_range(key: &str, value: f32, ok: bool) -> Result<()> {
    if ok && value.is_finite() { Ok(()) } else { Err(Error::Config(format!("{key} = {value} is out of range"))) }
}

fn one_of(key: &str, value: &str, allowed: &[&str]) -> Result<()> {
    if allowed.contains(&value) {
        return Ok(());
    }
    Err(Error::Config(format!("{key} = \"{value}\" is not one of {}", allowed.join(", "))))
}
