//! The LADD step (arXiv 2403.12015, section 3) on one micro-batch: from real latents to the gradients of student and
//! heads. All buffers are planned once; nothing here allocates or waits for the host.
//!
//! A simultaneous update takes both gradients from one student forward and one teacher forward: the features of the
//! student's samples serve the heads detached and the student attached. Alternating updates run the two phases one after
//! the other, the second with fresh draws from the updated student.

use std::sync::Arc;

use crate::device::{Backend, Groups, HINGE_STATS, HingeShape, PatchOrder, PatchShape, Storage, View, ViewMut};
use crate::flow::philox::stream;
use crate::ladd::{LaddConfig, Target};
use crate::model::{
    Activations, Backward, Fp8Weights, Gradients, Heads, HeadsActivations, Image, ImageMut, Inputs, Keep, Mmdit, Plan, Shape,
};
use crate::train::{Checkpointed, Network};
use crate::{Error, Result};

use super::target::{Given, TargetPass};

/// One micro-batch on the device.
#[derive(Debug)]
pub struct Batch<B: Backend> {
    /// Samples of all groups.
    samples: usize,
    /// Real latents `[B, C, H, W]`.
    pub x0: B::Stat,
    /// What student and teacher read beside the noisy latent: `[B, K, H, W]`, and its tokens once per group,
    /// `[groups, B * N, K p p]`. Networks without conditioning have none.
    pub conditioning: Option<(B::Stat, B::Data)>,
    /// Text context, once per group: `[groups, B, L, context_dim]`. The mismatched group has other samples' text.
    pub context: B::Data,
    /// Pooled text, once per group: `[groups, B, pooled_dim]`.
    pub pooled: B::Data,
}

impl<B: Backend> Batch<B> {
    /// Context and pooled text of the first `samples` samples.
    pub(super) fn text(&self, samples: usize) -> (View<'_, B::Data>, View<'_, B::Data>) {
        let part = |len: usize| 0..len / self.samples * samples;
        (self.context.part(part(self.context.len())), self.pooled.part(part(self.pooled.len())))
    }

    /// The network's inputs for the first `samples` samples of `image` at the times `t`, with this batch's text.
    fn inputs<'a>(&'a self, samples: usize, image: Image<'a, B>, t: &'a B::Stat) -> Inputs<'a, B> {
        let (context, pooled) = self.text(samples);
        let tokens = |(_, tokens): &'a (B::Stat, B::Data)| tokens.part(0..tokens.len() / self.samples * samples);
        let conditioning = self.conditioning.as_ref().map(tokens);
        Inputs { batch: samples, image, conditioning, t: t.part(0..samples), context, pooled }
    }
}

/// Host values of one micro-batch.
#[derive(Clone, Copy, Debug)]
pub struct HostBatch<'a> {
    /// Real latents `[B, C, H, W]`.
    pub x0: &'a [f32],
    /// The conditioning `[B, K, H, W]`, not noised, where the networks read one.
    pub conditioning: Option<&'a [f32]>,
    /// Context `[B, L, context_dim]`.
    pub context: &'a [f32],
    /// Pooled text `[B, pooled_dim]`.
    pub pooled: &'a [f32],
    /// Context and pooled text of other samples, for mismatched negatives.
    pub mismatch: Option<(&'a [f32], &'a [f32])>,
}

/// Which gradients a pass computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Student and heads from the same forward.
    Both,
    /// Only the student.
    Student,
    /// Only the heads, with draws of their own.
    Heads,
}

