//! Launches `kernels/qk_norm.cu`.

#![allow(unused_imports, missing_docs)]
use half::bf16;

use super::{In, Out, StatIn, StatOut, aligned, kernel_of_width};
use crate::device::cuda::Cuda;
use crate::device::cuda::abi::StepParams;
use crate::device::cuda::driver::Kernel;
use crate::device::cuda::memory::{Buffer, Located, address_or_null};
use crate::device::*;
use crate::flow::TimestepDistribution;

pub fn qk_norm(
    cuda: &Cuda,
    params: &Buffer<bf16>,
    shape: &QkNormShape,
    qkv: In<'_>,
    q: &mut Buffer<bf16>,
    k: &mut Buffer<bf16>,
    v: &mut Buffer<bf16>,
    rstd: &mut Buffer<f32>,
) {
    let _ = (cuda, params, shape, qkv, q, k, v, rstd);
    unimplemented!()
}

pub fn qk_norm_backward(
    cuda: &Cuda,
    params: &Buffer<bf16>,
    grads: Option<&mut Buffer<f32>>,
    shape: &QkNormShape,
    queries: bool,
    qkv: In<'_>,
    rstd: &Buffer<f32>,
    d_joint: [&Buffer<bf16>; 3],
    d_qkv: Out<'_>,
) {
    let _ = (cuda, params, grads, shape, queries, qkv, rstd, d_joint, d_qkv);
    unimplemented!()
}
