//! Products in FP8: rows quantised to e4m3 with a scale each, and the dense layer over two such matrices.

use rayon::prelude::*;

use super::linear::gelu;
use super::matmul::{Mat, MatMut, Threads, matmul};
use super::real::Real;
use super::{GRAIN, simd};
use crate::device::e4m3::{decode, encode, factor_and_scale};
use crate::device::{Linear, QuantizeShape};

/// `codes = e4m3(f(x) 448 / m)`, `scales = m / 448` with `m` the row's largest `|f(x)|`; `f` is GELU or nothing.
pub fn quantize_rows<T: Real>(shape: &QuantizeShape, x: &[T], codes: &mut [u8], scales: &mut [T]) {
    let QuantizeShape { rows, width, gelu: through_gelu } = *shape;
    if rows * width == 0 {
        return;
    }
    let value = |x: &T| if through_gelu { gelu(*x).to_f32() } else { x.to_f32() };
    let block = GRAIN.div_ceil(width);
    let blocks = codes[..rows * width].par_chunks_mut(block * width).zip(scales[..rows].par_chunks_mut(block));
    blocks.zip(x[..rows * width].par_chunks(block * width)).for_each(|((codes, scales), x)| {
        let mut values = vec![0.0; width];
        for ((codes, scale), x) in codes.chunks_exact_mut(width).zip(scales).zip(x.chunks_exact(width)) {
            simd(|| values.iter_mut().zip(x).for_each(|(v, x)| *v = value(x)));
            let largest = values.iter().fold(0.0_f32, |largest, v| largest.max(v.abs()));
            let (factor, of_row) = factor_and_scale(largest);
            codes.iter_mut().zip(&values).for_each(|(code, v)| *code = encode(v * factor));
            *scale = T::from_f32(of_row);
        }
    });
}

/// A matrix in e4m3: codes and the scale of every row.
pub type Fp8<'a, T> = (&'a [u8], &'a [T]);

/// `y = (X W^T) s_x s_w + b` over the numbers of the codes; `room` holds them, `(rows + outputs) inputs` values.
pub fn linear_fp8<T: Real>(params: &[T], layer: &Linear, rows: usize, x: Fp8<'_, T>, weight: Fp8<'_, T>, y: &mut [T], room: &mut [T]) {
    let Linear { inputs, outputs, .. } = *layer;
    let numbers: [T; 256] = std::array::from_fn(|code| T::from_f32(decode(code as u8)));
    let (left, right) = room.split_at_mut(rows * inputs);
    for (codes, values) in [(x.0, &mut *left), (weight.0, &mut *right)] {
        let parts = values.par_chunks_mut(GRAIN).zip(codes[..].par_chunks(GRAIN));
        parts.for_each(|(values, codes)| values.iter_mut().zip(codes).for_each(|(v, code)| *v = numbers[usize::from(*code)]));
    }
    let y = &mut y[..rows * outputs];
    let (left, right) = (Mat::new(left, rows, inputs, inputs), Mat::new(right, outputs, inputs, inputs));
    matmul(MatMut::new(y, rows, outputs, outputs), false, T::ONE, left, right.t(), Threads::All);
    let bias = &params[layer.bias..layer.bias + outputs];
    y.par_chunks_mut(outputs).zip(x.1).for_each(|(y, row_scale)| {
        y.iter_mut().zip(weight.1).zip(bias).for_each(|((y, scale), bias)| *y = *y * (*row_scale * *scale) + *bias);
    });
}
