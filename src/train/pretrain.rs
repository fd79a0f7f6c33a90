//! Rectified-flow training of a teacher (SD3, section 2), for those who have none: `min E |v̂(x_t, t, c) - (ε - x0)|^2`.

use crate::device::{Backend, PatchOrder, PatchShape, StepValues, Storage};
use crate::flow::TimestepDistribution;
use crate::flow::philox::{fill_normals, stream, uniform_at};
use crate::model::{Activations, Backward, Gradients, Image, ImageMut, Inputs, Keep, Mmdit, Plan, Shape};
use crate::train::{Checkpointed, Checkpointing, Network, OptimConfig, PretrainRecord};
use crate::{Error, Result};

/// Settings of `pretrain`.
#[derive(Clone, Debug)]
pub struct PretrainSettings {
    /// How `t` is drawn.
    pub timesteps: TimestepDistribution,
    /// The optimiser.
    pub optim: OptimConfig,
    /// Steps of the whole run.
    pub total_steps: u32,
    /// Decay of the moving average, which becomes the teacher.
    pub ema_decay: f64,
    /// Share of captions replaced by the empty one, for classifier-free guidance.
    pub caption_dropout: f32,
    /// Share of conditionings replaced by zeros, for guidance by the image. Half of the dropped captions lose theirs too, and
    /// the other way round: with both shares 2 p, text, image and both are dropped with probability p each (InstructPix2Pix).
    pub image_dropout: f32,
    /// Seed of the run.
    pub seed: u64,
    /// Keep only the blocks' inputs and compute the rest twice.
    pub activation_checkpointing: Checkpointing,
}

/// A training in progress, for one shape of batch.
#[derive(Debug)]
pub struct Pretrainer<B: Backend> {
    settings: PretrainSettings,
    model: Mmdit<B>,
    /// The network.
    pub network: Network<B>,
    shape: Shape,
    x0: B::Stat,
    /// The conditioning `[B, K, H, W]` and its tokens, where the network reads one.
    conditioning: Option<(B::Stat, B::Data, PatchShape)>,
    x_t: B::Stat,
    target: B::Stat,
    velocity: B::Stat,
    d_velocity: B::Stat,
    t: B::Stat,
    loss: B::Stat,
    context: B::Data,
    pooled: B::Data,
    step: B::Step,
    /// The step, for devices that replay.
    recording: B::Recording,
    acts: Activations<B>,
    room: Gradients<B>,
    done: u32,
}

