//! The baselines beside LADD, on the same data, text, optimiser and renoise sampler: adversarial diffusion distillation (ADD,
//! arXiv 2311.17042), its score distillation alone, latent consistency distillation (LCM, arXiv 2310.04378, after consistency
//! models, arXiv 2303.01469), and plain regression. All are the LADD step with another target in `c mean (x̂0 - target)^2`,
//! with or without the adversarial loss.

use serde::{Deserialize, Serialize};

use crate::flow::{MAX_DISCRETE, TimestepDistribution};
use crate::{Error, Result};

/// What a student is trained by (`distill.method`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Latent adversarial diffusion distillation.
    #[default]
    Ladd,
    /// The adversarial loss, and the frozen teacher's prediction from the student's renoised sample as a target.
    Add,
    /// That target alone, no adversary.
    Score,
    /// Consistency along the teacher's guided flow.
    Lcm,
    /// The real latent as the target, no adversary.
    Regression,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Ladd, Self::Add, Self::Score, Self::Lcm, Self::Regression];

    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ladd => "ladd",
            Self::Add => "add",
            Self::Score => "score",
            Self::Lcm => "lcm",
            Self::Regression => "regression",
        }
    }

    /// The name in tables and pictures.
    pub fn title(self) -> &'static str {
        match self {
            Self::Ladd => "LADD",
            Self::Add => "ADD",
            Self::Score => "score distillation",
            Self::Lcm => "LCM",
            Self::Regression => "regression",
        }
    }
}

/// The weight `c(t')` of ADD's distillation loss; `α = 1 - t'` and `σ = t'` on the straight path of rectified flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// `c = α = 1 - t'`: the noisier the renoised sample, the less the teacher's answer counts (ADD, section 3.3).
    #[default]
    Exponential,
    /// `c = α w / (2 σ)` with `w = σ^2`, that is `t' (1 - t') / 2`: the gradient is that of score distillation sampling
    /// (arXiv 2209.14988).
    Sds,
    /// `c = 1`.
    Constant,
}

impl Weighting {
    /// `c(t')`.
    pub fn at(self, t: f64) -> f64 {
        match self {
            Self::Exponential => 1.0 - t,
            Self::Sds => t * (1.0 - t) / 2.0,
            Self::Constant => 1.0,
        }
    }
}

/// Section `[add]`: the distillation loss of ADD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AddConfig {
    /// Its weight beside the adversarial loss.
    pub weight: f32,
    /// The weight `c(t')` of each time.
    pub weighting: Weighting,
    /// How the time `t'` is drawn to which the student's sample is renoised.
    pub t: TimestepDistribution,
    /// Guidance scale of the teacher's answer; 1 is unguided, 0 means `synthesize.guidance`.
    pub teacher_guidance: f32,
}

impl Default for AddConfig {
    fn default() -> Self {
        Self { weight: 2.5, weighting: Weighting::Exponential, t: TimestepDistribution::Uniform, teacher_guidance: 0.0 }
    }
}

impl AddConfig {
    /// Checks every number.
    ///
    /// # Errors
    /// Names the key and the value that is out of range.
    pub fn validate(&self) -> Result<()> {
        self.t.validate("add.t")?;
        if !(self.weight > 0.0 && self.weight.is_finite()) {
            return Err(Error::Config(format!("add.weight = {} must be a finite number above zero", self.weight)));
        }
        check_guidance("add.teacher_guidance", self.teacher_guidance)
    }
}

/// Section `[lcm]`: consistency distillation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LcmConfig {
    /// Into how many intervals of equal length the flow is cut; the teacher's solver crosses one in a step.
    pub intervals: usize,
    /// Guidance scale of the teacher's step; 1 is unguided, 0 means `synthesize.guidance`.
    pub teacher_guidance: f32,
}

impl Default for LcmConfig {
    fn default() -> Self {
        Self { intervals: MAX_DISCRETE, teacher_guidance: 0.0 }
    }
}

