//! A run that was interrupted and resumed gives the same bits as one that was not.

use ladd_fast::device::cpu::Cpu;
use ladd_fast::device::{Backend, Moment, Storage};
use ladd_fast::ladd::{AdversarialLoss, Update};
use ladd_fast::train::checkpoint::{TrainingState, load, save};
use ladd_fast::train::{Distiller, Moments};

use super::accumulation::{Data, distiller, settings};
use crate::lab::same_bits;

/// Every number a later step depends on.
pub fn state<B: Backend>(b: &B, distiller: &Distiller<B>) -> Vec<Vec<f32>> {
    let mut arenas = Vec::new();
    for network in [&distiller.student, &distiller.heads] {
        arenas.push(b.download_data(network.params.all()).unwrap());
        let mut buffers: Vec<&B::Stat> = [&network.master, &network.counters].into_iter().chain(&network.ema).collect();
        for moment in network.moment1.iter().chain([&network.moment2]) {
            match moment {
                Moment::Full(values) => buffers.push(values),
                Moment::Packed { codes, scales } => {
                    arenas.push(b.download_bytes(codes.all()).unwrap().into_iter().map(f32::from).collect());
                    buffers.push(scales);
                }
            }
        }
        arenas.extend(buffers.into_iter().map(|buffer| b.download_stat(buffer.all()).unwrap()));
    }
    arenas
}

#[test]
fn a_resumed_run_gives_the_same_bits() {
    let b = Cpu::<f32>::new();
    for (update, moments) in
        [(Update::Simultaneous, Moments::Fp32), (Update::Alternating, Moments::Fp32), (Update::Simultaneous, Moments::Packed)]
    {
        let mut settings = settings(update, AdversarialLoss::Hinge);
        settings.student.moments = moments;
        settings.heads.moments = moments;
        settings.heads.beta1 = 0.0;
        let mut straight = distiller(&b, settings.clone());
        let mut records = Vec::new();
        for step in 0..5 {
            records.push(Data::new(step).step(&b, &mut straight, 2));
        }

        let folder = tempfile::tempdir().unwrap();
        let checkpoint = folder.path().join("step-2");
        let mut first = distiller(&b, settings.clone());
        (0..2).for_each(|step| drop(Data::new(step).step(&b, &mut first, 2)));
        let networks = [("student", &first.student), ("heads", &first.heads)];
        save(&b, &checkpoint, &TrainingState::new(2, 0.0, "settings".into()), &networks).unwrap();
        drop(first);

        let mut second = distiller(&b, settings);
        assert!(load(&b, &checkpoint, "other settings", &mut [("student", &mut second.student)]).is_err());
        let networks = &mut [("student", &mut second.student), ("heads", &mut second.heads)];
        let restored = load(&b, &checkpoint, "settings", networks).unwrap();
        second.resume_at(restored.step);
        for step in 2..5 {
            let record = Data::new(step).step(&b, &mut second, 2);
            assert_eq!(record, records[step as usize], "record of step {step}, {update:?}, {moments:?}");
        }
        assert_eq!((second.done(), straight.done()), (5, 5));
        for (a, b) in state(&b, &second).iter().zip(state(&b, &straight)) {
            same_bits("state", a, &b);
        }
    }
}

/// The state does move: a test that compares two idle runs would show nothing.
#[test]
fn five_steps_change_every_arena() {
    let b = Cpu::<f32>::new();
    let mut run = distiller(&b, settings(Update::Simultaneous, AdversarialLoss::Hinge));
    let before = state(&b, &run);
    (0..5).for_each(|step| drop(Data::new(step).step(&b, &mut run, 4)));
    for (i, (before, after)) in before.iter().zip(state(&b, &run)).enumerate() {
        assert_ne!(*before, after, "arena {i}");
        assert!(after.iter().all(|v| v.is_finite()), "arena {i}");
    }
}
