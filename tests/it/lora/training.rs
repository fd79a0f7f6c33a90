//! LoRA students: gradients against PEFT's autograd and against differences in float64, the emulated GPU against the processor,
//! resuming, and what does not change.

use std::sync::Arc;

use ladd_fast::device::cpu::Cpu;
use ladd_fast::device::cuda::Cuda;
use ladd_fast::device::cuda::emulated::Schedule;
use ladd_fast::device::{Backend, StepValues, Storage};
use ladd_fast::flow::TimestepDistribution;
use ladd_fast::ladd::{AdversarialLoss, LaddConfig, Phase, Update};
use ladd_fast::lora::{Lora, Target, select};
use ladd_fast::model::{Layout, Mmdit, Shape};
use ladd_fast::train::checkpoint::{TrainingState, load, save};
use ladd_fast::train::{AdapterPlan, Checkpointed, DistillSettings, Distiller, Moments, Network, OptimConfig};

use super::{expected, inputs, network, read};
use crate::devices::emulated_with;
use crate::golden::{Tolerance, close, parameters, positions};
use crate::lab::same_bits;
use crate::ladd::accumulation::{Data, config, settings};
use crate::ladd::finite_differences::losses;
use crate::ladd::stage::{Samples, Script, Stage};
use crate::model::{check, direction};
use crate::operations::on_every_backend;
use crate::rig::{HostInputs, Rig, Upstream, data, normals, stat};

on_every_backend!(chains: one_step_is_that_of_the_processor);

fn plan(model: &ladd_fast::model::ModelConfig, names: &[&str], rank: usize, scale: f32) -> AdapterPlan {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    AdapterPlan { targets: select(model, &names).unwrap(), rank, scale, seed: 7 }
}

/// A LoRA student with a `B` that is not zero.
fn student<B: Backend>(b: &B, layout: &Layout, weights: Vec<f32>, plan: AdapterPlan, optim: &OptimConfig) -> Network<B> {
    let mut network = Network::with_adapters(b, Arc::new(weights), (layout, plan), optim, 0, 0.9).unwrap();
    let adapters = network.adapters.as_ref().unwrap();
    let mut lora = adapters.named(&adapters.initial());
    for (i, adapter) in lora.adapters.values_mut().enumerate() {
        let len = adapter.b.len();
        adapter.b = normals(17, i as u32, len).iter().map(|value| 0.05 * value).collect();
    }
    let arena = adapters.arena(&lora).unwrap();
    b.upload_stat(&arena, network.master.all_mut());
    network.refresh(b);
    network
}

#[test]
fn gradients_are_those_of_peft() {
    let (model, tensors) = network();
    let lora = read("diffusers");
    let b = Cpu::<f32>::new();
    let mmdit = Mmdit::new(&b, model.clone(), &tensors["pos_embed"].data).unwrap();
    let weights = mmdit.layout().arena.gather(|name| tensors.get(name).map(|t| (&t.shape[..], &t.data[..]))).unwrap();
    let plan = plan(&model, &["attention", "norm_out.linear"], 4, 1.5);
    let layout = &mmdit.layout().arena;
    let mut student = Network::with_adapters(&b, Arc::new(weights.clone()), (layout, plan), &OptimConfig::default(), 0, 0.0).unwrap();
    let arena = student.adapters.as_ref().unwrap().arena(&lora).unwrap();
    b.upload_stat(&arena, student.master.all_mut());
    student.refresh(&b);
    assert_eq!(student.averaged_adapters(&b).unwrap().unwrap().adapters, lora.adapters);

    let rig = Rig { b: &b, weights: weights.clone(), params: data(&b, &b.download_data(student.params.all()).unwrap()), model: mmdit };
    let given = inputs();
    let file = expected();
    let upstream = Upstream { velocity: Some(file.f32("in.upstream").unwrap()), taps: Vec::new() };
    let results = rig.run(&given, &upstream, rig.whole(&given));
    close("velocity", &results.velocity.unwrap(), &file.f32("diffusers").unwrap(), 2e-5);

    let adapters = student.adapters.as_mut().unwrap();
    adapters.gradients(&b, &stat(&b, &results.grads));
    let grads = adapters.named(&b.download_stat(adapters.grads.all()).unwrap());
    for (module, adapter) in &grads.adapters {
        for (part, values) in [("A", &adapter.a), ("B", &adapter.b)] {
            close(&format!("{part} of {module}"), values, &file.f32(&format!("grad.{module}.lora_{part}.weight")).unwrap(), 1e-4);
        }
    }
    assert_eq!(grads.adapters.len() * 2, file.names().iter().filter(|name| name.starts_with("grad.")).count());
}

