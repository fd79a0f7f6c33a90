//! What `build.rs` made of the kernels: the fatbins, and what ptxas reports of each kernel.

/// A kernel as nvcc built it for one architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuiltKernel {
    /// Name of the file in `kernels/`, without `.cu`.
    pub file: &'static str,
    /// Name of the function.
    pub name: &'static str,
    /// Architecture, such as `sm_90a`.
    pub arch: &'static str,
    /// Registers per thread.
    pub registers: u32,
    /// Bytes of static shared memory.
    pub shared: u32,
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
