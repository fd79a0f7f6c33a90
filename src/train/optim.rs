//! Optimiser settings and learning-rate schedules.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Shape of the learning rate after its linear warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays at the base rate.
    Constant,
    /// Falls to zero on half a cosine.
    Cosine,
}

/// How the moments are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moments {
    /// Four bytes a weight each.
    Fp32,
    /// One byte a weight and two, rounded stochastically: see [`packed`](crate::device::packed).
    Packed,
}

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101) with clipping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimConfig {
    /// Base learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global gradient norm; larger gradients are scaled down to it.
    pub clip: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u32,
    /// What follows the warm-up.
    pub schedule: Schedule,
    /// How the moments are kept. The first is not where `beta1` is 0.
    pub moments: Moments,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            lr: 1e-5,
            beta1: 0.0,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.0,
            clip: 1.0,
            warmup_steps: 0,
            schedule: Schedule::Constant,
            moments: Moments::Fp32,
        }
    }
}

impl OptimConfig {
    /// Learning rate of step `step` (counted from 0) of `total`.
    pub fn lr_at(&self, step: u32, total: u32) -> f64 {
        if step < self.warmup_steps {
            return self.lr * f64::from(step + 1) / f64::from(self.warmup_steps);
        }
        match self.schedule {
            Schedule::Constant => self.lr,
            Schedule::Cosine => {
                let span = f64::from(total.saturating_sub(self.warmup_steps).max(1));
                let done = f64::from(step - self.warmup_steps) / span;
                self.lr * 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
            }
        }
    }

    /// Checks every number; `name` is the configuration section, for the message.
    ///
    /// # Errors
    /// Names the key and the value that is out of range.
    pub fn validate(&self, name: &str) -> Result<()> {
        let checks = [
            ("lr", self.lr, self.lr > 0.0),
            ("beta1", self.beta1, (0.0..1.0).contains(&self.beta1)),
            ("beta2", self.beta2, (0.0..1.0).contains(&self.beta2)),
            ("eps", self.eps, self.eps > 0.0),
            ("weight_decay", self.weight_decay, self.weight_decay >= 0.0),
            ("clip", self.clip, self.clip > 0.0),
        ];
        match checks.iter().find(|(_, value, ok)| !ok || !value.is_finite()) {
            Some((key, value, _)) => Err(Error::Config(format!("{name}.{key} = {value} is out of range"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_reaches_the_base_rate_and_the_cosine_ends_at_zero() {
        let optim = OptimConfig { lr: 2.0, warmup_steps: 4, schedule: Schedule::Cosine, ..Default::default() };
        assert_eq!(optim.lr_at(0, 104), 0.5);
        assert_eq!(optim.lr_at(3, 104), 2.0);
        assert_eq!(optim.lr_at(4, 104), 2.0);
        approx::assert_relative_eq!(optim.lr_at(54, 104), 1.0, epsilon = 1e-12);
        assert!(optim.lr_at(104, 104) < 1e-12);
    }
}