impl LcmConfig {
    /// Checks every number.
    ///
    /// # Errors
    /// Names the key and the value that is out of range.
    pub fn validate(&self) -> Result<()> {
        if !(2..=MAX_DISCRETE).contains(&self.intervals) {
            return Err(Error::Config(format!("lcm.intervals = {} must be between 2 and {MAX_DISCRETE}", self.intervals)));
        }
        check_guidance("lcm.teacher_guidance", self.teacher_guidance)
    }
}

fn check_guidance(key: &str, value: f32) -> Result<()> {
    if (0.0..=100.0).contains(&value) { Ok(()) } else { Err(Error::Config(format!("{key} = {value} is out of range"))) }
}

/// What the student's prediction is compared with, where it is not the real latent.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// `x̂0 = x_t' - t' v̂` of the guided teacher at `x_t' = (1 - t') x̂0 + t' ε'`, no gradient going through either.
    Score {
        /// Weight of the loss.
        weight: f32,
        /// Its part that depends on `t'`.
        weighting: Weighting,
        /// How `t'` is drawn.
        t: TimestepDistribution,
        /// Guidance scale.
        guidance: f32,
    },
    /// `f(x_s, s) = x_s - s v̂` of the student's moving average, where `x_s = x_t + (s - t) v̂` is one Euler step of the guided
    /// teacher from `t = n / intervals` to `s = (n - 1) / intervals`.
    Consistency {
        /// Number of intervals of the flow.
        intervals: usize,
        /// Guidance scale.
        guidance: f32,
    },
}

impl Target {
    /// Guidance scale of the teacher.
    pub fn guidance(&self) -> f32 {
        match self {
            Self::Score { guidance, .. } | Self::Consistency { guidance, .. } => *guidance,
        }
    }

    /// Whether the teacher is asked without the prompt, too.
    pub fn guided(&self) -> bool {
        self.guidance() != 1.0
    }

    /// The times of the student that the target prescribes: `n / intervals`, for each n from 1, alike likely.
    pub fn student_t(&self) -> Option<TimestepDistribution> {
        match self {
            Self::Score { .. } => None,
            Self::Consistency { intervals, .. } => Some(grid(*intervals, 1)),
        }
    }
}

/// `n / intervals` for each of `intervals` n from `first`, all alike likely: the same draw picks the same place in two of them.
pub(super) fn grid(intervals: usize, first: usize) -> TimestepDistribution {
    let at = |i: usize| ((first + i) as f64 / intervals as f64) as f32;
    TimestepDistribution::Discrete {
        values: (0..intervals).map(at).collect(),
        probs: vec![1.0 / intervals as f32; intervals],
        warmup_probs: vec![],
        warmup_steps: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_add_by_hand() {
        for (weighting, quarter, half) in
            [(Weighting::Exponential, 0.75, 0.5), (Weighting::Sds, 0.09375, 0.125), (Weighting::Constant, 1.0, 1.0)]
        {
            assert_eq!((weighting.at(0.25), weighting.at(0.5)), (quarter, half), "{weighting:?}");
        }
        assert_eq!(Weighting::Exponential.at(1.0), 0.0, "pure noise says nothing");
    }

    #[test]
    fn both_grids_are_one_interval_apart() {
        let values = |first| match grid(16, first) {
            TimestepDistribution::Discrete { values, probs, .. } => {
                assert_eq!(probs.iter().sum::<f32>(), 1.0);
                values
            }
            other => panic!("{other:?}"),
        };
        let (later, earlier) = (values(1), values(0));
        assert_eq!((later[15], earlier[0]), (1.0, 0.0));
        assert!(later.iter().zip(&earlier).all(|(t, s)| t - s == 1.0 / 16.0));
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        let says = |result: Result<()>, what: &str| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        says(LcmConfig { intervals: 1, ..LcmConfig::default() }.validate(), "lcm.intervals = 1 must be between 2 and 16");
        says(LcmConfig { teacher_guidance: f32::NAN, ..LcmConfig::default() }.validate(), "lcm.teacher_guidance");
        says(AddConfig { weight: 0.0, ..AddConfig::default() }.validate(), "add.weight = 0");
        says(AddConfig { teacher_guidance: -1.0, ..AddConfig::default() }.validate(), "add.teacher_guidance = -1");
    }
}
