//! The baselines' steps: targets, weights and gradients against PyTorch and central differences; that they train, leave the
//! teacher alone, replay and resume to the same bits.

use std::sync::Arc;

use ladd_fast::device::cpu::Cpu;
use ladd_fast::device::cuda::Cuda;
use ladd_fast::device::cuda::emulated::Schedule;
use ladd_fast::device::{Backend, HINGE_STATS, HingeStat, StepValues, Storage};
use ladd_fast::flow::TimestepDistribution;
use ladd_fast::ladd::{AdversarialLoss, LaddConfig, Phase, Target, Update, Weighting};
use ladd_fast::lora::select;
use ladd_fast::model::{Mmdit, Shape};
use ladd_fast::train::checkpoint::{TrainingState, load, save};
use ladd_fast::train::{AdapterPlan, Checkpointed, DistillSettings, Distiller, Network, OptimConfig, StepRecord};
use serde_json::Value;

use super::accumulation::{Data, config, distiller, settings};
use super::resume::state;
use super::stage::{Samples, Script, Stage};
use super::steps::{samples, script};
use crate::devices::emulated_with;
use crate::golden::{Golden, Tolerance, cases, close, parameters, positions, relative_error};
use crate::lab::same_bits;
use crate::model::{check, direction};
use crate::operations::on_every_backend;
use crate::rig::{HostInputs, normals};

on_every_backend!(chains: golden_steps);

fn target(baseline: &Value) -> Target {
    let number = |key: &str| baseline[key].as_f64().unwrap() as f32;
    let read = |key: &str| baseline[key].clone();
    match baseline["kind"].as_str().unwrap() {
        "score" => Target::Score {
            weight: number("weight"),
            weighting: serde_json::from_value(read("weighting")).unwrap(),
            t: serde_json::from_value(read("t")).unwrap(),
            guidance: number("guidance"),
        },
        "consistency" => Target::Consistency { intervals: number("intervals") as usize, guidance: number("guidance") },
        other => panic!("a target of kind {other}"),
    }
}

/// The stage of a case after the student's pass; the moving average has weights of its own.
fn staged<'a, B: Backend>(b: &'a B, case: &Golden) -> Stage<'a, B> {
    let (baseline, script) = (&case.config["baseline"], script(case));
    let ladd = LaddConfig {
        target: Some(target(baseline)),
        adversarial_weight: baseline["adversarial"].as_f64().unwrap() as f32,
        ..script.ladd.clone()
    };
    let mut stage = Stage::new(b, &Script { ladd, ..script }, &samples(case), true);
    stage.step.set_negative(b, &case.input("negative_context"), &case.input("negative_pooled"));
    let average = parameters(&stage.student_model.layout().arena, case.size("average_seed") as u64);
    b.upload_stat(&average, stage.student.ema.as_mut().unwrap().all_mut());
    stage.run(Phase::Student, 1.0);
    stage
}

fn golden_steps<B: Backend>(b: &B, tolerance: Tolerance) {
    for case in cases("baseline_step") {
        let stage = staged(b, &case);
        let read = |view| b.download_stat(view).unwrap();
        let (x0, times) = stage.step.target().unwrap();
        case.compare("out.t", &read(stage.step.t.all()), tolerance.of_stat());
        case.compare("out.target_t", &read(times), tolerance.of_stat());
        case.compare("out.x0_hat", &read(stage.step.x0_hat.all()), tolerance);
        case.compare("out.target", &read(x0.all()), tolerance);
        case.compare("out.squared_error", &read(stage.step.distillation.all()), tolerance);
        let gradients = read(stage.student.grads.all());
        let arena = &stage.student_model.layout().arena;
        assert_eq!(case.results("grad.student.").len(), arena.entries().len());
        for (entry, values) in arena.scatter(&gradients) {
            case.compare(&format!("grad.student.{}", entry.name), values, tolerance);
        }
    }
}

/// The golden target is the average's: that of the student itself lies elsewhere.
#[test]
fn the_target_of_lcm_is_the_moving_average() {
    let b = Cpu::<f64>::new();
    let case = Golden::open("lcm_guided");
    let golden = case.result("out.target");
    for name in ["out.", "grad."].into_iter().flat_map(|p| case.results(p).into_iter().map(move |name| format!("{p}{name}"))) {
        case.skip(&name);
    }
    let mut stage = staged(&b, &case);
    let found = |stage: &Stage<'_, Cpu<f64>>| b.download_stat(stage.step.target().unwrap().0.all()).unwrap();
    close("the average's target", &found(&stage), &golden, 1e-6);
    let online = b.download_stat(stage.student.master.all()).unwrap();
    b.upload_stat(&online, stage.student.ema.as_mut().unwrap().all_mut());
    stage.run(Phase::Student, 1.0);
    let of_student = found(&stage);
    assert!(relative_error(&of_student, &golden) > 0.05, "the target does not depend on the average");
    // Without an average the student is its own target.
    stage.student.ema = None;
    stage.run(Phase::Student, 1.0);
    same_bits("no average", &found(&stage), &of_student);
}

