//! Editing and inpainting, the two applications of LADD (arXiv 2403.12015, section 5): what networks are conditioned on, and the
//! demo's instructions.
//!
//! A network for editing reads the source's latent beside the noisy one, `[x_t; c]` of 2C channels (InstructPix2Pix, arXiv
//! 2211.09800); one for inpainting the masked latent and the mask, of 2C + 1. Neither is noised, and teacher, student and
//! discriminator all read the same.

mod condition;
pub mod instructions;
mod mask;
mod task;

pub use condition::{Conditioned, masked_latent};
pub use mask::{Dice, Mask, MaskKind};
pub use task::Task;
