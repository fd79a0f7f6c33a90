//! What a training step reports, one JSON object a line in `metrics.jsonl`.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

/// One discriminator head in one step. Means and accuracies run over the batch and all token positions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeadStats {
    /// The tapped block.
    pub block: usize,
    /// Discriminator loss of this head.
    #[serde(deserialize_with = "number")]
    pub loss_d: f32,
    /// Generator loss of this head.
    #[serde(deserialize_with = "number")]
    pub loss_g: f32,
    /// Mean logit on real latents.
    #[serde(deserialize_with = "number")]
    pub mean_real: f32,
    /// Mean logit on the student's latents.
    #[serde(deserialize_with = "number")]
    pub mean_fake: f32,
    /// Share of real positions with a positive logit.
    #[serde(deserialize_with = "number")]
    pub accuracy_real: f32,
    /// Share of fake positions with a negative logit.
    #[serde(deserialize_with = "number")]
    pub accuracy_fake: f32,
}

/// One optimiser step of the distillation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Step number, counted from 1.
    pub step: u32,
    /// Wall-clock seconds of training so far, without evaluation and pictures.
    pub seconds: f64,
    /// Student learning rate of this step.
    pub lr_student: f64,
    /// Learning rate of the heads.
    pub lr_heads: f64,
    /// Mean discriminator loss over the heads.
    #[serde(deserialize_with = "number")]
    pub loss_d: f32,
    /// Mean generator loss over the heads.
    #[serde(deserialize_with = "number")]
    pub loss_g: f32,
    /// Distillation loss `mean (x̂0 - x0)^2`, or with a baseline's target in place of `x0`, before its weight; measured even
    /// where its weight is 0.
    #[serde(deserialize_with = "number")]
    pub loss_distillation: f32,
    /// Approximate R1 penalty before its weight, 0 where it is off.
    #[serde(deserialize_with = "number")]
    pub penalty_r1: f32,
    /// Global norm of the student's gradient, before clipping.
    #[serde(deserialize_with = "number")]
    pub grad_norm_student: f32,
    /// Global norm of the heads' gradient, before clipping.
    #[serde(deserialize_with = "number")]
    pub grad_norm_heads: f32,
    /// Updates skipped so far because a gradient was not finite (student, heads).
    pub skipped: [u32; 2],
    /// Per head, in the order of the taps.
    pub heads: Vec<HeadStats>,
}

/// One optimiser step of `pretrain`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PretrainRecord {
    /// Step number, counted from 1.
    pub step: u32,
    /// Wall-clock seconds of training so far.
    pub seconds: f64,
    /// Learning rate of this step.
    pub lr: f64,
    /// Velocity loss `mean (v̂ - v)^2`.
    #[serde(deserialize_with = "number")]
    pub loss: f32,
    /// Global gradient norm before clipping.
    #[serde(deserialize_with = "number")]
    pub grad_norm: f32,
}

/// Quality of one sampler setting, measured on decoded images.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QualityRecord {
    /// Step of the distillation at which the student was measured; 0 is before the first.
    pub step: u32,
    /// `teacher`, `before` (the student's weights before the distillation), `student`, `control`.
    pub network: String,
    /// `euler` or `renoise`.
    pub sampler: String,
    /// Sampling steps.
    pub steps: usize,
    /// Guidance scale; 1 is unguided.
    pub guidance: f32,
    /// Network evaluations an image costs (guidance doubles them).
    pub evaluations: usize,
    /// Fréchet distance to the test set, in the classifier's features.
    #[serde(deserialize_with = "number")]
    pub fd: f64,
    /// Share of images that the classifier recognises as what the prompt asked for.
    #[serde(deserialize_with = "number")]
    pub accuracy: f64,
    /// Mean distance between images of one prompt, relative to real images of that class.
    #[serde(deserialize_with = "number")]
    pub diversity: f64,
    /// How many images were drawn.
    pub samples: usize,
}

/// How well a network edits or inpaints with one sampler setting, or what something else gives in its place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Step of the distillation at which it was measured; 0 is before the first.
    pub step: u32,
    /// `teacher`, `before`, `student`, `control`; or in words what was measured to compare with.
    pub network: String,
    /// `euler` or `renoise`; empty where nothing was drawn.
    pub sampler: String,
    /// Sampling steps.
    pub steps: usize,
    /// Guidance scale of the text; 1 is unguided.
    pub guidance: f32,
    /// Guidance scale of the image.
    pub image_guidance: f32,
    /// Network evaluations a picture costs.
    pub evaluations: usize,
    /// Pictures.
    pub samples: usize,
    /// The measurements by name; see [`TaskResults`](crate::report::TaskResults).
    pub numbers: BTreeMap<String, f64>,
}

/// A number that JSON may have had to write as `null`, because it was not finite.
fn number<'de, D: Deserializer<'de>, T: Deserialize<'de> + From<f32>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_else(|| T::from(f32::NAN)))
}
