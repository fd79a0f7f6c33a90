//! Rectified flow: `x_t = (1 - t) x0 + t ε`, velocity `v = ε - x0`; times, samplers, guidance.

pub mod philox;
mod sampler;
mod timesteps;

pub use sampler::{SampleSettings, Sampler, SamplerKind, Spacing, TextBatch};
pub use timesteps::{MAX_DISCRETE, TimestepDistribution};