/// The step for one shape of micro-batch.
#[derive(Debug)]
pub struct LaddStep<B: Backend> {
    config: LaddConfig,
    taps: Vec<usize>,
    groups: Groups,
    shape: Shape,
    /// Latents as the teacher reads them.
    patches: PatchShape,
    numel: usize,
    /// The conditioning as both networks read it; of no channels where they read none.
    conditioning: PatchShape,
    context_len: usize,
    pooled_len: usize,
    positions: usize,
    /// Times of the student `[B]`.
    pub t: B::Stat,
    /// Times of the discriminator, `[groups, B]`: the same in every group.
    pub t_hat: B::Stat,
    /// The student's predictions `[B, C, H, W]`.
    pub x0_hat: B::Stat,
    /// Logits `[heads, groups, B, positions]`.
    pub logits: B::Stat,
    /// Statistics `[heads, HINGE_STATS]` of the student's phase, and of the heads' phase.
    pub stats: [B::Stat; 2],
    /// `mean (x̂0 - x0)^2`, or with the target in place of the real latents; before any weight.
    pub distillation: B::Stat,
    x_t: B::Stat,
    d_x0_hat: B::Stat,
    /// Real latents at the discriminator's times.
    renoised_real: B::Stat,
    /// Tokens: the student's velocity, what the teacher sees of all groups, gradients of both.
    velocity: B::Data,
    renoised: B::Data,
    d_velocity: B::Data,
    d_renoised: B::Data,
    d_logits_d: B::Stat,
    d_logits_g: B::Stat,
    d_features: Vec<B::Data>,
    student: (Activations<B>, Gradients<B>),
    /// Teacher and heads; a pure regression has none.
    judge: Option<Judge<B>>,
    /// What the student's predictions are compared with, where it is not the real latents.
    target: Option<TargetPass<B>>,
}

#[derive(Debug)]
struct Judge<B: Backend> {
    teacher: (Activations<B>, Gradients<B>),
    heads: HeadsActivations<B>,
}

