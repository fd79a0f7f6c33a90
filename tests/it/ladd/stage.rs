//! A LADD step on a stage: student, teacher and heads with golden parameters, one micro-batch.

use std::sync::Arc;

use ladd_fast::device::{Backend, Groups, StepValues};
use ladd_fast::ladd::{Batch, HostBatch, LaddConfig, LaddStep, Phase, TeacherPrecision};
use ladd_fast::model::{Heads, HeadsShape, Mmdit, ModelConfig, Shape};
use ladd_fast::train::{Checkpointed, Network, OptimConfig};

use crate::golden::{parameters, positions};
use crate::rig::data;

/// Everything one step needs.
#[derive(Debug)]
pub struct Stage<'a, B: Backend> {
    pub b: &'a B,
    pub student_model: Mmdit<B>,
    pub teacher_model: Mmdit<B>,
    pub heads_model: Heads,
    pub teacher_params: B::Data,
    pub student: Network<B>,
    pub heads: Network<B>,
    pub step: LaddStep<B>,
    pub batch: Batch<B>,
    pub values: B::Step,
}

/// What a stage is built from.
#[derive(Clone, Debug)]
pub struct Script {
    pub model: ModelConfig,
    pub ladd: LaddConfig,
    /// Of student, teacher, heads.
    pub seeds: [u64; 3],
    /// Of student and heads.
    pub optim: [OptimConfig; 2],
    pub ema_decay: f64,
    pub shape: Shape,
    pub values: StepValues,
    pub checkpointed: Checkpointed,
}

/// Real latents and text.
#[derive(Clone, Debug)]
pub struct Samples {
    pub x0: Vec<f32>,
    pub conditioning: Option<Vec<f32>>,
    pub context: Vec<f32>,
    pub pooled: Vec<f32>,
}

impl Samples {
    /// The text of the next sample of the batch, for every sample.
    fn next_text(&self, batch: usize) -> (Vec<f32>, Vec<f32>) {
        let roll = |values: &[f32]| {
            let mut values = values.to_vec();
            let sample = values.len() / batch;
            values.rotate_left(sample);
            values
        };
        (roll(&self.context), roll(&self.pooled))
    }
}

impl<'a, B: Backend> Stage<'a, B> {
    /// Builds the networks and plans the step. Where `poison`, a first pass over not-a-numbers fills every buffer of the
    /// plan with them.
    pub fn new(b: &'a B, script: &Script, samples: &Samples, poison: bool) -> Self {
        let Script { model, ladd, shape, .. } = script;
        let [student_seed, teacher_seed, heads_seed] = script.seeds;
        let network = |seed: u64| Mmdit::new(b, model.clone(), &positions(model, seed)).unwrap();
        let (student_model, teacher_model) = (network(student_seed), network(teacher_seed));
        let taps = ladd.resolved_taps(model.depth).unwrap().len();
        let heads_shape = HeadsShape { count: taps, hidden: model.hidden(), width: ladd.head_width, pooled: model.pooled_dim };
        let heads_model = Heads::new(heads_shape);
        let arena = |seed: u64| parameters(&student_model.layout().arena, seed);
        let student = Network::new(b, &arena(student_seed), &script.optim[0], 0, script.ema_decay).unwrap();
        let heads = Network::new(b, &parameters(heads_model.arena(), heads_seed), &script.optim[1], 1, 0.0).unwrap();
        let teacher_params = data(b, &arena(teacher_seed));
        let fp8 = ladd.teacher_precision == TeacherPrecision::Fp8;
        let teacher_fp8 = fp8.then(|| Arc::new(teacher_model.quantize(b, &teacher_params, model.depth).unwrap()));
        let mut step =
            LaddStep::new(b, ladd, &student_model, &teacher_model, teacher_fp8.as_ref(), &heads_model, *shape, script.checkpointed)
                .unwrap();
        if ladd.target.is_some() {
            let bad = |len: usize| vec![f32::NAN; len];
            step.set_negative(b, &bad(shape.text * model.context_dim), &bad(model.pooled_dim));
        }
        let mut values = b.alloc_step().unwrap();
        b.upload_step(&script.values, &mut values);
        let mut stage = Self {
            b,
            teacher_params,
            batch: step.alloc_batch(b).unwrap(),
            student_model,
            teacher_model,
            heads_model,
            student,
            heads,
            step,
            values,
        };
        if poison {
            let bad = |values: &[f32]| vec![f32::NAN; values.len()];
            stage.upload(&Samples {
                x0: bad(&samples.x0),
                conditioning: samples.conditioning.as_deref().map(bad),
                context: bad(&samples.context),
                pooled: bad(&samples.pooled),
            });
            stage.run(Phase::Both, 1.0);
        }
        stage.upload(samples);
        stage.zero();
        stage
    }

    /// Copies samples into the micro-batch; a mismatched sample reads the text of the next one.
    pub fn upload(&mut self, samples: &Samples) {
        let (context, pooled) = samples.next_text(self.step.shape().batch);
        let mismatch = self.step.groups().mismatch.then_some((&context[..], &pooled[..]));
        let host = HostBatch {
            x0: &samples.x0,
            conditioning: samples.conditioning.as_deref(),
            context: &samples.context,
            pooled: &samples.pooled,
            mismatch,
        };
        self.step.upload(self.b, &host, &mut self.batch);
    }

    /// Gradients and statistics to zero.
    pub fn zero(&mut self) {
        self.student.zero_gradients(self.b);
        self.heads.zero_gradients(self.b);
        self.step.zero_statistics(self.b);
    }

    /// One phase.
    pub fn run(&mut self, phase: Phase, share: f32) {
        let models = (&self.student_model, &self.teacher_model, &self.heads_model);
        let (student, heads) = (&mut self.student, &mut self.heads);
        self.step.run(self.b, phase, &self.values, share, &self.batch, models, &self.teacher_params, student, heads, false);
    }

    /// The groups of a full pass.
    pub fn groups(&self) -> Groups {
        self.step.groups()
    }
}
