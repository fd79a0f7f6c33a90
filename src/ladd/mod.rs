//! Latent Adversarial Diffusion Distillation: the step and its settings.

pub mod baselines;
mod config;
mod flops;
mod step;
mod target;

pub use baselines::{AddConfig, LcmConfig, Method, Target, Weighting};
pub use config::{AdversarialLoss, LaddConfig, TeacherPrecision, Update};
pub use step::{Batch, HostBatch, LaddStep, Phase};
