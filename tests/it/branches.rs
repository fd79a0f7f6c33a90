//! Branches ([`Backend::parallel`]) on the emulated device: the bits are those of work in order, whichever order the
//! branches run in, and a wrong use is noticed.

use std::sync::Arc;

use ladd_fast::device::cuda::Cuda;
use ladd_fast::device::cuda::emulated::{Emulated, Order, Schedule};
use ladd_fast::device::{Backend, Storage};
use ladd_fast::ladd::{AdversarialLoss, Update};

use crate::devices::emulated_with;
use crate::lab::same_bits;
use crate::ladd::accumulation::{Data, distiller, settings};
use crate::rig::stat;

const ORDERS: [Order; 4] = [Order::SideFirst, Order::MainFirst, Order::Mixed(1), Order::Mixed(2)];

fn device(order: Order) -> Cuda {
    println!("{order:?}");
    Cuda::new(Arc::new(Emulated::new(Schedule::default()).with_order(order)))
}

fn read(cuda: &Cuda, buffer: &<Cuda as Backend>::Stat) -> Vec<f32> {
    cuda.download_stat(buffer.all()).unwrap()
}

/// Losses, gradients and weights of two steps in two micro-batches: one as it is, one recorded.
fn train(cuda: &Cuda) -> [Vec<f32>; 6] {
    let mut run = distiller(cuda, settings(Update::Simultaneous, AdversarialLoss::Hinge));
    let losses = (0..2).flat_map(|step| {
        let record = Data::new(step).step(cuda, &mut run, 2);
        [record.loss_d, record.loss_g, record.grad_norm_student, record.grad_norm_heads]
    });
    let losses = losses.collect();
    let [a, b, c, d, e] = [&run.student.grads, &run.student.master, run.student.ema.as_ref().unwrap(), &run.heads.grads, &run.heads.master];
    [losses, read(cuda, a), read(cuda, b), read(cuda, c), read(cuda, d), read(cuda, e)]
}

#[test]
fn whole_steps_have_the_same_bits_in_every_order() {
    let expected = train(&emulated_with(Schedule::default()).without_branches());
    for order in ORDERS {
        let names = ["losses", "student's gradients", "student", "average", "heads' gradients", "heads"];
        for ((name, got), expected) in names.iter().zip(train(&device(order))).zip(&expected) {
            same_bits(name, &got, expected);
        }
    }
}

/// Two sums that need scratch memory, mixed in time, and a pair within one of the branches.
#[test]
fn every_branch_has_scratch_memory_of_its_own() {
    for order in ORDERS {
        let cuda = device(order);
        let values: Vec<Vec<f32>> = (0..4).map(|i| vec![1.0 + i as f32; 5000 << i]).collect();
        let grads: Vec<_> = values.iter().map(|values| stat(&cuda, values)).collect();
        let [mut a, mut b, mut c, mut d] = [(); 4].map(|()| stat(&cuda, &[f32::NAN]));
        for _ in 0..3 {
            let nested = |_: &mut ()| {
                cuda.parallel(&mut (), |_| cuda.global_norm(&grads[1], &mut b), |_| cuda.global_norm(&grads[2], &mut c));
                cuda.global_norm(&grads[3], &mut d);
            };
            cuda.parallel(&mut (), nested, |_| cuda.global_norm(&grads[0], &mut a));
        }
        for (norm, values) in [a, b, c, d].iter().zip(&values) {
            let expected = values[0] * (values.len() as f32).sqrt();
            approx::assert_relative_eq!(read(&cuda, norm)[0], expected, max_relative = 1e-6);
        }
    }
}

#[test]
fn branches_may_write_different_parts_of_what_they_share() {
    for order in ORDERS {
        let cuda = device(order);
        let (source, mut shared) = (stat(&cuda, &[3.0; 8]), stat(&cuda, &[0.0; 8]));
        cuda.parallel(
            &mut shared,
            |shared| cuda.copy(source.part(0..4), shared.part_mut(0..4)),
            |shared| cuda.copy(source.part(4..8), shared.part_mut(4..8)),
        );
        assert_eq!(read(&cuda, &shared), [3.0; 8]);
    }
}