/// At time 0 nothing is predicted: `f(x, 0) = x`, whatever the network says.
#[test]
fn the_consistency_function_is_the_identity_at_time_zero() {
    let b = Cpu::<f64>::new();
    let mut stage = stage(&b, consistency(2, 1.0), 0.0);
    let mut zeros = 0;
    for step in 0..6 {
        b.upload_step(&StepValues { seed: 5, step, ..StepValues::default() }, &mut stage.values);
        stage.run(Phase::Student, 1.0);
        let read = |view| b.download_stat(view).unwrap();
        let (before, (x0, times)) = (read(stage.step.target().unwrap().0.all()), stage.step.target().unwrap());
        let (times, numel) = (read(times), x0.len() / 3);
        // Another average: only targets at other times than 0 move.
        let other = parameters(&stage.student_model.layout().arena, 77);
        b.upload_stat(&other, stage.student.ema.as_mut().unwrap().all_mut());
        stage.run(Phase::Student, 1.0);
        let after = b.download_stat(stage.step.target().unwrap().0.all()).unwrap();
        for (sample, t) in times.iter().enumerate() {
            let part = sample * numel..(sample + 1) * numel;
            assert_eq!(before[part.clone()] == after[part], *t == 0.0, "sample {sample} at {t}");
            zeros += usize::from(*t == 0.0);
        }
        let first = parameters(&stage.student_model.layout().arena, 64);
        b.upload_stat(&first, stage.student.ema.as_mut().unwrap().all_mut());
    }
    assert!((1..18).contains(&zeros), "{zeros} of 18 draws at time 0");
}

fn score(weighting: Weighting, guidance: f32) -> Target {
    Target::Score { weight: 0.8, weighting, t: TimestepDistribution::Uniform, guidance }
}

fn consistency(intervals: usize, guidance: f32) -> Target {
    Target::Consistency { intervals, guidance }
}

fn stage(b: &Cpu<f64>, target: Target, adversarial_weight: f32) -> Stage<'_, Cpu<f64>> {
    let student_t = TimestepDistribution::Uniform;
    let script = Script {
        model: config(),
        ladd: LaddConfig { head_width: 16, student_t, target: Some(target), adversarial_weight, ..LaddConfig::default() },
        seeds: [61, 62, 63],
        optim: [OptimConfig::default(), OptimConfig::default()],
        ema_decay: 0.9,
        shape: Shape { batch: 3, height: 6, width: 4, text: 2 },
        values: StepValues { seed: 5, step: 3, first_sample: 2, lr: [0.0; 2] },
        checkpointed: Checkpointed::NONE,
    };
    let inputs = HostInputs::random(&script.model, script.shape, 71);
    let mut stage =
        Stage::new(b, &script, &Samples { x0: inputs.latent, conditioning: None, context: inputs.context, pooled: inputs.pooled }, false);
    stage.step.set_negative(b, &normals(8, 1, 2 * 7), &normals(8, 2, 5));
    let average = parameters(&stage.student_model.layout().arena, 64);
    b.upload_stat(&average, stage.student.ema.as_mut().unwrap().all_mut());
    stage
}

/// The student's gradient along random directions against central differences of the loss, the target held fast.
fn slopes(what: &str, target: Target, adversarial_weight: f32) {
    let b = Cpu::<f64>::new();
    let mut stage = stage(&b, target.clone(), adversarial_weight);
    for phase in [Phase::Student, Phase::Both] {
        stage.zero();
        stage.run(phase, 1.0);
        let gradient = stage.student.grads.to_vec();
        let held = stage.step.target().unwrap().0.to_vec();
        let times = stage.step.target().unwrap().1.buffer[..3].to_vec();
        let weight = |t: f64| match &target {
            Target::Score { weight, weighting, .. } => f64::from(*weight) * weighting.at(t),
            Target::Consistency { .. } => 1.0,
        };
        let kept = stage.student.params.to_vec();
        for seed in 0..3 {
            let along = direction(80 + seed, gradient.len());
            let mut value = |h: f64| {
                stage.student.params.iter_mut().zip(&along).for_each(|(p, d)| *p += h * d);
                stage.zero();
                stage.run(phase, 1.0);
                stage.student.params.copy_from_slice(&kept);
                let (found, numel) = (stage.step.x0_hat.to_vec(), held.len() / 3);
                let squares = found.iter().zip(&held).enumerate().map(|(i, (a, b))| weight(times[i / numel]) * (a - b).powi(2));
                let distillation = squares.sum::<f64>() / held.len() as f64;
                let stats = &stage.step.stats[0];
                let adversarial = stats.chunks_exact(HINGE_STATS).map(|row| row[HingeStat::LossG as usize]).sum::<f64>();
                let heads = (stats.len() / HINGE_STATS) as f64;
                distillation + if adversarial_weight > 0.0 { f64::from(adversarial_weight) * adversarial / heads } else { 0.0 }
            };
            check(&format!("{what}, {phase:?}"), &gradient, &along, 1e-8, &mut value);
        }
    }
}

