//! Dense layers: `y = x W^T + b`, with the GELU epilogues and the three gradients.
//!
//! Where the weight fits the cache, rows are cut into blocks and each block's epilogue runs while its product is still
//! in the cache. The cut depends on the shape alone, never on the number of threads, so that the bits do not either.

use rayon::prelude::*;

use super::matmul::{Mat, MatMut, Threads, matmul};
use super::real::Real;
use super::{GRAIN, simd};
use crate::device::Linear;

const BLOCK_ROWS: usize = 512;
const CACHED_WEIGHT: usize = 1 << 19;

fn weight<'a, T>(params: &'a [T], layer: &Linear) -> Mat<'a, T> {
    Mat::new(&params[layer.weight..layer.weight + layer.inputs * layer.outputs], layer.outputs, layer.inputs, layer.inputs)
}

/// `dst = [dst +] lhs rhs`, then `epilogue(first_row, rows of dst)`, blockwise where that pays.
fn product<T: Real>(
    dst: &mut [T],
    rows: usize,
    cols: usize,
    lhs: &[T],
    depth: usize,
    rhs: Mat<'_, T>,
    accumulate: bool,
    epilogue: impl Fn(usize, &mut [T]) + Sync,
) {
    let dst = &mut dst[..rows * cols];
    if rows > BLOCK_ROWS && cols * depth <= CACHED_WEIGHT {
        let block = rows.div_ceil(rows.div_ceil(BLOCK_ROWS));
        dst.par_chunks_mut(block * cols).enumerate().for_each(|(i, dst)| {
            let rows = dst.len() / cols;
            let lhs = Mat::new(&lhs[i * block * depth..], rows, depth, depth);
            matmul(MatMut::new(dst, rows, cols, cols), accumulate, T::ONE, lhs, rhs, Threads::One);
            epilogue(i * block, dst);
        });
    } else {
        matmul(MatMut::new(dst, rows, cols, cols), accumulate, T::ONE, Mat::new(lhs, rows, depth, depth), rhs, Threads::All);
        let block = (2 * GRAIN).div_ceil(cols);
        dst.par_chunks_mut(block * cols).enumerate().for_each(|(i, dst)| epilogue(i * block, dst));
    }
}

#[inline(always)]
fn add_bias<T: Real>(rows: &mut [T], bias: &[T]) {
    for row in rows.chunks_exact_mut(bias.len()) {
        for (y, b) in row.iter_mut().zip(bias) {
            *y += *b;
        }
    }
}

pub fn linear<T: Real>(params: &[T], layer: &Linear, rows: usize, x: &[T], y: &mut [T], accumulate: bool) {
    let weight = weight(params, layer).t();
    if !layer.has_bias() {
        return product(y, rows, layer.outputs, x, layer.inputs, weight, accumulate, |_, _| ());
    }
    let bias = &params[layer.bias..layer.bias + layer.outputs];
    product(y, rows, layer.outputs, x, layer.inputs, weight, accumulate, |_, y| simd(|| add_bias(y, bias)));
}

/// GELU, tanh approximation: `x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3))`.
#[inline(always)]
pub fn gelu<T: Real>(x: T) -> T {
    x * gelu_gate(x)
}

#[inline(always)]
fn gelu_gate<T: Real>(x: T) -> T {
    let inner = x * (T::from_f64(2.0 * 0.797_884_560_802_865_4) + T::from_f64(2.0 * 0.797_884_560_802_865_4 * 0.044_715) * x * x);
    inner.sigmoid()
}

/// Derivative of [`gelu`].
#[inline(always)]
pub fn gelu_derivative<T: Real>(x: T) -> T {
    let gate = gelu_gate(x);
    let slope = T::from_f64(2.0 * 0.797_884_560_802_865_4) + T::from_f64(6.0 * 0.797_884_560_802_865_4 * 0.044_715) * x * x;
    gate + x * gate * (T::ONE - gate) * slope
}

