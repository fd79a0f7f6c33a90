//! MMDiT, the network of the Stable Diffusion 3 family, and the discriminator heads.

mod config;

pub use config::{FREQUENCIES, MLP_RATIO, ModelConfig, NORM_EPS};
