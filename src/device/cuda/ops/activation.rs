//! Launches `kernels/activation.cu`.

use super::{In, Out, aligned, kernel_of_width};
use crate::device::cuda::abi::{ACTIVATION_THREADS, ActivationParams};
use crate::device::cuda::memory::{Located, address_or_null};
use crate::device::cuda::{Cuda, driver::Kernel};

fn launch(cuda: &Cuda, [x8, x1]: [&'static str; 2], x: In<'_>, other: Option<In<'_>>, out: Out<'_>) {
    let params = ActivationParams { len: out.len as u64, x: x.address(), other: address_or_null(other.as_ref()), out: out.address() };
    let wide = aligned(&[params.x, params.other, params.out]) && out.len.is_multiple_of(8);
    let (name, width) = kernel_of_width(wide, [(x8, 8), (x1, 1)]);
    let grid = cuda.strided_grid(params.len.div_ceil(width), ACTIVATION_THREADS);
    cuda.launch(Kernel { file: "activation", name }, grid, &params);
}

pub fn silu(cuda: &Cuda, x: In<'_>, y: Out<'_>) {
    launch(cuda, ["silu_x8", "silu_x1"], x, None, y);
}

pub fn silu_backward(cuda: &Cuda, x: In<'_>, dy: In<'_>, dx: Out<'_>) {
    launch(cuda, ["silu_backward_x8", "silu_backward_x1"], x, Some(dy), dx);
}

pub fn leaky_relu(cuda: &Cuda, x: In<'_>, residual: Option<In<'_>>, y: Out<'_>) {
    launch(cuda, ["leaky_relu_x8", "leaky_relu_x1"], x, residual, y);
}

pub fn leaky_relu_backward(cuda: &Cuda, x: In<'_>, dy: In<'_>, dx: Out<'_>) {
    launch(cuda, ["leaky_relu_backward_x8", "leaky_relu_backward_x1"], x, Some(dy), dx);
}
