//! The distillation: optimiser steps of the LADD step over micro-batches, its state, and what it reports.

use std::collections::HashMap;
use std::sync::Arc;

use crate::device::{Backend, DeviceError, HINGE_STATS, HingeStat, StepValues, Storage};
use crate::flow::philox::{fill_normals, stream};
use crate::ladd::{Batch, HostBatch, LaddConfig, LaddStep, Phase, Target, TeacherPrecision, Update};
use crate::model::{Fp8Weights, Heads, HeadsShape, Mmdit, Shape};
use crate::train::{Checkpointed, Checkpointing, HeadStats, Network, OptimConfig, StepRecord};
use crate::{Error, Result};

/// Everything a distillation needs besides the models.
#[derive(Clone, Debug)]
pub struct DistillSettings {
    /// The LADD step.
    pub ladd: LaddConfig,
    /// Optimiser of the student.
    pub student: OptimConfig,
    /// Optimiser of the heads.
    pub heads: OptimConfig,
    /// Steps of the whole run, for the schedules.
    pub total_steps: u32,
    /// Decay of the student's moving average.
    pub ema_decay: f64,
    /// Seed of the run.
    pub seed: u64,
    /// Which blocks keep only their inputs and compute the rest twice.
    pub activation_checkpointing: Checkpointing,
}

/// A distillation in progress.
#[derive(Debug)]
pub struct Distiller<B: Backend> {
    settings: DistillSettings,
    student_model: Mmdit<B>,
    teacher_model: Mmdit<B>,
    heads_model: Heads,
    teacher_params: B::Data,
    /// The teacher's weights once more, where its forward multiplies in FP8.
    teacher_fp8: Option<Arc<Fp8Weights<B>>>,
    /// The student.
    pub student: Network<B>,
    /// The heads.
    pub heads: Network<B>,
    taps: Vec<usize>,
    /// What a guided target is steered away from.
    negative: Option<(Vec<f32>, Vec<f32>)>,
    /// One plan per shape of micro-batch, with its buffers: all of them, or as many as the device's memory holds.
    plans: HashMap<Shape, Planned<B>>,
    /// Plans that gave way to another.
    evictions: u64,
    last_shape: Option<Shape>,
    /// Steps done.
    done: u32,
}

#[derive(Debug)]
struct Planned<B: Backend> {
    step: LaddStep<B>,
    batches: Vec<(Batch<B>, B::Step)>,
    /// The whole step by its number of micro-batches, for devices that replay.
    recordings: HashMap<usize, B::Recording>,
    /// The step that used it last.
    used: u32,
}

/// One micro-batch from the host, with its latent size.
#[derive(Clone, Copy, Debug)]
pub struct MicroBatch<'a> {
    /// Sizes.
    pub shape: Shape,
    /// Values.
    pub values: HostBatch<'a>,
}

impl<B: Backend> Distiller<B> {
    /// Starts from the host arenas of teacher and student (often the same weights).
    ///
    /// # Errors
    /// When settings and models do not fit, or the device's memory is exhausted.
    pub fn new(b: &B, settings: DistillSettings, teacher: (Mmdit<B>, &[f32]), student: (Mmdit<B>, &[f32])) -> Result<Self> {
        let (teacher_model, teacher_weights) = teacher;
        let (student_model, student_weights) = student;
        let mut teacher_params = b.alloc_data(teacher_weights.len())?;
        b.upload_data(teacher_weights, teacher_params.all_mut());
        let student = Network::new(b, student_weights, &settings.student, 0, settings.ema_decay)?;
        Self::from_device(b, settings, (teacher_model, teacher_params), (student_model, student))
    }