pub fn linear_gelu<T: Real>(params: &[T], layer: &Linear, rows: usize, x: &[T], pre: &mut [T], y: &mut [T]) {
    let cols = layer.outputs;
    let bias = &params[layer.bias..layer.bias + cols];
    let block = rows.div_ceil(rows.div_ceil(BLOCK_ROWS).max(1)).max(1);
    if rows > BLOCK_ROWS && cols * layer.inputs <= CACHED_WEIGHT {
        let blocks = pre[..rows * cols].par_chunks_mut(block * cols).zip(y[..rows * cols].par_chunks_mut(block * cols));
        blocks.enumerate().for_each(|(i, (pre, y))| {
            let rows = pre.len() / cols;
            let x = Mat::new(&x[i * block * layer.inputs..], rows, layer.inputs, layer.inputs);
            matmul(MatMut::new(pre, rows, cols, cols), false, T::ONE, x, weight(params, layer).t(), Threads::One);
            simd(|| bias_gelu(pre, y, bias));
        });
    } else {
        linear(params, layer, rows, x, pre, false);
        let blocks = pre[..rows * cols].par_chunks(block * cols).zip(y[..rows * cols].par_chunks_mut(block * cols));
        blocks.for_each(|(pre, y)| simd(|| pre.iter().zip(y).for_each(|(x, y)| *y = gelu(*x))));
    }
}

#[inline(always)]
fn bias_gelu<T: Real>(pre: &mut [T], y: &mut [T], bias: &[T]) {
    for (pre, y) in pre.chunks_exact_mut(bias.len()).zip(y.chunks_exact_mut(bias.len())) {
        for ((pre, y), b) in pre.iter_mut().zip(y).zip(bias) {
            let value = *pre + *b;
            *pre = value;
            *y = gelu(value);
        }
    }
}

pub fn linear_backward_input<T: Real>(params: &[T], layer: &Linear, rows: usize, dy: &[T], dx: &mut [T], accumulate: bool) {
    product(dx, rows, layer.inputs, dy, layer.outputs, weight(params, layer), accumulate, |_, _| ());
}

pub fn linear_backward_input_gelu<T: Real>(params: &[T], layer: &Linear, rows: usize, dy: &[T], pre: &[T], d_pre: &mut [T]) {
    let cols = layer.inputs;
    product(d_pre, rows, cols, dy, layer.outputs, weight(params, layer), false, |first, d| {
        let pre = &pre[first * cols..first * cols + d.len()];
        simd(|| d.iter_mut().zip(pre).for_each(|(d, x)| *d *= gelu_derivative(*x)));
    });
}

pub fn linear_backward_weight<T: Real>(grads: &mut [T], layer: &Linear, rows: usize, x: &[T], dy: &[T]) {
    let (inputs, outputs) = (layer.inputs, layer.outputs);
    let (x, dy) = (&x[..rows * inputs], &dy[..rows * outputs]);
    let dw = &mut grads[layer.weight..layer.weight + inputs * outputs];
    let x = Mat::new(x, rows, inputs, inputs);
    let transposed = Mat::new(dy, rows, outputs, outputs).t();
    matmul(MatMut::new(dw, outputs, inputs, inputs), true, T::ONE, transposed, x, Threads::All);
    if layer.has_bias() {
        column_sums(dy, outputs, &mut grads[layer.bias..layer.bias + outputs]);
    }
}

/// `sums[j] += sum_i rows[i, j]`, columns in parallel, rows in order.
pub fn column_sums<T: Real>(rows: &[T], cols: usize, sums: &mut [T]) {
    const BLOCK: usize = 64;
    sums.par_chunks_mut(BLOCK).enumerate().for_each(|(i, sums)| {
        simd(|| {
            let mut total = [T::ZERO; BLOCK];
            for row in rows.chunks_exact(cols) {
                for (t, v) in total.iter_mut().zip(&row[i * BLOCK..i * BLOCK + sums.len()]) {
                    *t += *v;
                }
            }
            sums.iter_mut().zip(total).for_each(|(s, t)| *s += t);
        });
    });
}

/// Two disjoint parts of a slice.
pub fn two_parts<T>(slice: &mut [T], a: std::ops::Range<usize>, b: std::ops::Range<usize>) -> (&mut [T], &mut [T]) {
    if a.end <= b.start {
        let (low, high) = slice.split_at_mut(b.start);
        (&mut low[a], &mut high[..b.end - b.start])
    } else {
        assert!(b.end <= a.start, "parts {a:?} and {b:?} overlap");
        let (low, high) = slice.split_at_mut(a.start);
        (&mut high[..a.end - a.start], &mut low[b])
    }
}
