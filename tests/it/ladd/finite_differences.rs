//! The whole LADD step against central differences in float64: the student's gradient of its loss through heads and
//! teacher, and the heads' gradient of theirs, along random directions.

use ladd_fast::device::cpu::{Buffer, Cpu};
use ladd_fast::device::{HINGE_STATS, HingeStat, StepValues};
use ladd_fast::flow::TimestepDistribution;
use ladd_fast::ladd::{AdversarialLoss, LaddConfig, Phase};
use ladd_fast::model::Shape;
use ladd_fast::train::{Checkpointed, OptimConfig};

use super::accumulation::config;
use super::stage::{Samples, Script, Stage};
use crate::model::{check, direction};
use crate::rig::HostInputs;

/// Distance of the two points: so small that no leaky ReLU and no hinge has its kink in between.
const H: f64 = 1e-8;

type Pick = for<'s> fn(&'s mut Stage<'_, Cpu<f64>>) -> &'s mut Buffer<f64>;

fn script(ladd: LaddConfig, checkpointed: Checkpointed) -> Script {
    Script {
        model: config(),
        ladd: LaddConfig { head_width: 16, student_t: TimestepDistribution::Uniform, ..ladd },
        seeds: [61, 62, 63],
        optim: [OptimConfig::default(), OptimConfig::default()],
        ema_decay: 0.0,
        shape: Shape { batch: 3, height: 6, width: 4, text: 2 },
        values: StepValues { seed: 5, step: 3, first_sample: 2, lr: [0.0; 2] },
        checkpointed,
    }
}

/// The losses of the last pass: of the heads, and of the student with its weights.
pub fn losses(stage: &Stage<'_, Cpu<f64>>, ladd: &LaddConfig, phase: Phase) -> [f64; 2] {
    let mean = |stat: HingeStat, which: usize| {
        let stats = &stage.step.stats[which];
        stats.chunks_exact(HINGE_STATS).map(|row| row[stat as usize]).sum::<f64>() / (stats.len() / HINGE_STATS) as f64
    };
    let adversarial = f64::from(ladd.adversarial_weight) * mean(HingeStat::LossG, 0);
    let student = adversarial + f64::from(ladd.distillation_weight) * stage.step.distillation[0];
    [mean(HingeStat::LossD, usize::from(phase == Phase::Heads)), student]
}

fn slopes(what: &str, ladd: LaddConfig, checkpointed: Checkpointed) {
    slopes_of(what, script(ladd, checkpointed));
}

fn slopes_of(what: &str, script: Script) {
    let b = Cpu::<f64>::new();
    let inputs = HostInputs::random(&script.model, script.shape, 71);
    let samples = Samples { x0: inputs.latent, conditioning: inputs.conditioning, context: inputs.context, pooled: inputs.pooled };
    let mut stage = Stage::new(&b, &script, &samples, false);
    let student: (usize, Pick) = (1, |stage| &mut stage.student.params);
    let heads: (usize, Pick) = (0, |stage| &mut stage.heads.params);
    for (phase, (loss, params)) in [(Phase::Both, student), (Phase::Both, heads), (Phase::Student, student), (Phase::Heads, heads)] {
        if script.ladd.adversarial_weight == 0.0 && loss == 0 {
            continue;
        }
        stage.zero();
        stage.run(phase, 1.0);
        let gradient = if loss == 1 { stage.student.grads.to_vec() } else { stage.heads.grads.to_vec() };
        let kept = params(&mut stage).to_vec();
        for seed in 0..3 {
            let along = direction(80 + seed, gradient.len());
            let mut value = |h: f64| {
                params(&mut stage).iter_mut().zip(&along).for_each(|(p, d)| *p += h * d);
                stage.zero();
                stage.run(phase, 1.0);
                params(&mut stage).copy_from_slice(&kept);
                losses(&stage, &script.ladd, phase)[loss]
            };
            check(&format!("{what}, {phase:?}, loss of the {}", ["heads", "student"][loss]), &gradient, &along, H, &mut value);
        }
    }
}

fn everything(loss: AdversarialLoss) -> LaddConfig {
    LaddConfig {
        loss,
        r1_weight: 0.7,
        r1_sigma: 0.3,
        mismatch_weight: 0.5,
        distillation_weight: 0.4,
        adversarial_weight: 0.6,
        ..LaddConfig::default()
    }
}

#[test]
fn hinge() {
    slopes("hinge", LaddConfig::default(), Checkpointed::NONE);
}

#[test]
fn hinge_with_everything() {
    slopes("hinge, all groups", everything(AdversarialLoss::Hinge), Checkpointed::NONE);
}

#[test]
fn non_saturating_with_everything() {
    slopes("non-saturating, all groups", everything(AdversarialLoss::NonSaturating), Checkpointed::ALL);
}

/// Student and teacher read a source, or a masked latent and its mask.
#[test]
fn edit_and_inpaint_with_everything() {
    for extra in [0, 1] {
        let mut script = script(everything(AdversarialLoss::Hinge), Checkpointed::NONE);
        script.model.conditioning_channels = script.model.in_channels + extra;
        slopes_of(&format!("conditioned, {extra} more channels"), script);
    }
}

/// Only the first block has a head: the teacher stops there.
#[test]
fn one_early_tap() {
    slopes("tap 0", LaddConfig { taps: vec![0], loss: AdversarialLoss::NonSaturating, ..LaddConfig::default() }, Checkpointed::NONE);
}

/// The control experiment: no teacher, no heads.
#[test]
fn regression_alone() {
    slopes("regression", LaddConfig { adversarial_weight: 0.0, distillation_weight: 1.0, ..LaddConfig::default() }, Checkpointed::NONE);
}
