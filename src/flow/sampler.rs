//! Samplers: Euler with classifier-free guidance and SD3's shift for a teacher, LADD's renoise sampler for a student.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::device::{Backend, StepValues, Storage};
use crate::flow::philox::stream;
use crate::model::{Activations, Image, ImageMut, Inputs, Keep, Mmdit, Plan, Shape};
use crate::{Error, Result};

/// The last of the thousand times SD3 counts, before the shift.
const LAST: f64 = 1e-3;

/// How a latent is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplerKind {
    /// `x_s = x_t + (s - t) v̂`: follows the flow.
    Euler,
    /// `x_s = (1 - s) x̂0 + s ε'`: predicts the image, noises it again, predicts again.
    Renoise,
}

impl SamplerKind {
    /// The name in configurations and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Euler => "euler",
            Self::Renoise => "renoise",
        }
    }
}

/// How Euler's times are spaced before the shift.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// `1 - i / n`: all steps are of one length.
    #[default]
    Trailing,
    /// From 1 to the shifted 1/1000 in n - 1 steps of one length, then to 0: diffusers' `FlowMatchEulerDiscreteScheduler`.
    Linspace,
}

/// Settings of a sampler.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleSettings {
    /// Which sampler.
    pub kind: SamplerKind,
    /// Network evaluations, not counting the doubling by guidance.
    pub steps: usize,
    /// Classifier-free guidance scale; 1 is unguided.
    pub guidance: f32,
    /// SD3's resolution shift of the Euler times.
    pub shift: f32,
    /// How the Euler times are spaced before the shift.
    pub spacing: Spacing,
}

impl SampleSettings {
    /// The times at which the network is asked, followed by 0 for Euler. Euler's are
    /// `shift u / (1 + (shift - 1) u)` for u from 1 to 0, spaced as `spacing` says; renoise's are evenly spaced, `1 - i / steps`.
    ///
    /// # Errors
    /// When a setting is out of range.
    pub fn times(&self) -> Result<Vec<f32>> {
        let n = self.steps;
        if n == 0 || n > 1000 {
            return Err(Error::Usage(format!("steps = {n}: a sampler takes 1 to 1000 steps")));
        }
        if !(self.shift > 0.0 && self.shift.is_finite()) {
            return Err(Error::Usage(format!("shift = {} must be positive", self.shift)));
        }
        if !(self.guidance >= 0.0 && self.guidance.is_finite()) {
            return Err(Error::Usage(format!("guidance = {} must be zero or more; 1 is unguided", self.guidance)));
        }
        let even = |i: usize| 1.0 - i as f64 / n as f64;
        let shift = f64::from(self.shift);
        let shifted = |u: f64| shift * u / (1.0 + (shift - 1.0) * u);
        Ok(match self.kind {
            SamplerKind::Euler if self.spacing == Spacing::Linspace => {
                let (steps, last) = ((n - 1).max(1) as f64, shifted(LAST));
                let u = |i: usize| 1.0 + (last - 1.0) * i as f64 / steps;
                (0..n).map(|i| shifted(u(i)) as f32).chain(std::iter::once(0.0)).collect()
            }
            SamplerKind::Euler => (0..=n).map(|i| shifted(even(i)) as f32).collect(),
            SamplerKind::Renoise => (0..n).map(|i| even(i) as f32).collect(),
        })
    }

    fn guided(&self) -> bool {
        self.guidance != 1.0
    }

    /// Network evaluations an image costs; guidance doubles them.
    pub fn evaluations(&self) -> usize {
        self.steps * if self.guided() { 2 } else { 1 }
    }
}

/// Text embeddings of a batch.
#[derive(Clone, Copy, Debug)]
pub struct TextBatch<'a> {
    /// Context `[count, L, context_dim]`.
    pub context: &'a [f32],
    /// Pooled text `[count, pooled_dim]`.
    pub pooled: &'a [f32],
}

/// What a recording of a sampler depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Recorded {
    weights: u64,
    kind: SamplerKind,
    steps: usize,
    guidance: u32,
    shift: u32,
    spacing: Spacing,
    count: usize,
    given: bool,
}

/// A sampler planned for one shape; its buffers are reused from batch to batch.
#[derive(Debug)]
pub struct Sampler<B: Backend> {
    shape: Shape,
    guided: bool,
    numel: usize,
    acts: Activations<B>,
    x: B::Stat,
    doubled: B::Stat,
    velocity: B::Stat,
    x0_hat: B::Stat,
    t: B::Stat,
    t_next: B::Stat,
    context: B::Data,
    pooled: B::Data,
    step: B::Step,
    /// For devices that replay: all steps of a draw are one recording.
    recordings: HashMap<Recorded, B::Recording>,
}

