//! Joint attention, `softmax(q k^T / sqrt(D)) v`, forward and backward, one task per (sample, head), query rows in
//! blocks so that the scores stay in the cache.
//!
//! Backward, with `P = exp(S - lse)` and `delta = rowsum(dO * O)`: `dV = P^T dO`, `dS = P (dO V^T - delta)`,
//! `dQ = dS K / sqrt(D)`, `dK = dS^T Q / sqrt(D)`.

use rayon::prelude::*;

use super::matmul::{Mat, MatMut, Threads, matmul};
use super::real::Real;
use super::{reduce, simd};
use crate::device::AttentionShape;

const BLOCK_QUERIES: usize = 64;

/// Rows of one stream inside the joint sequence.
struct Streams<'a, T> {
    image: Option<&'a [T]>,
    text: Option<&'a [T]>,
    shape: AttentionShape,
}

impl<T: Real> Streams<'_, T> {
    /// Copies the rows of one head, `[queries, D]`; zeros where a stream is absent.
    fn gather(&self, b: usize, head: usize, out: &mut [T]) {
        let AttentionShape { heads, head_dim: d, image, text, .. } = self.shape;
        for (s, out) in out.chunks_exact_mut(d).enumerate() {
            let (stream, tokens, token) = if s < image { (self.image, image, s) } else { (self.text, text, s - image) };
            match stream {
                Some(rows) => out.copy_from_slice(&rows[((b * tokens + token) * heads + head) * d..][..d]),
                None => out.fill(T::ZERO),
            }
        }
    }
}

pub fn attention<T: Real>(
    shape: &AttentionShape,
    qkv: [&[T]; 3],
    out_image: &mut [T],
    out_text: Option<&mut [T]>,
    lse: &mut [T],
    joint: &mut [T],
) {
    let AttentionShape { batch, heads, head_dim: d, image, text, .. } = *shape;
    let (keys, queries) = (shape.keys(), shape.queries());
    let scale = T::ONE / T::from_f64(d as f64).sqrt();
    let tasks = joint[..batch * heads * queries * d].par_chunks_mut(queries * d).zip(lse[..batch * heads * keys].par_chunks_mut(keys));
    tasks.enumerate().for_each_init(Vec::new, |scores, (task, (out, lse))| {
        let [q, k, v] = qkv.map(|x| &x[task * keys * d..][..keys * d]);
        let (k, v) = (Mat::new(k, keys, d, d), Mat::new(v, keys, d, d));
        for first in (0..queries).step_by(BLOCK_QUERIES) {
            let rows = BLOCK_QUERIES.min(queries - first);
            scores.resize(BLOCK_QUERIES * keys, T::ZERO);
            let scores = &mut scores[..rows * keys];
            let q = Mat::new(&q[first * d..], rows, d, d);
            matmul(MatMut::new(scores, rows, keys, keys), false, scale, q, k.t(), Threads::One);
            simd(|| softmax_rows(scores, keys, &mut lse[first..first + rows]));
            let out = &mut out[first * d..(first + rows) * d];
            matmul(MatMut::new(out, rows, d, d), false, T::ONE, Mat::new(scores, rows, keys, keys), v, Threads::One);
        }
    });
    scatter(joint, heads, d, queries, 0, image, &mut out_image[..batch * image * heads * d]);
    if let (Some(out_text), true) = (out_text, shape.text_queries) {
        scatter(joint, heads, d, queries, image, text, &mut out_text[..batch * text * heads * d]);
    }
}

/// Joint `[B, H, queries, D]` to the rows `[B, tokens, H D]` of the stream that begins at `start`.
fn scatter<T: Real>(joint: &[T], heads: usize, d: usize, queries: usize, start: usize, tokens: usize, out: &mut [T]) {
    if tokens == 0 {
        return;
    }
    out.par_chunks_mut(tokens * heads * d).enumerate().for_each(|(b, out)| {
        for (token, row) in out.chunks_exact_mut(heads * d).enumerate() {
            for (head, out) in row.chunks_exact_mut(d).enumerate() {
                out.copy_from_slice(&joint[((b * heads + head) * queries + start + token) * d..][..d]);
            }
        }
    });
}

