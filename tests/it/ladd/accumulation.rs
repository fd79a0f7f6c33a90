//! Gradient accumulation: k micro-batches are one batch, to rounding, and make one update.

use ladd_fast::device::cpu::Cpu;
use ladd_fast::device::{Backend, Storage};
use ladd_fast::ladd::{AdversarialLoss, HostBatch, LaddConfig, LaddStep, Update};
use ladd_fast::model::{Heads, HeadsShape, Mmdit, ModelConfig, Shape};
use ladd_fast::train::{Checkpointed, Checkpointing, DistillSettings, Distiller, MicroBatch, OptimConfig, StepRecord};

use crate::golden::{close, parameters, positions};
use crate::rig::{HostInputs, normals};

/// A small teacher.
pub fn config() -> ModelConfig {
    ModelConfig {
        depth: 2,
        heads: 2,
        head_dim: 16,
        in_channels: 3,
        patch: 2,
        context_dim: 7,
        pooled_dim: 5,
        pos_embed_max: 4,
        qk_norm: true,
        dual_attention_blocks: 1,
        conditioning_channels: 0,
    }
}

/// Settings with everything on.
pub fn settings(update: Update, loss: AdversarialLoss) -> DistillSettings {
    let ladd = LaddConfig {
        update,
        loss,
        head_width: 16,
        r1_weight: 0.3,
        mismatch_weight: 0.5,
        distillation_weight: 0.2,
        adversarial_weight: 0.7,
        ..LaddConfig::default()
    };
    let optim = OptimConfig { lr: 1e-4, beta1: 0.9, weight_decay: 0.01, ..OptimConfig::default() };
    let heads = OptimConfig { lr: 2e-4, ..optim.clone() };
    DistillSettings { ladd, student: optim, heads, total_steps: 10, ema_decay: 0.9, seed: 99, activation_checkpointing: Checkpointing::Off }
}

/// A distillation whose student differs from its teacher.
pub fn distiller<B: Backend>(b: &B, settings: DistillSettings) -> Distiller<B> {
    let config = config();
    let model = |seed: u64| Mmdit::new(b, config.clone(), &positions(&config, seed)).unwrap();
    let (teacher, student) = (model(1), model(1));
    let [teacher_weights, student_weights] = [1, 2].map(|seed| parameters(&teacher.layout().arena, seed));
    Distiller::new(b, settings, (teacher, &teacher_weights), (student, &student_weights)).unwrap()
}

/// Four samples and their mismatched text.
pub struct Data {
    inputs: HostInputs,
    mismatch: HostInputs,
}

impl Data {
    /// The samples of a step.
    pub fn new(seed: u64) -> Self {
        Self::sized(seed, 4, 6)
    }

    /// The same of another latent size.
    pub fn sized(seed: u64, height: usize, width: usize) -> Self {
        let shape = Shape { batch: 4, height, width, text: 3 };
        let inputs = HostInputs::random(&config(), shape, seed);
        let mismatch = HostInputs::random(&config(), shape, seed + 1000);
        Self { inputs, mismatch }
    }

    /// One step in micro-batches of `size`.
    pub fn step<B: Backend>(&self, b: &B, distiller: &mut Distiller<B>, size: usize) -> StepRecord {
        self.try_step(b, distiller, size).unwrap()
    }

    /// The same where the device may fail.
    pub fn try_step<B: Backend>(&self, b: &B, distiller: &mut Distiller<B>, size: usize) -> ladd_fast::Result<StepRecord> {
        let parts: Vec<_> = (0..4 / size).map(|i| i * size..(i + 1) * size).collect();
        let parts: Vec<_> = parts.into_iter().map(|range| (self.inputs.samples(range.clone()), self.mismatch.samples(range))).collect();
        let micro_batches: Vec<_> = parts
            .iter()
            .map(|(own, other)| MicroBatch {
                shape: own.shape,
                values: HostBatch {
                    conditioning: None,
                    x0: &own.latent,
                    context: &own.context,
                    pooled: &own.pooled,
                    mismatch: Some((&other.context, &other.pooled)),
                },
            })
            .collect();
        distiller.step(b, &micro_batches)?;
        distiller.record(b, 0.0)
    }
}

