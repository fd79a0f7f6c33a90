//! Launches `kernels/flow_noise.cu`.

#![allow(unused_imports, missing_docs)]
use half::bf16;

use super::{In, Out, StatIn, StatOut, aligned, kernel_of_width};
use crate::device::cuda::Cuda;
use crate::device::cuda::abi::StepParams;
use crate::device::cuda::driver::Kernel;
use crate::device::cuda::memory::{Buffer, Located, address_or_null};
use crate::device::*;
use crate::flow::TimestepDistribution;

pub fn timesteps(cuda: &Cuda, step: &Buffer<StepParams>, stream: Stream, distribution: &TimestepDistribution, t: StatOut<'_>) {
    let _ = (cuda, step, stream, distribution, t);
    unimplemented!()
}

pub fn normal(cuda: &Cuda, step: &Buffer<StepParams>, stream: Stream, numel: usize, out: StatOut<'_>) {
    let _ = (cuda, step, stream, numel, out);
    unimplemented!()
}

pub fn flow_noise(
    cuda: &Cuda,
    step: &Buffer<StepParams>,
    stream: Stream,
    perturb: Option<(Stream, f32)>,
    x0: StatIn<'_>,
    t: StatIn<'_>,
    x_t: StatOut<'_>,
    velocity: Option<StatOut<'_>>,
) {
    let _ = (cuda, step, stream, perturb, x0, t, x_t, velocity);
    unimplemented!()
}

pub fn predict_x0_renoise(
    cuda: &Cuda,
    step: &Buffer<StepParams>,
    stream: Stream,
    x_t: StatIn<'_>,
    velocity: StatIn<'_>,
    t: StatIn<'_>,
    t_hat: StatIn<'_>,
    x0_hat: StatOut<'_>,
    renoised: StatOut<'_>,
) {
    let _ = (cuda, step, stream, x_t, velocity, t, t_hat, x0_hat, renoised);
    unimplemented!()
}

pub fn predict_x0_renoise_backward(
    cuda: &Cuda,
    t: StatIn<'_>,
    t_hat: StatIn<'_>,
    d_renoised: Option<StatIn<'_>>,
    d_x0_hat: Option<StatIn<'_>>,
    d_velocity: StatOut<'_>,
) {
    let _ = (cuda, t, t_hat, d_renoised, d_x0_hat, d_velocity);
    unimplemented!()
}

pub fn euler_cfg(cuda: &Cuda, x: StatOut<'_>, velocity: StatIn<'_>, unconditional: Option<StatIn<'_>>, guidance: f32, dt: f32) {
    let _ = (cuda, x, velocity, unconditional, guidance, dt);
    unimplemented!()
}