impl<B: Backend> LaddStep<B> {
    /// Plans the step for micro-batches of `shape`. With `teacher_fp8`, the teacher's quantised weights, its forward multiplies
    /// in FP8.
    ///
    /// # Errors
    /// When the settings do not fit the models, the device has no products in FP8, or its memory is exhausted.
    pub fn new(
        b: &B,
        config: &LaddConfig,
        student: &Mmdit<B>,
        teacher: &Mmdit<B>,
        teacher_fp8: Option<&Arc<Fp8Weights<B>>>,
        heads: &Heads,
        shape: Shape,
        checkpointed: Checkpointed,
    ) -> Result<Self> {
        config.validate()?;
        let taps = config.resolved_taps(teacher.config().depth)?;
        let (s, t) = (student.config(), teacher.config());
        for (what, student, teacher) in [
            ("in_channels", s.in_channels, t.in_channels),
            ("conditioning_channels", s.conditioning_channels, t.conditioning_channels),
            ("patch", s.patch, t.patch),
            ("context_dim", s.context_dim, t.context_dim),
            ("pooled_dim", s.pooled_dim, t.pooled_dim),
        ] {
            if student != teacher {
                return Err(Error::Config(format!(
                    "the student's {what} is {student}, the teacher's {teacher}: they must read the same latents and text"
                )));
            }
        }
        let groups = Groups { real: true, mismatch: config.mismatch_weight > 0.0, perturbed: config.r1_weight > 0.0 };
        let batch = shape.batch;
        let samples = groups.count() * batch;
        let numel = t.in_channels * shape.height * shape.width;
        let grid = t.grid(shape.height, shape.width)?;
        let positions = grid.0 * grid.1;
        let Shape { height, width, .. } = shape;
        let patches = PatchShape { batch, channels: t.in_channels, height, width, patch: t.patch, order: PatchOrder::ChannelFirst };
        let adversarial = config.adversarial_weight > 0.0;
        let logits = if adversarial { taps.len() * samples * positions } else { 0 };
        let checkpoints = checkpointed.of(s.depth);
        let student_plan = Plan { shape, blocks: s.depth, velocity: true, keep: Keep::Everything, checkpointed: checkpoints };
        let judge = adversarial.then(|| {
            let blocks = taps.last().map_or(1, |tap| tap + 1);
            let checkpointed = checkpointed.of(blocks);
            let plan = Plan { shape: Shape { batch: samples, ..shape }, blocks, velocity: false, keep: Keep::Frozen, checkpointed };
            let backward = Plan { shape, ..plan };
            let acts = match teacher_fp8 {
                None => teacher.activations(b, plan)?,
                Some(weights) => {
                    // In alternating updates the student's own phase has its samples alone.
                    teacher.prepare_fp8(b, &backward)?;
                    teacher.activations_fp8(b, plan, weights)?
                }
            };
            Ok::<_, Error>(Judge { teacher: (acts, teacher.gradients(b, &backward)?), heads: heads.activations(b, samples, grid)? })
        });
        let target = config.target.as_ref().map(|target| TargetPass::new(b, target, student, teacher, shape, patches));
        let mut config = config.clone();
        config.student_t = config.target.as_ref().and_then(Target::student_t).unwrap_or(config.student_t);
        let features = if adversarial { taps.len() } else { 0 };
        let feature_len = batch * positions * t.hidden();
        Ok(Self {
            t: b.alloc_stat(batch)?,
            t_hat: b.alloc_stat(samples)?,
            x0_hat: b.alloc_stat(batch * numel)?,
            logits: b.alloc_stat(logits)?,
            stats: [b.alloc_stat(taps.len() * HINGE_STATS)?, b.alloc_stat(taps.len() * HINGE_STATS)?],
            distillation: b.alloc_stat(1)?,
            x_t: b.alloc_stat(batch * numel)?,
            d_x0_hat: b.alloc_stat(batch * numel)?,
            renoised_real: b.alloc_stat(batch * numel)?,
            velocity: b.alloc_data(batch * numel)?,
            renoised: b.alloc_data(samples * numel)?,
            d_velocity: b.alloc_data(batch * numel)?,
            d_renoised: b.alloc_data(batch * numel)?,
            d_logits_d: b.alloc_stat(logits)?,
            d_logits_g: b.alloc_stat(logits / groups.count())?,
            d_features: (0..features).map(|_| b.alloc_data(feature_len)).collect::<Result<_, _>>()?,
            student: (student.activations(b, student_plan)?, student.gradients(b, &student_plan)?),
            judge: judge.transpose()?,
            target: target.transpose()?,
            conditioning: PatchShape { channels: t.conditioning_channels, ..patches },
            context_len: shape.text * t.context_dim,
            pooled_len: t.pooled_dim,
            config,
            taps,
            groups,
            shape,
            patches,
            numel,
            positions,
        })
    }

    /// The tapped blocks, one head each.
    pub fn taps(&self) -> &[usize] {
        &self.taps
    }

    /// Sizes of the micro-batch.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The groups the discriminator sees.
    pub fn groups(&self) -> Groups {
        self.groups
    }

    /// Room for a micro-batch on the device.
    ///
    /// # Errors
    /// When the device's memory is exhausted.
    pub fn alloc_batch(&self, b: &B) -> Result<Batch<B>> {
        let samples = self.groups.count() * self.shape.batch;
        let conditioned = self.conditioning.channels * self.shape.height * self.shape.width;
        let room = || Ok::<_, Error>((b.alloc_stat(self.shape.batch * conditioned)?, b.alloc_data(samples * conditioned)?));
        Ok(Batch {
            samples,
            x0: b.alloc_stat(self.shape.batch * self.numel)?,
            conditioning: (conditioned > 0).then(room).transpose()?,
            context: b.alloc_data(samples * self.context_len)?,
            pooled: b.alloc_data(samples * self.pooled_len)?,
        })
    }

