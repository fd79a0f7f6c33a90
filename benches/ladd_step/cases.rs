//! What is measured: a model of a named size, a shape and a mode, with random weights made on the device.

use std::ops::Range;

use ladd_fast::config::{Config, GemmAlgorithms, Sources};
use ladd_fast::device::{Backend, StepValues, Storage, View};
use ladd_fast::flow::philox::{fill_normals, stream};
use ladd_fast::flow::{SampleSettings, Sampler, SamplerKind, TextBatch, TimestepDistribution};
use ladd_fast::ladd::{HostBatch, LaddConfig, Update};
use ladd_fast::model::{Backward, Flops, Image, ImageMut, Inputs, Keep, Mmdit, ModelConfig, Pass, Plan, Shape};
use ladd_fast::train::{Checkpointing, DistillSettings, Distiller, MicroBatch, Network, OptimConfig};
use ladd_fast::{Error, Result};

/// Latent pixels are this many image pixels wide.
const PIXELS: usize = 8;
/// Steps of the sampler that `Mode::Sampling` runs.
pub const SAMPLER_STEPS: usize = 4;
/// Standard deviation of the random weights.
const WEIGHTS: f32 = 0.02;
/// Random weights are made this many at a time.
const CHUNK: usize = 1 << 26;

/// What one run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// A LADD step, both gradients from one forward.
    Simultaneous,
    /// A LADD step, student and heads in turns.
    Alternating,
    /// Four steps of the renoise sampler, text to latents, transformer only.
    Sampling,
    /// The network's forward.
    Forward,
    /// The network's forward and backward.
    ForwardBackward,
}

/// Sizes of a network.
#[derive(Clone, Debug)]
pub struct Model {
    pub name: String,
    pub config: ModelConfig,
    pub head_width: usize,
    /// Image side, where none is named.
    pub resolution: usize,
    /// Text tokens, where none are named.
    pub text: usize,
}

impl Model {
    /// The sizes called `name`: `tiny`, for dry runs, or a preset.
    ///
    /// # Errors
    /// When there is no preset of that name.
    pub fn named(name: &str) -> Result<Self> {
        let preset = if name == "tiny" { "demo" } else { name };
        let sources = Sources { preset: Some(preset), ..Sources::default() };
        let Config { model: config, ladd, .. } = Config::load(&sources)?;
        let (name, head_width) = (name.to_owned(), ladd.head_width);
        let model = match preset {
            _ if name == "tiny" => {
                let config = ModelConfig { depth: 2, head_dim: 16, in_channels: 4, context_dim: 16, pooled_dim: 16, ..config };
                Self { name, config, head_width: 16, resolution: 32, text: 3 }
            }
            "demo" | "demo-quick" => Self { name, config, head_width, resolution: 64, text: 4 },
            // CLIP's and T5's 77 tokens each.
            _ => Self { name, config, head_width, resolution: 1024, text: 154 },
        };
        Ok(model)
    }
}

/// How the device runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Whether independent work runs side by side.
    pub branches: bool,
    /// How cuBLASLt's algorithms are chosen.
    pub algorithms: GemmAlgorithms,
}

impl Default for Variant {
    fn default() -> Self {
        Self { branches: true, algorithms: GemmAlgorithms::Heuristic }
    }
}

/// One thing to measure.
#[derive(Clone, Debug)]
pub struct Case {
    pub model: Model,
    pub mode: Mode,
    pub batch: usize,
    /// Image side in pixels.
    pub resolution: usize,
    /// Text tokens.
    pub text: usize,
    /// Keep only the blocks' inputs and compute the rest twice.
    pub checkpointing: bool,
    pub variant: Variant,
}

impl Case {
    /// Sizes of its passes.
    pub fn shape(&self) -> Shape {
        let side = self.resolution / PIXELS;
        Shape { batch: self.batch, height: side, width: side, text: self.text }
    }

    /// Image tokens of a sample.
    pub fn image_tokens(&self) -> usize {
        (self.resolution / PIXELS / self.model.config.patch).pow(2)
    }

    /// The network, with a positional grid that is large enough.
    pub fn config(&self) -> ModelConfig {
        let grid = (self.resolution / PIXELS).div_ceil(self.model.config.patch);
        let config = self.model.config.clone();
        ModelConfig { pos_embed_max: config.pos_embed_max.max(grid), ..config }
    }