fn script(ladd: LaddConfig, optim: OptimConfig) -> Script {
    Script {
        model: config(),
        ladd: LaddConfig { head_width: 16, student_t: TimestepDistribution::Uniform, ..ladd },
        seeds: [61, 62, 63],
        optim: [optim, OptimConfig::default()],
        ema_decay: 0.0,
        shape: Shape { batch: 3, height: 6, width: 4, text: 2 },
        values: StepValues { seed: 5, step: 3, first_sample: 2, lr: [1e-3, 0.0] },
        checkpointed: Checkpointed::NONE,
    }
}

fn samples(script: &Script) -> Samples {
    let inputs = HostInputs::random(&script.model, script.shape, 71);
    Samples { x0: inputs.latent, conditioning: None, context: inputs.context, pooled: inputs.pooled }
}

/// A LADD step whose student is a LoRA of all its matrices.
fn stage<'a, B: Backend>(b: &'a B, script: &Script, samples: &Samples, rank: usize, scale: f32) -> Stage<'a, B> {
    let mut stage = Stage::new(b, script, samples, false);
    let arena = &stage.student_model.layout().arena;
    let plan = plan(&script.model, &["all"], rank, scale);
    stage.student = student(b, arena, parameters(arena, script.seeds[0]), plan, &script.optim[0]);
    stage.zero();
    stage
}

/// The whole LADD step, from the adapters to the student's loss.
#[test]
fn gradients_are_the_slopes_of_the_loss() {
    const H: f64 = 1e-8;
    let ladd =
        LaddConfig { distillation_weight: 0.4, adversarial_weight: 0.6, loss: AdversarialLoss::NonSaturating, ..LaddConfig::default() };
    let (b, script) = (Cpu::<f64>::new(), script(ladd, OptimConfig::default()));
    for (rank, scale) in [(1, 1.0), (5, 0.5), (8, 2.0)] {
        let mut stage = stage(&b, &script, &samples(&script), rank, scale);
        stage.run(Phase::Student, 1.0);
        let Network { adapters, grads, .. } = &mut stage.student;
        let adapters = adapters.as_mut().unwrap();
        adapters.gradients(&b, grads);
        let gradient = adapters.grads.to_vec();
        let used = adapters.arena(&filled(&adapters.named(&vec![0.0; gradient.len()]))).unwrap();
        let kept = stage.student.master.to_vec();
        for seed in 0..3 {
            let along: Vec<f64> = direction(80 + seed, kept.len()).iter().zip(&used).map(|(d, used)| d * f64::from(*used)).collect();
            let mut value = |h: f64| {
                stage.student.master.iter_mut().zip(&along).for_each(|(p, d)| *p += h * d);
                stage.student.refresh(&b);
                stage.zero();
                stage.run(Phase::Student, 1.0);
                stage.student.master.copy_from_slice(&kept);
                losses(&stage, &script.ladd, Phase::Student)[1]
            };
            check(&format!("rank {rank}, scale {scale}"), &gradient, &along, H, &mut value);
        }
    }
}

/// The same adapters with every value 1.
fn filled(lora: &Lora) -> Lora {
    let mut lora = lora.clone();
    lora.adapters.values_mut().for_each(|adapter| {
        adapter.a.fill(1.0);
        adapter.b.fill(1.0);
    });
    lora
}

