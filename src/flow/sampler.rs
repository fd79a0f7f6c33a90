//! Samplers: Euler with classifier-free guidance and SD3's shift for a teacher, LADD's renoise sampler for a student.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::device::{Backend, PatchOrder, PatchShape, StepValues, Storage};
use crate::flow::philox::stream;
use crate::model::{Activations, Image, ImageMut, Inputs, Keep, Mmdit, ModelConfig, Plan, Shape};
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
    /// Guidance scale of the conditioning, for networks that read one; 1 is unguided. With both scales the velocity is
    /// `v(∅, ∅) + s_I (v(c_I, ∅) - v(∅, ∅)) + s_T (v(c_I, c_T) - v(c_I, ∅))` (InstructPix2Pix, equation 3).
    pub image_guidance: f32,
    /// SD3's resolution shift of the Euler times.
    pub shift: f32,
    /// How the Euler times are spaced before the shift.
    pub spacing: Spacing,
    /// The first time; 1 begins from noise, less from given latents that were noised to this time (SDEdit, arXiv 2108.01073).
    pub start: f32,
}

impl SampleSettings {
    /// The times at which the network is asked, followed by 0 for Euler. Euler's are
    /// `shift u / (1 + (shift - 1) u)` for u from 1 to 0, spaced as `spacing` says; renoise's are evenly spaced, `1 - i / steps`.
    /// With an earlier `start`, u begins where that is the shifted time, and the spacing is even.
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
        for (name, scale) in [("guidance", self.guidance), ("image guidance", self.image_guidance)] {
            if !(scale >= 0.0 && scale.is_finite()) {
                return Err(Error::Usage(format!("{name} = {scale} must be zero or more; 1 is unguided")));
            }
        }
        if !(self.start > 0.0 && self.start <= 1.0) {
            return Err(Error::Usage(format!("start = {} must be a time in (0, 1]; 1 begins from noise", self.start)));
        }
        let (shift, start) = (f64::from(self.shift), f64::from(self.start));
        let first = if self.kind == SamplerKind::Euler { start / (shift - (shift - 1.0) * start) } else { start };
        let even = |i: usize| first * (1.0 - i as f64 / n as f64);
        let shifted = |u: f64| shift * u / (1.0 + (shift - 1.0) * u);
        Ok(match self.kind {
            SamplerKind::Euler if self.spacing == Spacing::Linspace && self.start == 1.0 => {
                let (steps, last) = ((n - 1).max(1) as f64, shifted(LAST));
                let u = |i: usize| 1.0 + (last - 1.0) * i as f64 / steps;
                (0..n).map(|i| shifted(u(i)) as f32).chain(std::iter::once(0.0)).collect()
            }
            SamplerKind::Euler => (0..=n).map(|i| shifted(even(i)) as f32).collect(),
            SamplerKind::Renoise => (0..n).map(|i| even(i) as f32).collect(),
        })
    }

    /// Whether a step asks the network more than once.
    pub fn guided(&self) -> bool {
        self.answers() > 1
    }

    /// How often a step asks the network: for the velocity with everything, without text, and without text and image.
    fn answers(&self) -> usize {
        match (self.guidance != 1.0, self.image_guidance != 1.0) {
            (_, true) => 3,
            (true, false) => 2,
            (false, false) => 1,
        }
    }

    /// Network evaluations an image costs; guidance by text doubles them, by the image it makes three of one.
    pub fn evaluations(&self) -> usize {
        self.steps * self.answers()
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
    guidance: [u32; 2],
    shift: u32,
    spacing: Spacing,
    start: u32,
    count: usize,
    given: bool,
}

/// A sampler planned for one shape; its buffers are reused from batch to batch.
#[derive(Debug)]
pub struct Sampler<B: Backend> {
    shape: Shape,
    /// Answers of the network that a step may ask for.
    answers: usize,
    numel: usize,
    acts: Activations<B>,
    x: B::Stat,
    /// The latents once for each answer.
    repeated: B::Stat,
    conditioning: Option<Conditioning<B>>,
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

/// What the drawn latents are conditioned on.
#[derive(Debug)]
struct Conditioning<B: Backend> {
    /// `[B, K, H, W]`, not noised.
    given: B::Stat,
    /// Their tokens, once for each answer; those of the last are zeros where three are asked for.
    tokens: B::Data,
    patches: PatchShape,
}

impl<B: Backend> Conditioning<B> {
    fn new(b: &B, config: &ModelConfig, shape: Shape, rows: usize) -> Result<Option<Self>> {
        let (channels, patch) = (config.conditioning_channels, config.patch);
        if channels == 0 {
            return Ok(None);
        }
        let Shape { batch, height, width, .. } = shape;
        let len = channels * height * width;
        let patches = PatchShape { batch, channels, height, width, patch, order: PatchOrder::ChannelFirst };
        Ok(Some(Self { given: b.alloc_stat(batch * len)?, tokens: b.alloc_data(rows * len)?, patches }))
    }

