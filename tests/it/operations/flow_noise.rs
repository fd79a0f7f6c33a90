//! Noising, prediction of `x0`, renoising, and a sampler's Euler step.

use ladd_fast::device::cpu::Cpu;
use ladd_fast::device::{Backend, StepValues, Storage};
use ladd_fast::flow::philox::fill_normals;

use super::on_every_backend;
use crate::golden::{Golden, Tolerance, cases, close};
use crate::lab::{Lab, behind, from, same_bits};

on_every_backend!(flow_noise, perturbed, predict_x0_renoise, euler_cfg, every_shape_as_on_the_cpu, nothing_behind_the_end);

fn step<B: Backend>(b: &B, case: &Golden, skipped: usize) -> B::Step {
    let mut step = b.alloc_step().unwrap();
    let first_sample = (case.size("first_sample") + skipped) as u32;
    b.upload_step(&StepValues { seed: case.seed, step: case.size("step") as u32, first_sample, lr: [0.0; 2] }, &mut step);
    step
}

fn flow_noise<B: Backend>(b: &B, tolerance: Tolerance) {
    // Latents, velocities and times are fp32 everywhere.
    let (lab, tolerance) = (Lab::new(b), tolerance.of_stat());
    for case in cases("flow_noise") {
        let (x0, t, stream) = (case.input("x0"), case.input("t"), case.size("stream") as u32);
        let (n, batch) = (x0.len(), t.len());
        let (x0, t, first) = (lab.stat(&x0), lab.stat(&t), step(b, &case, 0));
        let (mut noise, mut x_t, mut velocity) = (lab.blank_stat(n), lab.blank_stat(n), lab.blank_stat(n));
        b.normal(&first, stream, n / batch, noise.part_mut(0..n));
        let target = Some(velocity.part_mut(0..n));
        b.flow_noise(&first, stream, None, x0.part(0..n), t.part(0..batch), x_t.part_mut(0..n), target);
        case.equal("out.noise", &lab.read_stat(&noise, n));
        let x_t = lab.read_stat(&x_t, n);
        case.compare("out.x_t", &x_t, tolerance);
        case.compare("out.velocity", &lab.read_stat(&velocity, n), tolerance);

        // The last sample alone, as a micro-batch of its own.
        let (at, mut alone) = (n - n / batch, lab.blank_stat(n / batch));
        let part = alone.part_mut(0..n / batch);
        b.flow_noise(&step(b, &case, batch - 1), stream, None, x0.part(at..n), t.part(batch - 1..batch), part, None);
        same_bits("micro-batch", &lab.read_stat(&alone, n / batch), &x_t[at..]);
    }
}

/// With a perturbation, `x0 + sigma n` takes the place of `x0`; its noise is of another stream, and a sample is longer
/// than one task.
fn perturbed<B: Backend>(b: &B, tolerance: Tolerance) {
    // Latents, velocities and times are fp32 everywhere.
    let (lab, tolerance) = (Lab::new(b), tolerance.of_stat());
    let (batch, numel, sigma) = (2, 8192 + 300, 0.125);
    let n = batch * numel;
    let draw = |stream: u32, first: u64| {
        let mut values = vec![0.0; n];
        fill_normals(9, 4, stream, first, &mut values);
        values
    };
    let (x0, t) = (draw(77, 0), [0.25_f32, 0.875]);
    let first = 5 * numel as u64;
    let (noise, perturbation) = (draw(5, first), draw(6, first));
    let clean = |i: usize| f64::from(x0[i]) + f64::from(sigma * perturbation[i]);
    let expected = |f: &dyn Fn(usize, f64) -> f64| -> Vec<f32> { (0..n).map(|i| f(i, f64::from(t[i / numel])) as f32).collect() };
    let mut values = b.alloc_step().unwrap();
    b.upload_step(&StepValues { seed: 9, step: 4, first_sample: 5, lr: [0.0; 2] }, &mut values);
    let (mut x_t, mut velocity) = (lab.blank_stat(n), lab.blank_stat(n));
    let (x0_, t_) = (lab.stat(&x0), lab.stat(&t));
    let target = Some(velocity.part_mut(0..n));
    b.flow_noise(&values, 5, Some((6, sigma)), x0_.part(0..n), t_.part(0..batch), x_t.part_mut(0..n), target);
    let mixed = expected(&|i, t| (1.0 - t) * clean(i) + t * f64::from(noise[i]));
    close("x_t", &lab.read_stat(&x_t, n), &mixed, tolerance.relative());
    close("velocity", &lab.read_stat(&velocity, n), &expected(&|i, _| f64::from(noise[i]) - clean(i)), tolerance.relative());
}