#[inline(always)]
fn softmax_rows<T: Real>(scores: &mut [T], keys: usize, lse: &mut [T]) {
    for (row, lse) in scores.chunks_exact_mut(keys).zip(lse) {
        let max = row.iter().copied().fold(row[0], |a, b| if b > a { b } else { a });
        row.iter_mut().for_each(|s| *s = (*s - max).exp());
        let sum = reduce::sum(keys, |i| row[i]);
        let inverse = T::ONE / sum;
        row.iter_mut().for_each(|s| *s *= inverse);
        *lse = max + sum.ln();
    }
}

pub fn attention_backward<T: Real>(
    shape: &AttentionShape,
    qkv: [&[T]; 3],
    out: [Option<&[T]>; 2],
    lse: &[T],
    d_out: [Option<&[T]>; 2],
    d_qkv: [&mut [T]; 3],
) {
    let AttentionShape { batch, heads, head_dim: d, .. } = *shape;
    let (keys, queries) = (shape.keys(), shape.queries());
    let scale = T::ONE / T::from_f64(d as f64).sqrt();
    let out = Streams { image: out[0], text: out[1], shape: *shape };
    let d_out = Streams { image: d_out[0], text: d_out[1], shape: *shape };
    let [dq, dk, dv] = d_qkv.map(|x| x[..batch * heads * keys * d].par_chunks_mut(keys * d));
    dq.zip(dk).zip(dv).enumerate().for_each_init(Vec::new, |scratch: &mut Vec<T>, (task, ((dq, dk), dv))| {
        let (b, head) = (task / heads, task % heads);
        let [q, k, v] = qkv.map(|x| &x[task * keys * d..][..keys * d]);
        scratch.resize(2 * queries * d + queries + 2 * BLOCK_QUERIES * keys, T::ZERO);
        let (o, rest) = scratch.split_at_mut(queries * d);
        let (d_o, rest) = rest.split_at_mut(queries * d);
        let (delta, rest) = rest.split_at_mut(queries);
        let (p, ds) = rest.split_at_mut(BLOCK_QUERIES * keys);
        out.gather(b, head, o);
        d_out.gather(b, head, d_o);
        simd(|| {
            for (i, delta) in delta.iter_mut().enumerate() {
                let (o, d_o) = (&o[i * d..(i + 1) * d], &d_o[i * d..(i + 1) * d]);
                *delta = reduce::sum(d, |j| o[j] * d_o[j]);
            }
        });
        let (k, v) = (Mat::new(k, keys, d, d), Mat::new(v, keys, d, d));
        for first in (0..queries).step_by(BLOCK_QUERIES) {
            let rows = BLOCK_QUERIES.min(queries - first);
            let (p, ds) = (&mut p[..rows * keys], &mut ds[..rows * keys]);
            let q = Mat::new(&q[first * d..], rows, d, d);
            let d_o = Mat::new(&d_o[first * d..], rows, d, d);
            matmul(MatMut::new(p, rows, keys, keys), false, scale, q, k.t(), Threads::One);
            matmul(MatMut::new(ds, rows, keys, keys), false, T::ONE, d_o, v.t(), Threads::One);
            let lse = &lse[task * keys + first..][..rows];
            simd(|| probabilities(p, ds, keys, lse, &delta[first..first + rows], scale));
            let (p, ds) = (Mat::new(p, rows, keys, keys), Mat::new(ds, rows, keys, keys));
            let later = first > 0;
            matmul(MatMut::new(dv, keys, d, d), later, T::ONE, p.t(), d_o, Threads::One);
            matmul(MatMut::new(dk, keys, d, d), later, T::ONE, ds.t(), q, Threads::One);
            matmul(MatMut::new(&mut dq[first * d..], rows, d, d), false, T::ONE, ds, k, Threads::One);
        }
    });
}

/// Scores to probabilities, and `dP` to `dS / sqrt(D)`.
#[inline(always)]
fn probabilities<T: Real>(p: &mut [T], ds: &mut [T], keys: usize, lse: &[T], delta: &[T], scale: T) {
    let rows = p.chunks_exact_mut(keys).zip(ds.chunks_exact_mut(keys)).zip(lse.iter().zip(delta));
    for ((p, ds), (lse, delta)) in rows {
        for (p, ds) in p.iter_mut().zip(ds) {
            *p = (*p - *lse).exp();
            *ds = *p * (*ds - *delta) * scale;
        }
    }
}
