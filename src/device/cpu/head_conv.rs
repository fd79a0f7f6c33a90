//! The discriminator heads' own operations: 3x3 convolution on token grids (as im2col and a product, a few samples at a
//! time so that the columns stay in the cache) and the logits.

use rayon::prelude::*;

use super::activation::{leaky, leaky_derivative};
use super::linear::{column_sums, two_parts};
use super::matmul::{Mat, MatMut, Threads, matmul};
use super::real::Real;
use super::{reduce, simd};
use crate::device::{ConvShape, HeadLogitsShape};

const TAPS: usize = 9;
const BLOCK_ROWS: usize = 256;

/// Geometry of one task: whole samples, about `BLOCK_ROWS` tokens.
struct Plan {
    tokens: usize,
    cin: usize,
    cout: usize,
    samples: usize,
}

impl Plan {
    fn new(shape: &ConvShape) -> Self {
        let tokens = shape.rows * shape.columns;
        Self { tokens, cin: shape.linear.inputs / TAPS, cout: shape.linear.outputs, samples: (BLOCK_ROWS / tokens).max(1) }
    }
}

fn weight<'a, T>(params: &'a [T], shape: &ConvShape) -> Mat<'a, T> {
    let layer = &shape.linear;
    Mat::new(&params[layer.weight..layer.weight + layer.inputs * layer.outputs], layer.outputs, layer.inputs, layer.inputs)
}

/// Calls `visit(token, tap, neighbour)` for every neighbour inside the grid, for all tokens of one sample.
#[inline(always)]
fn neighbours(rows: usize, columns: usize, mut visit: impl FnMut(usize, usize, usize)) {
    for y in 0..rows {
        for x in 0..columns {
            for tap in 0..TAPS {
                let (ny, nx) = (y + tap / 3, x + tap % 3); // one more than the neighbour's place
                if (1..=rows).contains(&ny) && (1..=columns).contains(&nx) {
                    visit(y * columns + x, tap, (ny - 1) * columns + nx - 1);
                }
            }
        }
    }
}

/// The nine neighbours of every token, `[tokens, 9 cin]`; zeros outside the grid.
fn im2col<T: Real>(shape: &ConvShape, plan: &Plan, x: &[T], columns: &mut [T]) {
    let (cin, width) = (plan.cin, TAPS * plan.cin);
    columns.fill(T::ZERO);
    for (x, columns) in x.chunks_exact(plan.tokens * cin).zip(columns.chunks_exact_mut(plan.tokens * width)) {
        neighbours(shape.rows, shape.columns, |token, tap, from| {
            columns[token * width + tap * cin..][..cin].copy_from_slice(&x[from * cin..][..cin]);
        });
    }
}

pub fn conv3x3<T: Real>(params: &[T], shape: &ConvShape, x: &[T], y: &mut [T]) {
    let plan = Plan::new(shape);
    let (block, width) = (plan.samples * plan.tokens, TAPS * plan.cin);
    let bias = &params[shape.linear.bias..shape.linear.bias + plan.cout];
    let tasks = y[..shape.batch * plan.tokens * plan.cout].par_chunks_mut(block * plan.cout).zip(x.par_chunks(block * plan.cin));
    tasks.for_each_init(Vec::new, |columns: &mut Vec<T>, (y, x)| {
        let rows = y.len() / plan.cout;
        columns.resize(block * width, T::ZERO);
        im2col(shape, &plan, &x[..rows * plan.cin], &mut columns[..rows * width]);
        y.chunks_exact_mut(plan.cout).for_each(|row| row.copy_from_slice(bias));
        let columns = Mat::new(columns, rows, width, width);
        matmul(MatMut::new(y, rows, plan.cout, plan.cout), true, T::ONE, columns, weight(params, shape).t(), Threads::One);
    });
}

pub fn conv3x3_backward_input<T: Real>(params: &[T], shape: &ConvShape, dy: &[T], dx: &mut [T], accumulate: bool) {
    let plan = Plan::new(shape);
    let (block, width, cin) = (plan.samples * plan.tokens, TAPS * plan.cin, plan.cin);
    let tasks = dx[..shape.batch * plan.tokens * cin].par_chunks_mut(block * cin).zip(dy.par_chunks(block * plan.cout));
    tasks.for_each_init(Vec::new, |columns: &mut Vec<T>, (dx, dy)| {
        let rows = dx.len() / cin;
        columns.resize(block * width, T::ZERO);
        let dy = Mat::new(dy, rows, plan.cout, plan.cout);
        matmul(MatMut::new(columns, rows, width, width), false, T::ONE, dy, weight(params, shape), Threads::One);
        if !accumulate {
            dx.fill(T::ZERO);
        }
        simd(|| {
            for (dx, columns) in dx.chunks_exact_mut(plan.tokens * cin).zip(columns.chunks_exact(plan.tokens * width)) {
                neighbours(shape.rows, shape.columns, |token, tap, to| {
                    let from = &columns[token * width + tap * cin..][..cin];
                    dx[to * cin..][..cin].iter_mut().zip(from).for_each(|(d, c)| *d += *c);
                });
            }
        });
    });
}