    fn ladd(&self) -> LaddConfig {
        let student_t = TimestepDistribution::Discrete {
            values: vec![1.0, 0.75, 0.5, 0.25],
            probs: vec![0.7, 0.1, 0.1, 0.1],
            warmup_probs: Vec::new(),
            warmup_steps: 0,
        };
        let update = if self.mode == Mode::Alternating { Update::Alternating } else { Update::Simultaneous };
        LaddConfig { update, student_t, head_width: self.model.head_width, ..LaddConfig::default() }
    }

    /// Operations of one run.
    ///
    /// # Errors
    /// When the sizes do not fit each other.
    pub fn flops(&self) -> Result<Flops> {
        let (config, shape) = (self.config(), self.shape());
        config.grid(shape.height, shape.width)?;
        let pass = |pass: Pass| config.flops(shape, config.depth, true, pass);
        Ok(match self.mode {
            Mode::Simultaneous | Mode::Alternating => self.ladd().flops(&config, &config, shape)?,
            Mode::Sampling => pass(Pass::Forward) * SAMPLER_STEPS as u64,
            Mode::Forward => pass(Pass::Forward),
            Mode::ForwardBackward => pass(Pass::Forward) + pass(Pass::Backward),
        })
    }

    /// Makes everything a run needs, on the device; each call then runs once and waits.
    ///
    /// # Errors
    /// When the sizes do not fit each other, or the device's memory is exhausted.
    pub fn start<'a, B: Backend>(&self, b: &'a B) -> Result<Run<'a>> {
        if !self.resolution.is_multiple_of(PIXELS) {
            return Err(Error::Usage(format!("a resolution of {} is no multiple of {PIXELS}", self.resolution)));
        }
        match self.mode {
            Mode::Simultaneous | Mode::Alternating => self.step(b),
            Mode::Sampling => self.sampling(b),
            Mode::Forward => self.pass(b, false),
            Mode::ForwardBackward => self.pass(b, true),
        }
    }

    fn network<B: Backend>(&self, b: &B) -> Result<Mmdit<B>> {
        let config = self.config();
        let grid = vec![0.0; config.pos_embed_max * config.pos_embed_max * config.hidden()];
        Mmdit::new(b, config, &grid)
    }

    fn step<'a, B: Backend>(&self, b: &'a B) -> Result<Run<'a>> {
        let optim = |lr: f64| OptimConfig { lr, beta1: 0.9, beta2: 0.999, weight_decay: 0.01, ..OptimConfig::default() };
        let settings = DistillSettings {
            ladd: self.ladd(),
            student: optim(1e-5),
            heads: optim(2e-5),
            total_steps: u32::MAX,
            ema_decay: 0.99,
            seed: 0,
            activation_checkpointing: if self.checkpointing { Checkpointing::All } else { Checkpointing::Off },
        };
        let (teacher, student) = (self.network(b)?, self.network(b)?);
        let len = teacher.layout().arena.len();
        let mut teacher_params = b.alloc_data(len)?;
        let mut weights = Network::zeroed(b, len, &settings.student, 0, settings.ema_decay)?;
        random_weights(b, len, |range, values| {
            b.cast(values, teacher_params.part_mut(range.clone()));
            b.cast(values, weights.params.part_mut(range.clone()));
            b.copy(values, weights.master.part_mut(range.clone()));
            if let Some(ema) = &mut weights.ema {
                b.copy(values, ema.part_mut(range));
            }
        })?;
        let mut distiller = Distiller::from_device(b, settings, (teacher, teacher_params), (student, weights))?;
        let (shape, values) = (self.shape(), self.host_values());
        Ok(Box::new(move || {
            let [x0, context, pooled] = &values;
            let values = HostBatch { x0, conditioning: None, context, pooled, mismatch: None };
            distiller.step(b, &[MicroBatch { shape, values }])?;
            Ok(b.synchronize()?)
        }))
    }

    fn sampling<'a, B: Backend>(&self, b: &'a B) -> Result<Run<'a>> {
        let network = self.network(b)?;
        let params = self.params(b, &network)?;
        let mut sampler = Sampler::new(b, &network, self.shape(), false)?;
        let settings = SampleSettings {
            kind: SamplerKind::Renoise,
            steps: SAMPLER_STEPS,
            guidance: 1.0,
            image_guidance: 1.0,
            shift: 3.0,
            spacing: Default::default(),
            start: 1.0,
        };
        let (batch, [_, context, pooled]) = (self.batch, self.host_values());
        Ok(Box::new(move || {
            let text = TextBatch { context: &context, pooled: &pooled };
            let none = TextBatch { context: &[], pooled: &[] };
            sampler.sample(b, &network, &params, &settings, 0, 0, batch, text, none)?;
            Ok(())
        }))
    }

    fn pass<'a, B: Backend>(&self, b: &'a B, backward: bool) -> Result<Run<'a>> {
        let network = self.network(b)?;
        let params = self.params(b, &network)?;
        let blocks = network.config().depth;
        let keep = if backward { Keep::Everything } else { Keep::Nothing };
        let checkpointed = if self.checkpointing { blocks } else { 0 };
        let plan = Plan { shape: self.shape(), blocks, velocity: true, keep, checkpointed };
        let mut acts = network.activations(b, plan)?;
        let mut room = if backward { Some(network.gradients(b, &plan)?) } else { None };
        let mut grads = b.alloc_stat(if backward { params.len() } else { 0 })?;
        let batch = self.batch;
        let [x0, context, pooled] = self.host_values();
        let times: Vec<f32> = normals(4, batch).iter().map(|n| 1.0 / (1.0 + n.exp())).collect();
        let [mut latent, mut d_velocity, mut velocity] = [b.alloc_stat(x0.len())?, b.alloc_stat(x0.len())?, b.alloc_stat(x0.len())?];
        let (mut t, mut text, mut pool) = (b.alloc_stat(batch)?, b.alloc_data(context.len())?, b.alloc_data(pooled.len())?);
        b.upload_stat(&x0, latent.all_mut());
        b.upload_stat(&x0, d_velocity.all_mut());
        b.upload_stat(&times, t.all_mut());
        b.upload_data(&context, text.all_mut());
        b.upload_data(&pooled, pool.all_mut());
        let mut recording = B::Recording::default();
        Ok(Box::new(move || {
            b.replay(&mut recording, || {
                let inputs = Inputs {
                    batch,
                    image: Image::Latent(latent.all()),
                    conditioning: None,
                    t: t.all(),
                    context: text.all(),
                    pooled: pool.all(),
                };
                network.forward(b, &params, &inputs, &mut acts, Some(ImageMut::Latent(velocity.all_mut())));
                if let Some(room) = &mut room {
                    let (d_velocity, grads) = (Some(Image::Latent(d_velocity.all())), Some(&mut grads));
                    let pass = Backward { batch, d_velocity, d_features: &[], grads, d_image: None };
                    network.backward(b, &params, &inputs, &mut acts, room, pass);
                }
            });
            Ok(b.synchronize()?)
        }))
    }

    fn params<B: Backend>(&self, b: &B, network: &Mmdit<B>) -> Result<B::Data> {
        let len = network.layout().arena.len();
        let mut params = b.alloc_data(len)?;
        random_weights(b, len, |range, values| b.cast(values, params.part_mut(range)))?;
        Ok(params)
    }

    /// Latents, context and pooled text of a batch.
    fn host_values(&self) -> [Vec<f32>; 3] {
        let Shape { batch, height, width, text } = self.shape();
        let config = &self.model.config;
        let lens = [config.in_channels * height * width, text * config.context_dim, config.pooled_dim];
        [1, 2, 3].map(|stream| normals(stream, batch * lens[stream as usize - 1]))
    }
}

/// Runs a case once and waits for the device.
pub type Run<'a> = Box<dyn FnMut() -> Result<()> + 'a>;

fn normals(stream: u32, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    fill_normals(1, 0, stream, 0, &mut values);
    values
}

/// Calls `take` with part after part of `len` random weights, made on the device as noise at time `WEIGHTS` over zeros.
fn random_weights<B: Backend>(b: &B, len: usize, mut take: impl FnMut(Range<usize>, View<'_, B::Stat>)) -> Result<()> {
    let chunk = CHUNK.min(len);
    let (zeros, mut noise, mut t, mut step) = (b.alloc_stat(chunk)?, b.alloc_stat(chunk)?, b.alloc_stat(1)?, b.alloc_step()?);
    b.fill(t.all_mut(), WEIGHTS);
    b.upload_step(&StepValues::default(), &mut step);
    for (i, from) in (0..len).step_by(chunk).enumerate() {
        let n = chunk.min(len - from);
        b.flow_noise(&step, stream::PARAMETERS + i as u32, None, zeros.part(0..n), t.all(), noise.part_mut(0..n), None);
        take(from..from + n, noise.part(0..n));
    }
    Ok(b.synchronize()?)
}