#[test]
fn slopes_of_add() {
    slopes("exponential, adversarial, guided", score(Weighting::Exponential, 3.0), 0.6);
    slopes("exponential alone", score(Weighting::Exponential, 1.0), 0.0);
    slopes("SDS", score(Weighting::Sds, 2.0), 0.0);
    slopes("constant", score(Weighting::Constant, 2.0), 0.0);
}

#[test]
fn slopes_of_lcm() {
    slopes("guided", consistency(16, 3.0), 0.0);
    slopes("unguided, with an adversary", consistency(4, 1.0), 0.5);
}

/// Without `(1 - t')` the gradient of one sample is known; with it, it shrinks by just that factor.
#[test]
fn the_weight_of_add_is_that_of_its_time() {
    let b = Cpu::<f64>::new();
    let gradient = |weighting| {
        let t = TimestepDistribution::Discrete { values: vec![0.25], probs: vec![1.0], warmup_probs: vec![], warmup_steps: 0 };
        let mut stage = stage(&b, Target::Score { weight: 1.0, weighting, t, guidance: 2.0 }, 0.0);
        stage.run(Phase::Student, 1.0);
        stage.student.grads.to_vec()
    };
    let constant = gradient(Weighting::Constant);
    for (weighting, by_hand) in [(Weighting::Exponential, 0.75), (Weighting::Sds, 0.09375)] {
        let worst = gradient(weighting).iter().zip(&constant).map(|(g, c)| (g - by_hand * c).abs()).fold(0.0, f64::max);
        let size = constant.iter().map(|c| c.abs()).fold(0.0, f64::max);
        assert!(worst <= 1e-12 * size, "{weighting:?}: {worst:e} of {size:e}");
    }
}

fn baseline(target: Target, adversarial_weight: f32, update: Update) -> DistillSettings {
    let settings = settings(update, AdversarialLoss::Hinge);
    let ladd = LaddConfig { target: Some(target), adversarial_weight, distillation_weight: 0.0, ..settings.ladd };
    DistillSettings { ladd, total_steps: 200, ..settings }
}

