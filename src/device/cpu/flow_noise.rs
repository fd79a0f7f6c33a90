//! Everything that draws random numbers or moves along the flow: times, noising, prediction of `x0`, renoising, Euler.
//! Noise is drawn inside the pass that uses it.

use rayon::prelude::*;

use super::patchify::{patchify, unpatchify};
use super::real::Real;
use super::{GRAIN, simd};
use crate::device::{PatchOrder, PatchShape, StepValues, Stream};
use crate::flow::TimestepDistribution;
use crate::flow::philox::{fill_normals, normal_at, uniform_at};

pub fn timesteps<T: Real>(step: &StepValues, stream: Stream, distribution: &TimestepDistribution, t: &mut [T]) {
    for (b, t) in t.iter_mut().enumerate() {
        let element = u64::from(step.first_sample) + b as u64;
        let uniform = || uniform_at(step.seed, step.step, stream, element);
        *t = T::from_f32(match distribution {
            TimestepDistribution::Discrete { values, probs, warmup_probs, warmup_steps } => {
                let probs = if step.step < *warmup_steps && !warmup_probs.is_empty() { warmup_probs } else { probs };
                discrete(values, probs, uniform())
            }
            // In f64 and rounded once: an error of `t` is an error of everything after it.
            TimestepDistribution::LogitNormal { mean, std } => {
                let n = f64::from(normal_at(step.seed, step.step, stream, element));
                (f64::from(*mean) + f64::from(*std) * n).sigmoid().clamp(0.001, 0.999) as f32
            }
            TimestepDistribution::Uniform => uniform(),
            TimestepDistribution::Shifted { shift } => {
                let (u, shift) = (f64::from(uniform()), f64::from(*shift));
                (shift * u / (1.0 + (shift - 1.0) * u)) as f32
            }
        });
    }
}

/// The first value whose cumulative probability exceeds `u`; rounding at the top end falls to the last value that can
/// be drawn at all.
fn discrete(values: &[f32], probs: &[f32], u: f32) -> f32 {
    let mut cumulative = 0.0;
    let mut drawn = values[0];
    for (value, p) in values.iter().zip(probs).filter(|(_, p)| **p > 0.0) {
        cumulative += p;
        drawn = *value;
        if u < cumulative {
            break;
        }
    }
    drawn
}

/// Calls `visit(range of the buffer, sample, noise)` for blocks of the whole `[B, numel]` in parallel, and gives each
/// its own part of `out`.
fn with_noise<T: Real>(
    step: &StepValues,
    stream: Stream,
    numel: usize,
    out: &mut [T],
    visit: impl Fn(usize, usize, &[f32], &mut [T]) + Sync,
) {
    let per_sample = numel.div_ceil(GRAIN);
    let tasks: Vec<(usize, usize, &mut [T])> = out
        .chunks_mut(numel)
        .enumerate()
        .flat_map(|(b, sample)| sample.chunks_mut(GRAIN).enumerate().map(move |(i, part)| (b, i * GRAIN, part)))
        .collect();
    debug_assert_eq!(tasks.len() % per_sample, 0);
    tasks.into_par_iter().for_each_init(
        || vec![0.0; GRAIN],
        |noise, (b, offset, part)| {
            let first = (u64::from(step.first_sample) + b as u64) * numel as u64 + offset as u64;
            let noise = &mut noise[..part.len()];
            simd(|| fill_normals(step.seed, step.step, stream, first, noise));
            visit(b * numel + offset, b, noise, part);
        },
    );
}

pub fn normal<T: Real>(step: &StepValues, stream: Stream, numel: usize, out: &mut [T]) {
    with_noise(step, stream, numel, out, |_, _, noise, out| out.iter_mut().zip(noise).for_each(|(o, n)| *o = T::from_f32(*n)));
}

