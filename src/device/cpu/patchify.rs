//! Latents to tokens and back: two permutations, each the other's adjoint.

use rayon::prelude::*;

use super::real::Real;
use crate::device::{PatchOrder, PatchShape};

/// Calls `visit(token index, latent index)` for every value of one sample, in token order.
fn walk(shape: &PatchShape, mut visit: impl FnMut(usize, usize)) {
    let PatchShape { channels, height, width, patch: p, order, .. } = *shape;
    let mut token = 0;
    for top in (0..height).step_by(p) {
        for left in (0..width).step_by(p) {
            for outer in 0..channels * p * p {
                let (c, dy, dx) = match order {
                    PatchOrder::ChannelFirst => (outer / (p * p), outer / p % p, outer % p),
                    PatchOrder::ChannelLast => (outer % channels, outer / channels / p, outer / channels % p),
                };
                visit(token, (c * height + top + dy) * width + left + dx);
                token += 1;
            }
        }
    }
}

fn numel(shape: &PatchShape) -> usize {
    shape.channels * shape.height * shape.width
}

pub fn patchify<T: Real>(shape: &PatchShape, latent: &[T], tokens: &mut [T]) {
    let n = numel(shape);
    tokens[..shape.batch * n].par_chunks_mut(n).zip(latent.par_chunks(n)).for_each(|(tokens, latent)| {
        walk(shape, |token, at| tokens[token] = latent[at]);
    });
}

pub fn unpatchify<T: Real>(shape: &PatchShape, tokens: &[T], latent: &mut [T]) {
    let n = numel(shape);
    latent[..shape.batch * n].par_chunks_mut(n).zip(tokens.par_chunks(n)).for_each(|(latent, tokens)| {
        walk(shape, |token, at| latent[at] = tokens[token]);
    });
}
