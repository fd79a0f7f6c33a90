//! Computes the target of a baseline's distillation loss (see [`Target`]) on the device, and weighs the loss's gradient. Called
//! by the LADD step between the student's forward and its backward; planned once, nothing here allocates or waits.
//!
//! No operation of its own: guidance is linear in `v̂` and so in `x̂0`, an Euler step from nothing adds the halves up, and the
//! weight of a sample is that of the backward of predict-and-renoise.

use crate::device::{Backend, PatchOrder, PatchShape, Storage, View};
use crate::flow::philox::stream;
use crate::model::{Activations, Image, ImageMut, Inputs, Keep, Mmdit, Plan, Shape};
use crate::train::Network;
use crate::{Error, Result};

use super::Batch;
use super::baselines::{Target, Weighting, grid};

/// Room for the target of one shape of micro-batch.
#[derive(Debug)]
pub(super) struct TargetPass<B: Backend> {
    target: Target,
    batch: usize,
    patches: PatchShape,
    /// Values of all latents.
    len: usize,
    /// Times the networks are asked at; with guidance twice.
    t: B::Stat,
    /// What the teacher sees, with guidance twice.
    seen: B::Stat,
    /// The teacher's velocities or predictions: with the prompt, and without.
    answers: B::Stat,
    /// Velocities as tokens.
    tokens: B::Data,
    /// What is written and not read.
    spare: B::Data,
    /// The target `[B, C, H, W]`.
    x0: B::Stat,
    /// Minus one for each sample.
    minus_one: B::Stat,
    /// Text, with guidance followed by the negative prompt's.
    context: B::Data,
    pooled: B::Data,
    teacher: Activations<B>,
    average: Option<Average<B>>,
    /// Whether the negative prompt's text is there.
    negative: bool,
}

/// The student's moving average as a network.
#[derive(Debug)]
struct Average<B: Backend> {
    params: B::Data,
    acts: Activations<B>,
}

/// What the target is made from.
#[derive(Debug)]
pub(super) struct Given<'a, B: Backend> {
    pub step: &'a B::Step,
    pub batch: &'a Batch<B>,
    /// What the student saw, and when.
    pub x_t: View<'a, B::Stat>,
    pub t: View<'a, B::Stat>,
    /// The student's prediction.
    pub x0_hat: View<'a, B::Stat>,
}

impl<B: Backend> TargetPass<B> {
    /// Plans it for micro-batches of `shape`.
    ///
    /// # Errors
    /// When the device's memory is exhausted.
    pub fn new(b: &B, target: &Target, student: &Mmdit<B>, teacher: &Mmdit<B>, shape: Shape, patches: PatchShape) -> Result<Self> {
        let (batch, config) = (shape.batch, teacher.config());
        let rows = if target.guided() { 2 * batch } else { batch };
        let numel = config.in_channels * shape.height * shape.width;
        let plan = |shape, blocks| Plan { shape, blocks, velocity: true, keep: Keep::Nothing, checkpointed: 0 };
        let average = matches!(target, Target::Consistency { .. }).then(|| {
            let params = b.alloc_data(student.layout().arena.len())?;
            Ok::<_, Error>(Average { params, acts: student.activations(b, plan(shape, student.config().depth))? })
        });
        let mut minus_one = b.alloc_stat(batch)?;
        b.fill(minus_one.all_mut(), -1.0);
        Ok(Self {
            t: b.alloc_stat(rows)?,
            seen: b.alloc_stat(rows * numel)?,
            answers: b.alloc_stat(rows * numel)?,
            tokens: b.alloc_data(rows * numel)?,
            spare: b.alloc_data(rows * numel)?,
            x0: b.alloc_stat(batch * numel)?,
            minus_one,
            context: b.alloc_data(rows * shape.text * config.context_dim)?,
            pooled: b.alloc_data(rows * config.pooled_dim)?,
            teacher: teacher.activations(b, plan(Shape { batch: rows, ..shape }, config.depth))?,
            average: average.transpose()?,
            negative: !target.guided(),
            target: target.clone(),
            len: batch * numel,
            batch,
            patches,
        })
    }

    /// Keeps the text of the negative prompt, `[1, L, context_dim]` and `[1, pooled_dim]`.
    ///
    /// # Panics
    /// When it has another size.
    pub fn set_negative(&mut self, b: &B, context: &[f32], pooled: &[f32]) {
        if !self.target.guided() {
            return;
        }
        let rows = 2 * self.batch;
        assert_eq!((context.len() * rows, pooled.len() * rows), (self.context.len(), self.pooled.len()), "text of the negative prompt");
        for sample in self.batch..rows {
            b.upload_data(context, self.context.part_mut(sample * context.len()..(sample + 1) * context.len()));
            b.upload_data(pooled, self.pooled.part_mut(sample * pooled.len()..(sample + 1) * pooled.len()));
        }
        self.negative = true;
    }

    /// The target of the last pass, `[B, C, H, W]`.
    pub fn x0(&self) -> &B::Stat {
        &self.x0
    }

