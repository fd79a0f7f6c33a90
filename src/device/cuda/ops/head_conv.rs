//! Launches `kernels/head_conv.cu`.

#![allow(unused_imports, missing_docs)]
use half::bf16;

use super::{In, Out, StatIn, StatOut, aligned, kernel_of_width};
use crate::device::cuda::Cuda;
use crate::device::cuda::abi::StepParams;
use crate::device::cuda::driver::Kernel;
use crate::device::cuda::memory::{Buffer, Located, address_or_null};
use crate::device::*;
use crate::flow::TimestepDistribution;

pub fn conv3x3(cuda: &Cuda, params: &Buffer<bf16>, shape: &ConvShape, x: In<'_>, y: Out<'_>) {
    let _ = (cuda, params, shape, x, y);
    unimplemented!()
}

pub fn conv3x3_backward_input(cuda: &Cuda, params: &Buffer<bf16>, shape: &ConvShape, dy: In<'_>, dx: Out<'_>, accumulate: bool) {
    let _ = (cuda, params, shape, dy, dx, accumulate);
    unimplemented!()
}

pub fn conv3x3_backward_weight(cuda: &Cuda, grads: &mut Buffer<f32>, shape: &ConvShape, x: In<'_>, dy: In<'_>) {
    let _ = (cuda, grads, shape, x, dy);
    unimplemented!()
}

pub fn head_logits(cuda: &Cuda, params: &Buffer<bf16>, shape: &HeadLogitsShape, h: In<'_>, cm: In<'_>, logits: StatOut<'_>) {
    let _ = (cuda, params, shape, h, cm, logits);
    unimplemented!()
}

pub fn head_logits_backward(
    cuda: &Cuda,
    params: &Buffer<bf16>,
    shape: &HeadLogitsShape,
    h: In<'_>,
    cm: In<'_>,
    d_logits: StatIn<'_>,
    dh: Out<'_>,
    grads: Option<(&mut Buffer<f32>, Out<'_>)>,
) {
    let _ = (cuda, params, shape, h, cm, d_logits, dh, grads);
    unimplemented!()
}
