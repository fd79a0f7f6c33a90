//! The same seed gives the same bits, whatever the number of threads.

use ladd_fast::device::cpu::Cpu;
use ladd_fast::device::{Backend, Storage};
use ladd_fast::flow::philox::{fill_normals, normal_at};
use ladd_fast::ladd::{AdversarialLoss, Update};
use ladd_fast::model::{ModelConfig, Shape};
use proptest::prelude::*;

use crate::catalogue::{DEMO, LARGE, Operation, Sizes, catalogue};
use crate::lab::same_bits;
use crate::ladd::accumulation::{Data, distiller, settings};
use crate::rig::{HostInputs, Rig, Upstream};

/// Sizes that are multiples of nothing.
const ODD: Sizes = Sizes { name: "odd", batch: 7, heads: 3, head_dim: 20, grid: (5, 7), text: 3, width: 28 };

/// What `work` gives in pools of one, two and three threads, and once more in the first.
fn in_pools<R: Send>(work: impl Fn() -> R + Sync) -> Vec<(usize, R)> {
    let pool = |threads: usize| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    [1, 2, 3, 1].into_iter().map(|threads| (threads, pool(threads).install(&work))).collect()
}

fn same_in_pools(work: impl Fn() -> Vec<(String, Vec<f32>)> + Sync) {
    let results = in_pools(work);
    let (_, first) = &results[0];
    assert!(first.iter().all(|(name, values)| !values.is_empty() || panic!("{name} gave nothing")));
    for (threads, other) in &results[1..] {
        assert_eq!(first.len(), other.len());
        for ((name, a), (_, b)) in first.iter().zip(other) {
            same_bits(&format!("{name} with 1 and {threads} threads"), a, b);
        }
    }
}

fn every_operation<B: Backend>(b: &B, sizes: Sizes) {
    same_in_pools(|| {
        let run = |mut o: Operation<'_>| {
            assert!(o.work.amount() > 0);
            (format!("{} at {}", o.name, sizes.name), (o.run)(true))
        };
        catalogue(b, sizes).into_iter().map(run).collect()
    });
}

#[test]
fn every_operation_in_single_precision() {
    [ODD, DEMO, LARGE].into_iter().for_each(|sizes| every_operation(&Cpu::<f32>::new(), sizes));
}

#[test]
fn every_operation_in_double_precision() {
    every_operation(&Cpu::<f64>::new(), ODD);
}

#[test]
fn forward_and_backward() {
    let config = ModelConfig {
        depth: 3,
        heads: 2,
        head_dim: 64,
        in_channels: 16,
        patch: 2,
        context_dim: 64,
        pooled_dim: 64,
        pos_embed_max: 12,
        qk_norm: true,
        dual_attention_blocks: 1,
        conditioning_channels: 0,
    };
    for shape in [Shape { batch: 33, height: 8, width: 8, text: 4 }, Shape { batch: 2, height: 18, width: 14, text: 77 }] {
        same_in_pools(|| {
            let b = Cpu::<f32>::new();
            let rig = Rig::new(&b, &config, 7);
            let (inputs, upstream) = (HostInputs::random(&config, shape, 8), Upstream::random(&config, shape, 9));
            let got = rig.run(&inputs, &upstream, rig.whole(&inputs));
            vec![
                ("velocity".into(), got.velocity.unwrap()),
                ("features".into(), got.taps.concat()),
                ("latent gradient".into(), got.d_latent),
                ("gradients".into(), got.grads),
            ]
        });
    }
}

#[test]
fn distillation() {
    for update in [Update::Simultaneous, Update::Alternating] {
        same_in_pools(|| {
            let b = Cpu::<f32>::new();
            let mut run = distiller(&b, settings(update, AdversarialLoss::Hinge));
            (0..3).for_each(|step| drop(Data::new(step).step(&b, &mut run, 2)));
            let arena = |buffer: &_| b.download_stat(Storage::all(buffer)).unwrap();
            vec![("student".into(), arena(&run.student.master)), ("heads".into(), arena(&run.heads.master))]
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Any cut of the sequence into parts gives the same normals.
    #[test]
    fn noise_does_not_depend_on_how_it_is_cut(seed in any::<u64>(), step in any::<u32>(), stream in any::<u32>(),
                                              first in 0_u64..(1 << 40), parts in prop::collection::vec(0_usize..150, 1..8)) {
        let len: usize = parts.iter().sum();
        let mut whole = vec![0.0; len];
        fill_normals(seed, step, stream, first, &mut whole);
        let mut at = 0;
        for part in parts {
            let mut values = vec![0.0; part];
            fill_normals(seed, step, stream, first + at as u64, &mut values);
            same_bits("part", &values, &whole[at..at + part]);
            at += part;
        }
        for (i, value) in whole.iter().enumerate().step_by(37) {
            prop_assert_eq!(value.to_bits(), normal_at(seed, step, stream, first + i as u64).to_bits());
        }
    }
}
