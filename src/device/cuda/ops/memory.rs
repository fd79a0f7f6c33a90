//! Launches `kernels/memory.cu`, and queues copies.

use super::{In, Out, StatIn, StatOut, aligned, kernel_of_width};
use crate::device::cuda::Cuda;
use crate::device::cuda::abi::{CastParams, FillParams, MEMORY_THREADS};
use crate::device::cuda::driver::Kernel;
use crate::device::cuda::memory::Located;

pub fn fill(cuda: &Cuda, dst: StatOut<'_>, value: f32) {
    let params = FillParams { len: dst.len as u64, out: dst.address(), value, unused: 0 };
    let wide = aligned(&[params.out]) && dst.len.is_multiple_of(4);
    let (name, width) = kernel_of_width(wide, [("fill_x4", 4), ("fill_x1", 1)]);
    cuda.launch(Kernel { file: "memory", name }, cuda.strided_grid(params.len.div_ceil(width), MEMORY_THREADS), &params);
}

pub fn copy(cuda: &Cuda, src: StatIn<'_>, dst: StatOut<'_>) {
    assert_eq!(src.len, dst.len, "copy of {} values into {}", src.len, dst.len);
    cuda.copy_bytes(src.address(), dst.address(), 4 * src.len);
}

pub fn copy_data(cuda: &Cuda, src: In<'_>, dst: Out<'_>) {
    assert_eq!(src.len, dst.len, "copy of {} values into {}", src.len, dst.len);
    cuda.copy_bytes(src.address(), dst.address(), 2 * src.len);
}

pub fn cast(cuda: &Cuda, src: StatIn<'_>, dst: Out<'_>) {
    assert_eq!(src.len, dst.len, "cast of {} values into {}", src.len, dst.len);
    let params = CastParams { len: dst.len as u64, x: src.address(), out: dst.address() };
    let wide = aligned(&[params.x, params.out]) && dst.len.is_multiple_of(8);
    let (name, width) = kernel_of_width(wide, [("cast_x8", 8), ("cast_x1", 1)]);
    cuda.launch(Kernel { file: "memory", name }, cuda.strided_grid(params.len.div_ceil(width), MEMORY_THREADS), &params);
}
