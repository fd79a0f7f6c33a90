//! Gated residuals, LayerNorm without affine and modulation in one pass, and the backward of all three.
//!
//! `x_out = x + sum gate y`; `x̂ = (x_out - mean) rstd`; `out = x̂ (1 + scale) + shift`. Backward with `g = d_out (1 + scale)`:
//! `dx_out += rstd (g - mean(g) - x̂ mean(g x̂))`, `dy = gate dx_out`, and per sample `dshift = sum d_out`,
//! `dscale = sum d_out x̂`, `dgate = sum dx_out y`.

use rayon::prelude::*;

use super::real::Real;
use super::{reduce, simd};
use crate::device::{AdalnShape, Modulation};
use crate::model::NORM_EPS;

/// Tokens of one forward task: enough rows to pay for the task, few enough for two threads to share one sample.
const BLOCK_TOKENS: usize = 32;

/// A branch in slices: its output and the column of its gate.
pub type Branch<'a, T> = (&'a [T], usize);

/// One task's share of the outputs.
struct Task<'a, T> {
    sample: usize,
    first_row: usize,
    x_out: Option<&'a mut [T]>,
    norms: Vec<&'a mut [T]>,
    stats: Option<&'a mut [T]>,
}

/// Cuts a buffer of `[B, tokens * width]` into the tasks' parts, in order.
fn cut<T>(buffer: &mut [T], batch: usize, tokens: usize, width: usize) -> impl Iterator<Item = &mut [T]> {
    let samples = buffer[..batch * tokens * width].chunks_mut((tokens * width).max(1));
    samples.flat_map(move |sample| sample.chunks_mut(BLOCK_TOKENS * width))
}

pub fn adaln<T: Real>(
    shape: &AdalnShape,
    x: &[T],
    branches: &[Branch<'_, T>],
    table: Option<&[T]>,
    x_out: Option<&mut [T]>,
    norms: Vec<(&mut [T], Option<Modulation>)>,
    stats: Option<&mut [T]>,
) {
    let AdalnShape { batch, tokens, hidden, stride } = *shape;
    let blocks = tokens.div_ceil(BLOCK_TOKENS);
    let mut x_out = x_out.map(|buffer| cut(buffer, batch, tokens, hidden));
    let mut stats = stats.map(|buffer| cut(buffer, batch, tokens, 2));
    let modulations: Vec<Option<Modulation>> = norms.iter().map(|(_, modulation)| *modulation).collect();
    let mut norms: Vec<_> = norms.into_iter().map(|(buffer, _)| cut(buffer, batch, tokens, hidden)).collect();
    let tasks: Vec<Task<'_, T>> = (0..batch * blocks)
        .map(|i| Task {
            sample: i / blocks,
            first_row: (i / blocks) * tokens + (i % blocks) * BLOCK_TOKENS,
            x_out: x_out.as_mut().and_then(Iterator::next),
            norms: norms.iter_mut().filter_map(Iterator::next).collect(),
            stats: stats.as_mut().and_then(Iterator::next),
        })
        .collect();
    tasks.into_par_iter().for_each(|mut task| {
        let table = table.map(|table| &table[task.sample * stride..][..stride]);
        let rows = BLOCK_TOKENS.min(tokens - (task.first_row - task.sample * tokens));
        simd(|| {
            for row in 0..rows {
                let at = (task.first_row + row) * hidden;
                let local = row * hidden..(row + 1) * hidden;
                let mut current = &x[at..at + hidden];
                if let (Some(out), Some(table)) = (&mut task.x_out, table) {
                    let out = &mut out[local.clone()];
                    out.copy_from_slice(current);
                    for (y, gate) in branches {
                        let gate = &table[*gate..*gate + hidden];
                        for ((out, y), gate) in out.iter_mut().zip(&y[at..at + hidden]).zip(gate) {
                            *out += *gate * *y;
                        }
                    }
                    current = out;
                }
                let Some(stats) = &mut task.stats else { continue };
                let (mean, rstd) = moments(current);
                stats[2 * row] = mean;
                stats[2 * row + 1] = rstd;
                for (out, modulation) in task.norms.iter_mut().zip(&modulations) {
                    let out = &mut out[local.clone()];
                    match (modulation, table) {
                        (Some(m), Some(table)) => {
                            let (shift, scale) = (&table[m.shift..m.shift + hidden], &table[m.scale..m.scale + hidden]);
                            for (((out, x), shift), scale) in out.iter_mut().zip(current).zip(shift).zip(scale) {
                                *out = (*x - mean) * rstd * (T::ONE + *scale) + *shift;
                            }
                        }
                        _ => out.iter_mut().zip(current).for_each(|(out, x)| *out = (*x - mean) * rstd),
                    }
                }
            }
        });
    });
}

/// Mean and reciprocal standard deviation, in two passes over the row.
#[inline(always)]
fn moments<T: Real>(row: &[T]) -> (T, T) {
    let count = T::from_f64(row.len() as f64);
    let mean = reduce::sum(row.len(), |i| row[i]) / count;
    let variance = reduce::sum(row.len(), |i| (row[i] - mean) * (row[i] - mean)) / count;
    (mean, T::ONE / (variance + T::from_f64(NORM_EPS)).sqrt())
}

/// One sample's share of the gradients.
struct BackwardTask<'a, T> {
    dx: &'a mut [T],
    d_branches: Vec<&'a mut [T]>,
    d_table: Option<&'a mut [T]>,
}

