//! The losses: both adversarial ones with their gradients and statistics in one pass, and the mean squared error.

use rayon::prelude::*;

use super::real::Real;
use super::reduce;
use crate::device::{HINGE_STATS, HingeShape, HingeStat};
use crate::ladd::AdversarialLoss;

/// A loss term at one logit: value and derivative.
#[derive(Clone, Copy)]
struct Term {
    value: f64,
    slope: f64,
}

impl AdversarialLoss {
    /// What the discriminator pays for a logit of a real sample (`sign = 1`) or of a fake one (`sign = -1`).
    fn discriminator(self, logit: f64, sign: f64) -> Term {
        let margin = sign * logit;
        match self {
            Self::Hinge if margin < 1.0 => Term { value: 1.0 - margin, slope: -sign },
            Self::Hinge => Term { value: 0.0, slope: 0.0 },
            Self::NonSaturating => Term { value: (-margin).softplus(), slope: -sign * (-margin).sigmoid() },
        }
    }

    /// What the student pays for a logit of its own sample.
    fn generator(self, logit: f64) -> Term {
        match self {
            Self::Hinge => Term { value: -logit, slope: -1.0 },
            Self::NonSaturating => Term { value: (-logit).softplus(), slope: -(-logit).sigmoid() },
        }
    }
}

pub fn hinge<T: Real>(shape: &HingeShape, logits: &[T], d_d: Option<&mut [T]>, d_g: Option<&mut [T]>, stats: &mut [T]) {
    let HingeShape { loss, heads, groups, batch, positions, .. } = *shape;
    let per_group = batch * positions;
    let per_head = groups.count() * per_group;
    // The gradients are those of a mean over heads, samples and positions; the statistics are means of one head.
    let share = f64::from(shape.share) / per_group as f64;
    let weight = share / heads as f64;
    let (w_mismatch, w_r1) = (f64::from(shape.mismatch_weight), f64::from(shape.r1_weight));
    let w_generator = f64::from(shape.generator_weight);
    let mut d_d = d_d.map(|d| d[..heads * per_head].chunks_mut(per_head));
    let mut d_g = d_g.map(|d| d[..heads * per_group].chunks_mut(per_group));
    let tasks: Vec<_> = stats[..heads * HINGE_STATS]
        .chunks_mut(HINGE_STATS)
        .map(|stats| (stats, d_d.as_mut().and_then(Iterator::next), d_g.as_mut().and_then(Iterator::next)))
        .collect();
    tasks.into_par_iter().enumerate().for_each(|(head, (stats, mut d_d, d_g))| {
        let logits = &logits[head * per_head..][..per_head];
        let group = |index: usize| &logits[index * per_group..][..per_group];
        let at = |index: usize, i: usize| group(index)[i].to_f64();
        let mut add = |stat: HingeStat, value: f64| stats[stat as usize] += T::from_f64(share * value);
        let mut loss_d = reduce::sum_f64(per_group, |i| loss.discriminator(at(0, i), -1.0).value);
        add(HingeStat::LossG, reduce::sum_f64(per_group, |i| loss.generator(at(0, i)).value));
        add(HingeStat::MeanFake, reduce::sum_f64(per_group, |i| at(0, i)));
        add(HingeStat::AccuracyFake, reduce::sum_f64(per_group, |i| f64::from(u8::from(at(0, i) < 0.0))));
        if groups.real {
            loss_d += reduce::sum_f64(per_group, |i| loss.discriminator(at(1, i), 1.0).value);
            add(HingeStat::MeanReal, reduce::sum_f64(per_group, |i| at(1, i)));
            add(HingeStat::AccuracyReal, reduce::sum_f64(per_group, |i| f64::from(u8::from(at(1, i) > 0.0))));
        }
        if let Some(index) = groups.mismatch_index() {
            loss_d += w_mismatch * reduce::sum_f64(per_group, |i| loss.discriminator(at(index, i), -1.0).value);
        }
        if let Some(index) = groups.perturbed_index() {
            let penalty = reduce::sum_f64(per_group, |i| (at(1, i) - at(index, i)).powi(2));
            loss_d += w_r1 * penalty;
            add(HingeStat::PenaltyR1, penalty);
        }
        add(HingeStat::LossD, loss_d);
        if let Some(d) = &mut d_d {
            let mut set = |index: usize, slope: &dyn Fn(usize) -> f64| {
                for (i, d) in d[index * per_group..][..per_group].iter_mut().enumerate() {
                    *d = T::from_f64(weight * slope(i));
                }
            };
            let pull = |i: usize| groups.perturbed_index().map_or(0.0, |index| 2.0 * w_r1 * (at(1, i) - at(index, i)));
            set(0, &|i| loss.discriminator(at(0, i), -1.0).slope);
            if groups.real {
                set(1, &|i| loss.discriminator(at(1, i), 1.0).slope + pull(i));
            }
            if let Some(index) = groups.mismatch_index() {
                set(index, &|i| w_mismatch * loss.discriminator(at(index, i), -1.0).slope);
            }
            if let Some(index) = groups.perturbed_index() {
                set(index, &|i| -pull(i));
            }
        }
        if let Some(d) = d_g {
            d.iter_mut().enumerate().for_each(|(i, d)| *d = T::from_f64(w_generator * weight * loss.generator(at(0, i)).slope));
        }
    });
}

pub fn mse<T: Real>(a: &[T], b: &[T], share: f32, weight: f32, d_a: Option<&mut [T]>, loss: &mut [T]) {
    let share = f64::from(share) / a.len() as f64;
    let total = reduce::sum_f64(a.len(), |i| (a[i].to_f64() - b[i].to_f64()).powi(2));
    loss[0] += T::from_f64(share * total);
    if let Some(d_a) = d_a {
        let factor = T::from_f64(2.0 * f64::from(weight) * share);
        d_a.iter_mut().zip(a).zip(b).for_each(|((d, a), b)| *d = factor * (*a - *b));
    }
}
