//! MMDiT: golden blocks and models, and properties that hold for every configuration.

mod conditioned;
mod diffusers;
mod finite_differences;
mod fp8;
mod goldens;
mod properties;

pub use finite_differences::{check, direction};