fn predict_x0_renoise<B: Backend>(b: &B, tolerance: Tolerance) {
    // Latents, velocities and times are fp32 everywhere.
    let (lab, tolerance) = (Lab::new(b), tolerance.of_stat());
    for case in cases("predict_x0_renoise") {
        let inputs = ["x_t", "velocity", "x0", "d_renoised"].map(|name| case.input(name));
        let [x_t, velocity, x0, d_renoised] = inputs.each_ref().map(|values| lab.stat(values));
        let (n, batch) = (inputs[0].len(), case.input("t").len());
        let (t, t_hat) = (lab.stat(&case.input("t")), lab.stat(&case.input("t_hat")));
        let (t, t_hat) = (t.part(0..batch), t_hat.part(0..batch));
        let (mut x0_hat, mut renoised) = (lab.blank_stat(n), lab.blank_stat(n));
        let (first, stream) = (step(b, &case, 0), case.size("stream") as u32);
        let (out, noisy) = (x0_hat.part_mut(0..n), renoised.part_mut(0..n));
        b.predict_x0_renoise(&first, stream, x_t.part(0..n), velocity.part(0..n), t, t_hat, out, noisy);
        case.compare("out.x0_hat", &lab.read_stat(&x0_hat, n), tolerance);
        case.compare("out.renoised", &lab.read_stat(&renoised, n), tolerance);

        let weight = case.number("distill_weight") as f32;
        let (mut loss, mut d_x0_hat, mut d_velocity) = (lab.stat(&[0.0]), lab.blank_stat(n), lab.blank_stat(n));
        b.mse(x0_hat.part(0..n), x0.part(0..n), 1.0, weight, Some(d_x0_hat.part_mut(0..n)), loss.part_mut(0..1));
        case.compare("out.distillation_loss", &lab.read_stat(&loss, 1), tolerance);
        let distillation = (weight > 0.0).then(|| d_x0_hat.part(0..n));
        b.predict_x0_renoise_backward(t, t_hat, Some(d_renoised.part(0..n)), distillation, d_velocity.part_mut(0..n));
        let whole = lab.read_stat(&d_velocity, n);
        case.compare("grad.velocity", &whole, tolerance);

        // Both upstreams one at a time add up to the whole; with none it is zero.
        let mut sum = vec![0.0; n];
        for (renoised, predicted) in [(true, false), (false, weight > 0.0)] {
            let mut d_velocity = lab.blank_stat(n);
            let renoised = renoised.then(|| d_renoised.part(0..n));
            let predicted = predicted.then(|| d_x0_hat.part(0..n));
            b.predict_x0_renoise_backward(t, t_hat, renoised, predicted, d_velocity.part_mut(0..n));
            sum.iter_mut().zip(lab.read_stat(&d_velocity, n)).for_each(|(s, d)| *s += d);
        }
        close("one upstream at a time", &sum, &whole, tolerance.relative());
    }
}

fn euler_cfg<B: Backend>(b: &B, tolerance: Tolerance) {
    // Latents, velocities and times are fp32 everywhere.
    let (lab, tolerance) = (Lab::new(b), tolerance.of_stat());
    for case in cases("euler_cfg") {
        let [x, velocity, negative] = ["x", "velocity", "velocity_negative"].map(|name| case.input(name));
        let (n, guidance) = (x.len(), case.number("scale") as f32);
        let dt = (case.number("s") - case.number("t")) as f32;
        let (v, u) = (lab.stat(&velocity), lab.stat(&negative));
        let mut moved = lab.stat(&x);
        b.euler_cfg(moved.part_mut(0..n), v.part(0..n), Some(u.part(0..n)), guidance, dt);
        case.compare("out.x", &lab.read_stat(&moved, n), tolerance);
        // A step of one from zero shows the guided velocity itself; without guidance, the velocity.
        let mut guided = lab.stat(&vec![0.0; n]);
        b.euler_cfg(guided.part_mut(0..n), v.part(0..n), Some(u.part(0..n)), guidance, 1.0);
        case.compare("out.velocity", &lab.read_stat(&guided, n), tolerance);
        let mut plain = lab.stat(&vec![0.0; n]);
        b.euler_cfg(plain.part_mut(0..n), v.part(0..n), None, guidance, 1.0);
        same_bits("unguided", &lab.read_stat(&plain, n), &velocity);
    }
}

