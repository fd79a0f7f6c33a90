//! Rectified-flow training of a teacher (SD3, section 2), for those who have none: `min E |v̂(x_t, t, c) - (ε - x0)|^2`.

use crate::device::{Backend, StepValues, Storage};
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
        if !(0.0..=1.0).contains(&settings.caption_dropout) {
            return Err(Error::Config(format!("pretrain.caption_dropout = {} must lie between 0 and 1", settings.caption_dropout)));
        }
        let config = model.config();
        let numel = shape.batch * config.in_channels * shape.height * shape.width;
        let blocks = config.depth;
        let plan = |checkpointed: Checkpointed| {
            let plan = Plan { shape, blocks, velocity: true, keep: Keep::Everything, checkpointed: checkpointed.of(blocks) };
            Ok((model.activations(b, plan)?, model.gradients(b, &plan)?))
        };
        let (acts, room) = settings.activation_checkpointing.plan(plan)?;
        Ok(Self {
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

    /// Queues one step on latents `[B, C, H, W]` with context and pooled text. Dropped captions are zeros.
    pub fn step(&mut self, b: &B, x0: &[f32], context: &[f32], pooled: &[f32]) {
        let PretrainSettings { seed, total_steps, .. } = self.settings;
        let lr = self.settings.optim.lr_at(self.done, total_steps) as f32;
        b.upload_step(&StepValues { seed, step: self.done, first_sample: 0, lr: [lr, 0.0] }, &mut self.step);
        b.upload_stat(x0, self.x0.all_mut());
        let (mut context, mut pooled) = (context.to_vec(), pooled.to_vec());
        for sample in 0..self.shape.batch {
            if uniform_at(seed, self.done, stream::CAPTION_DROPOUT, sample as u64) < self.settings.caption_dropout {
                let (c, p) = (context.len() / self.shape.batch, pooled.len() / self.shape.batch);
                context[sample * c..(sample + 1) * c].fill(0.0);
                pooled[sample * p..(sample + 1) * p].fill(0.0);
            }
        }
        b.upload_data(&context, self.context.all_mut());
        b.upload_data(&pooled, self.pooled.all_mut());

        let Self { settings, model, network, shape, step, x0, x_t, target, velocity, d_velocity, t, loss, .. } = self;
        let (context, pooled, acts, room) = (&self.context, &self.pooled, &mut self.acts, &mut self.room);
        let batch = shape.batch;
        b.replay(&mut self.recording, || {
            b.timesteps(step, stream::PRETRAIN_T, &settings.timesteps, t.all_mut());
            b.flow_noise(step, stream::PRETRAIN_NOISE, None, x0.all(), t.all(), x_t.all_mut(), Some(target.all_mut()));
            let inputs = Inputs { batch, image: Image::Latent(x_t.all()), t: t.all(), context: context.all(), pooled: pooled.all() };
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

/// Fresh weights: normal with variance `1 / inputs`; RMSNorm weights one; biases, all modulations and the final layer
/// zero, so that every block begins as the identity (DiT's adaLN-Zero, arXiv 2212.09748).
pub fn initial_weights<B: Backend>(model: &Mmdit<B>, seed: u64) -> Vec<f32> {
    let arena = &model.layout().arena;
    let mut weights = vec![0.0; arena.len()];
    for (i, entry) in arena.entries().iter().enumerate() {
        let values = &mut weights[entry.range()];
        if entry.name.contains(".ln_") {
            values.fill(1.0);
        } else if entry.shape.len() >= 2 && !entry.name.contains("adaLN_modulation") && !entry.name.starts_with("final_layer") {
            let fan_in: usize = entry.shape[1..].iter().product();
            let scale = (1.0 / fan_in as f32).sqrt();
            fill_normals(seed, 0, stream::PARAMETERS + i as u32, 0, values);
            values.iter_mut().for_each(|v| *v *= scale);
        }
    }
    weights
}