    /// Values of one sample.
    fn len(&self) -> usize {
        self.patches.channels * self.patches.height * self.patches.width
    }

    /// Lays out the tokens of `count` samples for each of the answers.
    fn arrange(&mut self, b: &B, count: usize, answers: usize) {
        let len = count * self.len();
        let patches = PatchShape { batch: count, ..self.patches };
        for answer in 0..answers.min(2) {
            b.patchify(&patches, self.given.part(0..len), self.tokens.part_mut(answer * len..(answer + 1) * len));
        }
        if answers == 3 {
            b.upload_data(&vec![0.0; len], self.tokens.part_mut(2 * len..3 * len));
        }
    }
}

impl<B: Backend> Sampler<B> {
    /// Plans sampling of up to `shape.batch` latents at once; `guided` doubles the network's batch, or makes three of one for a
    /// network with conditioning.
    ///
    /// # Errors
    /// When the size does not fit the model, or the device's memory is exhausted.
    pub fn new(b: &B, model: &Mmdit<B>, shape: Shape, guided: bool) -> Result<Self> {
        let config = model.config();
        let answers = match (guided, config.conditioning_channels) {
            (false, _) => 1,
            (true, 0) => 2,
            (true, _) => 3,
        };
        let rows = shape.batch * answers;
        let numel = config.in_channels * shape.height * shape.width;
        let plan =
            Plan { shape: Shape { batch: rows, ..shape }, blocks: config.depth, velocity: true, keep: Keep::Nothing, checkpointed: 0 };
        Ok(Self {
            acts: model.activations(b, plan)?,
            x: b.alloc_stat(shape.batch * numel)?,
            repeated: b.alloc_stat(if guided { rows * numel } else { 0 })?,
            conditioning: Conditioning::new(b, config, shape, rows)?,
            velocity: b.alloc_stat(rows * numel)?,
            x0_hat: b.alloc_stat(shape.batch * numel)?,
            t: b.alloc_stat(rows)?,
            t_next: b.alloc_stat(shape.batch)?,
            context: b.alloc_data(rows * shape.text * config.context_dim)?,
            pooled: b.alloc_data(rows * config.pooled_dim)?,
            step: b.alloc_step()?,
            recordings: HashMap::new(),
            shape,
            answers,
            numel,
        })
    }

    /// What the next draws are conditioned on, `[count, K, H, W]`: the source's latent, or the masked latent and its mask. Until
    /// this is called they are conditioned on zeros, which is on nothing.
    ///
    /// # Panics
    /// When the network reads no conditioning, or more samples are given than planned.
    pub fn condition(&mut self, b: &B, latents: &[f32]) {
        let Some(conditioning) = &mut self.conditioning else { panic!("this network reads no conditioning") };
        assert!(latents.len().is_multiple_of(conditioning.len()), "conditionings of {} values", conditioning.len());
        b.upload_stat(latents, conditioning.given.part_mut(0..latents.len()));
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

    /// The same from given latents `[count, C, H, W]` at the settings' first time, in place of noise of its own.
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
        let answers = settings.answers();
        if answers == 3 && self.conditioning.is_none() {
            return Err(Error::Usage("guidance by the image needs a network that reads one, made by --task edit or inpaint".into()));
        }
        assert!(count <= self.shape.batch && answers <= self.answers, "sampler planned for {} samples", self.shape.batch);
        let len = count * self.numel;
        b.upload_step(&StepValues { seed, first_sample, ..StepValues::default() }, &mut self.step);
        b.upload_data(text.context, self.context.part_mut(0..text.context.len()));
        b.upload_data(text.pooled, self.pooled.part_mut(0..text.pooled.len()));
        if answers > 1 {
            for i in count..answers * count {
                let [c, p] = [negative.context.len(), negative.pooled.len()];
                b.upload_data(negative.context, self.context.part_mut(i * c..(i + 1) * c));
                b.upload_data(negative.pooled, self.pooled.part_mut(i * p..(i + 1) * p));
            }
        }
        if let Some(start) = start {
            b.upload_stat(start, self.x.part_mut(0..len));
        }
        if let Some(conditioning) = &mut self.conditioning {
            conditioning.arrange(b, count, answers);
        }
        let given = start.is_some();
        let SampleSettings { kind, steps, guidance, image_guidance, shift, spacing, start } = *settings;
        let (guidance, shift, start) = ([guidance, image_guidance].map(f32::to_bits), shift.to_bits(), start.to_bits());
        let key = Recorded { weights: params.place(), kind, steps, guidance, shift, spacing, start, count, given };
        let mut recording = self.recordings.remove(&key).unwrap_or_default();
        b.replay(&mut recording, || self.queue(b, model, params, settings, &times, count, given));
        self.recordings.insert(key, recording);
        let result = if settings.kind == SamplerKind::Euler { &self.x } else { &self.x0_hat };
        Ok(b.download_stat(result.part(0..len))?)
    }

