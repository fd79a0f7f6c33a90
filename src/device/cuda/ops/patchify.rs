//! Launches `kernels/patchify.cu`.

#![allow(unused_imports, missing_docs)]
use half::bf16;

use super::{In, Out, StatIn, StatOut, aligned, kernel_of_width};
use crate::device::cuda::Cuda;
use crate::device::cuda::abi::StepParams;
use crate::device::cuda::driver::Kernel;
use crate::device::cuda::memory::{Buffer, Located, address_or_null};
use crate::device::*;
use crate::flow::TimestepDistribution;

pub fn patchify(cuda: &Cuda, shape: &PatchShape, latent: StatIn<'_>, tokens: Out<'_>) {
    let _ = (cuda, shape, latent, tokens);
    unimplemented!()
}

pub fn unpatchify(cuda: &Cuda, shape: &PatchShape, tokens: In<'_>, latent: StatOut<'_>) {
    let _ = (cuda, shape, tokens, latent);
    unimplemented!()
}
