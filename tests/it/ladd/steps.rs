//! Whole LADD steps: draws, predictions, logits, losses, every gradient, every weight after the update.

use ladd_fast::device::{Backend, HINGE_STATS, HingeStat, StepValues, Storage};
use ladd_fast::ladd::{LaddConfig, Phase, TeacherPrecision, Update};
use ladd_fast::model::{Layout, Shape};
use ladd_fast::train::{Checkpointed, Moments, OptimConfig, Schedule};
use serde_json::Value;

use super::stage::{Samples, Script, Stage};
use crate::golden::{Golden, Tolerance, cases};
use crate::lab::same_bits;
use crate::operations::on_every_backend;

on_every_backend!(chains: golden_steps, checkpointing_changes_no_bit);

pub fn script(case: &Golden) -> Script {
    let ladd = &case.config["ladd"];
    let number = |key: &str| ladd[key].as_f64().unwrap();
    let read = |key: &str| ladd[key].clone();
    let optim = |lr: &str| OptimConfig {
        lr: number(lr),
        beta1: ladd["betas"][0].as_f64().unwrap(),
        beta2: ladd["betas"][1].as_f64().unwrap(),
        eps: 1e-8,
        weight_decay: number("weight_decay"),
        clip: number("max_norm"),
        warmup_steps: 0,
        schedule: Schedule::Constant,
        moments: Moments::Fp32,
    };
    let optim = [optim("lr_student"), optim("lr_heads")];
    let seed = |key: &str| case.config[key].as_u64().unwrap();
    let [_, _, height, width] = case.shape("out.x0_hat")[..] else { panic!("a latent has four dimensions") };
    let model = case.model(Some("model"));
    let batch = case.size("B");
    let text = case.input("context").len() / batch / model.context_dim;
    Script {
        ladd: LaddConfig {
            update: serde_json::from_value(read("update")).unwrap(),
            loss: serde_json::from_value(read("loss")).unwrap(),
            student_t: serde_json::from_value(read("student_t")).unwrap(),
            renoise_t: serde_json::from_value(read("renoise_t")).unwrap(),
            taps: ladd["taps"].as_array().unwrap().iter().map(|tap| tap.as_u64().unwrap() as usize).collect(),
            head_width: case.size("head_width"),
            r1_weight: number("r1_weight") as f32,
            r1_sigma: number("r1_sigma") as f32,
            mismatch_weight: number("mismatch_weight") as f32,
            distillation_weight: number("distill_weight") as f32,
            adversarial_weight: 1.0,
            teacher_precision: TeacherPrecision::Bf16,
            target: None,
        },
        seeds: [seed("student_seed"), seed("teacher_seed"), seed("heads_seed")],
        ema_decay: number("ema_decay"),
        shape: Shape { batch, height, width, text },
        values: StepValues {
            seed: seed("noise_seed"),
            step: case.size("step") as u32,
            first_sample: case.size("first_sample") as u32,
            lr: [optim[0].lr as f32, optim[1].lr as f32],
        },
        optim,
        model,
        checkpointed: Checkpointed::NONE,
    }
}

pub fn samples(case: &Golden) -> Samples {
    let conditioning = case.has_input("conditioning").then(|| case.input("conditioning"));
    Samples { x0: case.input("x0"), conditioning, context: case.input("context"), pooled: case.input("pooled") }
}

fn golden_steps<B: Backend>(b: &B, tolerance: Tolerance) {
    for case in cases("ladd_step") {
        let script = script(&case);
        let samples = samples(&case);
        let mut stage = Stage::new(b, &script, &samples, true);
        let groups = case.config["groups"].as_array().unwrap().iter().map(Value::as_str).collect::<Vec<_>>();
        assert_eq!(groups.len(), stage.groups().count());
        if script.ladd.update == Update::Simultaneous {
            stage.run(Phase::Both, 1.0);
            compare_draws(&case, &stage, "", tolerance);
            stage.student.update(b, &stage.values);
        } else {
            stage.run(Phase::Student, 1.0);
            compare_draws(&case, &stage, "", tolerance);
            stage.student.update(b, &stage.values);
            stage.run(Phase::Heads, 1.0);
            compare_draws(&case, &stage, "d.", tolerance);
        }
        compare_losses(&case, &stage, &script, tolerance);
        stage.heads.update(b, &stage.values);
        compare_networks(&case, &stage, tolerance);
    }
}

fn compare_draws<B: Backend>(case: &Golden, stage: &Stage<'_, B>, phase: &str, tolerance: Tolerance) {
    let (b, step) = (stage.b, &stage.step);
    let batch = step.shape().batch;
    case.compare(&format!("out.{phase}t"), &b.download_stat(step.t.all()).unwrap(), tolerance);
    case.compare(&format!("out.{phase}t_hat"), &b.download_stat(step.t_hat.part(0..batch)).unwrap(), tolerance);
    case.compare(&format!("out.{phase}x0_hat"), &b.download_stat(step.x0_hat.all()).unwrap(), tolerance);
}

