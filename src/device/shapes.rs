//! Descriptions of the operations: sizes, offsets into parameter arenas, small constants. All of them are fixed when a
//! step is planned; what changes from step to step lives in device memory ([`StepValues`]).

use super::DeviceError;
use crate::ladd::AdversarialLoss;

/// A dense layer inside a parameter arena: `y = x W^T + b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// Offset of the weight `[outputs, inputs]`.
    pub weight: usize,
    /// Offset of the bias `[outputs]`, or [`Linear::NO_BIAS`].
    pub bias: usize,
    /// Width of `x`.
    pub inputs: usize,
    /// Width of `y`.
    pub outputs: usize,
}

impl Linear {
    /// In place of a bias' offset: the layer has none. [`linear`](super::Backend::linear) and its gradients know of it.
    pub const NO_BIAS: usize = usize::MAX;

    /// Whether the layer has a bias.
    pub fn has_bias(&self) -> bool {
        self.bias != Self::NO_BIAS
    }

    /// Whether the layer's widths allow [`linear_fp8`](super::Backend::linear_fp8).
    ///
    /// # Errors
    /// Names the width that is no multiple of [`FP8_GRANULE`].
    pub(super) fn check_fp8(&self, device: &str) -> Result<(), DeviceError> {
        let Some(bad) = [self.inputs, self.outputs].into_iter().find(|width| !width.is_multiple_of(FP8_GRANULE)) else { return Ok(()) };
        Err(DeviceError::no_fp8(device, format!("a layer's width of {bad} is no multiple of {FP8_GRANULE}")))
    }
}

/// Inputs and outputs of a layer whose product runs in FP8 are multiples of this: cuBLASLt wants rows of whole 16 bytes.
pub const FP8_GRANULE: usize = 16;

/// Rows to quantise to e4m3, each with a scale of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantizeShape {
    /// Number of rows.
    pub rows: usize,
    /// Values of a row.
    pub width: usize,
    /// Whether GELU (tanh approximation) comes first.
    pub gelu: bool,
}

/// Joint attention over `image` tokens followed by `text` tokens; no mask, scale `1 / sqrt(head_dim)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Batch size B.
    pub batch: usize,
    /// Heads H.
    pub heads: usize,
    /// Head width D.
    pub head_dim: usize,
    /// Image tokens N.
    pub image: usize,
    /// Text tokens L.
    pub text: usize,
    /// Whether text tokens ask (queries), or only answer (keys and values), as in the last block.
    pub text_queries: bool,
}

impl AttentionShape {
    /// Sequence length `S = N + L` of the keys.
    pub fn keys(&self) -> usize {
        self.image + self.text
    }

    /// How many of the sequence's first tokens ask.
    pub fn queries(&self) -> usize {
        if self.text_queries { self.keys() } else { self.image }
    }
}

/// Split of one stream's fused `qkv` rows into the joint buffers, with RMSNorm of each query and key head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QkNormShape {
    /// Batch size B.
    pub batch: usize,
    /// Tokens of this stream.
    pub tokens: usize,
    /// Heads H.
    pub heads: usize,
    /// Head width D.
    pub head_dim: usize,
    /// Sequence length S of the joint buffers `[B, H, S, D]`.
    pub sequence: usize,
    /// Where in the sequence this stream begins.
    pub start: usize,
    /// Offsets of the two RMSNorm weights `[D]` (queries, keys); `None` copies without a norm (SD3).
    pub norm: Option<(usize, usize)>,
}

/// Rows of one stream and the table of modulations they share per sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdalnShape {
    /// Batch size B.
    pub batch: usize,
    /// Tokens per sample.
    pub tokens: usize,
    /// Hidden width h.
    pub hidden: usize,
    /// Width of a row of the modulation table `[B, stride]`.
    pub stride: usize,
}

/// Columns of the modulation table at which a shift and a scale begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modulation {
    /// First column of the shift.
    pub shift: usize,
    /// First column of the scale.
    pub scale: usize,
}

/// Order of the values inside a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchOrder {
    /// Channel, row, column: what SD3's patch embedding (a convolution) reads.
    ChannelFirst,
    /// Row, column, channel: what SD3's final layer writes.
    ChannelLast,
}

