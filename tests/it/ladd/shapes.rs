//! Latents of several shapes in one distillation: a plan and a recording for each, together or in turn as the memory allows.

use std::sync::Arc;

use ladd_fast::device::cpu::Cpu;
use ladd_fast::device::cuda::Cuda;
use ladd_fast::device::cuda::emulated::{Emulated, Schedule};
use ladd_fast::device::{Backend, Storage};
use ladd_fast::ladd::{AdversarialLoss, Update};
use ladd_fast::model::Shape;
use ladd_fast::train::Checkpointing;

use super::accumulation::{Data, distiller, settings};
use crate::lab::same_bits;

const SIZES: [(usize, usize); 2] = [(4, 6), (8, 4)];

/// Losses, student and heads after a run; how many plans there were at its end, and how many gave way.
type Trained = (Vec<Vec<f32>>, (usize, u64));

/// Some steps on two shapes.
fn train<B: Backend>(b: &B, checkpointing: Checkpointing, ahead: bool, steps: usize) -> ladd_fast::Result<Trained> {
    let mut settings = settings(Update::Simultaneous, AdversarialLoss::Hinge);
    settings.activation_checkpointing = checkpointing;
    settings.ladd.r1_weight = 0.0;
    let mut run = distiller(b, settings);
    if ahead {
        let shapes = SIZES.map(|(height, width)| Shape { batch: 2, height, width, text: 3 });
        run.prepare(b, &shapes, 2)?;
    }
    let mut losses = Vec::new();
    for step in 0..steps {
        let (height, width) = SIZES[step % 2];
        losses.push(Data::sized(step as u64, height, width).try_step(b, &mut run, 2)?.loss_d);
    }
    let arena = |buffer: &B::Stat| b.download_stat(buffer.all()).unwrap();
    Ok((vec![losses, arena(&run.student.master), arena(&run.heads.master)], run.planned()))
}

#[test]
fn recordings_of_two_shapes_have_the_same_bits() {
    let device = || Cuda::new(Arc::new(Emulated::new(Schedule::default())));
    let (replayed, (plans, evictions)) = train(&device(), Checkpointing::Off, true, 6).unwrap();
    assert_eq!((plans, evictions), (2, 0));
    let (plain, _) = train(&device().without_replay(), Checkpointing::Off, false, 6).unwrap();
    same_bits("losses, student and heads", &replayed.concat(), &plain.concat());
    assert!(replayed[0].windows(2).all(|pair| pair[0] != pair[1]), "{:?}", replayed[0]);
}

/// Memory for the buffers of one shape: they take turns, before any activation is computed twice. With less, a shape that does not
/// fit alone is refused before the first step.
#[test]
fn shapes_take_turns_where_the_memory_is_short() {
    let device = |memory: u64| {
        let driver = Arc::new(Emulated::new(Schedule::default()).with_memory(memory));
        (Cuda::new(driver.clone()), driver)
    };
    let used = |sizes: &[(usize, usize)]| {
        let (b, driver) = device(1 << 34);
        let mut settings = settings(Update::Simultaneous, AdversarialLoss::Hinge);
        settings.ladd.r1_weight = 0.0;
        let mut run = distiller(&b, settings);
        let shapes: Vec<_> = sizes.iter().map(|&(height, width)| Shape { batch: 2, height, width, text: 3 }).collect();
        run.prepare(&b, &shapes, 2).unwrap();
        driver.memory_in_use()
    };
    let (none, larger, both) = (used(&[]), used(&SIZES[1..]), used(&SIZES));
    let (expected, _) = train(&device(1 << 34).0, Checkpointing::Off, true, 3).unwrap();
    let (turns, (plans, evictions)) = train(&device((larger + both) / 2).0, Checkpointing::Auto, true, 3).unwrap();
    assert!(plans == 1 && evictions == 4, "{plans} plans, {evictions} gave way");
    same_bits("losses, student and heads", &turns.concat(), &expected.concat());
    let refused = train(&device((none + larger) / 2).0, Checkpointing::Off, true, 3).unwrap_err().to_string();
    assert!(refused.contains("out of memory"), "{refused}");
}

#[test]
fn planning_ahead_changes_nothing() {
    let b = Cpu::<f32>::new();
    let (ahead, _) = train(&b, Checkpointing::Off, true, 4).unwrap();
    let (later, _) = train(&b, Checkpointing::Off, false, 4).unwrap();
    same_bits("losses, student and heads", &ahead.concat(), &later.concat());
}