pub fn adaln_backward<T: Real>(
    shape: &AdalnShape,
    x_out: &[T],
    stats: Option<&[T]>,
    table: Option<&[T]>,
    dx: &mut [T],
    accumulate: bool,
    extra: Option<&[T]>,
    norms: &[(&[T], Option<Modulation>)],
    branches: Vec<(&[T], usize, &mut [T])>,
    d_table: Option<&mut [T]>,
) {
    let AdalnShape { batch, tokens, hidden, stride } = *shape;
    let per_sample = tokens * hidden;
    let forward: Vec<Branch<'_, T>> = branches.iter().map(|(y, gate, _)| (*y, *gate)).collect();
    let mut d_branches: Vec<_> = branches.into_iter().map(|(_, _, d_y)| d_y[..batch * per_sample].chunks_mut(per_sample)).collect();
    let mut d_table = d_table.map(|d_table| d_table[..batch * stride].chunks_mut(stride));
    let tasks: Vec<BackwardTask<'_, T>> = dx[..batch * per_sample]
        .chunks_mut(per_sample)
        .map(|dx| BackwardTask {
            dx,
            d_branches: d_branches.iter_mut().filter_map(Iterator::next).collect(),
            d_table: d_table.as_mut().and_then(Iterator::next),
        })
        .collect();
    tasks.into_par_iter().enumerate().for_each_init(Vec::new, |scratch: &mut Vec<T>, (b, mut task)| {
        let table = table.map(|table| &table[b * stride..][..stride]);
        let mut d_table = task.d_table.take();
        if let Some(d_table) = &mut d_table {
            for m in norms.iter().filter_map(|(_, m)| *m) {
                d_table[m.shift..m.shift + hidden].fill(T::ZERO);
                d_table[m.scale..m.scale + hidden].fill(T::ZERO);
            }
            forward.iter().for_each(|(_, gate)| d_table[*gate..*gate + hidden].fill(T::ZERO));
        }
        scratch.resize(2 * hidden, T::ZERO);
        let (x_hat, g) = scratch.split_at_mut(hidden);
        simd(|| {
            for token in 0..tokens {
                let at = (b * tokens + token) * hidden;
                let dx = &mut task.dx[token * hidden..(token + 1) * hidden];
                match (accumulate, extra) {
                    (true, Some(extra)) => dx.iter_mut().zip(&extra[at..at + hidden]).for_each(|(dx, e)| *dx += *e),
                    (true, None) => (),
                    (false, Some(extra)) => dx.copy_from_slice(&extra[at..at + hidden]),
                    (false, None) => dx.fill(T::ZERO),
                }
                if let Some(stats) = stats {
                    let (mean, rstd) = (stats[2 * (b * tokens + token)], stats[2 * (b * tokens + token) + 1]);
                    let x = &x_out[at..at + hidden];
                    x_hat.iter_mut().zip(x).for_each(|(h, x)| *h = (*x - mean) * rstd);
                    g.fill(T::ZERO);
                    for (d_out, modulation) in norms {
                        norm_gradient(&d_out[at..at + hidden], *modulation, table, x_hat, g, d_table.as_deref_mut());
                    }
                    let count = T::from_f64(hidden as f64);
                    let mean_g = reduce::sum(hidden, |i| g[i]) / count;
                    let mean_gx = reduce::sum(hidden, |i| g[i] * x_hat[i]) / count;
                    for ((dx, g), h) in dx.iter_mut().zip(g.iter()).zip(x_hat.iter()) {
                        *dx += rstd * (*g - mean_g - *h * mean_gx);
                    }
                }
                let Some(table) = table else { continue };
                for ((y, gate), d_y) in forward.iter().zip(&mut task.d_branches) {
                    let d_y = &mut d_y[token * hidden..(token + 1) * hidden];
                    let factor = &table[*gate..*gate + hidden];
                    d_y.iter_mut().zip(dx.iter()).zip(factor).for_each(|((d_y, dx), gate)| *d_y = *dx * *gate);
                    if let Some(d_table) = &mut d_table {
                        let d_gate = &mut d_table[*gate..*gate + hidden];
                        d_gate.iter_mut().zip(dx.iter()).zip(&y[at..at + hidden]).for_each(|((d, dx), y)| *d += *dx * *y);
                    }
                }
            }
        });
    });
}

/// Adds one norm's `d_out (1 + scale)` to `g`, and its share of the shift's and scale's gradients.
#[inline(always)]
fn norm_gradient<T: Real>(
    d_out: &[T],
    modulation: Option<Modulation>,
    table: Option<&[T]>,
    x_hat: &[T],
    g: &mut [T],
    d_table: Option<&mut [T]>,
) {
    let hidden = d_out.len();
    let (Some(m), Some(table)) = (modulation, table) else {
        g.iter_mut().zip(d_out).for_each(|(g, d)| *g += *d);
        return;
    };
    let scale = &table[m.scale..m.scale + hidden];
    g.iter_mut().zip(d_out).zip(scale).for_each(|((g, d), scale)| *g += *d * (T::ONE + *scale));
    if let Some(d_table) = d_table {
        d_table[m.shift..m.shift + hidden].iter_mut().zip(d_out).for_each(|(s, d)| *s += *d);
        d_table[m.scale..m.scale + hidden].iter_mut().zip(d_out).zip(x_hat).for_each(|((s, d), h)| *s += *d * *h);
    }
}