impl<B: Backend> Sampler<B> {
    /// Plans sampling of up to `shape.batch` latents at once; `guided` doubles the network's batch.
    ///
    /// # Errors
    /// When the size does not fit the model, or the device's memory is exhausted.
    pub fn new(b: &B, model: &Mmdit<B>, shape: Shape, guided: bool) -> Result<Self> {
        let rows = shape.batch * if guided { 2 } else { 1 };
        let config = model.config();
        let numel = config.in_channels * shape.height * shape.width;
        let plan =
            Plan { shape: Shape { batch: rows, ..shape }, blocks: config.depth, velocity: true, keep: Keep::Nothing, checkpointed: 0 };
        Ok(Self {
            acts: model.activations(b, plan)?,
            x: b.alloc_stat(shape.batch * numel)?,
            doubled: b.alloc_stat(if guided { rows * numel } else { 0 })?,
            velocity: b.alloc_stat(rows * numel)?,
            x0_hat: b.alloc_stat(shape.batch * numel)?,
            t: b.alloc_stat(rows)?,
            t_next: b.alloc_stat(shape.batch)?,
            context: b.alloc_data(rows * shape.text * config.context_dim)?,
            pooled: b.alloc_data(rows * config.pooled_dim)?,
            step: b.alloc_step()?,
            recordings: HashMap::new(),
            shape,
            guided,
            numel,
        })
    }

    /// Sizes it was planned for.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Draws `count` latents `[count, C, H, W]`. Sample `i` depends on (seed, `first_sample + i`) and its text alone, not on
    /// the batch it is drawn in. `negative` is one text `[1, ..]` for guidance to point away from.
    ///
    /// # Errors
    /// When a setting is out of range or the device fails.
    ///
    /// # Panics
    /// When more samples are asked for than planned, guidance was not planned, or the text has another size.
    pub fn sample(
        &mut self,
        b: &B,
        model: &Mmdit<B>,
        params: &B::Data,
        settings: &SampleSettings,
        seed: u64,
        first_sample: u32,
        count: usize,
        text: TextBatch<'_>,
        negative: TextBatch<'_>,
    ) -> Result<Vec<f32>> {
        self.draw(b, model, params, settings, (seed, first_sample), count, text, negative, None)
    }

    /// The same from given latents `[count, C, H, W]` at time 1, in place of noise of its own.
    ///
    /// # Errors
    /// When a setting is out of range or the device fails.
    ///
    /// # Panics
    /// As [`sample`](Self::sample), or when `start` has another size.
    pub fn sample_from(
        &mut self,
        b: &B,
        model: &Mmdit<B>,
        params: &B::Data,
        settings: &SampleSettings,
        seed: u64,
        start: &[f32],
        text: TextBatch<'_>,
        negative: TextBatch<'_>,
    ) -> Result<Vec<f32>> {
        let count = start.len() / self.numel;
        assert_eq!(start.len(), count * self.numel, "latents of {} values", self.numel);
        self.draw(b, model, params, settings, (seed, 0), count, text, negative, Some(start))
    }

    fn draw(
        &mut self,
        b: &B,
        model: &Mmdit<B>,
        params: &B::Data,
        settings: &SampleSettings,
        (seed, first_sample): (u64, u32),
        count: usize,
        text: TextBatch<'_>,
        negative: TextBatch<'_>,
        start: Option<&[f32]>,
    ) -> Result<Vec<f32>> {
        let times = settings.times()?;
        let guided = settings.guided();
        assert!(count <= self.shape.batch && (self.guided || !guided), "sampler planned for {} samples", self.shape.batch);
        let len = count * self.numel;
        b.upload_step(&StepValues { seed, first_sample, ..StepValues::default() }, &mut self.step);
        b.upload_data(text.context, self.context.part_mut(0..text.context.len()));
        b.upload_data(text.pooled, self.pooled.part_mut(0..text.pooled.len()));
        if guided {
            for i in count..2 * count {
                let [c, p] = [negative.context.len(), negative.pooled.len()];
                b.upload_data(negative.context, self.context.part_mut(i * c..(i + 1) * c));
                b.upload_data(negative.pooled, self.pooled.part_mut(i * p..(i + 1) * p));
            }
        }
        if let Some(start) = start {
            b.upload_stat(start, self.x.part_mut(0..len));
        }
        let given = start.is_some();
        let SampleSettings { kind, steps, guidance, shift, spacing } = *settings;
        let key =
            Recorded { weights: params.place(), kind, steps, guidance: guidance.to_bits(), shift: shift.to_bits(), spacing, count, given };
        let mut recording = self.recordings.remove(&key).unwrap_or_default();
        b.replay(&mut recording, || self.queue(b, model, params, settings, &times, count, given));
        self.recordings.insert(key, recording);
        let result = if settings.kind == SamplerKind::Euler { &self.x } else { &self.x0_hat };
        Ok(b.download_stat(result.part(0..len))?)
    }

