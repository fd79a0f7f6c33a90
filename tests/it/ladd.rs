//! LADD: heads, the whole step, gradient accumulation, samplers, resuming.

pub mod accumulation;
mod finite_differences;
mod fp8;
mod heads;
mod resume;
mod samplers;
mod stage;
mod steps;
