//! The knobs of LADD, with the defaults of the method.

use serde::{Deserialize, Serialize};

use crate::flow::TimestepDistribution;
use crate::ladd::Target;
use crate::{Error, Result};

/// How the student and the heads take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Update {
    /// One student forward and one teacher forward serve both gradients: 6 forward-equivalents a step.
    Simultaneous,
    /// The student first, then the heads on fresh draws from the updated student: 8 forward-equivalents.
    Alternating,
}

/// The adversarial loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdversarialLoss {
    /// `L_D = mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake))`, `L_G = -mean D(fake)`.
    Hinge,
    /// `L_D = mean softplus(-D(real)) + mean softplus(D(fake))`, `L_G = mean softplus(-D(fake))`.
    NonSaturating,
}

/// What the frozen teacher's products are computed in while it judges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TeacherPrecision {
    /// The device's own: bf16, on the processor fp32.
    #[default]
    Bf16,
    /// The forward's products of the blocks in e4m3, with a scale for each row.
    Fp8,
}

/// The LADD step (section `[ladd]` of the configuration).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LaddConfig {
    /// Whether both networks are updated from one forward.
    pub update: Update,
    /// The adversarial loss.
    pub loss: AdversarialLoss,
    /// How the student's `t` is drawn.
    pub student_t: TimestepDistribution,
    /// How the discriminator's `t̂` is drawn: high times judge structure, low times texture.
    pub renoise_t: TimestepDistribution,
    /// Which blocks feed a head, counted from 0; empty means every block.
    pub taps: Vec<usize>,
    /// Channels inside a head.
    pub head_width: usize,
    /// Weight of the approximate R1 penalty, `lambda * mean (D(real) - D(real + sigma n))^2`; 0 turns it off.
    pub r1_weight: f32,
    /// Sigma of the perturbation in the approximate R1 penalty.
    pub r1_sigma: f32,
    /// Weight of real latents with another sample's prompt as additional fakes; 0 turns them off.
    pub mismatch_weight: f32,
    /// Weight of `mean (x̂0 - x0)^2` in the student's loss; 0 turns it off (the method uses none on synthetic data).
    pub distillation_weight: f32,
    /// Weight of the adversarial loss in the student's loss; 0 leaves a plain regression (the control experiment).
    pub adversarial_weight: f32,
    /// Precision of the teacher's forward.
    pub teacher_precision: TeacherPrecision,
    /// What takes the real latent's place in the distillation loss: none in LADD, a baseline's otherwise. Comes from
    /// `distill.method`, with the weight of its own.
    #[serde(skip)]
    pub target: Option<Target>,
}

impl Default for LaddConfig {
    fn default() -> Self {
        Self {
            update: Update::Simultaneous,
            loss: AdversarialLoss::Hinge,
            student_t: TimestepDistribution::Discrete {
                values: vec![1.0, 0.75, 0.5, 0.25],
                probs: vec![0.7, 0.1, 0.1, 0.1],
                warmup_probs: vec![0.0, 0.0, 0.5, 0.5],
                warmup_steps: 500,
            },
            renoise_t: TimestepDistribution::LogitNormal { mean: 1.0, std: 1.0 },
            taps: Vec::new(),
            head_width: 256,
            r1_weight: 0.0,
            r1_sigma: 0.1,
            mismatch_weight: 0.0,
            distillation_weight: 0.0,
            adversarial_weight: 1.0,
            teacher_precision: TeacherPrecision::Bf16,
            target: None,
        }
    }
}

impl LaddConfig {
    /// The tapped blocks in ascending order, for a model of `depth` blocks.
    ///
    /// # Errors
    /// When a tap names a block the model does not have, or is named twice.
    pub fn resolved_taps(&self, depth: usize) -> Result<Vec<usize>> {
        let mut taps = if self.taps.is_empty() { (0..depth).collect() } else { self.taps.clone() };
        taps.sort_unstable();
        if let Some(bad) = taps.iter().find(|t| **t >= depth) {
            return Err(Error::Config(format!("ladd.taps names block {bad}, but the teacher has blocks 0 to {}", depth - 1)));
        }
        if let Some(pair) = taps.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::Config(format!("ladd.taps names block {} twice", pair[0])));
        }
        Ok(taps)
    }

    /// Checks every number.
    ///
    /// # Errors
    /// Names the key and the value that is out of range.
    pub fn validate(&self) -> Result<()> {
        self.student_t.validate("ladd.student_t")?;
        self.renoise_t.validate("ladd.renoise_t")?;
        if self.head_width == 0 || !self.head_width.is_multiple_of(4) {
            return Err(Error::Config(format!("ladd.head_width = {} must be a positive multiple of 4", self.head_width)));
        }
        for (key, value) in [
            ("r1_weight", self.r1_weight),
            ("r1_sigma", self.r1_sigma),
            ("mismatch_weight", self.mismatch_weight),
            ("distillation_weight", self.distillation_weight),
            ("adversarial_weight", self.adversarial_weight),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(Error::Config(format!("ladd.{key} = {value} must be a finite number, zero or more")));
            }
        }
        if self.target.is_some() && self.distillation_weight > 0.0 {
            return Err(Error::Config(format!(
                "ladd.distillation_weight = {} must be 0 with this distill.method, which has a distillation loss of its own",
                self.distillation_weight
            )));
        }
        if self.adversarial_weight == 0.0 && self.distillation_weight == 0.0 && self.target.is_none() {
            return Err(Error::Config(
                "ladd.adversarial_weight and ladd.distillation_weight are both 0: the student would learn nothing".into(),
            ));
        }
        Ok(())
    }
}
