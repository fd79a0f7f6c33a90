//! Positional crop and timestep sinusoids.

use rayon::prelude::*;

use super::real::Real;
use super::simd;
use crate::model::FREQUENCIES;

/// Adds the centre crop of a stored positional grid `[max, max, hidden]` to every sample.
pub fn pos_embed<T: Real>(batch: usize, grid: (usize, usize), max: usize, pos: &[T], x: &mut [T]) {
    let (rows, columns) = grid;
    let hidden = pos.len() / (max * max);
    let (top, left) = ((max - rows) / 2, (max - columns) / 2);
    x[..batch * rows * columns * hidden].par_chunks_mut(columns * hidden).enumerate().for_each(|(i, x)| {
        let first = ((top + i % rows) * max + left) * hidden;
        simd(|| x.iter_mut().zip(&pos[first..first + columns * hidden]).for_each(|(x, p)| *x += *p));
    });
}

/// `[cos(1000 t f_i) | sin(1000 t f_i) | pooled]` with `f_i = 10000^(-i / half)`.
pub fn timestep_embedding<T: Real>(t: &[T], pooled: Option<&[T]>, out: &mut [T]) {
    let half = FREQUENCIES / 2;
    let width = pooled.map_or(0, |pooled| pooled.len() / t.len());
    // The angle reaches 1000 radians: in f32 it alone would cost 1e-5.
    let frequencies: Vec<f64> = (0..half).map(|i| 1000.0 * (-(10_000_f64.ln()) * i as f64 / half as f64).exp()).collect();
    for (b, row) in out[..t.len() * (FREQUENCIES + width)].chunks_exact_mut(FREQUENCIES + width).enumerate() {
        for (i, f) in frequencies.iter().enumerate() {
            let (sin, cos) = (t[b].to_f64() * f).sin_cos();
            row[i] = T::from_f64(cos);
            row[half + i] = T::from_f64(sin);
        }
        if let Some(pooled) = pooled {
            row[FREQUENCIES..].copy_from_slice(&pooled[b * width..(b + 1) * width]);
        }
    }
}