/// Cutting of a latent `[B, C, H, W]` into tokens `[B, H/p * W/p, C p p]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchShape {
    /// Batch size B.
    pub batch: usize,
    /// Channels C.
    pub channels: usize,
    /// Rows H.
    pub height: usize,
    /// Columns W.
    pub width: usize,
    /// Patch side p.
    pub patch: usize,
    /// Order inside a token.
    pub order: PatchOrder,
}

/// A 3x3 convolution with zero padding on token grids `[B, rows, columns, channels]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Weight `[cout, 3, 3, cin]` as a dense layer of `9 cin` inputs.
    pub linear: Linear,
    /// Batch size B.
    pub batch: usize,
    /// Grid rows.
    pub rows: usize,
    /// Grid columns.
    pub columns: usize,
}

/// The last step of a discriminator head: one logit per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLogitsShape {
    /// The unconditional projection, `width` inputs and one output.
    pub linear: Linear,
    /// Samples (groups times batch).
    pub batch: usize,
    /// Tokens per sample.
    pub positions: usize,
}

/// Which groups of samples the discriminator sees, in this order; the student's samples always come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Real latents.
    pub real: bool,
    /// Real latents with another sample's prompt.
    pub mismatch: bool,
    /// Real latents plus a little noise, for the approximate R1 penalty.
    pub perturbed: bool,
}

impl Groups {
    /// Only the student's samples.
    pub const FAKE: Self = Self { real: false, mismatch: false, perturbed: false };

    /// Number of groups.
    pub fn count(&self) -> usize {
        1 + usize::from(self.real) + usize::from(self.mismatch) + usize::from(self.perturbed)
    }

    /// Index of the mismatched group.
    pub fn mismatch_index(&self) -> Option<usize> {
        self.mismatch.then_some(2)
    }

    /// Index of the perturbed group.
    pub fn perturbed_index(&self) -> Option<usize> {
        self.perturbed.then_some(2 + usize::from(self.mismatch))
    }
}

/// The adversarial losses over logits `[heads, groups, batch, positions]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HingeShape {
    /// Which loss.
    pub loss: AdversarialLoss,
    /// Number of heads.
    pub heads: usize,
    /// The groups.
    pub groups: Groups,
    /// Samples per group.
    pub batch: usize,
    /// Token positions.
    pub positions: usize,
    /// Weight of the mismatched group.
    pub mismatch_weight: f32,
    /// Weight of the approximate R1 penalty.
    pub r1_weight: f32,
    /// Weight of the generator's loss in its gradient.
    pub generator_weight: f32,
    /// Share of this micro-batch in the step: losses, statistics and gradients are scaled by it.
    pub share: f32,
}

/// Statistics that [`hinge`](super::Backend::hinge) adds up per head.
pub const HINGE_STATS: usize = 7;

/// Columns of the statistics `[heads, HINGE_STATS]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HingeStat {
    /// Discriminator loss, penalty and mismatched group included.
    LossD = 0,
    /// Generator loss.
    LossG = 1,
    /// Mean logit on real latents.
    MeanReal = 2,
    /// Mean logit on fakes.
    MeanFake = 3,
    /// Share of positive logits on real latents.
    AccuracyReal = 4,
    /// Share of negative logits on fakes.
    AccuracyFake = 5,
    /// Approximate R1 penalty, before its weight.
    PenaltyR1 = 6,
}

/// Random numbers of one purpose within a step: see [`crate::flow::philox`] for the list.
pub type Stream = u32;

/// What changes from step to step. It is written to device memory before a step begins and read there by the kernels,
/// so that the whole step can be recorded once and replayed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepValues {
    /// Seed of the run.
    pub seed: u64,
    /// Number of the step, counted from 0.
    pub step: u32,
    /// Index of this micro-batch's first sample in the global batch.
    pub first_sample: u32,
    /// Learning rates of the student and of the heads.
    pub lr: [f32; 2],
}

/// Settings of one AdamW pass; the learning rate comes from [`StepValues::lr`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwShape {
    /// Which of the learning rates.
    pub lr_index: usize,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest gradient norm.
    pub clip: f64,
    /// Decay of the moving average; 0 turns it off.
    pub ema_decay: f64,
}

/// Device-side counters of one optimiser: `[0]` updates applied, `[1]` updates skipped because a gradient was not finite.
pub const ADAMW_COUNTERS: usize = 2;
