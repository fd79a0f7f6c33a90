//! Distributions of the diffusion time `t` in [0, 1]; `t = 1` is pure noise.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How a step draws `t` (for the student) or `t̂` (for the discriminator). Drawn on the device, from Philox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TimestepDistribution {
    /// One of `values` with probability `probs`; `warmup_probs` while `step < warmup_steps` (LADD, section 4).
    Discrete {
        /// The times.
        values: Vec<f32>,
        /// Their probabilities; must sum to one.
        probs: Vec<f32>,
        /// Their probabilities during the warm-up phase; must sum to one. Empty: the same as `probs`.
        #[serde(default)]
        warmup_probs: Vec<f32>,
        /// Length of the warm-up phase in steps.
        #[serde(default)]
        warmup_steps: u32,
    },
    /// `sigmoid(mean + std * n)`, `n ~ N(0, 1)`, clamped to [0.001, 0.999] (SD3, equation 19).
    LogitNormal {
        /// Location: larger means noisier.
        mean: f32,
        /// Scale.
        std: f32,
    },
    /// Uniform in (0, 1).
    Uniform,
    /// Uniform `u` mapped by SD3's resolution shift: `shift u / (1 + (shift - 1) u)`.
    Shifted {
        /// The shift; 1 is uniform.
        shift: f32,
    },
}

impl TimestepDistribution {
    /// Checks the numbers; `name` is the configuration key, for the message.
    ///
    /// # Errors
    /// Names the key and the value that is out of range.
    pub fn validate(&self, name: &str) -> Result<()> {
        let fail = |what: String| Err(Error::Config(format!("{name}: {what}")));
        match self {
            Self::Discrete { values, probs, warmup_probs, .. } => {
                if values.is_empty() || values.len() > MAX_DISCRETE {
                    return fail(format!("values must hold 1 to {MAX_DISCRETE} times, not {}", values.len()));
                }
                if let Some(bad) = values.iter().find(|t| !(0.0 < **t && **t <= 1.0)) {
                    return fail(format!("the time {bad} is not in (0, 1]"));
                }
                for (key, p) in [("probs", probs), ("warmup_probs", warmup_probs)] {
                    if key == "warmup_probs" && p.is_empty() {
                        continue;
                    }
                    if p.len() != values.len() {
                        return fail(format!("{key} holds {} numbers for {} values", p.len(), values.len()));
                    }
                    let sum: f32 = p.iter().sum();
                    if p.iter().any(|p| !(0.0..=1.0).contains(p)) || (sum - 1.0).abs() > 1e-3 {
                        return fail(format!("{key} = {p:?} must be probabilities that sum to 1 (they sum to {sum})"));
                    }
                }
                Ok(())
            }
            Self::LogitNormal { mean, std } if !(mean.is_finite() && std.is_finite() && *std > 0.0) => {
                fail(format!("logit_normal needs a finite mean and a positive std, not mean = {mean}, std = {std}"))
            }
            Self::Shifted { shift } if !(*shift > 0.0 && shift.is_finite()) => fail(format!("shift = {shift} must be positive")),
            _ => Ok(()),
        }
    }
}

/// Most times a discrete distribution may name: the kernels keep the table in registers.
pub const MAX_DISCRETE: usize = 16;
