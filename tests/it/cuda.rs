//! The CUDA backend as a whole: replayed steps, failures, determinism.

use std::sync::Arc;

use ladd_fast::device::cuda::Cuda;
use ladd_fast::device::cuda::driver::{Driver, Grid, Kernel};
use ladd_fast::device::cuda::emulated::{Emulated, Schedule};
use ladd_fast::device::{AttentionShape, Backend, Storage};
use ladd_fast::ladd::{AdversarialLoss, Update};
use ladd_fast::train::{Checkpointing, DistillSettings};

use crate::catalogue::{Sizes, catalogue};
use crate::devices::{emulated, emulated_with};
use crate::lab::same_bits;
use crate::ladd::accumulation::{Data, distiller, settings};

/// Sizes that are multiples of nothing, small enough for the emulator.
const ODD: Sizes = Sizes { name: "odd", batch: 3, heads: 3, head_dim: 20, grid: (5, 7), text: 3, width: 28 };
/// Sizes that the wide paths take.
const EVEN: Sizes = Sizes { name: "even", batch: 2, heads: 2, head_dim: 64, grid: (6, 8), text: 16, width: 64 };

fn every_operation_twice(b: &Cuda, sizes: Sizes) {
    let first: Vec<_> = catalogue(b, sizes).into_iter().map(|mut o| (o.name, (o.run)(true))).collect();
    let second: Vec<_> = catalogue(b, sizes).into_iter().map(|mut o| (o.name, (o.run)(true))).collect();
    assert_eq!(first.len(), second.len());
    for ((name, a), (_, b)) in first.iter().zip(&second) {
        assert!(!a.is_empty() && a.iter().all(|v| v.is_finite()), "{name} at {}", sizes.name);
        same_bits(&format!("{name} at {}", sizes.name), a, b);
    }
}

#[test]
fn operations_give_the_same_bits_twice() {
    for sizes in [ODD, EVEN] {
        emulated().for_each(|cuda| every_operation_twice(&cuda, sizes));
    }
}

/// The schedules run the same arithmetic in another order in time: the bits are the same.
#[test]
fn operations_give_the_same_bits_under_every_schedule() {
    let run = |cuda: &Cuda| -> Vec<_> { catalogue(cuda, EVEN).into_iter().map(|mut o| (o.name, (o.run)(true))).collect() };
    let results: Vec<_> = emulated().map(|cuda| run(&cuda)).collect();
    for other in &results[1..] {
        results[0].iter().zip(other).for_each(|((name, a), (_, b))| same_bits(name, a, b));
    }
}

/// What does not fit the memory is recomputed, to the same bits, and given back before another plan is tried.
#[test]
fn a_step_that_does_not_fit_recomputes_activations() {
    let train = |checkpointing: Checkpointing, memory: u64| {
        let driver = Arc::new(Emulated::new(Schedule::default()).with_memory(memory));
        let cuda = Cuda::new(driver.clone());
        let settings =
            DistillSettings { activation_checkpointing: checkpointing, ..settings(Update::Simultaneous, AdversarialLoss::Hinge) };
        let mut run = distiller(&cuda, settings);
        Data::new(0).try_step(&cuda, &mut run, 1)?;
        let master = cuda.download_stat(Storage::all(&run.student.master))?;
        Ok::<_, ladd_fast::Error>((driver.memory_in_use(), master))
    };
    let plenty = 1 << 34;
    let (roomy, expected) = train(Checkpointing::Off, plenty).unwrap();
    let (tight, all) = train(Checkpointing::All, plenty).unwrap();
    assert!(tight < roomy, "{tight} bytes with checkpointing, {roomy} without");
    same_bits("all recomputed", &all, &expected);
    let (used, auto) = train(Checkpointing::Auto, tight + (roomy - tight) / 4).unwrap();
    assert!(used < roomy);
    same_bits("as much recomputed as must be", &auto, &expected);
    let refused = train(Checkpointing::Off, tight + (roomy - tight) / 4).unwrap_err().to_string();
    assert!(refused.contains("out of memory") && refused.contains("activation_checkpointing"), "{refused}");
}

