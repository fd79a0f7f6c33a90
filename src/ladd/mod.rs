//! Latent Adversarial Diffusion Distillation: the step and its settings.

mod config;

pub use config::{AdversarialLoss, LaddConfig, Update};