fn all() -> [(&'static str, DistillSettings); 4] {
    [
        ("ADD", baseline(score(Weighting::Exponential, 2.0), 0.5, Update::Alternating)),
        ("ADD, simultaneous", baseline(score(Weighting::Sds, 1.0), 0.5, Update::Simultaneous)),
        ("score distillation", baseline(score(Weighting::Exponential, 2.0), 0.0, Update::Simultaneous)),
        ("LCM", baseline(consistency(8, 2.0), 0.0, Update::Simultaneous)),
    ]
}

fn begin<B: Backend>(b: &B, settings: DistillSettings) -> Distiller<B> {
    let mut run = distiller(b, settings);
    run.set_negative(normals(9, 1, 3 * 7), normals(9, 2, 5));
    run
}

#[test]
fn baselines_train_and_leave_the_teacher_alone() {
    let b = Cpu::<f32>::new();
    let regression = settings(Update::Simultaneous, AdversarialLoss::Hinge);
    let ladd = LaddConfig { adversarial_weight: 0.0, distillation_weight: 1.0, ..regression.ladd.clone() };
    let regression = DistillSettings { ladd, total_steps: 200, ..regression };
    for (name, mut settings) in all().into_iter().chain([("regression", regression)]) {
        settings.student.lr = 1e-3;
        let mut run = begin(&b, settings);
        let teacher = b.download_data(run.teacher_params().all()).unwrap();
        let losses: Vec<f32> = (0..100).map(|step| Data::new(step % 4).step(&b, &mut run, 4).loss_distillation).collect();
        let mean = |part: &[f32]| part.iter().sum::<f32>() / part.len() as f32;
        let (first, last) = (mean(&losses[..10]), mean(&losses[90..]));
        println!("{name}: {first:.4} to {last:.4}");
        assert!(last < 0.9 * first, "{name}: the loss went from {first} to {last}");
        same_bits(name, &b.download_data(run.teacher_params().all()).unwrap(), &teacher);
    }
}

#[test]
fn micro_batches_are_one_batch() {
    let b = Cpu::<f64>::new();
    for (name, settings) in all() {
        let [whole, parts] = [4, 2].map(|size| {
            let mut run = begin(&b, settings.clone());
            let record = Data::new(31).step(&b, &mut run, size);
            (b.download_stat(run.student.grads.all()).unwrap(), record.loss_distillation)
        });
        close(name, &parts.0, &whole.0, 1e-6);
        close(name, &[parts.1], &[whole.1], 1e-6);
    }
}

fn steps<B: Backend>(b: &B, run: &mut Distiller<B>, range: std::ops::Range<u64>) -> Vec<StepRecord> {
    range.map(|step| Data::new(step).step(b, run, 2)).collect()
}

#[test]
fn a_resumed_baseline_gives_the_same_bits() {
    let b = Cpu::<f32>::new();
    for (name, settings) in all() {
        let mut straight = begin(&b, settings.clone());
        let records = steps(&b, &mut straight, 0..5);
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = folder.path().join("step-2");
        let mut first = begin(&b, settings.clone());
        steps(&b, &mut first, 0..2);
        let networks = [("student", &first.student), ("heads", &first.heads)];
        save(&b, &checkpoint, &TrainingState::new(2, 0.0, String::new()), &networks).unwrap();
        let mut second = begin(&b, settings);
        let networks = &mut [("student", &mut second.student), ("heads", &mut second.heads)];
        let restored = load(&b, &checkpoint, "", networks).unwrap();
        second.resume_at(restored.step);
        assert_eq!(steps(&b, &mut second, 2..5), records[2..], "{name}");
        state(&b, &second).iter().zip(state(&b, &straight)).for_each(|(a, b)| same_bits(name, a, &b));
    }
}

/// As one graph: recorded in the second step, replayed in the third and fourth.
#[test]
fn replayed_baselines_have_the_same_bits() {
    for (name, settings) in all() {
        let train = |cuda: &Cuda| {
            let mut run = begin(cuda, settings.clone());
            let losses: Vec<f32> = steps(cuda, &mut run, 0..4).iter().map(|r| r.loss_distillation).collect();
            (losses, cuda.download_stat(Storage::all(&run.student.master)).unwrap())
        };
        let (losses, student) = train(&emulated_with(Schedule::default()));
        let (plain_losses, plain_student) = train(&emulated_with(Schedule::default()).without_replay());
        same_bits(name, &losses, &plain_losses);
        same_bits(name, &student, &plain_student);
        assert!(losses.windows(2).all(|pair| pair[0] != pair[1]), "{name}: {losses:?}");
    }
}

#[test]
fn a_guided_target_needs_the_negative_prompt() {
    let b = Cpu::<f32>::new();
    let mut run = distiller(&b, baseline(consistency(8, 2.0), 0.0, Update::Simultaneous));
    let error = Data::new(1).try_step(&b, &mut run, 4).map(drop).unwrap_err().to_string();
    assert!(error.contains("negative prompt"), "{error}");
}

/// LCM's target of a LoRA student: what is averaged are the adapters, what is asked is the network they are merged into.
#[test]
fn the_average_of_a_lora_student_is_merged() {
    let b = Cpu::<f32>::new();
    let config = config();
    let model = Mmdit::new(&b, config.clone(), &positions(&config, 1)).unwrap();
    let arena = &model.layout().arena;
    let plan = AdapterPlan { targets: select(&config, &["all".to_owned()]).unwrap(), rank: 3, scale: 1.5, seed: 7 };
    let optim = OptimConfig { beta1: 0.9, ..OptimConfig::default() };
    let weights = Arc::new(parameters(arena, 2));
    let mut student = Network::with_adapters(&b, weights, (arena, plan), &optim, 0, 0.9).unwrap();
    let mut values = b.alloc_step().unwrap();
    for step in 0..3 {
        b.upload_step(&StepValues { step, lr: [1e-2, 0.0], ..StepValues::default() }, &mut values);
        b.upload_stat(&normals(3, step, arena.len()), student.grads.all_mut());
        student.update(&b, &values);
    }
    let read = |buffer: &_| b.download_data(Storage::all(buffer)).unwrap();
    let gradients = |student: &mut Network<Cpu<f32>>| {
        let adapters = student.adapters.as_mut().unwrap();
        adapters.gradients(&b, &student.grads);
        b.download_stat(adapters.grads.all()).unwrap()
    };
    let (before, gradient) = (read(&student.params), gradients(&mut student));
    let mut average = b.alloc_data(arena.len()).unwrap();
    student.average_into(&b, &mut average);
    close("the average", &read(&average), &student.averaged_weights(&b).unwrap(), 1e-6);
    assert!(relative_error(&read(&average), &before) > 1e-3, "the average is the student itself");
    same_bits("the student", &read(&student.params), &before);
    same_bits("what its next gradients are taken with", &gradients(&mut student), &gradient);
}
