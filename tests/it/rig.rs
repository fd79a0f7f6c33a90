//! A network on a bench: runs forward and backward from host values to host values, after a first pass of nothing but
//! not-a-numbers, so that whatever a pass keeps or reuses without writing it shows.

use std::sync::Arc;

use ladd_fast::device::{Backend, PatchOrder, PatchShape, Storage};
use ladd_fast::flow::philox::fill_normals;
use ladd_fast::model::{Backward, Image, ImageMut, Inputs, Keep, Mmdit, ModelConfig, Plan, Shape};

use crate::golden::{parameters, positions};

/// A network with golden parameters.
#[derive(Debug)]
pub struct Rig<'a, B: Backend> {
    pub b: &'a B,
    pub model: Mmdit<B>,
    /// Host copy of the weights.
    pub weights: Vec<f32>,
    pub params: B::Data,
}

/// What a network is given.
#[derive(Clone, Debug)]
pub struct HostInputs {
    pub shape: Shape,
    pub latent: Vec<f32>,
    /// `[B, K, H, W]`, for networks that read one.
    pub conditioning: Option<Vec<f32>>,
    pub t: Vec<f32>,
    pub context: Vec<f32>,
    pub pooled: Vec<f32>,
}

/// What goes into a backward pass.
#[derive(Clone, Debug, Default)]
pub struct Upstream {
    pub velocity: Option<Vec<f32>>,
    pub taps: Vec<(usize, Vec<f32>)>,
}

/// How a pass is run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Blocks that run.
    pub blocks: usize,
    /// How many blocks keep only their inputs.
    pub checkpointed: usize,
    /// No gradients of weights.
    pub frozen: bool,
    /// The products of the forward in FP8; only of a frozen network.
    pub fp8: bool,
    /// Samples that take part in the backward: the first ones.
    pub batch: usize,
    /// How many more samples the buffers are planned for.
    pub spare: usize,
    /// Whether images and their gradients go in and out as tokens.
    pub tokens: bool,
}

/// What comes out.
#[derive(Debug)]
pub struct Results {
    pub velocity: Option<Vec<f32>>,
    pub taps: Vec<Vec<f32>>,
    pub d_latent: Vec<f32>,
    /// Gradient arena; empty for a frozen network.
    pub grads: Vec<f32>,
}

/// A buffer in the compute type.
pub fn data<B: Backend>(b: &B, values: &[f32]) -> B::Data {
    let mut buffer = b.alloc_data(values.len()).unwrap();
    b.upload_data(values, buffer.all_mut());
    buffer
}

/// An fp32 buffer.
pub fn stat<B: Backend>(b: &B, values: &[f32]) -> B::Stat {
    let mut buffer = b.alloc_stat(values.len()).unwrap();
    b.upload_stat(values, buffer.all_mut());
    buffer
}

/// Standard normals.
pub fn normals(seed: u64, stream: u32, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    fill_normals(seed, 0, stream, 0, &mut values);
    values
}

impl HostInputs {
    /// Random inputs of a shape.
    pub fn random(config: &ModelConfig, shape: Shape, seed: u64) -> Self {
        let Shape { batch, height, width, text } = shape;
        Self {
            latent: normals(seed, 1, batch * config.in_channels * height * width),
            conditioning: (config.conditioning_channels > 0)
                .then(|| normals(seed, 5, batch * config.conditioning_channels * height * width)),
            t: normals(seed, 2, batch).iter().map(|n| 1.0 / (1.0 + n.exp())).collect(),
            context: normals(seed, 3, batch * text * config.context_dim),
            pooled: normals(seed, 4, batch * config.pooled_dim),
            shape,
        }
    }

    /// The samples of a range.
    pub fn samples(&self, range: std::ops::Range<usize>) -> Self {
        let batch = self.shape.batch;
        let part = |values: &[f32]| values[values.len() / batch * range.start..values.len() / batch * range.end].to_vec();
        Self {
            shape: Shape { batch: range.len(), ..self.shape },
            latent: part(&self.latent),
            conditioning: self.conditioning.as_deref().map(part),
            t: part(&self.t),
            context: part(&self.context),
            pooled: part(&self.pooled),
        }
    }

