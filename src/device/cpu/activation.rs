//! SiLU and leaky ReLU, forward and backward.

use rayon::prelude::*;

use super::real::Real;
use super::{GRAIN, simd};

/// Slope of the leaky ReLU below zero.
pub const LEAKY_SLOPE: f64 = 0.2;

pub fn silu<T: Real>(x: &[T], y: &mut [T]) {
    y.par_chunks_mut(GRAIN).zip(x.par_chunks(GRAIN)).for_each(|(y, x)| {
        simd(|| y.iter_mut().zip(x).for_each(|(y, x)| *y = *x * x.sigmoid()));
    });
}

pub fn silu_backward<T: Real>(x: &[T], dy: &[T], dx: &mut [T]) {
    dx.par_chunks_mut(GRAIN).zip(x.par_chunks(GRAIN)).zip(dy.par_chunks(GRAIN)).for_each(|((dx, x), dy)| {
        simd(|| {
            for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
                let gate = x.sigmoid();
                *dx = *dy * gate * (T::ONE + *x * (T::ONE - gate));
            }
        });
    });
}

/// Leaky ReLU of one value.
#[inline(always)]
pub fn leaky<T: Real>(x: T) -> T {
    if x > T::ZERO { x } else { x * T::from_f64(LEAKY_SLOPE) }
}

/// Derivative of the leaky ReLU.
#[inline(always)]
pub fn leaky_derivative<T: Real>(x: T) -> T {
    if x > T::ZERO { T::ONE } else { T::from_f64(LEAKY_SLOPE) }
}

pub fn leaky_relu<T: Real>(x: &[T], residual: Option<&[T]>, y: &mut [T]) {
    y.par_chunks_mut(GRAIN).enumerate().for_each(|(i, y)| {
        let part = i * GRAIN..i * GRAIN + y.len();
        let x = &x[part.clone()];
        simd(|| match residual {
            Some(residual) => y.iter_mut().zip(x).zip(&residual[part]).for_each(|((y, x), r)| *y = *r + leaky(*x)),
            None => y.iter_mut().zip(x).for_each(|(y, x)| *y = leaky(*x)),
        });
    });
}

pub fn leaky_relu_backward<T: Real>(x: &[T], dy: &[T], dx: &mut [T]) {
    dx.par_chunks_mut(GRAIN).zip(x.par_chunks(GRAIN)).zip(dy.par_chunks(GRAIN)).for_each(|((dx, x), dy)| {
        simd(|| dx.iter_mut().zip(x).zip(dy).for_each(|((dx, x), dy)| *dx = *dy * leaky_derivative(*x)));
    });
}
