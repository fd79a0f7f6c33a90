//! Noising, prediction of `x0`, renoising, and a sampler's Euler step.

use ladd_fast::device::cpu::Cpu;
use ladd_fast::device::{Backend, PatchOrder, PatchShape, StepValues, Storage};
use ladd_fast::flow::philox::fill_normals;

use super::on_every_backend;
use super::patchify::shape;
use crate::golden::{Golden, Tolerance, cases, close};
use crate::lab::{Lab, behind, from, representable, same_bits};

on_every_backend!(
    flow_noise,
    perturbed,
    predict_x0_renoise,
    one_pass_for_three_operations,
    euler_cfg,
    every_shape_as_on_the_cpu,
    nothing_behind_the_end
);

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
    let lab = Lab::new(b);
    for case in cases("predict_x0_renoise") {
        let shape = shape(&case, PatchOrder::ChannelFirst);
        let [x_t, x0] = ["x_t", "x0"].map(|name| lab.stat(&case.input(name)));
        let [velocity, d_renoised] = ["velocity", "d_renoised"].map(|name| lab.data(&case.input(name)));
        let (batch, n) = (shape.batch, case.input("x_t").len());
        let (t, t_hat) = (lab.stat(&case.input("t")), lab.stat(&case.input("t_hat")));
        let (t, t_hat) = (t.part(0..batch), t_hat.part(0..batch));
        let (mut x0_hat, mut renoised) = (lab.blank_stat(n), lab.blank_data(n));
        let (first, stream) = (step(b, &case, 0), case.size("stream") as u32);
        let (out, noisy) = (x0_hat.part_mut(0..n), renoised.part_mut(0..n));
        b.predict_x0_renoise(&first, stream, &shape, x_t.part(0..n), velocity.part(0..n), t, t_hat, out, noisy);
        case.compare("out.x0_hat", &lab.read_stat(&x0_hat, n), tolerance);
        case.compare("out.renoised", &lab.read(&renoised, n), tolerance);

        let weight = case.number("distill_weight") as f32;
        let (mut loss, mut d_x0_hat, mut d_velocity) = (lab.stat(&[0.0]), lab.blank_stat(n), lab.blank_data(n));
        b.mse(x0_hat.part(0..n), x0.part(0..n), 1.0, weight, Some(d_x0_hat.part_mut(0..n)), loss.part_mut(0..1));
        case.compare("out.distillation_loss", &lab.read_stat(&loss, 1), tolerance);
        let distillation = (weight > 0.0).then(|| d_x0_hat.part(0..n));
        b.predict_x0_renoise_backward(&shape, t, t_hat, Some(d_renoised.part(0..n)), distillation, d_velocity.part_mut(0..n));
        case.compare("grad.velocity", &lab.read(&d_velocity, n), tolerance);
    }
}

/// What a pass between two networks reads.
struct Between {
    shape: PatchShape,
    x_t: Vec<f32>,
    velocity: Vec<f32>,
    d_renoised: Vec<f32>,
    d_x0_hat: Vec<f32>,
    t: Vec<f32>,
    t_hat: Vec<f32>,
}

impl Between {
    fn random(shape: PatchShape) -> Self {
        let n = shape.batch * shape.channels * shape.height * shape.width;
        let [x_t, velocity, d_renoised, d_x0_hat] = [1, 2, 3, 4].map(|stream| {
            let mut values = vec![0.0; n];
            fill_normals(22, 0, stream, 0, &mut values);
            representable(values)
        });
        let times = |phase: f32| -> Vec<f32> { (0..shape.batch).map(|i| (i as f32 * 0.37 + phase).fract()).collect() };
        Self { shape, x_t, velocity, d_renoised, d_x0_hat, t: times(0.61), t_hat: times(0.13) }
    }

    fn of(&self, order: PatchOrder) -> PatchShape {
        PatchShape { order, ..self.shape }
    }

    /// Upstreams of the backward: both, either, none.
    const UPSTREAMS: [[bool; 2]; 4] = [[true, true], [true, false], [false, true], [false, false]];

    /// Prediction, renoised tokens and the gradients of each choice of upstreams, by operands that begin `offset` values into
    /// their buffers.
    fn fused<B: Backend>(&self, lab: &Lab<'_, B>, step: &B::Step, offset: usize) -> Vec<Vec<f32>> {
        let (b, n, batch) = (lab.b, self.x_t.len(), self.shape.batch);
        let whole = || offset..offset + n;
        let stat = |values: &[f32]| lab.stat(&behind(offset, values));
        let data = |values: &[f32]| lab.data(&behind(offset, values));
        let blank = vec![f32::NAN; n];
        let (t, t_hat) = (lab.stat(&self.t), lab.stat(&self.t_hat));
        let (t, t_hat) = (t.part(0..batch), t_hat.part(0..batch));
        let (x_t, velocity, mut x0_hat, mut renoised) = (stat(&self.x_t), data(&self.velocity), stat(&blank), data(&blank));
        let (out, noisy) = (x0_hat.part_mut(whole()), renoised.part_mut(whole()));
        b.predict_x0_renoise(step, 4, &self.shape, x_t.part(whole()), velocity.part(whole()), t, t_hat, out, noisy);
        let mut results = vec![from(offset, &lab.read_stat(&x0_hat, offset + n)), from(offset, &lab.read(&renoised, offset + n))];
        let (d_renoised, d_x0_hat) = (data(&self.d_renoised), stat(&self.d_x0_hat));
        for [first, second] in Self::UPSTREAMS {
            let mut d_velocity = data(&blank);
            let upstream = (first.then(|| d_renoised.part(whole())), second.then(|| d_x0_hat.part(whole())));
            b.predict_x0_renoise_backward(&self.shape, t, t_hat, upstream.0, upstream.1, d_velocity.part_mut(whole()));
            results.push(from(offset, &lab.read(&d_velocity, offset + n)));
        }
        results
    }