/// Samples are cut into at most eight shares, each with a partial gradient of its own; the shares are added in order.
pub fn conv3x3_backward_weight<T: Real>(grads: &mut [T], shape: &ConvShape, x: &[T], dy: &[T]) {
    const SHARES: usize = 8;
    let plan = Plan::new(shape);
    let (width, layer) = (TAPS * plan.cin, &shape.linear);
    let per_share = shape.batch.div_ceil(SHARES).next_multiple_of(plan.samples);
    let (x, dy) = (&x[..shape.batch * plan.tokens * plan.cin], &dy[..shape.batch * plan.tokens * plan.cout]);
    let shares = x.par_chunks(per_share * plan.tokens * plan.cin).zip(dy.par_chunks(per_share * plan.tokens * plan.cout));
    let partial: Vec<Vec<T>> = shares
        .map(|(x, dy)| {
            let mut dw = vec![T::ZERO; plan.cout * width];
            let mut columns = vec![T::ZERO; plan.samples * plan.tokens * width];
            let blocks = x.chunks(plan.samples * plan.tokens * plan.cin).zip(dy.chunks(plan.samples * plan.tokens * plan.cout));
            for (x, dy) in blocks {
                let rows = x.len() / plan.cin;
                im2col(shape, &plan, x, &mut columns[..rows * width]);
                let dy = Mat::new(dy, rows, plan.cout, plan.cout);
                matmul(
                    MatMut::new(&mut dw, plan.cout, width, width),
                    true,
                    T::ONE,
                    dy.t(),
                    Mat::new(&columns, rows, width, width),
                    Threads::One,
                );
            }
            dw
        })
        .collect();
    let (dw, db) = two_parts(grads, layer.weight..layer.weight + width * plan.cout, layer.bias..layer.bias + plan.cout);
    for share in &partial {
        dw.iter_mut().zip(share).for_each(|(d, s)| *d += *s);
    }
    column_sums(dy, plan.cout, db);
}

pub fn head_logits<T: Real>(params: &[T], shape: &HeadLogitsShape, h: &[T], cm: &[T], logits: &mut [T]) {
    let HeadLogitsShape { linear, batch, positions } = *shape;
    let width = linear.inputs;
    let w = &params[linear.weight..linear.weight + width];
    let bias = params[linear.bias];
    let inverse = T::ONE / T::from_f64(width as f64);
    logits[..batch * positions].par_chunks_mut(positions).enumerate().for_each(|(b, logits)| {
        let cm = &cm[b * width..][..width];
        simd(|| {
            for (i, logit) in logits.iter_mut().enumerate() {
                let h = &h[(b * positions + i) * width..][..width];
                *logit = reduce::sum(width, |c| leaky(h[c]) * w[c] + h[c] * cm[c] * inverse) + bias;
            }
        });
    });
}

pub fn head_logits_backward<T: Real>(
    params: &[T],
    shape: &HeadLogitsShape,
    h: &[T],
    cm: &[T],
    d_logits: &[T],
    dh: &mut [T],
    grads: Option<(&mut [T], &mut [T])>,
) {
    let HeadLogitsShape { linear, batch, positions } = *shape;
    let width = linear.inputs;
    let w = &params[linear.weight..linear.weight + width];
    let inverse = T::ONE / T::from_f64(width as f64);
    dh[..batch * positions * width].par_chunks_mut(positions * width).enumerate().for_each(|(b, dh)| {
        let cm = &cm[b * width..][..width];
        simd(|| {
            for (i, dh) in dh.chunks_exact_mut(width).enumerate() {
                let row = b * positions + i;
                let (h, d) = (&h[row * width..][..width], d_logits[row]);
                for (c, dh) in dh.iter_mut().enumerate() {
                    *dh = d * (leaky_derivative(h[c]) * w[c] + cm[c] * inverse);
                }
            }
        });
    });
    let Some((grads, d_cm)) = grads else { return };
    // Per sample: the gradient of cm, and a partial sum of the projection's, added up in order.
    let partial: Vec<Vec<T>> = d_cm[..batch * width]
        .par_chunks_mut(width)
        .enumerate()
        .map(|(b, d_cm)| {
            let mut dw = vec![T::ZERO; width];
            d_cm.fill(T::ZERO);
            simd(|| {
                for row in b * positions..(b + 1) * positions {
                    let (h, d) = (&h[row * width..][..width], d_logits[row]);
                    for c in 0..width {
                        dw[c] += d * leaky(h[c]);
                        d_cm[c] += d * h[c] * inverse;
                    }
                }
            });
            dw
        })
        .collect();
    for dw in &partial {
        grads[linear.weight..linear.weight + width].iter_mut().zip(dw).for_each(|(g, d)| *g += *d);
    }
    grads[linear.bias] += reduce::sum(batch * positions, |i| d_logits[i]);
}
