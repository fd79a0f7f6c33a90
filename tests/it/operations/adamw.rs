//! Global norm and AdamW.

use ladd_fast::device::cpu::Cpu;
use ladd_fast::device::packed::Packing;
use ladd_fast::device::{ADAMW_COUNTERS, AdamwShape, AdamwState, Backend, Moment, StepValues, Storage};
use ladd_fast::flow::philox::fill_normals;

use super::on_every_backend;
use crate::golden::{Golden, Tolerance, cases, close};
use crate::lab::{Lab, same_bits};

on_every_backend!(adamw, global_norm, norm_of_any_length, without_average, without_first_moment, arenas_of_any_length, packed_moments);

/// Optimizer state in buffers without spare elements: the whole arena is updated.
struct Arenas<B: Backend> {
    params: B::Data,
    master: B::Stat,
    moments: [Moment<B>; 2],
    ema: B::Stat,
    counters: B::Stat,
}

fn stat<B: Backend>(b: &B, values: &[f32]) -> B::Stat {
    let mut buffer = b.alloc_stat(values.len()).unwrap();
    b.upload_stat(values, buffer.all_mut());
    buffer
}

impl<B: Backend> Arenas<B> {
    fn new(b: &B, start: &[f32], packed: bool) -> Self {
        let mut params = b.alloc_data(start.len()).unwrap();
        b.upload_data(&vec![f32::NAN; start.len()], params.all_mut());
        Self {
            params,
            master: stat(b, start),
            moments: [Packing::SIGNED, Packing::UNSIGNED].map(|kind| Moment::new(b, start.len(), packed.then_some(kind)).unwrap()),
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
        let stat = |buffer: &B::Stat| b.download_stat(buffer.all()).unwrap();
        let moment = |moment: &Moment<B>| match moment {
            Moment::Full(values) => stat(values),
            Moment::Packed { codes, scales } => {
                let codes = b.download_bytes(codes.all()).unwrap().into_iter().map(f32::from);
                codes.chain(stat(scales)).collect()
            }
        };
        [stat(&self.master), moment(m), moment(v), stat(&self.ema), stat(&self.counters)]
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
        let mut arenas = Arenas::new(b, &case.input("param"), false);
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
        let mut arenas = Arenas::new(b, &case.input("param"), false);
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
        let mut arenas = Arenas::new(b, &case.input("param"), false);
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

/// An arena and how it is updated.
#[derive(Clone, Copy, Debug)]
struct Updates {
    len: usize,
    clip: f64,
    averaged: bool,
    beta1: f64,
    packed: bool,
    steps: u32,
}

/// Updates of an arena, the second not finite; a first moment is kept where there is one.
fn updated<B: Backend>(b: &B, updates: Updates) -> (Vec<f32>, [Vec<f32>; 5]) {
    let Updates { len, clip, averaged, beta1, packed, steps } = updates;
    let draw = |stream: u32| {
        let mut values = vec![0.0; len];
        fill_normals(4, 0, stream, 0, &mut values);
        values
    };
    let mut arenas = Arenas::new(b, &draw(1), packed);
    let step = step(b, 3e-4);
    let ema_decay = if averaged { 0.99 } else { 0.0 };
    let shape = AdamwShape { lr_index: 1, beta1, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, clip, ema_decay };
    for i in 0..steps {
        let mut gradient = draw(2 + i);
        // A block of packed moments that is too small for a scale.
        gradient.iter_mut().skip(256).take(256).for_each(|g| *g = 1e-38);
        if i == 1 {
            gradient[len - 1] = f32::INFINITY;
        }
        let gradient = stat(b, &gradient);
        let mut norm = stat(b, &[f32::NAN]);
        b.global_norm(&gradient, &mut norm);
        let state = arenas.state(averaged);
        let moment1 = state.moment1.filter(|_| beta1 > 0.0);
        b.adamw(&step, &shape, &gradient, &norm, AdamwState { moment1, ..state });
    }
    (b.download_data(arenas.params.all()).unwrap(), arenas.read(b))
}

/// Packed moments round by the same random bits everywhere; the arena may end in any lane of a block.
fn packed_moments<B: Backend>(b: &B, tolerance: Tolerance) {
    for (len, beta1) in [(1, 0.9), (7, 0.0), (255, 0.9), (256, 0.9), (300, 0.0), (1003, 0.9), (70_005, 0.9)] {
        let updates = Updates { len, clip: 1.0, averaged: true, beta1, packed: true, steps: 3 };
        if tolerance == Tolerance::F64 {
            // In f64 some codes round the other way: one update, its weights and the scales of its moments.
            let updates = Updates { steps: 1, ..updates };
            let [(_, state), (_, expected)] = [updated(b, updates), updated(&Cpu::<f32>::new(), updates)];
            close("weights", &state[0], &expected[0], Tolerance::F32.relative());
            close("scales", &state[2][2 * len..], &expected[2][2 * len..], Tolerance::F32.relative());
            continue;
        }
        let (weights, state) = updated(b, updates);
        let (_, expected) = updated(&Cpu::<f32>::new(), updates);
        for (what, got, expected) in (0..5).map(|i| (["weights", "m", "v", "average", "counters"][i], &state[i], &expected[i])) {
            same_bits(&format!("{what}, {updates:?}"), got, expected);
        }
        same_bits("weights in the compute type", &weights, &tolerance.held(&state[0]));
    }
}

/// Two hundred steps along noisy gradients of very different sizes: packed moments lead to where full ones do. Rounded to
/// nearest, a second moment that decays by a hundredth would stay where it is.
#[test]
fn packed_moments_lead_to_the_same_place() {
    let b = Cpu::<f32>::new();
    let len = 3000;
    for beta1 in [0.0, 0.9] {
        let walk = |packed: bool| {
            let mut arenas = Arenas::new(&b, &vec![0.0; len], packed);
            let shape = AdamwShape { lr_index: 1, beta1, beta2: 0.99, eps: 1e-8, weight_decay: 0.0, clip: 1e9, ema_decay: 0.0 };
            for i in 0..200 {
                let mut gradient = vec![0.0; len];
                fill_normals(8, i, 1, 0, &mut gradient);
                // A drift and noise, which both get smaller with time and from one weight to the next.
                let size = |j: usize| (-0.01 * f64::from(i) - 8.0 * j as f64 / len as f64).exp() as f32;
                gradient.iter_mut().enumerate().for_each(|(j, g)| *g = (*g + if j % 3 == 0 { 0.5 } else { -0.3 }) * size(j));
                let step = StepValues { seed: 7, step: i, first_sample: 0, lr: [f32::NAN, 1e-3] };
                let state = arenas.state(false);
                let moment1 = state.moment1.filter(|_| beta1 > 0.0);
                b.adamw(&step, &shape, &stat(&b, &gradient), &stat(&b, &[1.0]), AdamwState { moment1, ..state });
            }
            b.download_stat(arenas.master.all()).unwrap()
        };
        let (packed, full) = (walk(true), walk(false));
        close(&format!("weights with beta1 {beta1}"), &packed, &full, 0.03);
    }
}

/// Lengths that are no multiple of a 16-byte access or a block, against the CPU: it computes each value in f32 by a fixed
/// sequence of operations, each rounded by itself, and CUDA follows it to the bit.
fn arenas_of_any_length<B: Backend>(b: &B, tolerance: Tolerance) {
    for (n, clip, averaged) in
        [(1, 1e9, true), (7, 1.0, true), (8, 1.0, false), (1003, 1e9, false), (70_005, 1.0, true), (32_768, 1e9, true)]
    {
        let updates = Updates { len: n, clip, averaged, beta1: 0.9, packed: false, steps: 3 };
        let (weights, state) = updated(b, updates);
        let (_, expected) = updated(&Cpu::<f32>::new(), updates);
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