/// Numbers of a record in one list.
fn numbers(record: &StepRecord) -> Vec<f32> {
    let mut numbers = vec![record.loss_d, record.loss_g, record.loss_distillation, record.penalty_r1];
    numbers.extend([record.grad_norm_student, record.grad_norm_heads]);
    for head in &record.heads {
        numbers.extend([head.loss_d, head.loss_g, head.mean_real, head.mean_fake, head.accuracy_real, head.accuracy_fake]);
    }
    numbers
}

fn check<B: Backend>(b: &B, update: Update, loss: AdversarialLoss, bound: f64) {
    let samples = Data::new(31);
    let mut whole = distiller(b, settings(update, loss));
    let expected = samples.step(b, &mut whole, 4);
    let grads = |d: &Distiller<B>| [&d.student.grads, &d.heads.grads].map(|g| b.download_stat(g.all()).unwrap());
    let expected_grads = grads(&whole);
    for size in [2, 1] {
        let mut parts = distiller(b, settings(update, loss));
        let record = samples.step(b, &mut parts, size);
        let what = |name: &str| format!("{name}, {update:?} {loss:?}, micro-batches of {size}");
        let got = grads(&parts);
        close(&what("student"), &got[0], &expected_grads[0], bound);
        close(&what("heads"), &got[1], &expected_grads[1], bound);
        close(&what("record"), &numbers(&record), &numbers(&expected), bound);
        for network in [&parts.student, &parts.heads] {
            assert_eq!(b.download_stat(network.counters.all()).unwrap(), [1.0, 0.0], "updates made and skipped");
        }
    }
}

#[test]
fn simultaneous() {
    for loss in [AdversarialLoss::Hinge, AdversarialLoss::NonSaturating] {
        check(&Cpu::<f32>::new(), Update::Simultaneous, loss, 1e-5);
        check(&Cpu::<f64>::new(), Update::Simultaneous, loss, 1e-6);
    }
}

#[test]
fn alternating() {
    for loss in [AdversarialLoss::Hinge, AdversarialLoss::NonSaturating] {
        check(&Cpu::<f32>::new(), Update::Alternating, loss, 1e-5);
        check(&Cpu::<f64>::new(), Update::Alternating, loss, 1e-6);
    }
}

#[test]
fn micro_batches_of_different_sizes_are_refused() {
    let b = Cpu::<f32>::new();
    let mut distiller = distiller(&b, settings(Update::Simultaneous, AdversarialLoss::Hinge));
    assert!(distiller.step(&b, &[]).unwrap_err().to_string().contains("micro-batch"));
    let values = normals(1, 1, 3 * 4 * 6);
    let shape = Shape { batch: 1, height: 4, width: 6, text: 3 };
    let values = HostBatch { x0: &values, conditioning: None, context: &values[..21], pooled: &values[..5], mismatch: None };
    let pair = [MicroBatch { shape, values }, MicroBatch { shape: Shape { width: 4, ..shape }, values }];
    assert!(distiller.step(&b, &pair).unwrap_err().to_string().contains("different sizes"));
}

/// What the teacher judges is what the student draws: in latents, text, and the tokens that pass between them.
#[test]
fn networks_that_do_not_fit_each_other_are_refused() {
    let b = Cpu::<f32>::new();
    let teacher = config();
    let model = |config: &ModelConfig| Mmdit::new(&b, config.clone(), &positions(config, 1)).unwrap();
    let taps = LaddConfig::default().resolved_taps(teacher.depth).unwrap();
    let heads = Heads::new(HeadsShape { count: taps.len(), hidden: teacher.hidden(), width: 16, pooled: teacher.pooled_dim });
    let shape = Shape { batch: 1, height: 4, width: 4, text: 3 };
    let ladd = LaddConfig { head_width: 16, ..LaddConfig::default() };
    for (student, said) in [
        (ModelConfig { in_channels: 4, ..teacher.clone() }, "the student's in_channels is 4, the teacher's 3"),
        (ModelConfig { patch: 1, ..teacher.clone() }, "the student's patch is 1, the teacher's 2"),
        (ModelConfig { pooled_dim: 6, ..teacher.clone() }, "the student's pooled_dim is 6, the teacher's 5"),
    ] {
        let step = LaddStep::new(&b, &ladd, &model(&student), &model(&teacher), None, &heads, shape, Checkpointed::NONE);
        let error = step.map(drop).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}