/// Four steps: the first as it is, the second recorded, then replayed; and four steps that are never recorded.
#[test]
fn replayed_steps_have_the_same_bits() {
    for update in [Update::Simultaneous, Update::Alternating] {
        let train = |cuda: &Cuda| {
            let mut run = distiller(cuda, settings(update, AdversarialLoss::Hinge));
            let records: Vec<_> = (0..4).map(|step| Data::new(step).step(cuda, &mut run, 2)).collect();
            let arena = |buffer: &_| cuda.download_stat(Storage::all(buffer)).unwrap();
            (records.iter().map(|r| r.loss_d).collect::<Vec<_>>(), arena(&run.student.master), arena(&run.heads.master))
        };
        let (losses, student, heads) = train(&emulated_with(Schedule::default()));
        let (plain_losses, plain_student, plain_heads) = train(&emulated_with(Schedule::default()).without_replay());
        same_bits("losses", &losses, &plain_losses);
        same_bits("student", &student, &plain_student);
        same_bits("heads", &heads, &plain_heads);
        assert!(losses.windows(2).all(|pair| pair[0] != pair[1]), "every step has data and draws of its own: {losses:?}");
    }
}

#[test]
fn a_kernel_that_does_not_exist_is_named() {
    let driver = Emulated::new(Schedule::default());
    let grid = Grid { blocks: [1, 1, 1], threads: 32, shared: 0 };
    let error = driver.launch(Kernel { file: "memory", name: "no_such_kernel" }, grid, &[]).unwrap_err().to_string();
    assert!(error.contains("no_such_kernel") && error.contains("kernels/memory.cu"), "{error}");
}

/// A failure is reported by the next wait, once and for all; what was queued behind it does not run.
#[test]
fn a_failure_is_reported_by_the_next_wait() {
    let cuda = Cuda::new(Arc::new(Emulated::new(Schedule::default())));
    let mut buffer = cuda.alloc_stat(8).unwrap();
    cuda.fill(buffer.all_mut(), 1.0);
    let shape = AttentionShape { batch: 1, heads: 1, head_dim: 160, image: 2, text: 0, text_queries: false };
    let [q, k, v, mut out] = [(); 4].map(|()| cuda.alloc_data(320).unwrap());
    let mut lse = cuda.alloc_stat(2).unwrap();
    cuda.attention(&shape, [&q, &k, &v], &mut out, None, &mut lse);
    cuda.fill(buffer.all_mut(), 2.0);
    for _ in 0..2 {
        let error = cuda.synchronize().unwrap_err();
        assert!(error.to_string().contains("head_dim 160"), "{error}");
        assert!(cuda.download_stat(buffer.all()).is_err());
    }
}

/// A thousand runs of every operation have the same bits: what a race would change now and then.
#[cfg(feature = "cuda")]
#[test]
#[cfg_attr(not(gpu), ignore = "needs a GPU")]
fn a_thousand_repeats_have_the_same_bits() {
    let cuda = crate::devices::gpu();
    for sizes in [EVEN, crate::catalogue::LARGE] {
        for make in 0..catalogue(&cuda, sizes).len() {
            let run = || {
                let mut operation = catalogue(&cuda, sizes).swap_remove(make);
                ((operation.run)(true), operation.name)
            };
            let (first, name) = run();
            for repeat in 1..1000 {
                same_bits(&format!("{name} at {}, repeat {repeat}", sizes.name), &run().0, &first);
            }
        }
    }
}

/// Without a GPU, asking for one says what to do.
#[cfg(feature = "cuda")]
#[test]
fn a_missing_gpu_is_explained() {
    if cfg!(gpu) {
        let error = Cuda::open(99).unwrap_err().to_string();
        assert!(error.contains("there is no GPU number 99"), "{error}");
    } else {
        let error = Cuda::open(0).unwrap_err().to_string();
        assert!(error.contains("--device cpu"), "{error}");
    }
}
