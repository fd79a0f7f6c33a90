//! The shape of an MMDiT: what distinguishes SD3-medium, SD3.5-medium, SD3.5-large and the demo's teacher.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Width of the sinusoidal timestep embedding (SD3: 256, cosines first).
pub const FREQUENCIES: usize = 256;
/// Hidden width of a block's MLP over the model's hidden width.
pub const MLP_RATIO: usize = 4;
/// Epsilon of every LayerNorm and RMSNorm.
pub const NORM_EPS: f64 = 1e-6;

/// Architecture of an MMDiT (Esser et al., arXiv 2403.03206; SD3.5 adds QK-RMSNorm and dual attention).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Number of joint blocks.
    pub depth: usize,
    /// Number of attention heads; the hidden width is `heads * head_dim`.
    pub heads: usize,
    /// Width of one attention head. The CUDA kernels take 64 and 128.
    pub head_dim: usize,
    /// Channels of the latent, in and out.
    pub in_channels: usize,
    /// Side of the square patch that becomes one token.
    pub patch: usize,
    /// Width of the text context (SD3: 4096).
    pub context_dim: usize,
    /// Width of the pooled text embedding (SD3: 2048).
    pub pooled_dim: usize,
    /// Side G of the stored positional grid, in tokens (SD3-medium: 192). It is centre-cropped, never recomputed.
    pub pos_embed_max: usize,
    /// Per-head RMSNorm of queries and keys (SD3.5).
    pub qk_norm: bool,
    /// How many leading blocks have a second, image-only attention (SD3.5-medium: 13).
    pub dual_attention_blocks: usize,
    /// Channels beside the noisy latent that are read as they are: none, the source's latent for editing (as many as
    /// `in_channels`), the masked latent and the mask for inpainting (one more). Not a setting: `task` decides it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub conditioning_channels: usize,
}

/// Networks without conditioning are described as they always were.
fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl ModelConfig {
    /// Hidden width `heads * head_dim`.
    pub fn hidden(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Token grid `(rows, columns)` of a latent of `height` x `width`.
    ///
    /// # Errors
    /// When the latent is not a multiple of the patch, is empty, or has more tokens a side than the positional grid.
    pub fn grid(&self, height: usize, width: usize) -> Result<(usize, usize)> {
        let (p, g) = (self.patch, self.pos_embed_max);
        if height == 0 || width == 0 || !height.is_multiple_of(p) || !width.is_multiple_of(p) {
            return Err(Error::Usage(format!(
                "a latent of {height}x{width} cannot be cut into {p}x{p} patches: both sides must be positive multiples of {p}"
            )));
        }
        if height / p > g || width / p > g {
            return Err(Error::Usage(format!(
                "a latent of {height}x{width} has {}x{} tokens, but the positional grid holds {g}x{g}: choose a smaller size",
                height / p,
                width / p
            )));
        }
        Ok((height / p, width / p))
    }

    /// Checks that the numbers describe a model that can be built.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        let positive = [
            ("depth", self.depth),
            ("heads", self.heads),
            ("head_dim", self.head_dim),
            ("in_channels", self.in_channels),
            ("patch", self.patch),
            ("context_dim", self.context_dim),
            ("pooled_dim", self.pooled_dim),
            ("pos_embed_max", self.pos_embed_max),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Error::Config(format!("model.{name} must be at least 1")));
        }
        if let Some((name, value)) = positive.iter().find(|(_, value)| *value > 1 << 20) {
            return Err(Error::Config(format!("model.{name} = {value} is far out of range")));
        }
        if !self.hidden().is_multiple_of(4) {
            return Err(Error::Config(format!("model.heads * model.head_dim = {} must be a multiple of 4", self.hidden())));
        }
        if ![0, self.in_channels, self.in_channels + 1].contains(&self.conditioning_channels) {
            return Err(Error::Config(format!(
                "model.conditioning_channels = {} must be 0, model.in_channels = {} (editing) or one more (inpainting)",
                self.conditioning_channels, self.in_channels
            )));
        }
        if self.dual_attention_blocks > self.depth {
            return Err(Error::Config(format!(
                "model.dual_attention_blocks = {} exceeds model.depth = {}",
                self.dual_attention_blocks, self.depth
            )));
        }
        Ok(())
    }
}