fn compare_losses<B: Backend>(case: &Golden, stage: &Stage<'_, B>, script: &Script, tolerance: Tolerance) {
    let (b, step) = (stage.b, &stage.step);
    case.compare("out.logits", &b.download_stat(step.logits.all()).unwrap(), tolerance);
    let [student, heads] = [0, 1].map(|i| b.download_stat(step.stats[i].all()).unwrap());
    let heads = if script.ladd.update == Update::Simultaneous { student.clone() } else { heads };
    let column = |stats: &[f32], stat: HingeStat| -> Vec<f32> { stats.chunks_exact(HINGE_STATS).map(|row| row[stat as usize]).collect() };
    let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len() as f32;
    let (loss_d, loss_g) = (column(&heads, HingeStat::LossD), column(&student, HingeStat::LossG));
    case.compare("out.discriminator_loss_per_head", &loss_d, tolerance);
    case.compare("out.discriminator_loss", &[mean(&loss_d)], tolerance);
    case.compare("out.generator_loss_per_head", &loss_g, tolerance);
    case.compare("out.generator_loss", &[mean(&loss_g)], tolerance);
    let distillation = b.download_stat(step.distillation.all()).unwrap()[0];
    if case.has("out.distillation_loss") {
        case.compare("out.distillation_loss", &[distillation], tolerance);
    }
    case.compare("out.student_loss", &[mean(&loss_g) + script.ladd.distillation_weight * distillation], tolerance);
    let four = [HingeStat::MeanReal, HingeStat::MeanFake, HingeStat::AccuracyReal, HingeStat::AccuracyFake];
    let four = four.map(|stat| column(&heads, stat));
    let statistics: Vec<f32> = (0..loss_d.len()).flat_map(|head| four.iter().map(move |s| s[head])).collect();
    case.compare("out.head_statistics", &statistics, tolerance);
}

fn compare_networks<B: Backend>(case: &Golden, stage: &Stage<'_, B>, tolerance: Tolerance) {
    let b = stage.b;
    let layouts = [&stage.student_model.layout().arena, stage.heads_model.arena()];
    for ((side, network), layout) in [("student", &stage.student), ("heads", &stage.heads)].into_iter().zip(layouts) {
        case.compare(&format!("out.{side}_norm"), &b.download_stat(network.norm.all()).unwrap(), tolerance);
        for (prefix, buffer) in [("grad", &network.grads), ("after", &network.master)] {
            let host = b.download_stat(buffer.all()).unwrap();
            for (entry, values) in layout.scatter(&host) {
                case.compare(&format!("{prefix}.{side}.{}", entry.name), values, tolerance);
            }
        }
        let params = b.download_data(network.params.all()).unwrap();
        let master = b.download_stat(network.master.all()).unwrap();
        same_bits("weights in the compute type", &params, &tolerance.held(&master));
    }
    let ema = b.download_stat(stage.student.ema.as_ref().unwrap().all()).unwrap();
    for (entry, values) in layouts[0].scatter(&ema) {
        case.compare(&format!("after.ema.{}", entry.name), values, tolerance);
    }
    nothing_forgotten(case, layouts);
}

/// Every stored gradient belongs to a tensor of the layouts, and every tensor has one.
fn nothing_forgotten(case: &Golden, layouts: [&Layout; 2]) {
    for (side, layout) in ["student", "heads"].into_iter().zip(layouts) {
        assert_eq!(case.results(&format!("grad.{side}.")).len(), layout.entries().len());
        assert_eq!(case.results(&format!("after.{side}.")).len(), layout.entries().len());
    }
}

fn checkpointing_changes_no_bit<B: Backend>(b: &B, _: Tolerance) {
    let case = Golden::open("ladd_full");
    for name in ["out.", "grad.", "after."].into_iter().flat_map(|p| case.results(p).into_iter().map(move |name| format!("{p}{name}"))) {
        case.skip(&name);
    }
    let plain = script(&case);
    let saving = Script { checkpointed: Checkpointed::ALL, ..plain.clone() };
    let [a, b] = [plain, saving].map(|script| {
        let mut stage = Stage::new(b, &script, &samples(&case), true);
        stage.run(Phase::Both, 1.0);
        [&stage.student.grads, &stage.heads.grads].map(|grads| b.download_stat(grads.all()).unwrap())
    });
    same_bits("student", &a[0], &b[0]);
    same_bits("heads", &a[1], &b[1]);
}
