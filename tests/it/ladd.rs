//! LADD: heads, the whole step, gradient accumulation, samplers, resuming.

pub mod accumulation;
mod baselines;
pub mod finite_differences;
mod fp8;
mod heads;
mod resume;
mod samplers;
mod shapes;
pub mod stage;
mod steps;
