//! Global norm and AdamW.

use ladd_fast::device::cpu::Cpu;
use ladd_fast::device::{ADAMW_COUNTERS, AdamwShape, AdamwState, Backend, StepValues, Storage};
use ladd_fast::flow::philox::fill_normals;

use super::on_every_backend;
use crate::golden::{Golden, Tolerance, cases, close};
use crate::lab::{Lab, same_bits};

on_every_backend!(adamw, global_norm, norm_of_any_length, without_average, without_first_moment, arenas_of_any_length);

/// Optimizer state in buffers without spare elements: the whole arena is updated.
struct Arenas<B: Backend> {
    params: B::Data,
    master: B::Stat,
    moments: [B::Stat; 2],
    ema: B::Stat,
    counters: B::Stat,
}

fn stat<B: Backend>(b: &B, values: &[f32]) -> B::Stat {
    let mut buffer = b.alloc_stat(values.len()).unwrap();
    b.upload_stat(values, buffer.all_mut());
    buffer
}

impl<B: Backend> Arenas<B> {
    fn new(b: &B, start: &[f32]) -> Self {
        let zeros = vec![0.0; start.len()];
        let mut params = b.alloc_data(start.len()).unwrap();
        b.upload_data(&vec![f32::NAN; start.len()], params.all_mut());
        Self {
            params,
            master: stat(b, start),
            moments: [stat(b, &zeros), stat(b, &zeros)],
            ema: stat(b, start),
            counters: stat(b, &[0.0; ADAMW_COUNTERS]),
        }
    }

    fn state(&mut self, averaged: bool) -> AdamwState<'_, B> {
        let [moment1, moment2] = &mut self.moments;
        let ema = averaged.then_some(&mut self.ema);
        let moment1 = Some(moment1);
        AdamwState { params: &mut self.params, master: &mut self.master, moment1, moment2, ema, counters: &mut self.counters }
    }

    /// Parameters, both moments, the average, the counters.
    fn read(&self, b: &B) -> [Vec<f32>; 5] {
        let [m, v] = &self.moments;
        [&self.master, m, v, &self.ema, &self.counters].map(|buffer| b.download_stat(buffer.all()).unwrap())
    }
}

fn shape(case: &Golden) -> AdamwShape {
    AdamwShape {
        lr_index: 1,
        beta1: case.number("beta1"),
        beta2: case.number("beta2"),
        eps: case.number("eps"),
        weight_decay: case.number("weight_decay"),
        clip: case.number("max_norm"),
        ema_decay: case.number("ema_decay"),
    }
}

fn step<B: Backend>(b: &B, lr: f64) -> B::Step {
    let mut step = b.alloc_step().unwrap();
    b.upload_step(&StepValues { seed: 0, step: 3, first_sample: 0, lr: [f32::NAN, lr as f32] }, &mut step);
    step
}

fn adamw<B: Backend>(b: &B, tolerance: Tolerance) {
    for case in cases("adamw") {
        let mut arenas = Arenas::new(b, &case.input("param"));
        let (shape, step) = (shape(&case), step(b, case.number("lr")));
        // All but the rounded weights is fp32 everywhere.
        let (of_data, tolerance) = (tolerance, tolerance.of_stat());
        for i in 0..case.size("steps") {
            let gradient = stat(b, &case.input(&format!("gradient{i}")));
            let mut norm = stat(b, &[f32::NAN]);
            b.global_norm(&gradient, &mut norm);
            b.adamw(&step, &shape, &gradient, &norm, arenas.state(true));
            case.compare(&format!("out.norm{i}"), &b.download_stat(norm.all()).unwrap(), tolerance);
            let [param, m, v, ema, counters] = arenas.read(b);
            case.compare(&format!("out.param{i}"), &param, tolerance);
            case.compare(&format!("out.m{i}"), &m, tolerance);
            case.compare(&format!("out.v{i}"), &v, tolerance);
            case.compare(&format!("out.ema{i}"), &ema, tolerance);
            same_bits("weights in the compute type", &b.download_data(arenas.params.all()).unwrap(), &of_data.held(&param));
            assert_eq!(counters, [i as f32 + 1.0, 0.0]);
        }
        not_finite(b, &case, &shape, &step, &mut arenas);
    }
}

/// A gradient that is not finite is counted and changes nothing else; the next one continues as if it had not been.
fn not_finite<B: Backend>(b: &B, case: &Golden, shape: &AdamwShape, step: &B::Step, arenas: &mut Arenas<B>) {
    let before = arenas.read(b);
    let weights = b.download_data(arenas.params.all()).unwrap();
    for (skipped, bad) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().enumerate() {
        let mut gradient = case.input("gradient0");
        gradient[17] = bad;
        let gradient = stat(b, &gradient);
        let mut norm = stat(b, &[0.0]);
        b.global_norm(&gradient, &mut norm);
        b.adamw(step, shape, &gradient, &norm, arenas.state(true));
        let after = arenas.read(b);
        before[..4].iter().zip(&after[..4]).for_each(|(before, after)| same_bits("skipped update", after, before));
        same_bits("skipped update", &b.download_data(arenas.params.all()).unwrap(), &weights);
        assert_eq!(after[4], [before[4][0], skipped as f32 + 1.0], "counters after {bad}");
    }
}

