//! MMDiT (Esser et al., arXiv 2403.03206): image and text tokens in two residual streams with weights of their own that
//! meet in a joint attention. SD3, SD3.5-medium (dual attention) and SD3.5-large (QK-RMSNorm) are settings of it.

mod activations;
mod backward;
mod conditioning;
mod forward;
mod fp8;
mod layout;

use std::sync::Arc;

pub use activations::{Activations, Gradients, Keep, Plan, Shape};
pub use backward::Backward;
pub use conditioning::{NamedTensor, PATCH_EMBEDDING, split, widened};
pub use forward::{Image, ImageMut, Inputs};
pub use fp8::Fp8Weights;
pub use layout::MmditLayout;

use crate::device::{Backend, DeviceError, Storage};
use crate::model::ModelConfig;
use crate::{Error, Result};

/// Name of the stored positional grid in a checkpoint.
pub const POS_EMBED: &str = "pos_embed";

/// A network without its weights: they are passed to each call, so that teacher, student and averages share this.
#[derive(Debug)]
pub struct Mmdit<B: Backend> {
    pub(super) config: ModelConfig,
    pub(super) layout: Arc<MmditLayout>,
    pub(super) pos_embed: B::Data,
}

impl<B: Backend> Mmdit<B> {
    /// The network of `config`. `pos_embed` is the stored grid `[1, G * G, h]`.
    ///
    /// # Errors
    /// When the configuration is out of range, the grid has another size, or the device's memory is exhausted.
    pub fn new(b: &B, config: ModelConfig, pos_embed: &[f32]) -> Result<Self> {
        config.validate()?;
        let expected = config.pos_embed_max * config.pos_embed_max * config.hidden();
        if pos_embed.len() != expected {
            return Err(Error::Usage(format!(
                "`{POS_EMBED}` has {} values; a grid of {G}x{G} tokens of width {} needs {expected}",
                pos_embed.len(),
                config.hidden(),
                G = config.pos_embed_max
            )));
        }
        let mut buffer = b.alloc_data(expected)?;
        b.upload_data(pos_embed, buffer.all_mut());
        let layout = Arc::new(MmditLayout::new(&config));
        Ok(Self { config, layout, pos_embed: buffer })
    }

    /// The architecture.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Names and offsets of the weights.
    pub fn layout(&self) -> &MmditLayout {
        &self.layout
    }

    /// The stored positional grid, for saving.
    ///
    /// # Errors
    /// When the device failed before.
    pub fn pos_embed(&self, b: &B) -> Result<Vec<f32>, DeviceError> {
        b.download_data(self.pos_embed.all())
    }

    /// Plans the forward pass of a shape.
    ///
    /// # Errors
    /// When the batch or the text is empty, the latent does not fit the patch or the positional grid, or the device's
    /// memory is exhausted.
    pub fn activations(&self, b: &B, plan: Plan) -> Result<Activations<B>> {
        self.check_plan(&plan)?;
        Ok(Activations::new(b, &self.config, &self.layout, plan, None)?)
    }

    fn check_plan(&self, plan: &Plan) -> Result<()> {
        self.config.grid(plan.shape.height, plan.shape.width)?;
        if plan.shape.batch == 0 || plan.shape.text == 0 {
            let Shape { batch, text, .. } = plan.shape;
            return Err(Error::Usage(format!("a batch of {batch} samples with {text} text tokens is empty: both must be at least 1")));
        }
        assert!(0 < plan.blocks && plan.blocks <= self.config.depth && (!plan.velocity || plan.blocks == self.config.depth));
        Ok(())
    }

    /// Plans the backward pass of a shape; where the plan keeps not everything there is no room for gradients of weights or
    /// conditioning.
    ///
    /// # Errors
    /// When the device's memory is exhausted.
    pub fn gradients(&self, b: &B, plan: &Plan) -> Result<Gradients<B>> {
        Ok(Gradients::new(b, &self.config, &self.layout, plan)?)
    }
}

/// SD3's sinusoidal grid `[1, G * G, h]`, for a network trained from nothing: half of the channels for the column, half
/// for the row, sines before cosines.
pub fn sinusoidal_grid(config: &ModelConfig) -> Vec<f32> {
    let (h, g) = (config.hidden(), config.pos_embed_max);
    let quarter = h / 4;
    let frequency = |i: usize| 10_000_f64.powf(-(i as f64) / quarter as f64);
    let mut grid = Vec::with_capacity(g * g * h);
    for row in 0..g {
        for column in 0..g {
            for position in [column, row] {
                grid.extend((0..quarter).map(|i| (position as f64 * frequency(i)).sin() as f32));
                grid.extend((0..quarter).map(|i| (position as f64 * frequency(i)).cos() as f32));
            }
        }
    }
    grid
}