    /// The same with weights that are on the device already.
    ///
    /// # Errors
    /// When settings and models do not fit, or the device's memory is exhausted.
    pub fn from_device(b: &B, settings: DistillSettings, teacher: (Mmdit<B>, B::Data), student: (Mmdit<B>, Network<B>)) -> Result<Self> {
        settings.ladd.validate()?;
        settings.student.validate("optim.student")?;
        settings.heads.validate("optim.heads")?;
        let ((teacher_model, teacher_params), (student_model, student)) = (teacher, student);
        let config = teacher_model.config();
        let taps = settings.ladd.resolved_taps(config.depth)?;
        let shape = HeadsShape { count: taps.len(), hidden: config.hidden(), width: settings.ladd.head_width, pooled: config.pooled_dim };
        let heads_model = Heads::new(shape);
        let heads_weights = initial_heads(&heads_model, settings.seed);
        let judges = settings.ladd.adversarial_weight > 0.0;
        let blocks = taps.last().map_or(1, |tap| tap + 1);
        let teacher_fp8 = match settings.ladd.teacher_precision {
            TeacherPrecision::Fp8 if judges => Some(Arc::new(teacher_model.quantize(b, &teacher_params, blocks)?)),
            _ => None,
        };
        Ok(Self {
            student,
            heads: Network::new(b, &heads_weights, &settings.heads, 1, 0.0)?,
            settings,
            student_model,
            teacher_model,
            heads_model,
            teacher_params,
            teacher_fp8,
            taps,
            negative: None,
            plans: HashMap::new(),
            evictions: 0,
            last_shape: None,
            done: 0,
        })
    }

    /// Steps done so far.
    pub fn done(&self) -> u32 {
        self.done
    }

    /// The settings.
    pub fn settings(&self) -> &DistillSettings {
        &self.settings
    }

    /// The student's network, without weights.
    pub fn student_model(&self) -> &Mmdit<B> {
        &self.student_model
    }

    /// The teacher's network, without weights.
    pub fn teacher_model(&self) -> &Mmdit<B> {
        &self.teacher_model
    }

    /// The teacher's weights on the device.
    pub fn teacher_params(&self) -> &B::Data {
        &self.teacher_params
    }

    /// The tapped blocks.
    pub fn taps(&self) -> &[usize] {
        &self.taps
    }

    /// Whether a step needs other samples' text.
    pub fn needs_mismatch(&self) -> bool {
        self.settings.ladd.mismatch_weight > 0.0
    }

    /// Whether a step needs the text of a negative prompt, for the target of a baseline.
    pub fn needs_negative(&self) -> bool {
        self.settings.ladd.target.as_ref().is_some_and(Target::guided)
    }

    /// Sets that text, `[1, L, context_dim]` and `[1, pooled_dim]`, before the first step.
    pub fn set_negative(&mut self, context: Vec<f32>, pooled: Vec<f32>) {
        self.negative = Some((context, pooled));
    }