    /// Copies host values into a micro-batch.
    ///
    /// # Panics
    /// When their lengths are not the planned ones, or the mismatched text or the conditioning is missing where it is needed.
    pub fn upload(&self, b: &B, host: &HostBatch<'_>, batch: &mut Batch<B>) {
        let (context_len, pooled_len) = (self.shape.batch * self.context_len, self.shape.batch * self.pooled_len);
        b.upload_stat(host.x0, batch.x0.all_mut());
        assert_eq!(batch.conditioning.is_some(), host.conditioning.is_some(), "what the networks read must be given");
        if let (Some((latents, tokens)), Some(host)) = (&mut batch.conditioning, host.conditioning) {
            b.upload_stat(host, latents.all_mut());
            let len = latents.len();
            (0..self.groups.count()).for_each(|group| {
                b.patchify(&self.conditioning, latents.all(), tokens.part_mut(group * len..(group + 1) * len));
            });
        }
        for group in 0..self.groups.count() {
            let (context, pooled) = match (self.groups.mismatch_index() == Some(group), host.mismatch) {
                (true, Some(other)) => other,
                (true, None) => panic!("mismatched negatives need other samples' text"),
                (false, _) => (host.context, host.pooled),
            };
            b.upload_data(context, batch.context.part_mut(group * context_len..(group + 1) * context_len));
            b.upload_data(pooled, batch.pooled.part_mut(group * pooled_len..(group + 1) * pooled_len));
        }
    }

    /// Says what the guided teacher of a baseline's target is steered away from: text `[1, L, context_dim]` and
    /// `[1, pooled_dim]`. Before the first pass; without such a target nothing happens.
    ///
    /// # Panics
    /// When it has another size.
    pub fn set_negative(&mut self, b: &B, context: &[f32], pooled: &[f32]) {
        if let Some(target) = &mut self.target {
            target.set_negative(b, context, pooled);
        }
    }

    /// Target and times of the last pass, `[B, C, H, W]` and `[B]`, where there is a baseline's target.
    pub fn target(&self) -> Option<(&B::Stat, View<'_, B::Stat>)> {
        self.target.as_ref().map(|target| (target.x0(), target.t()))
    }

    /// Sets the statistics to zero, at the beginning of a step.
    pub fn zero_statistics(&mut self, b: &B) {
        for stats in &mut self.stats {
            b.fill(stats.all_mut(), 0.0);
        }
        b.fill(self.distillation.all_mut(), 0.0);
    }

    /// Adds the gradients of one micro-batch, `share` of the step, to the networks' gradient arenas. With `heads_done`, which
    /// says that this micro-batch is the last to add to the heads' and that the student gets its gradient too, the heads are
    /// updated as well: beside the student's backward, which no longer reads them.
    ///
    /// # Panics
    /// When `heads_done` is said of a pass that is not [`Phase::Both`] or has no heads.
    pub fn run(
        &mut self,
        b: &B,
        phase: Phase,
        step: &B::Step,
        share: f32,
        batch: &Batch<B>,
        models: (&Mmdit<B>, &Mmdit<B>, &Heads),
        teacher_params: &B::Data,
        student: &mut Network<B>,
        heads: &mut Network<B>,
        heads_done: bool,
    ) {
        assert!(!heads_done || (phase == Phase::Both && self.judge.is_some()), "heads are done in a pass that trains both: {phase:?}");
        let (student_model, teacher_model, heads_model) = models;
        let groups = if phase == Phase::Student { Groups::FAKE } else { self.groups };
        let adversarial = self.judge.is_some();
        self.student_forward(b, phase, step, batch, student_model, &student.params);
        if adversarial {
            self.renoise_real(b, phase, step, batch, groups);
            self.judge_forward(b, batch, groups, teacher_model, heads_model, teacher_params, &heads.params);
            self.losses(b, phase, groups, share);
        }
        if phase != Phase::Heads
            && let Some(target) = &mut self.target
        {
            let given = Given { step, batch, x_t: self.x_t.all(), t: self.t.all(), x0_hat: self.x0_hat.all() };
            target.compute(b, given, (student_model, &mut *student), (teacher_model, teacher_params));
        }
        if phase != Phase::Student
            && let Some(judge) = &mut self.judge
        {
            let samples = groups.count() * self.shape.batch;
            heads_model.backward_weights(b, &heads.params, samples, &self.d_logits_d, &mut judge.heads, &mut heads.grads);
        }
        if phase != Phase::Heads {
            if adversarial {
                self.judge_backward(b, batch, (teacher_model, heads_model), teacher_params, &heads.params);
            }
            let mut of_student = |_: &mut ()| self.student_backward(b, share, batch, student_model, student);
            if heads_done {
                // The gradient went through the heads' weights as they were: only now may they change.
                b.parallel(&mut (), of_student, |_| heads.update(b, step));
            } else {
                of_student(&mut ());
            }
        }
    }