/// Runs every operation of the flow on samples that begin `offset` values into their buffers; returns all results.
fn all_operations<B: Backend>(lab: &Lab<'_, B>, batch: usize, numel: usize, offset: usize) -> Vec<(&'static str, Vec<f32>)> {
    let b = lab.b;
    let n = batch * numel;
    let input = |stream: u32| {
        let mut values = vec![0.0; n];
        fill_normals(21, 0, stream, 0, &mut values);
        lab.stat(&behind(offset, &values))
    };
    let [x0, velocity, d_renoised, d_x0_hat] = [1, 2, 3, 4].map(input);
    let whole = offset..offset + n;
    let blank = || lab.stat(&behind(offset, &vec![f32::NAN; n]));
    let times = |phase: f32| -> Vec<f32> { (0..batch).map(|i| (i as f32 * 0.37 + phase).fract()).collect() };
    let (t, t_hat) = (lab.stat(&times(0.61)), lab.stat(&times(0.13)));
    let (t, t_hat) = (t.part(0..batch), t_hat.part(0..batch));
    let mut step = b.alloc_step().unwrap();
    b.upload_step(&StepValues { seed: 77, step: 8, first_sample: 3, lr: [0.0; 2] }, &mut step);
    let mut results = Vec::new();
    let mut keep = |what, buffer: &B::Stat| results.push((what, from(offset, &lab.read_stat(buffer, offset + n))));

    for (what, perturb) in [("x_t", None), ("perturbed x_t", Some((6, 0.03)))] {
        let (mut x_t, mut target, mut alone) = (blank(), blank(), blank());
        let views = (x0.part(whole.clone()), x_t.part_mut(whole.clone()), target.part_mut(whole.clone()));
        b.flow_noise(&step, 5, perturb, views.0, t, views.1, Some(views.2));
        b.flow_noise(&step, 5, perturb, x0.part(whole.clone()), t, alone.part_mut(whole.clone()), None);
        keep(what, &x_t);
        keep(what, &alone);
        keep("velocity", &target);
    }
    let (mut x0_hat, mut renoised) = (blank(), blank());
    let views = (x0.part(whole.clone()), velocity.part(whole.clone()));
    let out = (x0_hat.part_mut(whole.clone()), renoised.part_mut(whole.clone()));
    b.predict_x0_renoise(&step, 4, views.0, views.1, t, t_hat, out.0, out.1);
    keep("x0_hat", &x0_hat);
    keep("renoised", &renoised);
    let upstream = [Some(d_renoised.part(whole.clone())), Some(d_x0_hat.part(whole.clone()))];
    for [first, second] in [upstream, [upstream[0], None], [None, upstream[1]], [None, None]] {
        let mut d_velocity = blank();
        b.predict_x0_renoise_backward(t, t_hat, first, second, d_velocity.part_mut(whole.clone()));
        keep("d_velocity", &d_velocity);
    }
    for unconditional in [Some(d_renoised.part(whole.clone())), None] {
        let mut x = input(9);
        b.euler_cfg(x.part_mut(whole.clone()), velocity.part(whole.clone()), unconditional, 4.5, -0.125);
        keep("euler", &x);
    }
    results
}

/// The CPU computes each value in f32 by a fixed sequence of operations, each rounded by itself. CUDA follows it to the
/// bit, with and without 16-byte accesses, whatever part of a Philox block a sample begins with.
fn every_shape_as_on_the_cpu<B: Backend>(b: &B, tolerance: Tolerance) {
    let shapes = [(1, 1, 0), (1, 4096, 0), (3, 1028, 0), (3, 1028, 1), (3, 1028, 4), (2, 8495, 0), (3, 7, 2), (70, 64, 0), (2, 40_000, 0)];
    for (batch, numel, offset) in shapes {
        let expected = all_operations(&Lab::new(&Cpu::<f32>::new()), batch, numel, offset);
        for ((what, got), (_, expected)) in all_operations(&Lab::new(b), batch, numel, offset).iter().zip(&expected) {
            let what = format!("{what} of {batch} x {numel} at {offset}");
            match tolerance {
                // Against f64, f32 is what is inexact.
                Tolerance::F64 => {
                    close(&what, got, expected, Tolerance::F32.relative());
                }
                Tolerance::F32 | Tolerance::Bf16 | Tolerance::Bf16Chain => same_bits(&what, got, expected),
            }
        }
    }
}

/// Buffers that end with their last value give what roomier ones give.
fn nothing_behind_the_end<B: Backend>(b: &B, _: Tolerance) {
    for (batch, numel, offset) in [(3, 1028, 0), (3, 7, 2)] {
        let roomy = all_operations(&Lab::new(b), batch, numel, offset);
        for ((what, got), (_, expected)) in all_operations(&Lab::tight(b), batch, numel, offset).iter().zip(&roomy) {
            same_bits(what, got, expected);
        }
    }
}
