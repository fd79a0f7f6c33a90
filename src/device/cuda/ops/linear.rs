//! Launches `kernels/linear.cu`.

#![allow(unused_imports, missing_docs)]
use half::bf16;

use super::{In, Out, StatIn, StatOut, aligned, kernel_of_width};
use crate::device::cuda::Cuda;
use crate::device::cuda::abi::StepParams;
use crate::device::cuda::driver::Kernel;
use crate::device::cuda::memory::{Buffer, Located, address_or_null};
use crate::device::*;
use crate::flow::TimestepDistribution;

pub fn linear(cuda: &Cuda, params: &Buffer<bf16>, layer: &Linear, rows: usize, x: In<'_>, y: Out<'_>, accumulate: bool) {
    let _ = (cuda, params, layer, rows, x, y, accumulate);
    unimplemented!()
}

pub fn linear_gelu(cuda: &Cuda, params: &Buffer<bf16>, layer: &Linear, rows: usize, x: In<'_>, pre: Out<'_>, y: Out<'_>) {
    let _ = (cuda, params, layer, rows, x, pre, y);
    unimplemented!()
}

pub fn linear_backward_input(cuda: &Cuda, params: &Buffer<bf16>, layer: &Linear, rows: usize, dy: In<'_>, dx: Out<'_>, accumulate: bool) {
    let _ = (cuda, params, layer, rows, dy, dx, accumulate);
    unimplemented!()
}

pub fn linear_backward_input_gelu(
    cuda: &Cuda,
    params: &Buffer<bf16>,
    layer: &Linear,
    rows: usize,
    dy: In<'_>,
    pre: In<'_>,
    d_pre: Out<'_>,
) {
    let _ = (cuda, params, layer, rows, dy, pre, d_pre);
    unimplemented!()
}

pub fn linear_backward_weight(cuda: &Cuda, grads: &mut Buffer<f32>, layer: &Linear, rows: usize, x: In<'_>, dy: In<'_>) {
    let _ = (cuda, grads, layer, rows, x, dy);
    unimplemented!()
}