    /// Draws `t` and `ε`, predicts `x̂0`, renoises it to `t̂`.
    fn student_forward(&mut self, b: &B, phase: Phase, step: &B::Step, batch: &Batch<B>, model: &Mmdit<B>, params: &B::Data) {
        let offset = if phase == Phase::Heads { stream::DISCRIMINATOR_PHASE } else { 0 };
        let n = self.shape.batch;
        b.timesteps(step, stream::STUDENT_T + offset, &self.config.student_t, self.t.all_mut());
        b.flow_noise(step, stream::STUDENT_NOISE + offset, None, batch.x0.all(), self.t.all(), self.x_t.all_mut(), None);
        let inputs = batch.inputs(n, Image::Latent(self.x_t.all()), &self.t);
        model.forward(b, params, &inputs, &mut self.student.0, Some(ImageMut::Tokens(self.velocity.all_mut())));
        b.timesteps(step, stream::RENOISE_T + offset, &self.config.renoise_t, self.t_hat.part_mut(0..n));
        let renoised = self.renoised.part_mut(0..n * self.numel);
        let (x_t, velocity, t, t_hat) = (self.x_t.all(), self.velocity.all(), self.t.all(), self.t_hat.part(0..n));
        let (stream, x0_hat) = (stream::RENOISE_FAKE + offset, self.x0_hat.all_mut());
        b.predict_x0_renoise(step, stream, &self.patches, x_t, velocity, t, t_hat, x0_hat, renoised);
    }

    /// The groups made from real latents, all at the same `t̂` and with the same noise.
    fn renoise_real(&mut self, b: &B, phase: Phase, step: &B::Step, batch: &Batch<B>, groups: Groups) {
        let offset = if phase == Phase::Heads { stream::DISCRIMINATOR_PHASE } else { 0 };
        let (n, len) = (self.shape.batch, self.shape.batch * self.numel);
        for group in 1..groups.count() {
            let perturb = (groups.perturbed_index() == Some(group)).then_some((stream::PERTURBATION + offset, self.config.r1_sigma));
            let (t_hat, latents) = (self.t_hat.part(0..n), self.renoised_real.all_mut());
            b.flow_noise(step, stream::RENOISE_REAL + offset, perturb, batch.x0.all(), t_hat, latents, None);
            b.patchify(&self.patches, self.renoised_real.all(), self.renoised.part_mut(group * len..(group + 1) * len));
        }
        // One draw serves all groups; it is drawn again rather than copied within a buffer.
        for group in 1..groups.count() {
            let t_hat = self.t_hat.part_mut(group * n..(group + 1) * n);
            b.timesteps(step, stream::RENOISE_T + offset, &self.config.renoise_t, t_hat);
        }
    }

    /// Teacher features of all groups, and the heads' logits.
    fn judge_forward(
        &mut self,
        b: &B,
        batch: &Batch<B>,
        groups: Groups,
        teacher: &Mmdit<B>,
        heads: &Heads,
        teacher_params: &B::Data,
        heads_params: &B::Data,
    ) {
        let samples = groups.count() * self.shape.batch;
        let Some(judge) = &mut self.judge else { return };
        let inputs = batch.inputs(samples, Image::Tokens(self.renoised.all()), &self.t_hat);
        teacher.forward(b, teacher_params, &inputs, &mut judge.teacher.0, None);
        let features: Vec<&B::Data> = self.taps.iter().map(|tap| judge.teacher.0.feature(*tap)).collect();
        heads.forward(b, heads_params, samples, &features, inputs.t, inputs.pooled, &mut judge.heads, &mut self.logits);
    }