impl<B: Backend> Pretrainer<B> {
    /// Plans the training of `model` from the host arena `weights`.
    ///
    /// # Errors
    /// When settings and model do not fit, or the device's memory is exhausted.
    pub fn new(b: &B, settings: PretrainSettings, model: Mmdit<B>, weights: &[f32], shape: Shape) -> Result<Self> {
        settings.timesteps.validate("pretrain.timesteps")?;
        settings.optim.validate("pretrain.optim")?;
        for (key, share) in [("caption_dropout", settings.caption_dropout), ("image_dropout", settings.image_dropout)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::Config(format!("pretrain.{key} = {share} must lie between 0 and 1")));
            }
        }
        let config = model.config();
        let numel = shape.batch * config.in_channels * shape.height * shape.width;
        let blocks = config.depth;
        let plan = |checkpointed: Checkpointed| {
            let plan = Plan { shape, blocks, velocity: true, keep: Keep::Everything, checkpointed: checkpointed.of(blocks) };
            Ok((model.activations(b, plan)?, model.gradients(b, &plan)?))
        };
        let (acts, room) = settings.activation_checkpointing.plan(plan)?;
        let Shape { batch, height, width, .. } = shape;
        let (channels, patch) = (config.conditioning_channels, config.patch);
        let conditioned = batch * channels * height * width;
        let patches = PatchShape { batch, channels, height, width, patch, order: PatchOrder::ChannelFirst };
        let conditioning = || Ok::<_, Error>((b.alloc_stat(conditioned)?, b.alloc_data(conditioned)?, patches));
        Ok(Self {
            conditioning: (channels > 0).then(conditioning).transpose()?,
            network: Network::new(b, weights, &settings.optim, 0, settings.ema_decay)?,
            x0: b.alloc_stat(numel)?,
            x_t: b.alloc_stat(numel)?,
            target: b.alloc_stat(numel)?,
            velocity: b.alloc_stat(numel)?,
            d_velocity: b.alloc_stat(numel)?,
            t: b.alloc_stat(shape.batch)?,
            loss: b.alloc_stat(1)?,
            context: b.alloc_data(shape.batch * shape.text * config.context_dim)?,
            pooled: b.alloc_data(shape.batch * config.pooled_dim)?,
            step: b.alloc_step()?,
            recording: B::Recording::default(),
            acts,
            room,
            settings,
            model,
            shape,
            done: 0,
        })
    }

    /// The network without its weights.
    pub fn model(&self) -> &Mmdit<B> {
        &self.model
    }

    /// Steps done.
    pub fn done(&self) -> u32 {
        self.done
    }

    /// Continues behind `done` steps, after the network's state was restored.
    pub fn resume_at(&mut self, done: u32) {
        self.done = done;
    }

    /// Queues one step on latents `[B, C, H, W]`, with the conditioning `[B, K, H, W]` where the network reads one, context and
    /// pooled text. What is dropped is zeros.
    ///
    /// # Panics
    /// When the conditioning is missing where it is needed, or a length is not the planned one.
    pub fn step(&mut self, b: &B, x0: &[f32], conditioning: Option<&[f32]>, context: &[f32], pooled: &[f32]) {
        let PretrainSettings { seed, total_steps, caption_dropout, image_dropout, .. } = self.settings;
        let lr = self.settings.optim.lr_at(self.done, total_steps) as f32;
        b.upload_step(&StepValues { seed, step: self.done, first_sample: 0, lr: [lr, 0.0] }, &mut self.step);
        b.upload_stat(x0, self.x0.all_mut());
        let (mut context, mut pooled) = (context.to_vec(), pooled.to_vec());
        let mut given = conditioning.map(<[f32]>::to_vec);
        let drop = |values: &mut [f32], sample: usize| {
            let len = values.len() / self.shape.batch;
            values[sample * len..(sample + 1) * len].fill(0.0);
        };
        for sample in 0..self.shape.batch {
            let u = uniform_at(seed, self.done, stream::CAPTION_DROPOUT, sample as u64);
            if u < caption_dropout {
                drop(&mut context, sample);
                drop(&mut pooled, sample);
            }
            let from = caption_dropout / 2.0;
            if let Some(given) = given.as_mut().filter(|_| (from..from + image_dropout).contains(&u)) {
                drop(given, sample);
            }
        }
        assert_eq!(self.conditioning.is_some(), given.is_some(), "what the network reads must be given");
        if let (Some((latents, tokens, patches)), Some(given)) = (&mut self.conditioning, &given) {
            b.upload_stat(given, latents.all_mut());
            b.patchify(patches, latents.all(), tokens.all_mut());
        }
        b.upload_data(&context, self.context.all_mut());
        b.upload_data(&pooled, self.pooled.all_mut());

        let Self { settings, model, network, shape, step, x0, x_t, target, velocity, d_velocity, t, loss, .. } = self;
        let (context, pooled, acts, room) = (&self.context, &self.pooled, &mut self.acts, &mut self.room);
        let conditioning = self.conditioning.as_ref().map(|(_, tokens, _)| tokens.all());
        let batch = shape.batch;
        b.replay(&mut self.recording, || {
            b.timesteps(step, stream::PRETRAIN_T, &settings.timesteps, t.all_mut());
            b.flow_noise(step, stream::PRETRAIN_NOISE, None, x0.all(), t.all(), x_t.all_mut(), Some(target.all_mut()));
            let image = Image::Latent(x_t.all());
            let inputs = Inputs { batch, image, conditioning, t: t.all(), context: context.all(), pooled: pooled.all() };
            model.forward(b, &network.params, &inputs, acts, Some(ImageMut::Latent(velocity.all_mut())));
            b.fill(loss.all_mut(), 0.0);
            b.mse(velocity.all(), target.all(), 1.0, 1.0, Some(d_velocity.all_mut()), loss.all_mut());
            network.zero_gradients(b);
            let (d_velocity, grads) = (Some(Image::Latent(d_velocity.all())), Some(&mut network.grads));
            let pass = Backward { batch, d_velocity, d_features: &[], grads, d_image: None };
            model.backward(b, &network.params, &inputs, acts, room, pass);
            network.update(b, step);
        });
        self.done += 1;
    }

    /// Waits for the last step and reads its loss and gradient norm.
    ///
    /// # Errors
    /// When the device failed.
    pub fn record(&self, b: &B, seconds: f64) -> Result<PretrainRecord> {
        let index = self.done.saturating_sub(1);
        Ok(PretrainRecord {
            step: self.done,
            seconds,
            lr: self.settings.optim.lr_at(index, self.settings.total_steps),
            loss: b.download_stat(self.loss.all())?[0],
            grad_norm: b.download_stat(self.network.norm.all())?[0],
        })
    }
}

/// Fresh weights: normal with variance `1 / inputs`; RMSNorm weights one; biases, all modulations, the final layer and the
/// conditioning's embedding zero, so that every block begins as the identity (DiT's adaLN-Zero, arXiv 2212.09748).
pub fn initial_weights<B: Backend>(model: &Mmdit<B>, seed: u64) -> Vec<f32> {
    let arena = &model.layout().arena;
    let mut weights = vec![0.0; arena.len()];
    for (i, entry) in arena.entries().iter().enumerate() {
        let values = &mut weights[entry.range()];
        if entry.name.contains(".ln_") {
            values.fill(1.0);
        } else if entry.shape.len() >= 2
            && !["adaLN_modulation", "final_layer", ".conditioning"].iter().any(|zero| entry.name.contains(zero))
        {
            let fan_in: usize = entry.shape[1..].iter().product();
            let scale = (1.0 / fan_in as f32).sqrt();
            fill_normals(seed, 0, stream::PARAMETERS + i as u32, 0, values);
            values.iter_mut().for_each(|v| *v *= scale);
        }
    }
    weights
}