    /// The conditioning as a network reads it.
    pub fn conditioning_tokens<B: Backend>(&self, b: &B, config: &ModelConfig) -> Option<B::Data> {
        let latents = self.conditioning.as_deref()?;
        let Shape { batch, height, width, .. } = self.shape;
        let (channels, patch) = (config.conditioning_channels, config.patch);
        let mut tokens = data(b, &vec![f32::NAN; latents.len()]);
        let patches = PatchShape { batch, channels, height, width, patch, order: PatchOrder::ChannelFirst };
        b.patchify(&patches, stat(b, latents).all(), tokens.all_mut());
        Some(tokens)
    }

    /// Nothing but not-a-numbers, for `spare` more samples.
    fn poison(&self, spare: usize) -> Self {
        let Shape { batch, .. } = self.shape;
        let bad = |values: &[f32]| vec![f32::NAN; values.len() / batch * (batch + spare)];
        Self {
            shape: Shape { batch: batch + spare, ..self.shape },
            latent: bad(&self.latent),
            conditioning: self.conditioning.as_deref().map(bad),
            t: bad(&self.t),
            context: bad(&self.context),
            pooled: bad(&self.pooled),
        }
    }
}

impl Upstream {
    /// Random gradients of the velocity and of every block's features.
    pub fn random(config: &ModelConfig, shape: Shape, seed: u64) -> Self {
        let tokens = shape.height * shape.width / (config.patch * config.patch);
        let tap = |i: usize| (i, normals(seed, 20 + i as u32, shape.batch * tokens * config.hidden()));
        Self {
            velocity: Some(normals(seed, 10, shape.batch * config.in_channels * shape.height * shape.width)),
            taps: (0..config.depth).map(tap).collect(),
        }
    }

    /// Without the velocity's.
    pub fn only_taps(self) -> Self {
        Self { velocity: None, ..self }
    }

    /// Zero for all samples but the first `batch` of `of`.
    pub fn first(&self, batch: usize, of: usize) -> Self {
        self.map(|d| {
            let kept = d.len() / of * batch;
            d.iter().enumerate().map(|(i, d)| if i < kept { *d } else { 0.0 }).collect()
        })
    }

    /// Every gradient as `f` makes it.
    pub fn map(&self, f: impl Fn(&[f32]) -> Vec<f32>) -> Self {
        Self { velocity: self.velocity.as_deref().map(&f), taps: self.taps.iter().map(|(i, d)| (*i, f(d))).collect() }
    }
}

impl<'a, B: Backend> Rig<'a, B> {
    /// The network of `config` with golden parameters.
    pub fn new(b: &'a B, config: &ModelConfig, seed: u64) -> Self {
        let model = Mmdit::new(b, config.clone(), &positions(config, seed)).unwrap();
        let weights = parameters(&model.layout().arena, seed);
        let params = data(b, &weights);
        Self { b, model, weights, params }
    }

    /// All blocks, nothing saved, trained, the whole batch.
    pub fn whole(&self, inputs: &HostInputs) -> Options {
        Options {
            blocks: self.model.config().depth,
            checkpointed: 0,
            frozen: false,
            fp8: false,
            batch: inputs.shape.batch,
            spare: 0,
            tokens: false,
        }
    }

    /// The velocity alone, as a sampler computes it.
    pub fn infer(&self, inputs: &HostInputs) -> Vec<f32> {
        let (b, blocks) = (self.b, self.model.config().depth);
        let plan = Plan { shape: inputs.shape, blocks, velocity: true, keep: Keep::Nothing, checkpointed: 0 };
        let mut acts = self.model.activations(b, plan).unwrap();
        let (latent, t) = (stat(b, &inputs.latent), stat(b, &inputs.t));
        let (context, pooled) = (data(b, &inputs.context), data(b, &inputs.pooled));
        let conditioning = inputs.conditioning_tokens(b, self.model.config());
        let given = Inputs {
            batch: inputs.shape.batch,
            image: Image::Latent(latent.all()),
            conditioning: conditioning.as_ref().map(Storage::all),
            t: t.all(),
            context: context.all(),
            pooled: pooled.all(),
        };
        let mut velocity = stat(b, &vec![f32::NAN; inputs.latent.len()]);
        self.model.forward(b, &self.params, &given, &mut acts, Some(ImageMut::Latent(velocity.all_mut())));
        b.download_stat(velocity.all()).unwrap()
    }

