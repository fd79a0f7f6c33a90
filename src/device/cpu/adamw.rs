//! Global norm, and AdamW with clipping, moving average and cast in one pass over the arena.

use rayon::prelude::*;

use super::real::Real;
use super::{GRAIN, reduce, simd};
use crate::device::{AdamwShape, StepValues};

/// Blocks of fixed size, summed in f64 and in order: the same bits for every number of threads.
pub fn global_norm<T: Real>(grads: &[T]) -> T {
    let partial: Vec<f64> =
        grads.par_chunks(GRAIN).map(|part| simd(|| reduce::sum_f64(part.len(), |i| part[i].to_f64() * part[i].to_f64()))).collect();
    T::from_f64(partial.iter().sum::<f64>().sqrt())
}

/// The slices of [`crate::device::AdamwState`].
pub struct State<'a, T> {
    pub params: &'a mut [T],
    pub master: &'a mut [T],
    pub moment1: Option<&'a mut [T]>,
    pub moment2: &'a mut [T],
    pub ema: Option<&'a mut [T]>,
    pub counters: &'a mut [T],
}

/// What one task updates.
struct Part<'a, T> {
    params: &'a mut [T],
    master: &'a mut [T],
    moment1: Option<&'a mut [T]>,
    moment2: &'a mut [T],
    ema: Option<&'a mut [T]>,
    grads: &'a [T],
}

fn parts<'a, T: Real>(state: State<'a, T>, grads: &'a [T]) -> Vec<Part<'a, T>> {
    let State { params, master, moment1, moment2, ema, .. } = state;
    let [mut moment1, mut ema] = [moment1, ema].map(|arena| arena.map(|arena| arena.chunks_mut(GRAIN)));
    let optional = |chunks: &mut Option<std::slice::ChunksMut<'a, T>>| chunks.as_mut().and_then(Iterator::next);
    let all = params.chunks_mut(GRAIN).zip(master.chunks_mut(GRAIN)).zip(moment2.chunks_mut(GRAIN)).zip(grads.chunks(GRAIN));
    let part = |(((params, master), moment2), grads)| {
        let (moment1, ema) = (optional(&mut moment1), optional(&mut ema));
        Part { params, master, moment1, moment2, ema, grads }
    };
    all.map(part).collect()
}

/// `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`, `p -= lr (m̂ / (sqrt(v̂) + eps) + decay p)`, as `torch.optim.AdamW`;
/// the moving average follows with `min(decay, (1 + n) / (10 + n))` after `n` updates.
pub fn adamw<T: Real>(step: &StepValues, shape: &AdamwShape, grads: &[T], norm: T, state: State<'_, T>) {
    assert!(state.moment1.is_some() || shape.beta1 == 0.0, "AdamW without a first moment, and beta1 = {}", shape.beta1);
    if !norm.is_finite() {
        state.counters[1] += T::ONE;
        return;
    }
    state.counters[0] += T::ONE;
    let n = state.counters[0].to_f64();
    let lr = f64::from(step.lr[shape.lr_index]);
    let clip = T::from_f64((shape.clip / (norm.to_f64() + 1e-6)).min(1.0));
    let [b1, b2] = [shape.beta1, shape.beta2].map(T::from_f64);
    let [c1, c2] = [1.0 - shape.beta1, 1.0 - shape.beta2].map(T::from_f64);
    let rate = T::from_f64(lr / (1.0 - shape.beta1.powf(n)));
    let root = T::from_f64(1.0 / (1.0 - shape.beta2.powf(n)).sqrt());
    let keep = T::from_f64(1.0 - lr * shape.weight_decay);
    let eps = T::from_f64(shape.eps);
    let follow = T::from_f64(1.0 - shape.ema_decay.min((1.0 + n) / (10.0 + n)));
    let moved = |w: T, m: T, v: T| w * keep - rate * m / (v.sqrt() * root + eps);
    let update = |part: Part<'_, T>| {
        let Part { params, master, moment1, moment2, ema, grads } = part;
        let weights = params.iter_mut().zip(master).zip(moment2).zip(grads);
        let second = |v: T, g: T| b2 * v + c2 * g * g;
        match moment1 {
            Some(moment1) => weights.zip(moment1).for_each(|((((p, w), v), g), m)| {
                let g = *g * clip;
                *m = b1 * *m + c1 * g;
                *v = second(*v, g);
                *w = moved(*w, *m, *v);
                *p = *w;
            }),
            None => weights.for_each(|(((p, w), v), g)| {
                let g = *g * clip;
                *v = second(*v, g);
                *w = moved(*w, g, *v);
                *p = *w;
            }),
        }
        if let Some(ema) = ema {
            ema.iter_mut().zip(params.iter()).for_each(|(e, w)| *e += follow * (*w - *e));
        }
    };
    parts(state, grads).into_par_iter().for_each(|part| simd(|| update(part)));
}