/// Without a moving average the weights are the same.
fn without_average<B: Backend>(b: &B, _: Tolerance) {
    let case = Golden::open("adamw_clipped");
    case.results("out.").iter().for_each(|name| case.skip(&format!("out.{name}")));
    let gradient = stat(b, &case.input("gradient0"));
    let norm = stat(b, &case.result("out.norm0"));
    let (shape, step) = (shape(&case), step(b, case.number("lr")));
    let [with, without] = [true, false].map(|averaged| {
        let mut arenas = Arenas::new(b, &case.input("param"));
        b.adamw(&step, &shape, &gradient, &norm, arenas.state(averaged));
        arenas.read(b)
    });
    same_bits("weights", &without[0], &with[0]);
    same_bits("the average that was not given", &without[3], &case.input("param"));
    assert_ne!(with[3], without[3]);
}

/// With `beta1` 0 the first moment is the gradient, and nothing changes where it is not kept.
fn without_first_moment<B: Backend>(b: &B, _: Tolerance) {
    let case = Golden::open("adamw_clipped");
    case.results("out.").iter().for_each(|name| case.skip(&format!("out.{name}")));
    let step = step(b, case.number("lr"));
    let shape = AdamwShape { beta1: 0.0, ..shape(&case) };
    let gradients = ["gradient0", "gradient1"].map(|name| stat(b, &case.input(name)));
    let norm = stat(b, &case.result("out.norm0"));
    let [with, without] = [true, false].map(|kept| {
        let mut arenas = Arenas::new(b, &case.input("param"));
        for gradient in &gradients {
            let state = arenas.state(true);
            b.adamw(&step, &shape, gradient, &norm, AdamwState { moment1: state.moment1.filter(|_| kept), ..state });
        }
        (b.download_data(arenas.params.all()).unwrap(), arenas.read(b))
    });
    same_bits("weights in the compute type", &without.0, &with.0);
    for i in [0, 2, 3, 4] {
        same_bits("state", &without.1[i], &with.1[i]);
    }
    assert!(without.1[1].iter().all(|m| *m == 0.0) && with.1[1].iter().any(|m| *m != 0.0));
}

fn global_norm<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    for case in cases("global_norm") {
        let gradient = stat(b, &case.input("x"));
        let mut norm = lab.blank_stat(1);
        b.global_norm(&gradient, &mut norm);
        case.compare("out.norm", &lab.read_stat(&norm, 1), tolerance.of_stat());
    }
}

/// One value, a last block that is not full, more values than all blocks hold at once; squares beyond the range of fp32.
fn norm_of_any_length<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    for (n, scale) in [(1, 1.0), (1023, 1e-3), (4097, 1e25), (4097, 1e-25), (1_500_003, 1.0)] {
        let mut gradient = vec![0.0; n];
        fill_normals(2, 0, 1, 0, &mut gradient);
        gradient.iter_mut().for_each(|g| *g *= scale);
        let expected = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt() as f32;
        let mut norm = lab.blank_stat(1);
        b.global_norm(&stat(b, &gradient), &mut norm);
        close(&format!("norm of {n}"), &lab.read_stat(&norm, 1), &[expected], tolerance.of_stat().relative());
    }
}

/// Three updates of an arena, the second not finite, with and without clipping and average.
fn three_updates<B: Backend>(b: &B, n: usize, clip: f64, averaged: bool) -> (Vec<f32>, [Vec<f32>; 5]) {
    let draw = |stream: u32| {
        let mut values = vec![0.0; n];
        fill_normals(4, 0, stream, 0, &mut values);
        values
    };
    let mut arenas = Arenas::new(b, &draw(1));
    let step = step(b, 3e-4);
    let shape = AdamwShape {
        lr_index: 1,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        clip,
        ema_decay: if averaged { 0.99 } else { 0.0 },
    };
    for i in 0..3 {
        let mut gradient = draw(2 + i);
        if i == 1 {
            gradient[n - 1] = f32::INFINITY;
        }
        let gradient = stat(b, &gradient);
        let mut norm = stat(b, &[f32::NAN]);
        b.global_norm(&gradient, &mut norm);
        b.adamw(&step, &shape, &gradient, &norm, arenas.state(averaged));
    }
    (b.download_data(arenas.params.all()).unwrap(), arenas.read(b))
}

/// Lengths that are no multiple of a 16-byte access or a block, against the CPU: it computes each value in f32 by a fixed
/// sequence of operations, each rounded by itself, and CUDA follows it to the bit.
fn arenas_of_any_length<B: Backend>(b: &B, tolerance: Tolerance) {
    for (n, clip, averaged) in
        [(1, 1e9, true), (7, 1.0, true), (8, 1.0, false), (1003, 1e9, false), (70_005, 1.0, true), (32_768, 1e9, true)]
    {
        let (weights, state) = three_updates(b, n, clip, averaged);
        let (_, expected) = three_updates(&Cpu::<f32>::new(), n, clip, averaged);
        assert_eq!(state[4], [2.0, 1.0], "counters");
        for (what, got, expected) in (0..4).map(|i| (["weights", "m", "v", "average"][i], &state[i], &expected[i])) {
            match tolerance {
                // Against f64, f32 is what is inexact.
                Tolerance::F64 => {
                    close(what, got, expected, Tolerance::F32.relative());
                }
                Tolerance::F32 | Tolerance::Bf16 | Tolerance::Bf16Chain => same_bits(&format!("{what} of {n}"), got, expected),
            }
        }
        same_bits("weights in the compute type", &weights, &tolerance.held(&state[0]));
    }
}
