//! LADD: heads, the whole step, gradient accumulation, samplers, resuming.

mod accumulation;
mod finite_differences;
mod heads;
mod resume;
mod samplers;
mod stage;
mod steps;
