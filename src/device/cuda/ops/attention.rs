//! Launches `kernels/attention.cu`.

#![allow(unused_imports, missing_docs)]
use half::bf16;

use super::{In, Out, StatIn, StatOut, aligned, kernel_of_width};
use crate::device::cuda::Cuda;
use crate::device::cuda::abi::StepParams;
use crate::device::cuda::driver::Kernel;
use crate::device::cuda::memory::{Buffer, Located, address_or_null};
use crate::device::*;
use crate::flow::TimestepDistribution;

pub fn attention(
    cuda: &Cuda,
    shape: &AttentionShape,
    qkv: [&Buffer<bf16>; 3],
    out_image: &mut Buffer<bf16>,
    out_text: Option<&mut Buffer<bf16>>,
    lse: &mut Buffer<f32>,
) {
    let _ = (cuda, shape, qkv, out_image, out_text, lse);
    unimplemented!()
}

pub fn attention_backward(
    cuda: &Cuda,
    shape: &AttentionShape,
    qkv: [&Buffer<bf16>; 3],
    out: [Option<&Buffer<bf16>>; 2],
    lse: &Buffer<f32>,
    d_out: [Option<&Buffer<bf16>>; 2],
    d_qkv: [&mut Buffer<bf16>; 3],
) {
    let _ = (cuda, shape, qkv, out, lse, d_out, d_qkv);
    unimplemented!()
}
