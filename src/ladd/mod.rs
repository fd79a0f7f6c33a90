//! Latent Adversarial Diffusion Distillation: the step and its settings.

mod config;
mod flops;
mod step;

pub use config::{AdversarialLoss, LaddConfig, TeacherPrecision, Update};
pub use step::{Batch, HostBatch, LaddStep, Phase};
