//! Global norm and AdamW.

use ladd_fast::device::{ADAMW_COUNTERS, AdamwShape, AdamwState, Backend, StepValues, Storage};

use super::on_every_backend;
use crate::golden::{Golden, Tolerance, cases, close};
use crate::lab::{Lab, same_bits};

on_every_backend!(adamw, global_norm, without_average);

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
            close("weights in the compute type", &b.download_data(arenas.params.all()).unwrap(), &param, tolerance.relative());
            assert_eq!(counters, [i as f32 + 1.0, 0.0]);
        }
        not_finite(b, &case, &shape, &step, &mut arenas);
    }
}

/// A gradient that is not finite is counted and changes nothing else; the next one continues as if it had not been.
fn not_finite<B: Backend>(b: &B, case: &Golden, shape: &AdamwShape, step: &B::Step, arenas: &mut Arenas<B>) {
    let before = arenas.read(b);
    for (skipped, bad) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().enumerate() {
        let mut gradient = case.input("gradient0");
        gradient[17] = bad;
        let gradient = stat(b, &gradient);
        let mut norm = stat(b, &[0.0]);
        b.global_norm(&gradient, &mut norm);
        b.adamw(step, shape, &gradient, &norm, arenas.state(true));
        let after = arenas.read(b);
        before[..4].iter().zip(&after[..4]).for_each(|(before, after)| same_bits("skipped update", after, before));
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

fn global_norm<B: Backend>(b: &B, tolerance: Tolerance) {
    let lab = Lab::new(b);
    for case in cases("global_norm") {
        let gradient = stat(b, &case.input("x"));
        let mut norm = lab.blank_stat(1);
        b.global_norm(&gradient, &mut norm);
        case.compare("out.norm", &lab.read_stat(&norm, 1), tolerance);
    }
}
