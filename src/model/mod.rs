//! MMDiT, the network of the Stable Diffusion 3 family, and the discriminator heads.

mod config;
mod flops;
mod heads;
mod layout;
pub mod mmdit;

pub use config::{FREQUENCIES, MLP_RATIO, ModelConfig, NORM_EPS};
pub use flops::{Flops, HeadsPass, Pass};
pub use heads::{Heads, HeadsActivations, HeadsShape};
pub use layout::{Entry, Layout};
pub use mmdit::{Activations, Backward, Fp8Weights, Gradients, Image, ImageMut, Inputs, Keep, Mmdit, Plan, Shape};