    /// Times of the last pass: `t'`, or where the average was asked; `[B]`.
    pub fn t(&self) -> View<'_, B::Stat> {
        self.t.part(0..self.batch)
    }

    /// The factor of the squared error in the student's loss, as far as it is the same for all samples; [`weigh`](Self::weigh)
    /// does the rest.
    pub fn weight(&self) -> f32 {
        match self.target {
            Target::Score { weight, weighting: Weighting::Sds, .. } => -0.5 * weight,
            Target::Score { weight, .. } => weight,
            Target::Consistency { .. } => 1.0,
        }
    }

    /// Computes the target.
    ///
    /// # Panics
    /// When the teacher is to be guided and nobody said away from what.
    pub fn compute(&mut self, b: &B, given: Given<'_, B>, student: (&Mmdit<B>, &mut Network<B>), teacher: (&Mmdit<B>, &B::Data)) {
        assert!(self.negative, "a guided target needs the negative prompt's text");
        let (context, pooled) = given.batch.text(self.batch);
        b.copy_data(context, self.context.part_mut(0..context.len));
        b.copy_data(pooled, self.pooled.part_mut(0..pooled.len));
        match self.target {
            Target::Score { .. } => self.score(b, given, teacher),
            Target::Consistency { .. } => self.consistency(b, given, student, teacher),
        }
    }

    /// The teacher's prediction from the student's renoised sample.
    fn score(&mut self, b: &B, given: Given<'_, B>, (teacher, params): (&Mmdit<B>, &B::Data)) {
        let Target::Score { t, guidance, .. } = &self.target else { return };
        let (n, len, guidance) = (self.batch, self.len, *guidance);
        let halves = self.t.len() / n;
        // One draw serves both halves; it is drawn again rather than copied within a buffer.
        for half in 0..halves {
            b.timesteps(given.step, stream::SCORE_T, t, self.t.part_mut(half * n..(half + 1) * n));
            let (t, seen) = (self.t.part(half * n..(half + 1) * n), self.seen.part_mut(half * len..(half + 1) * len));
            b.flow_noise(given.step, stream::SCORE_NOISE, None, given.x0_hat, t, seen, None);
        }
        let inputs = Inputs {
            conditioning: None,
            batch: halves * n,
            image: Image::Latent(self.seen.all()),
            t: self.t.all(),
            context: self.context.all(),
            pooled: self.pooled.all(),
        };
        teacher.forward(b, params, &inputs, &mut self.teacher, Some(ImageMut::Tokens(self.tokens.all_mut())));
        let patches = PatchShape { batch: halves * n, ..self.patches };
        let (answers, spare) = (self.answers.all_mut(), self.spare.all_mut());
        let (seen, tokens, t) = (self.seen.all(), self.tokens.all(), self.t.all());
        b.predict_x0_renoise(given.step, stream::SCORE_NOISE, &patches, seen, tokens, t, t, answers, spare);
        b.fill(self.x0.all_mut(), 0.0);
        let without = (halves == 2).then(|| self.answers.part(len..2 * len));
        b.euler_cfg(self.x0.all_mut(), self.answers.part(0..len), without, guidance, 1.0);
    }

    /// The average's prediction one interval further along the teacher's flow.
    fn consistency(
        &mut self,
        b: &B,
        given: Given<'_, B>,
        (student, network): (&Mmdit<B>, &mut Network<B>),
        (teacher, params): (&Mmdit<B>, &B::Data),
    ) {
        let Target::Consistency { intervals, guidance } = self.target else { return };
        let (n, len) = (self.batch, self.len);
        let halves = self.t.len() / n;
        for half in 0..halves {
            b.copy(given.t, self.t.part_mut(half * n..(half + 1) * n));
            b.copy(given.x_t, self.seen.part_mut(half * len..(half + 1) * len));
        }
        let inputs = Inputs {
            conditioning: None,
            batch: halves * n,
            image: Image::Latent(self.seen.all()),
            t: self.t.all(),
            context: self.context.all(),
            pooled: self.pooled.all(),
        };
        teacher.forward(b, params, &inputs, &mut self.teacher, Some(ImageMut::Latent(self.answers.all_mut())));
        let without = (halves == 2).then(|| self.answers.part(len..2 * len));
        b.euler_cfg(self.seen.part_mut(0..len), self.answers.part(0..len), without, guidance, -1.0 / intervals as f32);

        // The draw of the student's time, in a grid one interval below its own.
        b.timesteps(given.step, stream::STUDENT_T, &grid(intervals, 0), self.t.part_mut(0..n));
        let Some(average) = &mut self.average else { return };
        network.average_into(b, &mut average.params);
        let (context, pooled) = given.batch.text(n);
        let inputs =
            Inputs { batch: n, image: Image::Latent(self.seen.part(0..len)), conditioning: None, t: self.t.part(0..n), context, pooled };
        student.forward(b, &average.params, &inputs, &mut average.acts, Some(ImageMut::Tokens(self.tokens.part_mut(0..len))));
        let (seen, tokens, t) = (self.seen.part(0..len), self.tokens.part(0..len), self.t.part(0..n));
        let (x0, spare) = (self.x0.all_mut(), self.spare.part_mut(0..len));
        b.predict_x0_renoise(given.step, stream::SCORE_NOISE, &self.patches, seen, tokens, t, t, x0, spare);
    }

    /// Multiplies the gradient of the squared error, `[B, C, H, W]`, by what of `c(t')` depends on the sample.
    pub fn weigh(&mut self, b: &B, d_x0_hat: &mut B::Stat) {
        let Target::Score { weighting, .. } = self.target else { return };
        let t = self.t.part(0..self.batch);
        // `dv̂ = -t (1 - t̂) d_renoised`.
        let minus_scale = match weighting {
            Weighting::Exponential => self.minus_one.all(),
            Weighting::Sds => t,
            Weighting::Constant => return,
        };
        b.patchify(&self.patches, d_x0_hat.all(), self.tokens.part_mut(0..self.len));
        let (d, weighed) = (self.tokens.part(0..self.len), self.spare.part_mut(0..self.len));
        b.predict_x0_renoise_backward(&self.patches, minus_scale, t, Some(d), None, weighed);
        let patches = PatchShape { order: PatchOrder::ChannelLast, ..self.patches };
        b.unpatchify(&patches, self.spare.part(0..self.len), d_x0_hat.all_mut());
    }
}
