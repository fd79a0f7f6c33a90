//! Launches `kernels/adaln.cu`.

#![allow(unused_imports, missing_docs)]
use half::bf16;

use super::{In, Out, StatIn, StatOut, aligned, kernel_of_width};
use crate::device::cuda::Cuda;
use crate::device::cuda::abi::StepParams;
use crate::device::cuda::driver::Kernel;
use crate::device::cuda::memory::{Buffer, Located, address_or_null};
use crate::device::*;
use crate::flow::TimestepDistribution;

pub fn adaln(
    cuda: &Cuda,
    shape: &AdalnShape,
    x: In<'_>,
    branches: &[Branch<'_, Cuda>],
    table: Option<In<'_>>,
    x_out: Option<Out<'_>>,
    norms: &mut [NormOut<'_, Cuda>],
    stats: Option<&mut Buffer<f32>>,
) {
    let _ = (cuda, shape, x, branches, table, x_out, norms, stats);
    unimplemented!()
}

pub fn adaln_backward(
    cuda: &Cuda,
    shape: &AdalnShape,
    x_out: In<'_>,
    stats: Option<&Buffer<f32>>,
    table: Option<In<'_>>,
    dx: Out<'_>,
    accumulate: bool,
    extra: Option<In<'_>>,
    norms: &[NormGrad<'_, Cuda>],
    branches: &mut [BranchGrad<'_, Cuda>],
    d_table: Option<&mut Buffer<bf16>>,
) {
    let _ = (cuda, shape, x_out, stats, table, dx, accumulate, extra, norms, branches, d_table);
    unimplemented!()
}
