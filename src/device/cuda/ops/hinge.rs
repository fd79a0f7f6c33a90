//! Launches `kernels/hinge.cu`.

#![allow(unused_imports, missing_docs)]
use half::bf16;

use super::{In, Out, StatIn, StatOut, aligned, kernel_of_width};
use crate::device::cuda::Cuda;
use crate::device::cuda::abi::StepParams;
use crate::device::cuda::driver::Kernel;
use crate::device::cuda::memory::{Buffer, Located, address_or_null};
use crate::device::*;
use crate::flow::TimestepDistribution;

pub fn mse(cuda: &Cuda, a: StatIn<'_>, b: StatIn<'_>, share: f32, weight: f32, d_a: Option<StatOut<'_>>, loss: StatOut<'_>) {
    let _ = (cuda, a, b, share, weight, d_a, loss);
    unimplemented!()
}

pub fn hinge(
    cuda: &Cuda,
    shape: &HingeShape,
    logits: StatIn<'_>,
    d_logits_d: Option<StatOut<'_>>,
    d_logits_g: Option<StatOut<'_>>,
    stats: StatOut<'_>,
) {
    let _ = (cuda, shape, logits, d_logits_d, d_logits_g, stats);
    unimplemented!()
}