#[test]
fn branches_that_touch_what_the_other_writes_are_refused() {
    for order in ORDERS {
        let both_write = |cuda: &Cuda| {
            let (source, mut shared) = (stat(cuda, &[3.0; 8]), stat(cuda, &[0.0; 8]));
            cuda.parallel(
                &mut shared,
                |shared| cuda.copy(source.part(0..5), shared.part_mut(0..5)),
                |shared| cuda.copy(source.part(4..8), shared.part_mut(4..8)),
            );
            cuda.synchronize()
        };
        let one_reads = |cuda: &Cuda| {
            let (source, mut shared, mut target) = (stat(cuda, &[3.0; 8]), stat(cuda, &[0.0; 8]), stat(cuda, &[0.0; 8]));
            cuda.parallel(
                &mut shared,
                |shared| cuda.copy(source.all(), shared.all_mut()),
                |shared| cuda.copy(shared.all(), target.all_mut()),
            );
            cuda.synchronize()
        };
        for result in [both_write(&device(order)), one_reads(&device(order))] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("a copy of") && error.contains("side by side") && error.contains("at offset"), "{error}");
        }
    }
}

/// What kernels touch is known where they were built to say so (`scripts/check-branches`). Without that, another order gives
/// other bits, which the comparison of whole steps would see.
#[test]
fn kernels_that_depend_on_each_other_show_in_some_order() {
    let run = |order: Order| {
        let cuda = device(order);
        let mut shared = stat(&cuda, &[0.0; 1000]);
        cuda.parallel(&mut shared, |shared| cuda.fill(shared.all_mut(), 1.0), |shared| cuda.fill(shared.part_mut(10..20), 2.0));
        cuda.download_stat(shared.all())
    };
    match [run(Order::SideFirst), run(Order::MainFirst)] {
        [Ok(one), Ok(other)] => {
            assert!(std::env::var("LADD_EMULATOR_LIBRARY").is_err(), "this library does not say what its kernels touch");
            assert_ne!(one, other);
        }
        errors => {
            for error in errors {
                let error = error.unwrap_err().to_string();
                assert!(error.contains("fill") && error.contains("side by side"), "{error}");
            }
        }
    }
}

#[test]
fn a_branch_neither_waits_nor_uploads() {
    let cuda = device(Order::SideFirst);
    let mut buffer = stat(&cuda, &[0.0; 4]);
    cuda.parallel(&mut (), |_| (), |_| assert!(cuda.download_stat(buffer.all()).is_err()));
    cuda.parallel(&mut buffer, |_| (), |buffer| cuda.upload_stat(&[1.0; 4], buffer.all_mut()));
    let error = cuda.synchronize().unwrap_err().to_string();
    assert!(error.contains("an upload") && error.contains("branch"), "{error}");
}

/// Memory that a branch gives back gets no new user before the branches are joined.
#[test]
fn memory_given_back_in_a_branch_is_kept_until_the_join() {
    for order in ORDERS {
        let driver = Arc::new(Emulated::new(Schedule::default()).with_order(order));
        let cuda = Cuda::new(driver.clone());
        let (source, mut target) = (stat(&cuda, &[5.0; 64]), stat(&cuda, &[0.0; 64]));
        let before = driver.memory_in_use();
        let side = |_: &mut ()| {
            let mut room = cuda.alloc_stat(64).unwrap();
            cuda.copy(source.all(), room.all_mut());
            cuda.copy(room.all(), target.all_mut());
        };
        cuda.parallel(&mut (), |_| (), side);
        assert_eq!(read(&cuda, &target), [5.0; 64]);
        assert_eq!(driver.memory_in_use(), before);
    }
}
