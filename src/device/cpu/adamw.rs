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
    pub moment1: &'a mut [T],
    pub moment2: &'a mut [T],
    pub ema: Option<&'a mut [T]>,
    pub counters: &'a mut [T],
}

/// `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`, `p -= lr (m̂ / (sqrt(v̂) + eps) + decay p)`, as `torch.optim.AdamW`;
/// the moving average follows with `min(decay, (1 + n) / (10 + n))` after `n` updates.
pub fn adamw<T: Real>(step: &StepValues, shape: &AdamwShape, grads: &[T], norm: T, state: State<'_, T>) {
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
    let update = |params: &mut [T], master: &mut [T], m: &mut [T], v: &mut [T], grads: &[T]| {
        for ((((p, w), m), v), g) in params.iter_mut().zip(master).zip(m).zip(v).zip(grads) {
            let g = *g * clip;
            *m = b1 * *m + c1 * g;
            *v = b2 * *v + c2 * g * g;
            *w = *w * keep - rate * *m / (v.sqrt() * root + eps);
            *p = *w;
        }
    };
    let chunks = state.params.par_chunks_mut(GRAIN).zip(state.master.par_chunks_mut(GRAIN));
    let chunks = chunks.zip(state.moment1.par_chunks_mut(GRAIN)).zip(state.moment2.par_chunks_mut(GRAIN)).zip(grads.par_chunks(GRAIN));
    match state.ema {
        Some(ema) => chunks.zip(ema.par_chunks_mut(GRAIN)).for_each(|(((((p, w), m), v), g), ema)| {
            simd(|| {
                update(p, w, m, v, g);
                ema.iter_mut().zip(w.iter()).for_each(|(e, w)| *e += follow * (*w - *e));
            });
        }),
        None => chunks.for_each(|((((p, w), m), v), g)| simd(|| update(p, w, m, v, g))),
    }
}
