//! Split of fused qkv rows into the joint `[B, H, S, D]` buffers, with per-head RMSNorm of queries and keys:
//! `q̂ = q / sqrt(mean q^2 + eps) * w`. Read once, written once, forward and backward.

use rayon::prelude::*;

use super::real::Real;
use super::{reduce, simd};
use crate::device::QkNormShape;
use crate::model::NORM_EPS;

pub fn qk_norm<T: Real>(params: &[T], shape: &QkNormShape, qkv: &[T], joint: [&mut [T]; 3], rstd: &mut [T]) {
    let QkNormShape { batch, tokens, heads, head_dim: d, sequence, start, norm } = *shape;
    let hidden = heads * d;
    let sample = heads * sequence * d;
    let [q, k, v] = joint.map(|buffer| buffer[..batch * sample].par_chunks_mut(sample));
    let weights = norm.map(|(wq, wk)| [&params[wq..wq + d], &params[wk..wk + d]]);
    let rstd = rstd[..batch * tokens * 2 * heads].par_chunks_mut(tokens * 2 * heads);
    q.zip(k).zip(v).zip(rstd).enumerate().for_each(|(b, (((q, k), v), rstd))| {
        simd(|| {
            for token in 0..tokens {
                let row = &qkv[(b * tokens + token) * 3 * hidden..][..3 * hidden];
                let rstd = &mut rstd[token * 2 * heads..][..2 * heads];
                for head in 0..heads {
                    let at = (head * sequence + start + token) * d;
                    let part = |which: usize| &row[which * hidden + head * d..][..d];
                    for (which, out) in [&mut q[at..at + d], &mut k[at..at + d]].into_iter().enumerate() {
                        let x = part(which);
                        match weights {
                            Some(weights) => {
                                let mean_square = reduce::sum(d, |i| x[i] * x[i]) / T::from_f64(d as f64);
                                let r = T::ONE / (mean_square + T::from_f64(NORM_EPS)).sqrt();
                                rstd[which * heads + head] = r;
                                for ((out, x), w) in out.iter_mut().zip(x).zip(weights[which]) {
                                    *out = *x * r * *w;
                                }
                            }
                            None => out.copy_from_slice(x),
                        }
                    }
                    v[at..at + d].copy_from_slice(part(2));
                }
            }
        });
    });
}

/// With `x̂ = x rstd` and `g = dy w`: `dx = rstd (g - x̂ mean(g x̂))`, `dw = sum dy x̂`.
pub fn qk_norm_backward<T: Real>(
    params: &[T],
    grads: Option<&mut [T]>,
    shape: &QkNormShape,
    queries: bool,
    qkv: &[T],
    rstd: &[T],
    d_joint: [&[T]; 3],
    d_qkv: &mut [T],
) {
    let QkNormShape { batch, tokens, heads, head_dim: d, sequence, start, norm } = *shape;
    let hidden = heads * d;
    let weights = norm.map(|(wq, wk)| [&params[wq..wq + d], &params[wk..wk + d]]);
    let per_sample = tokens * 3 * hidden;
    // One partial sum of both weight gradients per sample, added up in order at the end.
    let partial: Vec<Vec<T>> = d_qkv[..batch * per_sample]
        .par_chunks_mut(per_sample)
        .enumerate()
        .map(|(b, d_qkv)| {
            let mut d_weights = vec![T::ZERO; 2 * d];
            simd(|| {
                for token in 0..tokens {
                    let row = &qkv[(b * tokens + token) * 3 * hidden..][..3 * hidden];
                    let d_row = &mut d_qkv[token * 3 * hidden..][..3 * hidden];
                    let rstd = &rstd[(b * tokens + token) * 2 * heads..][..2 * heads];
                    for head in 0..heads {
                        let at = ((b * heads + head) * sequence + start + token) * d;
                        for which in 0..3 {
                            let dx = &mut d_row[which * hidden + head * d..][..d];
                            if which == 0 && !queries {
                                dx.fill(T::ZERO);
                                continue;
                            }
                            let dy = &d_joint[which][at..at + d];
                            match weights {
                                Some(weights) if which < 2 => {
                                    let x = &row[which * hidden + head * d..][..d];
                                    let w = &weights[which][..d];
                                    let r = rstd[which * heads + head];
                                    let dot = reduce::sum(d, |i| dy[i] * w[i] * x[i]) * r * r / T::from_f64(d as f64);
                                    let d_weight = &mut d_weights[which * d..][..d];
                                    for i in 0..d {
                                        dx[i] = r * (dy[i] * w[i] - x[i] * dot);
                                        d_weight[i] += dy[i] * x[i] * r;
                                    }
                                }
                                _ => dx.copy_from_slice(dy),
                            }
                        }
                    }
                }
            });
            d_weights
        })
        .collect();
    if let (Some(grads), Some((wq, wk))) = (grads, norm) {
        for d_weights in &partial {
            for (which, at) in [wq, wk].into_iter().enumerate() {
                grads[at..at + d].iter_mut().zip(&d_weights[which * d..]).for_each(|(g, d)| *g += *d);
            }
        }
    }
}