    /// Queues the whole draw: nothing in it depends on the host.
    fn queue(&mut self, b: &B, model: &Mmdit<B>, params: &B::Data, settings: &SampleSettings, times: &[f32], count: usize, given: bool) {
        let (len, answers) = (count * self.numel, settings.answers());
        if !given {
            b.normal(&self.step, stream::SAMPLER_START, self.numel, self.x.part_mut(0..len));
        }
        for (i, t) in times.iter().enumerate().take(settings.steps) {
            self.velocity(b, model, params, *t, count, answers);
            let velocity = &self.velocity;
            match settings.kind {
                SamplerKind::Euler => advance(b, &mut self.x, velocity, len, settings, times[i + 1] - t),
                SamplerKind::Renoise => {
                    // Guided or not: `x̂0 = x - t v̂` is an Euler step to time 0.
                    b.copy(self.x.part(0..len), self.x0_hat.part_mut(0..len));
                    advance(b, &mut self.x0_hat, velocity, len, settings, -t);
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

    /// Velocity of the current latents at time `t`: with everything, and behind it as many of the answers without text, and
    /// without text and image, as there are to be.
    fn velocity(&mut self, b: &B, model: &Mmdit<B>, params: &B::Data, t: f32, count: usize, answers: usize) {
        let len = count * self.numel;
        let rows = answers * count;
        b.fill(self.t.part_mut(0..rows), t);
        if answers > 1 {
            (0..answers).for_each(|i| b.copy(self.x.part(0..len), self.repeated.part_mut(i * len..(i + 1) * len)));
        }
        let latent = if answers > 1 { self.repeated.part(0..rows * self.numel) } else { self.x.part(0..len) };
        let (c, p) = (self.shape.text * model.config().context_dim, model.config().pooled_dim);
        let (context, pooled) = (self.context.part(0..rows * c), self.pooled.part(0..rows * p));
        let conditioning = self.conditioning.as_ref().map(|conditioning| conditioning.tokens.part(0..rows * conditioning.len()));
        let inputs = Inputs { batch: rows, image: Image::Latent(latent), conditioning, t: self.t.part(0..rows), context, pooled };
        let velocity = ImageMut::Latent(self.velocity.part_mut(0..rows * self.numel));
        model.forward(b, params, &inputs, &mut self.acts, Some(velocity));
    }
}

/// One Euler step of `dt` with the guidance that the settings ask for; the answers lie behind each other, `len` values each.
fn advance<B: Backend>(b: &B, x: &mut B::Stat, velocity: &B::Stat, len: usize, settings: &SampleSettings, dt: f32) {
    let answer = |i: usize| velocity.part(i * len..(i + 1) * len);
    let (guidance, image_guidance) = (settings.guidance, settings.image_guidance);
    match settings.answers() {
        1 => b.euler_cfg(x.part_mut(0..len), answer(0), None, guidance, dt),
        2 => b.euler_cfg(x.part_mut(0..len), answer(0), Some(answer(1)), guidance, dt),
        _ => {
            // Both guidances are counted from an answer of their own: the text's, v(c_I, ∅), is then there once too often.
            b.euler_cfg(x.part_mut(0..len), answer(0), Some(answer(1)), guidance, dt);
            b.euler_cfg(x.part_mut(0..len), answer(1), Some(answer(2)), image_guidance, dt);
            b.euler_cfg(x.part_mut(0..len), answer(1), None, 1.0, -dt);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_follow_the_shift_and_bad_settings_are_refused() {
        let settings = SampleSettings {
            kind: SamplerKind::Euler,
            steps: 4,
            guidance: 1.0,
            image_guidance: 1.0,
            shift: 3.0,
            spacing: Spacing::Trailing,
            start: 1.0,
        };
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
            SampleSettings { start: 1.5, ..settings.clone() },
            SampleSettings { guidance: f32::NAN, ..settings.clone() },
        ] {
            assert!(bad.times().is_err());
        }
        let halfway = SampleSettings { start: 0.75, steps: 2, ..settings.clone() }.times().unwrap();
        for (time, expected) in halfway.iter().zip([0.75, 0.5, 0.0]) {
            approx::assert_relative_eq!(*time, expected, epsilon = 1e-6); // u = 1/2, 1/4, 0 at shift 3: 3/4, 1/2, 0
        }
        assert_eq!(SampleSettings { guidance: 3.0, ..settings.clone() }.evaluations(), 8);
        assert_eq!(SampleSettings { image_guidance: 1.5, ..settings }.evaluations(), 12);
    }
}