    /// Forward and backward; the velocity is computed where it has an upstream.
    pub fn run(&self, inputs: &HostInputs, upstream: &Upstream, options: Options) -> Results {
        let b = self.b;
        let velocity = upstream.velocity.is_some();
        let poison = inputs.poison(options.spare);
        let all = |d: &[f32]| vec![f32::NAN; d.len() / inputs.shape.batch * poison.shape.batch];
        let poison_upstream = upstream.map(all);
        let keep = if options.frozen { Keep::Frozen } else { Keep::Everything };
        let plan = Plan { shape: poison.shape, blocks: options.blocks, velocity, keep, checkpointed: options.checkpointed };
        let mut acts = match options.fp8 {
            false => self.model.activations(b, plan).unwrap(),
            true => {
                let weights = Arc::new(self.model.quantize(b, &self.params, options.blocks).unwrap());
                self.model.activations_fp8(b, plan, &weights).unwrap()
            }
        };
        let mut room = self.model.gradients(b, &plan).unwrap();
        let mut results = None;
        for (inputs, upstream, batch) in [(&poison, &poison_upstream, poison.shape.batch), (inputs, upstream, options.batch)] {
            let numel = inputs.latent.len();
            let (latent, t) = (stat(b, &inputs.latent), stat(b, &inputs.t));
            let (context, pooled) = (data(b, &inputs.context), data(b, &inputs.pooled));
            let Shape { batch: samples, height, width, .. } = inputs.shape;
            let (channels, patch) = (self.model.config().in_channels, self.model.config().patch);
            let patches = |batch, order| PatchShape { batch, channels, height, width, patch, order };
            let [first, last] = [PatchOrder::ChannelFirst, PatchOrder::ChannelLast].map(|order| patches(samples, order));
            let [mut tokens, mut velocity_tokens, mut d_velocity_tokens, mut d_tokens] = [(); 4].map(|()| data(b, &vec![f32::NAN; numel]));
            b.patchify(&first, latent.all(), tokens.all_mut());
            let image = if options.tokens { Image::Tokens(tokens.all()) } else { Image::Latent(latent.all()) };
            let conditioning = inputs.conditioning_tokens(b, self.model.config());
            let conditioning = conditioning.as_ref().map(Storage::all);
            let given = Inputs { batch: samples, image, conditioning, t: t.all(), context: context.all(), pooled: pooled.all() };
            let mut predicted = stat(b, &vec![f32::NAN; numel]);
            let out = if options.tokens { ImageMut::Tokens(velocity_tokens.all_mut()) } else { ImageMut::Latent(predicted.all_mut()) };
            self.model.forward(b, &self.params, &given, &mut acts, velocity.then_some(out));
            if options.tokens {
                b.unpatchify(&last, velocity_tokens.all(), predicted.all_mut());
            }

            let d_velocity = upstream.velocity.as_ref().map(|d| stat(b, d));
            if let Some(d) = &d_velocity {
                b.patchify(&last, d.all(), d_velocity_tokens.all_mut());
            }
            let d_velocity = d_velocity.as_ref().map(|d| match options.tokens {
                true => Image::Tokens(d_velocity_tokens.all()),
                false => Image::Latent(d.all()),
            });
            let d_taps: Vec<_> = upstream.taps.iter().map(|(i, d)| (*i, data(b, d))).collect();
            let d_features: Vec<_> = d_taps.iter().map(|(i, d)| (*i, d.all())).collect();
            let mut d_latent = stat(b, &vec![f32::NAN; numel]);
            let mut grads = stat(b, &vec![0.0; self.weights.len()]);
            let feature = |values: &B::Data| b.download_data(values.part(0..values.len() / plan.shape.batch * inputs.shape.batch)).unwrap();
            let d_image = if options.tokens { ImageMut::Tokens(d_tokens.all_mut()) } else { ImageMut::Latent(d_latent.all_mut()) };
            let grads_ = (!options.frozen).then_some(&mut grads);
            let pass = Backward { batch, d_velocity, d_features: &d_features, grads: grads_, d_image: Some(d_image) };
            self.model.backward(b, &self.params, &given, &mut acts, &mut room, pass);
            if options.tokens {
                b.unpatchify(&patches(batch, PatchOrder::ChannelFirst), d_tokens.all(), d_latent.all_mut());
            }
            results = Some(Results {
                velocity: velocity.then(|| b.download_stat(predicted.all()).unwrap()),
                taps: (0..options.blocks).map(|i| feature(acts.feature(i))).collect(),
                d_latent: b.download_stat(d_latent.all()).unwrap(),
                grads: if options.frozen { Vec::new() } else { b.download_stat(grads.all()).unwrap() },
            });
        }
        results.unwrap()
    }
}