pub fn flow_noise<T: Real>(
    step: &StepValues,
    stream: Stream,
    perturb: Option<(Stream, f32)>,
    x0: &[T],
    t: &[T],
    x_t: &mut [T],
    velocity: Option<&mut [T]>,
) {
    let numel = x_t.len() / t.len();
    let clean = |at: usize, i: usize, first: u64| match perturb {
        Some((stream, sigma)) => x0[at + i] + T::from_f32(sigma) * T::from_f32(normal_at(step.seed, step.step, stream, first + i as u64)),
        None => x0[at + i],
    };
    let global = |at: usize| u64::from(step.first_sample) * numel as u64 + at as u64;
    with_noise(step, stream, numel, x_t, |at, b, noise, x_t| {
        for (i, (x_t, n)) in x_t.iter_mut().zip(noise).enumerate() {
            *x_t = (T::ONE - t[b]) * clean(at, i, global(at)) + t[b] * T::from_f32(*n);
        }
    });
    if let Some(velocity) = velocity {
        with_noise(step, stream, numel, velocity, |at, _, noise, velocity| {
            for (i, (v, n)) in velocity.iter_mut().zip(noise).enumerate() {
                *v = T::from_f32(*n) - clean(at, i, global(at));
            }
        });
    }
}

pub fn predict_x0_renoise<T: Real>(
    step: &StepValues,
    stream: Stream,
    shape: &PatchShape,
    x_t: &[T],
    velocity: &[T],
    t: &[T],
    t_hat: &[T],
    x0_hat: &mut [T],
    renoised: &mut [T],
) {
    let numel = shape.channels * shape.height * shape.width;
    let mut latent = vec![T::ZERO; shape.batch * numel];
    unpatchify(&PatchShape { order: PatchOrder::ChannelLast, ..*shape }, velocity, &mut latent);
    x0_hat.par_chunks_mut(numel).enumerate().for_each(|(b, x0_hat)| {
        let part = b * numel..(b + 1) * numel;
        for ((x0_hat, x_t), v) in x0_hat.iter_mut().zip(&x_t[part.clone()]).zip(&latent[part]) {
            *x0_hat = *x_t - t[b] * *v;
        }
    });
    let x0_hat = &*x0_hat;
    with_noise(step, stream, numel, &mut latent, |at, b, noise, out| {
        for ((out, x0), n) in out.iter_mut().zip(&x0_hat[at..]).zip(noise) {
            *out = (T::ONE - t_hat[b]) * *x0 + t_hat[b] * T::from_f32(*n);
        }
    });
    patchify(&PatchShape { order: PatchOrder::ChannelFirst, ..*shape }, &latent, renoised);
}

pub fn predict_x0_renoise_backward<T: Real>(
    shape: &PatchShape,
    t: &[T],
    t_hat: &[T],
    d_renoised: Option<&[T]>,
    d_x0_hat: Option<&[T]>,
    d_velocity: &mut [T],
) {
    let numel = shape.channels * shape.height * shape.width;
    let mut latent = vec![T::ZERO; shape.batch * numel];
    if let Some(d) = d_renoised {
        unpatchify(&PatchShape { order: PatchOrder::ChannelFirst, ..*shape }, d, &mut latent);
    }
    latent.par_chunks_mut(numel).enumerate().for_each(|(b, dv)| {
        let through_noise = -t[b] * (T::ONE - t_hat[b]);
        if d_renoised.is_some() {
            dv.iter_mut().for_each(|dv| *dv = through_noise * *dv);
        }
        if let Some(d) = d_x0_hat {
            dv.iter_mut().zip(&d[b * numel..(b + 1) * numel]).for_each(|(dv, d)| *dv -= t[b] * *d);
        }
    });
    patchify(&PatchShape { order: PatchOrder::ChannelLast, ..*shape }, &latent, d_velocity);
}

pub fn euler_cfg<T: Real>(x: &mut [T], velocity: &[T], unconditional: Option<&[T]>, guidance: T, dt: T) {
    x.par_chunks_mut(GRAIN).enumerate().for_each(|(i, x)| {
        let part = i * GRAIN..i * GRAIN + x.len();
        let velocity = &velocity[part.clone()];
        match unconditional {
            Some(u) => x.iter_mut().zip(velocity).zip(&u[part]).for_each(|((x, v), u)| *x += dt * (*u + guidance * (*v - *u))),
            None => x.iter_mut().zip(velocity).for_each(|(x, v)| *x += dt * *v),
        }
    });
}