    /// Queues the whole draw: nothing in it depends on the host.
    fn queue(&mut self, b: &B, model: &Mmdit<B>, params: &B::Data, settings: &SampleSettings, times: &[f32], count: usize, given: bool) {
        let (len, guided) = (count * self.numel, settings.guided());
        if !given {
            b.normal(&self.step, stream::SAMPLER_START, self.numel, self.x.part_mut(0..len));
        }
        for (i, t) in times.iter().enumerate().take(settings.steps) {
            self.velocity(b, model, params, *t, count, guided);
            let velocity = self.velocity.part(0..len);
            let unconditional = guided.then(|| self.velocity.part(len..2 * len));
            match settings.kind {
                SamplerKind::Euler => b.euler_cfg(self.x.part_mut(0..len), velocity, unconditional, settings.guidance, times[i + 1] - t),
                SamplerKind::Renoise => {
                    // Guided or not: `x̂0 = x - t v̂` is an Euler step to time 0.
                    b.copy(self.x.part(0..len), self.x0_hat.part_mut(0..len));
                    b.euler_cfg(self.x0_hat.part_mut(0..len), velocity, unconditional, settings.guidance, -t);
                    if let Some(next) = times.get(i + 1) {
                        b.fill(self.t_next.part_mut(0..count), *next);
                        let noise = stream::SAMPLER_RENOISE + i as u32;
                        let (x0, t) = (self.x0_hat.part(0..len), self.t_next.part(0..count));
                        b.flow_noise(&self.step, noise, None, x0, t, self.x.part_mut(0..len), None);
                    }
                }
            }
        }
    }

    /// Velocity of the current latents at time `t`, conditional and, where guided, unconditional behind it.
    fn velocity(&mut self, b: &B, model: &Mmdit<B>, params: &B::Data, t: f32, count: usize, guided: bool) {
        let len = count * self.numel;
        let rows = if guided { 2 * count } else { count };
        b.fill(self.t.part_mut(0..rows), t);
        if guided {
            b.copy(self.x.part(0..len), self.doubled.part_mut(0..len));
            b.copy(self.x.part(0..len), self.doubled.part_mut(len..2 * len));
        }
        let latent = if guided { self.doubled.part(0..2 * len) } else { self.x.part(0..len) };
        let (c, p) = (self.shape.text * model.config().context_dim, model.config().pooled_dim);
        let (context, pooled) = (self.context.part(0..rows * c), self.pooled.part(0..rows * p));
        let inputs = Inputs { batch: rows, image: Image::Latent(latent), t: self.t.part(0..rows), context, pooled };
        let velocity = ImageMut::Latent(self.velocity.part_mut(0..rows * self.numel));
        model.forward(b, params, &inputs, &mut self.acts, Some(velocity));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_follow_the_shift_and_bad_settings_are_refused() {
        let settings = SampleSettings { kind: SamplerKind::Euler, steps: 4, guidance: 1.0, shift: 3.0, spacing: Spacing::Trailing };
        let times = settings.times().unwrap();
        assert_eq!((times.len(), times[0], times[4]), (5, 1.0, 0.0));
        approx::assert_relative_eq!(times[2], 0.75, epsilon = 1e-6);
        // As diffusers 0.42 lists the sigmas of 4 steps at shift 3.
        let theirs = SampleSettings { spacing: Spacing::Linspace, ..settings.clone() }.times().unwrap();
        for (ours, sigma) in theirs.iter().zip([1.0, 0.857_692_3, 0.602_150_6, 0.008_928_572, 0.0]) {
            approx::assert_relative_eq!(*ours, sigma, epsilon = 1e-6);
        }
        let renoise = SampleSettings { kind: SamplerKind::Renoise, ..settings.clone() };
        assert_eq!(renoise.times().unwrap(), [1.0, 0.75, 0.5, 0.25]);
        for bad in [
            SampleSettings { steps: 0, ..settings.clone() },
            SampleSettings { shift: 0.0, ..settings.clone() },
            SampleSettings { guidance: f32::NAN, ..settings.clone() },
        ] {
            assert!(bad.times().is_err());
        }
        assert_eq!(SampleSettings { guidance: 3.0, ..settings }.evaluations(), 8);
    }
}
