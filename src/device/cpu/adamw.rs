//! Global norm, and AdamW with clipping, moving average and cast in one pass over the arena.

use rayon::prelude::*;

use super::Cpu;
use super::real::Real;
use super::{GRAIN, reduce, simd};
use crate::device::packed::{PACK_BLOCK, Packing};
use crate::device::{AdamwShape, Moment, StepValues};
use crate::flow::philox::{block, stream};

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
    pub moment1: Option<Kept<'a, T>>,
    pub moment2: Kept<'a, T>,
    pub ema: Option<&'a mut [T]>,
    pub counters: &'a mut [T],
}

/// A moment, or a task's part of it.
pub enum Kept<'a, T> {
    Full(&'a mut [T]),
    Packed { codes: &'a mut [u8], scales: &'a mut [T] },
}

impl<'a, T: Real> Kept<'a, T> {
    pub fn of(moment: &'a mut Moment<Cpu<T>>) -> Self {
        match moment {
            Moment::Full(values) => Self::Full(values),
            Moment::Packed { codes, scales } => Self::Packed { codes, scales },
        }
    }

    fn is_packed(&self) -> bool {
        matches!(self, Self::Packed { .. })
    }

    fn parts(self, packing: Packing) -> Vec<Self> {
        match self {
            Self::Full(values) => values.chunks_mut(GRAIN).map(Self::Full).collect(),
            Self::Packed { codes, scales } => {
                let parts = codes.chunks_mut(GRAIN * packing.bytes()).zip(scales.chunks_mut(GRAIN / PACK_BLOCK));
                parts.map(|(codes, scales)| Self::Packed { codes, scales }).collect()
            }
        }
    }

    /// The values, unpacked into `room` where they must be. A second moment is kept as its root.
    fn open<'r>(&'r mut self, packing: Packing, room: &'r mut Vec<T>) -> &'r mut [T] {
        let (codes, scales) = match self {
            Self::Full(values) => return values,
            Self::Packed { codes, scales } => (codes, scales),
        };
        for (codes, scale) in codes.chunks(PACK_BLOCK * packing.bytes()).zip(scales.iter()) {
            let factor = T::from_f32(packing.unpack_factor(scale.to_f32()));
            let number = |i: usize| T::from_f32(packing.decode(packing.read(codes, i))) * factor;
            let squared = |root: T| if packing == Packing::UNSIGNED { root * root } else { root };
            room.extend((0..codes.len() / packing.bytes()).map(|i| squared(number(i))));
        }
        room
    }

    /// Packs what `open` unpacked; `random(i)` gives sixteen bits for value i.
    fn close(&mut self, packing: Packing, room: &[T], random: impl Fn(usize) -> u32) {
        let Self::Packed { codes, scales } = self else { return };
        let rooted = |value: T| if packing == Packing::UNSIGNED { value.sqrt().to_f32() } else { value.to_f32() };
        let blocks = codes.chunks_mut(PACK_BLOCK * packing.bytes()).zip(scales.iter_mut()).zip(room.chunks(PACK_BLOCK));
        for (block, ((codes, scale), values)) in blocks.enumerate() {
            let largest = values.iter().map(|value| rooted(*value).abs()).fold(0.0, f32::max);
            let factor = packing.pack_factor(largest);
            *scale = T::from_f32(if factor > 0.0 { largest } else { 0.0 });
            for (i, value) in values.iter().enumerate() {
                packing.write(codes, i, packing.encode(rooted(*value) * factor, random(block * PACK_BLOCK + i)));
            }
        }
    }
}

/// What one task updates.
struct Part<'a, T> {
    /// Index of its first weight.
    first: u64,
    params: &'a mut [T],
    master: &'a mut [T],
    moment1: Option<Kept<'a, T>>,
    moment2: Kept<'a, T>,
    ema: Option<&'a mut [T]>,
    grads: &'a [T],
}

fn parts<'a, T: Real>(state: State<'a, T>, grads: &'a [T]) -> Vec<Part<'a, T>> {
    let State { params, master, moment1, moment2, ema, .. } = state;
    let mut moment1 = moment1.map(|moment| moment.parts(Packing::SIGNED).into_iter());
    let mut ema = ema.map(|arena| arena.chunks_mut(GRAIN));
    let all = params.chunks_mut(GRAIN).zip(master.chunks_mut(GRAIN)).zip(moment2.parts(Packing::UNSIGNED)).zip(grads.chunks(GRAIN));
    let part = |(i, (((params, master), moment2), grads))| {
        let (moment1, ema) = (moment1.as_mut().and_then(Iterator::next), ema.as_mut().and_then(Iterator::next));
        Part { first: (i * GRAIN) as u64, params, master, moment1, moment2, ema, grads }
    };
    all.enumerate().map(part).collect()
}

/// `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`, `p -= lr (m̂ / (sqrt(v̂) + eps) + decay p)`, as `torch.optim.AdamW`;
/// the moving average follows with `min(decay, (1 + n) / (10 + n))` after `n` updates. Packed moments are unpacked for it.
pub fn adamw<T: Real>(step: &StepValues, shape: &AdamwShape, grads: &[T], norm: T, state: State<'_, T>) {
    assert!(state.moment1.is_some() || shape.beta1 == 0.0, "AdamW without a first moment, and beta1 = {}", shape.beta1);
    let same = state.moment1.as_ref().is_none_or(|moment| moment.is_packed() == state.moment2.is_packed());
    assert!(same, "one moment is packed, the other is not");
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
    let moved = |w: T, m: T, v: T| w * keep - rate * m / (v.sqrt() * root + eps);
    let update = |part: Part<'_, T>| {
        let Part { first, params, master, mut moment1, mut moment2, ema, grads } = part;
        let (mut room1, mut room2) = (Vec::new(), Vec::new());
        let opened2 = moment2.open(Packing::UNSIGNED, &mut room2);
        let weights = params.iter_mut().zip(master).zip(opened2).zip(grads);
        let second = |v: T, g: T| b2 * v + c2 * g * g;
        match &mut moment1 {
            Some(moment1) => weights.zip(moment1.open(Packing::SIGNED, &mut room1)).for_each(|((((p, w), v), g), m)| {
                let g = *g * clip;
                *m = b1 * *m + c1 * g;
                *v = second(*v, g);
                *w = moved(*w, *m, *v);
                *p = *w;
            }),
            None => weights.for_each(|(((p, w), v), g)| {
                let g = *g * clip;
                *v = second(*v, g);
                *w = moved(*w, g, *v);
                *p = *w;
            }),
        }
        if let Some(ema) = ema {
            ema.iter_mut().zip(params.iter()).for_each(|(e, w)| *e += follow * (*w - *e));
        }
        // The low half of a weight's random word rounds the first moment, the high half the second.
        let word = |i: usize| {
            let element = first + i as u64;
            block(step.seed, step.step, stream::MOMENTS + shape.lr_index as u32, element / 4)[(element % 4) as usize]
        };
        if let Some(moment1) = &mut moment1 {
            moment1.close(Packing::SIGNED, &room1, |i| word(i) & 0xffff);
        }
        moment2.close(Packing::UNSIGNED, &room2, |i| word(i) >> 16);
    };
    parts(state, grads).into_par_iter().for_each(|part| simd(|| update(part)));
}
