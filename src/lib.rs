//! LADD-Fast distils a rectified-flow image transformer (the Stable Diffusion 3 family) into a student that draws in
//! one to four steps, by Latent Adversarial Diffusion Distillation (LADD, arXiv 2403.12015).
//!
//! Read [`device::Backend`] first: it is the list of fused operations. [`model`] and [`ladd`] are written once over it
//! and never name a device; [`device::cpu`] runs it on any machine and is the oracle for every kernel.

pub mod cli;
pub mod config;
pub mod data;
pub mod device;
pub mod edit;
pub mod error;
pub mod eval;
pub mod flow;
pub mod format;
pub mod ladd;
pub mod lora;
pub mod model;
pub mod report;
pub mod study;
pub mod text;
pub mod train;
pub mod vae;

pub use error::{Error, Result};
