//! Launch code: one file per file in `kernels/`. Each function checks what its kernel assumes, fills the parameter
//! struct, chooses grid and variant, and queues the launch.

pub mod activation;
pub mod adaln;
pub mod adamw;
pub mod attention;
pub mod attention_backward;
pub mod embed;
pub mod flow_noise;
pub mod head_conv;
pub mod hinge;
pub mod linear;
pub mod memory;
pub mod patchify;
pub mod qk_norm;
pub mod quantize;

use half::bf16;

use super::driver::Address;
use super::memory::Buffer;
use crate::device::{View, ViewMut};

/// Read access to weights or activations.
pub type In<'a> = View<'a, Buffer<bf16>>;
/// Write access to weights or activations.
pub type Out<'a> = ViewMut<'a, Buffer<bf16>>;
/// Read access to fp32 values.
pub type StatIn<'a> = View<'a, Buffer<f32>>;
/// Write access to fp32 values.
pub type StatOut<'a> = ViewMut<'a, Buffer<f32>>;

/// Bytes of the widest access.
const ALIGNMENT: u64 = 16;

/// Whether all addresses allow 16-byte accesses; absent ones do.
pub fn aligned(addresses: &[Address]) -> bool {
    addresses.iter().all(|address| address % ALIGNMENT == 0)
}

/// The wide variant of a kernel where it may be used, else the narrow one; with the values each thread takes at a time.
pub fn kernel_of_width(wide: bool, [first, second]: [(&'static str, u64); 2]) -> (&'static str, u64) {
    if wide { first } else { second }
}