    fn losses(&mut self, b: &B, phase: Phase, groups: Groups, share: f32) {
        let shape = HingeShape {
            loss: self.config.loss,
            heads: self.taps.len(),
            groups,
            batch: self.shape.batch,
            positions: self.positions,
            mismatch_weight: self.config.mismatch_weight,
            r1_weight: self.config.r1_weight,
            generator_weight: self.config.adversarial_weight,
            share,
        };
        let count = shape.heads * groups.count() * shape.batch * shape.positions;
        let d_d = (phase != Phase::Student).then(|| self.d_logits_d.part_mut(0..count));
        let d_g = (phase != Phase::Heads).then(|| self.d_logits_g.all_mut());
        let [student_stats, heads_stats] = &mut self.stats;
        let stats: ViewMut<'_, B::Stat> = if phase == Phase::Heads { heads_stats.all_mut() } else { student_stats.all_mut() };
        b.hinge(&shape, self.logits.part(0..count), d_d, d_g, stats);
    }

    /// `∂L_G` through the heads and the frozen teacher to the renoised predictions.
    fn judge_backward(&mut self, b: &B, batch: &Batch<B>, models: (&Mmdit<B>, &Heads), teacher_params: &B::Data, heads_params: &B::Data) {
        let (n, (teacher, heads)) = (self.shape.batch, models);
        let Some(judge) = &mut self.judge else { return };
        let (acts, room) = &mut judge.teacher;
        let features: Vec<&B::Data> = self.taps.iter().map(|tap| acts.feature(*tap)).collect();
        heads.backward_features(b, heads_params, n, &features, &self.d_logits_g, &mut judge.heads, &mut self.d_features);
        let d_features: Vec<_> = self.taps.iter().zip(&self.d_features).map(|(tap, d)| (*tap, d.all())).collect();
        let inputs = batch.inputs(n, Image::Tokens(self.renoised.all()), &self.t_hat);
        let d_image = Some(ImageMut::Tokens(self.d_renoised.all_mut()));
        let pass = Backward { batch: n, d_velocity: None, d_features: &d_features, grads: None, d_image };
        teacher.backward(b, teacher_params, &inputs, acts, room, pass);
    }

    /// From the renoised predictions, and the distillation loss where it is on, to the student's weights.
    fn student_backward(&mut self, b: &B, share: f32, batch: &Batch<B>, model: &Mmdit<B>, student: &mut Network<B>) {
        let (target, weight) = match &self.target {
            Some(target) => (target.x0().all(), target.weight()),
            None => (batch.x0.all(), self.config.distillation_weight),
        };
        let d_x0_hat = (weight != 0.0).then(|| self.d_x0_hat.all_mut());
        b.mse(self.x0_hat.all(), target, share, weight, d_x0_hat, self.distillation.all_mut());
        if let Some(target) = &mut self.target {
            target.weigh(b, &mut self.d_x0_hat);
        }
        let d_renoised = self.judge.is_some().then(|| self.d_renoised.all());
        let d_x0_hat = (weight != 0.0).then(|| self.d_x0_hat.all());
        let (t, t_hat) = (self.t.all(), self.t_hat.part(0..self.shape.batch));
        b.predict_x0_renoise_backward(&self.patches, t, t_hat, d_renoised, d_x0_hat, self.d_velocity.all_mut());
        let n = self.shape.batch;
        let inputs = batch.inputs(n, Image::Latent(self.x_t.all()), &self.t);
        let (acts, room) = &mut self.student;
        let d_velocity = Some(Image::Tokens(self.d_velocity.all()));
        let pass = Backward { batch: n, d_velocity, d_features: &[], grads: Some(&mut student.grads), d_image: None };
        model.backward(b, &student.params, &inputs, acts, room, pass);
    }
}