    /// Queues one optimiser step over its micro-batches, which together are one batch: `k` of them give the same update
    /// as one of `k` times the size, up to rounding. All must have the same shape.
    ///
    /// # Errors
    /// When there is no micro-batch, shapes differ, or the device's memory is exhausted.
    pub fn step(&mut self, b: &B, micro_batches: &[MicroBatch<'_>]) -> Result<()> {
        let Some(first) = micro_batches.first() else {
            return Err(Error::Usage("a step needs at least one micro-batch".into()));
        };
        let shape = first.shape;
        if let Some(other) = micro_batches.iter().find(|m| m.shape != shape) {
            return Err(Error::Usage(format!("the micro-batches of one step have different sizes: {:?} and {shape:?}", other.shape)));
        }
        self.plan(b, shape, micro_batches.len())?;
        let Some(planned) = self.plans.get_mut(&shape) else { return Ok(()) };
        planned.used = self.done;
        let total = self.settings.total_steps;
        let lr = [self.settings.student.lr_at(self.done, total) as f32, self.settings.heads.lr_at(self.done, total) as f32];
        for (i, (micro, (batch, step))) in micro_batches.iter().zip(&mut planned.batches).enumerate() {
            let first_sample = (i * shape.batch) as u32;
            b.upload_step(&StepValues { seed: self.settings.seed, step: self.done, first_sample, lr }, step);
            planned.step.upload(b, &micro.values, batch);
        }
        let Planned { step: plan, batches, recordings, .. } = planned;
        let batches = &batches[..micro_batches.len()];
        let recording = recordings.entry(batches.len()).or_default();
        let share = 1.0 / batches.len() as f32;
        let models = (&self.student_model, &self.teacher_model, &self.heads_model);
        let adversarial = self.settings.ladd.adversarial_weight > 0.0;
        let phases: &[Phase] = match self.settings.ladd.update {
            Update::Simultaneous => &[Phase::Both],
            Update::Alternating if adversarial => &[Phase::Student, Phase::Heads],
            Update::Alternating => &[Phase::Student],
        };
        let (teacher_params, student, heads) = (&self.teacher_params, &mut self.student, &mut self.heads);
        b.replay(recording, || {
            student.zero_gradients(b);
            heads.zero_gradients(b);
            plan.zero_statistics(b);
            for phase in phases {
                for (i, (batch, step)) in batches.iter().enumerate() {
                    // All micro-batches of a step have the same learning rates and step number, which is what an update reads.
                    let heads_done = *phase == Phase::Both && adversarial && i + 1 == batches.len();
                    plan.run(b, *phase, step, share, batch, models, teacher_params, student, heads, heads_done);
                }
                let step = &batches[0].1;
                if *phase != Phase::Heads {
                    student.update(b, step);
                }
                if *phase == Phase::Heads {
                    heads.update(b, step);
                }
            }
        });
        self.done += 1;
        self.last_shape = Some(shape);
        Ok(())
    }

    /// Plans shapes before they are needed, so that a lack of memory shows before the first step. Where the memory does not hold
    /// all plans together, the one that was used longest ago gives way to another, and is made anew when its shape comes again.
    ///
    /// # Errors
    /// When a shape does not fit the models, or the device's memory is exhausted by it alone.
    pub fn prepare(&mut self, b: &B, shapes: &[Shape], micro_batches: usize) -> Result<()> {
        shapes.iter().try_for_each(|shape| self.plan(b, *shape, micro_batches))
    }

    /// Shapes whose plans are kept at the moment, and how often one gave way to another.
    pub fn planned(&self) -> (usize, u64) {
        (self.plans.len(), self.evictions)
    }

    fn plan(&mut self, b: &B, shape: Shape, micro_batches: usize) -> Result<()> {
        if self.plans.get(&shape).is_some_and(|planned| planned.batches.len() >= micro_batches) {
            return Ok(());
        }
        if self.plans.contains_key(&shape) {
            b.synchronize()?;
            self.plans.remove(&shape);
        }
        let checkpointing = self.settings.activation_checkpointing;
        // Giving up another plan costs less than computing activations twice.
        let planned = checkpointing.plan(|checkpointed| {
            loop {
                match self.new_plan(b, shape, micro_batches, checkpointed) {
                    Err(Error::Device(DeviceError::OutOfMemory { .. })) if self.evict(b)? => {}
                    planned => return planned,
                }
            }
        })?;
        self.plans.insert(shape, planned);
        Ok(())
    }

    fn new_plan(&self, b: &B, shape: Shape, micro_batches: usize, checkpointed: Checkpointed) -> Result<Planned<B>> {
        let models = (&self.student_model, &self.teacher_model, &self.heads_model);
        let fp8 = self.teacher_fp8.as_ref();
        let mut step = LaddStep::new(b, &self.settings.ladd, models.0, models.1, fp8, models.2, shape, checkpointed)?;
        match &self.negative {
            Some((context, pooled)) => step.set_negative(b, context, pooled),
            None if self.needs_negative() => {
                return Err(Error::Usage("a guided target needs the text of the negative prompt: Distiller::set_negative".into()));
            }
            None => {}
        }
        let batches = (0..micro_batches).map(|_| Ok((step.alloc_batch(b)?, b.alloc_step()?))).collect::<Result<_>>()?;
        Ok(Planned { step, batches, recordings: HashMap::new(), used: self.done })
    }

    /// Gives back the memory of the plan that was used longest ago; false where there is none.
    fn evict(&mut self, b: &B) -> Result<bool> {
        let order = |shape: &Shape| (shape.height, shape.width, shape.batch, shape.text);
        let oldest = self.plans.iter().min_by_key(|(shape, planned)| (planned.used, order(shape))).map(|(shape, _)| *shape);
        let Some(oldest) = oldest else { return Ok(false) };
        b.synchronize()?; // its last step may still be running
        self.plans.remove(&oldest);
        self.evictions += 1;
        if self.evictions == 1 {
            tracing::info!("the latents' shapes take turns in the device's memory, which does not hold the buffers of all");
        }
        Ok(true)
    }

    /// The plan of the last step, with its times, predictions and logits.
    pub fn last_step(&self) -> Option<&LaddStep<B>> {
        self.last_shape.and_then(|shape| self.plans.get(&shape)).map(|planned| &planned.step)
    }

    /// Waits for the last step and reads its statistics. `seconds` is the training time so far.
    ///
    /// # Errors
    /// When the device failed.
    pub fn record(&self, b: &B, seconds: f64) -> Result<StepRecord> {
        let total = self.settings.total_steps;
        let index = self.done.saturating_sub(1);
        let mut record = StepRecord {
            step: self.done,
            seconds,
            lr_student: self.settings.student.lr_at(index, total),
            lr_heads: self.settings.heads.lr_at(index, total),
            ..StepRecord::default()
        };
        let Some(plan) = self.last_step() else { return Ok(record) };
        let adversarial = self.settings.ladd.adversarial_weight > 0.0;
        let student = b.download_stat(plan.stats[0].all())?;
        let heads = match self.settings.ladd.update {
            Update::Simultaneous => student.clone(),
            Update::Alternating => b.download_stat(plan.stats[1].all())?,
        };
        let scalar = |buffer: &B::Stat| Ok::<f32, DeviceError>(b.download_stat(buffer.part(0..1))?[0]);
        record.loss_distillation = scalar(&plan.distillation)?;
        record.grad_norm_student = scalar(&self.student.norm)?;
        record.skipped[0] = b.download_stat(self.student.counters.all())?[1] as u32;
        if adversarial {
            record.grad_norm_heads = scalar(&self.heads.norm)?;
            record.skipped[1] = b.download_stat(self.heads.counters.all())?[1] as u32;
            for (i, block) in self.taps.iter().enumerate() {
                let at = |stats: &[f32], stat: HingeStat| stats[i * HINGE_STATS + stat as usize];
                record.heads.push(HeadStats {
                    block: *block,
                    loss_d: at(&heads, HingeStat::LossD),
                    loss_g: at(&student, HingeStat::LossG),
                    mean_real: at(&heads, HingeStat::MeanReal),
                    mean_fake: at(&heads, HingeStat::MeanFake),
                    accuracy_real: at(&heads, HingeStat::AccuracyReal),
                    accuracy_fake: at(&heads, HingeStat::AccuracyFake),
                });
                record.penalty_r1 += at(&heads, HingeStat::PenaltyR1) / self.taps.len() as f32;
            }
            let mean = |value: fn(&HeadStats) -> f32| record.heads.iter().map(value).sum::<f32>() / record.heads.len() as f32;
            (record.loss_d, record.loss_g) = (mean(|h| h.loss_d), mean(|h| h.loss_g));
        }
        Ok(record)
    }

    /// The heads' layout, for saving and for tests.
    pub fn heads_model(&self) -> &Heads {
        &self.heads_model
    }

    /// Continues behind `done` steps, after the networks' state was restored.
    pub fn resume_at(&mut self, done: u32) {
        self.done = done;
    }
}

/// Weights of fresh heads: normal with variance `1 / inputs`, biases zero.
fn initial_heads(heads: &Heads, seed: u64) -> Vec<f32> {
    let mut weights = vec![0.0; heads.arena().len()];
    for (i, entry) in heads.arena().entries().iter().enumerate() {
        if entry.shape.len() < 2 {
            continue;
        }
        let fan_in: usize = entry.shape[1..].iter().product();
        let scale = (1.0 / fan_in as f32).sqrt();
        let values = &mut weights[entry.range()];
        fill_normals(seed, 0, stream::PARAMETERS + i as u32, 0, values);
        values.iter_mut().for_each(|v| *v *= scale);
    }
    weights
}
