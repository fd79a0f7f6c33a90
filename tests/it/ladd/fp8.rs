//! A LADD step whose teacher judges in FP8.

use std::sync::Arc;

use ladd_fast::device::cpu::Cpu;
use ladd_fast::device::cuda::Cuda;
use ladd_fast::device::cuda::emulated::{Emulated, Schedule};
use ladd_fast::device::{Backend, Storage};
use ladd_fast::ladd::{AdversarialLoss, LaddConfig, Phase, TeacherPrecision, Update};
use ladd_fast::model::Mmdit;
use ladd_fast::train::{DistillSettings, Distiller};

use super::accumulation::{Data, config, distiller, settings};
use super::stage::{Script, Stage};
use super::steps::{samples, script};
use crate::devices::{emulated_twice, emulated_with};
use crate::golden::{Golden, Tolerance, close, parameters, positions, relative_error};
use crate::lab::same_bits;

/// Logits, predictions, and the gradients of both networks.
fn step<B: Backend>(b: &B, precision: TeacherPrecision) -> [(&'static str, Vec<f32>); 4] {
    let case = Golden::open("ladd_full");
    for name in ["out.", "grad.", "after."].into_iter().flat_map(|p| case.results(p).into_iter().map(move |name| format!("{p}{name}"))) {
        case.skip(&name);
    }
    let script = script(&case);
    let script = Script { ladd: LaddConfig { teacher_precision: precision, ..script.ladd }, ..script };
    let mut stage = Stage::new(b, &script, &samples(&case), true);
    stage.run(Phase::Both, 1.0);
    let read = |buffer: &B::Stat| b.download_stat(buffer.all()).unwrap();
    [
        ("predictions", read(&stage.step.x0_hat)),
        ("logits", read(&stage.step.logits)),
        ("gradient of the heads", read(&stage.heads.grads)),
        ("gradient of the student", read(&stage.student.grads)),
    ]
}

#[test]
fn the_emulated_gpu_agrees_with_the_processor() {
    let cpu = step(&Cpu::<f32>::new(), TeacherPrecision::Fp8);
    let exact = step(&Cpu::<f32>::new(), TeacherPrecision::Bf16);
    same_bits("predictions", &cpu[0].1, &exact[0].1);
    for ((what, fp8), (_, exact)) in cpu.iter().zip(&exact).skip(1) {
        let error = relative_error(fp8, exact);
        println!("{what}: FP8 errs by {error:.1e}");
        assert!((1e-3..0.3).contains(&error), "{what}: FP8 errs by {error:.2e}");
    }
    emulated_twice().for_each(|cuda| {
        for (((what, got), (_, expected)), (_, exact)) in step(&cuda, TeacherPrecision::Fp8).iter().zip(&cpu).zip(&exact) {
            // A number that bf16 rounds to the other side of a code's edge errs by a whole code: where FP8 itself errs by more
            // than the tolerance, two devices may differ by twice as much, as with PyTorch's own bf16 elsewhere.
            let bound = Tolerance::Bf16Chain.relative().max(2.0 * relative_error(expected, exact));
            close(what, got, expected, bound);
        }
    });
}

fn in_fp8(update: Update) -> DistillSettings {
    let settings = settings(update, AdversarialLoss::Hinge);
    DistillSettings { ladd: LaddConfig { teacher_precision: TeacherPrecision::Fp8, ..settings.ladd }, ..settings }
}

/// Nothing is allocated in a step, and what is replayed has the bits of what is not.
#[test]
fn replayed_steps_have_the_same_bits() {
    for update in [Update::Simultaneous, Update::Alternating] {
        let train = |cuda: &Cuda| {
            let mut run = distiller(cuda, in_fp8(update));
            let losses: Vec<_> = (0..4).map(|step| Data::new(step).step(cuda, &mut run, 2).loss_d).collect();
            [
                losses,
                cuda.download_stat(Storage::all(&run.student.master)).unwrap(),
                cuda.download_stat(Storage::all(&run.heads.master)).unwrap(),
            ]
        };
        let replayed = train(&emulated_with(Schedule::default()));
        let plain = train(&emulated_with(Schedule::default()).without_replay());
        same_bits("losses, student and heads", &replayed.concat(), &plain.concat());
    }
}

#[test]
fn a_device_without_fp8_is_refused_before_the_first_step() {
    let ampere = Cuda::new(Arc::new(Emulated::ampere(Schedule::default())));
    let config = config();
    let model = || Mmdit::new(&ampere, config.clone(), &positions(&config, 1)).unwrap();
    let weights = parameters(&model().layout().arena, 1);
    let error = Distiller::new(&ampere, in_fp8(Update::Simultaneous), (model(), &weights), (model(), &weights)).unwrap_err().to_string();
    assert!(error.contains("8.9 on, this is 8.0") && error.contains("set ladd.teacher_precision to \"bf16\""), "{error}");
    // A teacher that does not judge needs none.
    let settings = in_fp8(Update::Simultaneous);
    let ladd = LaddConfig { adversarial_weight: 0.0, distillation_weight: 1.0, ..settings.ladd };
    let regression = DistillSettings { ladd, ..settings };
    assert!(Distiller::new(&ampere, regression, (model(), &weights), (model(), &weights)).is_ok());
}