    /// The same by other operations: tokens to latents, prediction as an Euler step to time 0, noise, latents to tokens. The
    /// backward's arithmetic is done here.
    fn separate<B: Backend>(&self, lab: &Lab<'_, B>, step: &B::Step) -> Vec<Vec<f32>> {
        let (b, n, batch) = (lab.b, self.x_t.len(), self.shape.batch);
        let numel = n / batch;
        let [first, last] = [PatchOrder::ChannelFirst, PatchOrder::ChannelLast].map(|order| self.of(order));
        let (mut latent, mut x0_hat, mut noisy) = (lab.blank_stat(n), lab.stat(&self.x_t), lab.blank_stat(n));
        let mut tokens = lab.blank_data(n);
        b.unpatchify(&last, lab.data(&self.velocity).part(0..n), latent.part_mut(0..n));
        for (i, t) in self.t.iter().enumerate() {
            let sample = i * numel..(i + 1) * numel;
            b.euler_cfg(x0_hat.part_mut(sample.clone()), latent.part(sample), None, 1.0, -t);
        }
        b.flow_noise(step, 4, None, x0_hat.part(0..n), lab.stat(&self.t_hat).part(0..batch), noisy.part_mut(0..n), None);
        b.patchify(&first, noisy.part(0..n), tokens.part_mut(0..n));
        let mut results = vec![lab.read_stat(&x0_hat, n), lab.read(&tokens, n)];

        b.unpatchify(&first, lab.data(&self.d_renoised).part(0..n), latent.part_mut(0..n));
        let d_renoised = lab.read_stat(&latent, n);
        for [first, second] in Self::UPSTREAMS {
            let d_velocity: Vec<f32> = (0..n)
                .map(|i| {
                    let (t, t_hat) = (self.t[i / numel], self.t_hat[i / numel]);
                    let through_noise = if first { -t * (1.0 - t_hat) * d_renoised[i] } else { 0.0 };
                    if second { through_noise - t * self.d_x0_hat[i] } else { through_noise }
                })
                .collect();
            let mut tokens = lab.blank_data(n);
            b.patchify(&last, lab.stat(&d_velocity).part(0..n), tokens.part_mut(0..n));
            results.push(lab.read(&tokens, n));
        }
        results
    }
}

/// The pass between two networks has the bits of the operations it stands for: strips of tokens that end early, grids and
/// channels that 16-byte accesses do not fit, samples that begin anywhere in a Philox block.
fn one_pass_for_three_operations<B: Backend>(b: &B, tolerance: Tolerance) {
    let mut step = b.alloc_step().unwrap();
    b.upload_step(&StepValues { seed: 77, step: 8, first_sample: 3, lr: [0.0; 2] }, &mut step);
    for (batch, channels, height, width, patch, offset) in [
        (1, 16, 4, 72, 2, 0),
        (2, 16, 2, 132, 2, 8),
        (3, 6, 6, 8, 2, 0),
        (3, 6, 6, 8, 2, 1),
        (2, 3, 4, 8, 2, 0),
        (2, 4, 4, 6, 2, 0),
        (1, 100, 2, 8, 2, 0),
        (2, 5, 3, 7, 1, 3),
        (2, 2, 8, 4, 4, 0),
    ] {
        let between = Between::random(PatchShape { batch, channels, height, width, patch, order: PatchOrder::ChannelLast });
        let expected = between.separate(&Lab::new(b), &step);
        for lab in [Lab::new(b), Lab::tight(b)] {
            for (i, (got, expected)) in between.fused(&lab, &step, offset).iter().zip(&expected).enumerate() {
                let what = format!("result {i} of {:?} at {offset}", between.shape);
                match tolerance {
                    // The backward's arithmetic above is f32.
                    Tolerance::F64 if i >= 2 => {
                        close(&what, got, expected, Tolerance::F32.relative());
                    }
                    _ => same_bits(&what, got, expected),
                }
            }
        }
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
    let [x0, velocity, other] = [1, 2, 3].map(input);
    let whole = offset..offset + n;
    let blank = || lab.stat(&behind(offset, &vec![f32::NAN; n]));
    let times: Vec<f32> = (0..batch).map(|i| (i as f32 * 0.37 + 0.61).fract()).collect();
    let t = lab.stat(&times);
    let t = t.part(0..batch);
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
    for unconditional in [Some(other.part(whole.clone())), None] {
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