/// One step: gradients of the adapters, the adapters after the update, and the weights that the next step runs on.
fn one_step<B: Backend>(b: &B) -> [(&'static str, Vec<f32>); 3] {
    let script = script(LaddConfig::default(), OptimConfig { lr: 1e-3, ..OptimConfig::default() });
    let mut stage = stage(b, &script, &samples(&script), 4, 0.5);
    stage.run(Phase::Both, 1.0);
    let Stage { student, values, .. } = &mut stage;
    student.update(b, values);
    [
        ("gradients of the adapters", b.download_stat(student.adapters.as_ref().unwrap().grads.all()).unwrap()),
        ("adapters", b.download_stat(student.master.all()).unwrap()),
        ("weights", b.download_data(student.params.all()).unwrap()),
    ]
}

fn one_step_is_that_of_the_processor<B: Backend>(b: &B, tolerance: Tolerance) {
    let exact = one_step(&Cpu::<f64>::new());
    for ((what, got), (_, expected)) in one_step(b).iter().zip(&exact) {
        // AdamW's first step is the gradient's sign: where that is next to nothing, rounding turns it.
        let turned = if what.starts_with("gradients") { 0.0 } else { 1e-3 };
        close(what, got, expected, tolerance.relative().max(turned));
    }
}

fn distiller<B: Backend>(b: &B, settings: DistillSettings) -> Distiller<B> {
    let config = config();
    let model = || Mmdit::new(b, config.clone(), &positions(&config, 1)).unwrap();
    let (teacher, student_model) = (model(), model());
    let arena = &student_model.layout().arena;
    let weights = parameters(arena, 1);
    let network = student(b, arena, weights.clone(), plan(&config, &["attention", "mlp"], 3, 2.0), &settings.student);
    let teacher_params = data(b, &weights);
    Distiller::from_device(b, settings, (teacher, teacher_params), (student_model, network)).unwrap()
}

/// Everything that the student's next step depends on, and what is saved of it.
fn state<B: Backend>(b: &B, run: &Distiller<B>) -> Vec<f32> {
    let student = &run.student;
    let parts = [
        b.download_data(student.params.all()).unwrap(),
        b.download_data(student.adapters.as_ref().unwrap().params.all()).unwrap(),
        b.download_stat(student.master.all()).unwrap(),
        b.download_stat(student.ema.as_ref().unwrap().all()).unwrap(),
        student.averaged_weights(b).unwrap(),
    ];
    parts.concat()
}

#[test]
fn a_resumed_run_gives_the_same_bits() {
    for moments in [Moments::Fp32, Moments::Packed] {
        let mut settings = settings(Update::Alternating, AdversarialLoss::Hinge);
        settings.student.moments = moments;
        resumed(settings);
    }
}

fn resumed(settings: DistillSettings) {
    let b = Cpu::<f32>::new();
    let mut straight = distiller(&b, settings.clone());
    let records: Vec<_> = (0..4).map(|step| Data::new(step).step(&b, &mut straight, 2)).collect();
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("step-2");
    let mut first = distiller(&b, settings.clone());
    (0..2).for_each(|step| drop(Data::new(step).step(&b, &mut first, 2)));
    let networks = [("student", &first.student), ("heads", &first.heads)];
    save(&b, &place, &TrainingState::new(2, 0.0, String::new()), &networks).unwrap();

    let mut second = distiller(&b, settings.clone());
    let restored = load(&b, &place, "", &mut [("student", &mut second.student), ("heads", &mut second.heads)]).unwrap();
    second.resume_at(restored.step);
    for step in 2..4 {
        assert_eq!(Data::new(step).step(&b, &mut second, 2), records[step as usize], "record of step {step}");
    }
    same_bits("state", &state(&b, &second), &state(&b, &straight));

    // Adapters of another rank are another state.
    let mut whole = crate::ladd::accumulation::distiller(&b, settings);
    let error = load(&b, &place, "", &mut [("student", &mut whole.student)]).unwrap_err().to_string();
    assert!(error.contains("`master` has the shape") && error.contains("delete this checkpoint"), "{error}");
}

/// Nothing is allocated in a step, and what is replayed has the bits of what is not.
#[test]
fn replayed_steps_have_the_same_bits() {
    let train = |cuda: &Cuda| {
        let mut run = distiller(cuda, settings(Update::Simultaneous, AdversarialLoss::Hinge));
        (0..3).for_each(|step| drop(Data::new(step).step(cuda, &mut run, 2)));
        state(cuda, &run)
    };
    let replayed = train(&emulated_with(Schedule::default()));
    same_bits("state", &replayed, &train(&emulated_with(Schedule::default()).without_replay()));
}

/// Training moves the adapted matrices and nothing else; merging the adapters' file into the base gives the student's bits.
#[test]
fn only_the_adapted_matrices_change() {
    let b = Cpu::<f32>::new();
    let mut run = distiller(&b, settings(Update::Simultaneous, AdversarialLoss::Hinge));
    (0..3).for_each(|step| drop(Data::new(step).step(&b, &mut run, 4)));
    let arena = &run.student_model().layout().arena;
    let before = parameters(arena, 1);
    let (now, averaged) = (b.download_data(run.student.params.all()).unwrap(), run.student.averaged_weights(&b).unwrap());
    let targets: Vec<Target> = select(&config(), &["attention".into(), "mlp".into()]).unwrap();
    for entry in arena.entries() {
        let mut moved = vec![false; entry.len()];
        targets.iter().filter(|t| t.tensor == entry.name).for_each(|t| moved[t.range()].fill(true));
        for (i, moved) in moved.into_iter().enumerate() {
            let at = entry.offset + i;
            assert_eq!(now[at] != before[at], moved, "{} {i}", entry.name);
            assert_eq!(averaged[at] != before[at], moved, "{} {i}", entry.name);
        }
    }
    let adapters = run.student.adapters.as_ref().unwrap();
    let merged = adapters.merged(&b.download_stat(run.student.master.all()).unwrap());
    close("the weights of the step", &now, &merged, 1e-6);
    let lora = run.student.averaged_adapters(&b).unwrap().unwrap();
    let mut tensors =
        arena.scatter(&before).map(|(e, v)| (e.name.clone(), ladd_fast::format::Tensor { shape: e.shape.clone(), data: v.to_vec() }));
    let mut tensors: ladd_fast::format::Tensors = tensors.by_ref().collect();
    let file = tempfile::tempdir().unwrap();
    let file = lora.save(file.path(), ladd_fast::lora::Layout::Diffusers, ladd_fast::format::Dtype::F32).map(|path| (path, file)).unwrap();
    let read = ladd_fast::lora::LoraFile::open(&file.0).unwrap().read(&config()).unwrap();
    ladd_fast::lora::merge(&config(), &mut tensors, &read, 1.0).unwrap();
    let gathered = arena.gather(|name| tensors.get(name).map(|t| (&t.shape[..], &t.data[..]))).unwrap();
    same_bits("merged from the file", &gathered, &averaged);
}

#[test]
fn adapters_that_train_nothing_are_refused() {
    let b = Cpu::<f32>::new();
    let model = Mmdit::new(&b, config(), &positions(&config(), 1)).unwrap();
    let arena = &model.layout().arena;
    let weights = Arc::new(parameters(arena, 1));
    let refused = |plan: AdapterPlan| {
        Network::with_adapters(&b, weights.clone(), (arena, plan), &OptimConfig::default(), 0, 0.0).map(drop).unwrap_err().to_string()
    };
    assert!(refused(AdapterPlan { rank: 0, ..plan(&config(), &["attention"], 1, 1.0) }).contains("rank 0"));
    let other = Target { tensor: "none".into(), ..plan(&config(), &["attention"], 1, 1.0).targets.swap_remove(0) };
    assert!(refused(AdapterPlan { targets: vec![other], rank: 2, scale: 1.0, seed: 0 }).contains("no matrix"));
}
