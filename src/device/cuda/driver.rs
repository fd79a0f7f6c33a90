//! What the launch code needs of a CUDA driver. Two implementations: `real::Real` over cudarc, and
//! `emulated::Emulated`, which runs the same kernels on the CPU. Both take exactly the arguments of
//! `cuLaunchKernel`, so that grids, shared memory, tensor maps and parameters are tested on machines without a GPU.
//!
//! Work is queued in order, but for branches; a call that only queues returns at once, and a failure that shows later is
//! reported by [`synchronize`](Driver::synchronize) or [`read`](Driver::read).

use std::path::Path;

use crate::device::DeviceError;

/// An address in device memory; 0 stands for an absent buffer.
pub type Address = u64;

/// A kernel: the file that holds it and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// Name of the file in `kernels/`, without `.cu`.
    pub file: &'static str,
    /// Name of the function.
    pub name: &'static str,
}

/// Blocks, threads and dynamic shared memory of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks along x, y, z.
    pub blocks: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

/// Element type of a GEMM's result or a tensor map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// 16-bit brain float.
    Bf16,
    /// 32-bit float.
    F32,
}

impl Element {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

/// A bf16 matrix operand, row-major with `ld` elements from row to row, read as it is or transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operand {
    /// First element.
    pub address: Address,
    /// Elements between the beginnings of two rows as stored.
    pub ld: usize,
    /// Whether the product uses the transpose of what is stored.
    pub transposed: bool,
}

/// What happens to a GEMM's result before it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// Nothing.
    None,
    /// Adds a bf16 bias `[columns]`.
    Bias(Address),
    /// Adds a bf16 bias, keeps the sum in `pre` (bf16, as large as the result) and stores its GELU (tanh approximation).
    BiasGelu {
        /// The bias `[columns]`.
        bias: Address,
        /// Where the sum is kept.
        pre: Address,
    },
    /// Multiplies by the derivative of GELU at `pre` (bf16, as large as the result).
    GeluBackward {
        /// What the GELU was applied to.
        pre: Address,
    },
}

/// `out = [out +] a b`, then the epilogue; `out` is row-major `[rows, columns]` without gaps, products in fp32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gemm {
    /// Rows of the result.
    pub rows: usize,
    /// Columns of the result.
    pub columns: usize,
    /// Length of the sums.
    pub depth: usize,
    /// `[rows, depth]` after its transposition.
    pub a: Operand,
    /// `[depth, columns]` after its transposition.
    pub b: Operand,
    /// The result.
    pub out: Address,
    /// Its type.
    pub element: Element,
    /// Whether the result is added to what `out` holds.
    pub accumulate: bool,
    /// What happens before it is stored.
    pub epilogue: Epilogue,
}

/// `out = (a bᵀ) a_scale b_scale + bias` with e4m3 operands, both row-major without gaps and with a scale for each row; sums in
/// fp32, `out` bf16 `[rows, columns]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GemmFp8 {
    /// Rows of the result.
    pub rows: usize,
    /// Columns of the result.
    pub columns: usize,
    /// Length of the sums.
    pub depth: usize,
    /// Codes `[rows, depth]`.
    pub a: Address,
    /// Their scales `[rows]`, fp32.
    pub a_scales: Address,
    /// Codes `[columns, depth]`.
    pub b: Address,
    /// Their scales `[columns]`, fp32.
    pub b_scales: Address,
    /// The bias `[columns]`, bf16.
    pub bias: Address,
    /// The result.
    pub out: Address,
}

/// A tensor for the copy engine (TMA): up to five dimensions, innermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// First element; 16-byte aligned.
    pub address: Address,
    /// Type of the elements.
    pub element: Element,
    /// Elements along each dimension.
    pub dims: Vec<u64>,
    /// Bytes from one index to the next, for every dimension but the innermost; multiples of 16.
    pub strides: Vec<u64>,
    /// Elements along each dimension that one copy moves.
    pub tile: Vec<u32>,
    /// Bytes of the shared-memory swizzle: 0, 32, 64 or 128.
    pub swizzle: u32,
}

/// An encoded tensor map, passed to kernels by value as `__grid_constant__ CUtensorMap`.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct TensorMap(pub [u64; 16]);

/// What a device can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Name of the device.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Multiprocessors: how many blocks run side by side is a multiple of this.
    pub multiprocessors: u32,
    /// Bytes of device memory.
    pub memory: u64,
}

impl Properties {
    /// Why no product in FP8 is possible here, if so. What newer GPUs can do is cuBLASLt's to say.
    pub fn lacks_fp8(&self) -> Option<String> {
        let (major, minor) = self.capability;
        (self.capability < (8, 9)).then(|| format!("tensor cores multiply FP8 from compute capability 8.9 on, this is {major}.{minor}"))
    }

    /// Whether the kernels for Hopper (`sm_90a`: TMA, wgmma) run here.
    pub fn hopper(&self) -> bool {
        self.capability == (9, 0)
    }
}

/// How many branches may lie within one another: the main one, one beside it, one beside a part of either.
pub const LANES: usize = 3;

/// A CUDA driver with one device. What is queued runs in order, except for branches: between
/// [`begin_branch`](Driver::begin_branch) and [`end_branch`](Driver::end_branch) stands what may run beside what follows up
/// to [`join_branch`](Driver::join_branch). Both begin behind everything before, and everything later follows both.
pub trait Driver: Send + Sync + std::fmt::Debug {
    /// What the device can do.
    fn properties(&self) -> &Properties;

    /// Device memory of `bytes` bytes, zeroed, aligned to 256 bytes (16 on the emulator, whose buffers end at a guard).
    ///
    /// # Errors
    /// When the device's memory is exhausted.
    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError>;

    /// Gives memory back. Work that was queued before may still use it.
    fn free(&self, address: Address);

    /// Bytes of device memory that were in use at most, as allocated, since the driver was opened.
    fn peak_memory(&self) -> u64;

    /// Queues a copy from the host; `bytes` may be reused at once.
    ///
    /// # Errors
    /// When the copy cannot be queued.
    fn write(&self, to: Address, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Waits for everything queued, then copies to the host.
    ///
    /// # Errors
    /// When a queued operation or the copy failed.
    fn read(&self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Queues a copy within the device; the ranges do not overlap.
    ///
    /// # Errors
    /// When the copy cannot be queued.
    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError>;

    /// Queues a kernel. `parameters` are its arguments, each as its bytes.
    ///
    /// # Errors
    /// When the kernel does not exist or cannot be launched that way.
    fn launch(&self, kernel: Kernel, grid: Grid, parameters: &[&[u8]]) -> Result<(), DeviceError>;

    /// Queues a matrix product.
    ///
    /// # Errors
    /// When no algorithm fits the shapes and alignments.
    fn gemm(&self, gemm: &Gemm) -> Result<(), DeviceError>;

    /// From now on measures the algorithms of each new kind of product and keeps the choice in `file`; what the file holds is
    /// taken from there. Returns a warning where it was made elsewhere and is left aside.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    fn keep_algorithms(&self, file: &Path) -> crate::Result<Option<String>>;

    /// Chooses how products in FP8 of this size are computed; addresses are not looked at.
    ///
    /// # Errors
    /// Says why there is no way.
    fn prepare_gemm_fp8(&self, rows: usize, columns: usize, depth: usize) -> Result<(), DeviceError>;

    /// Queues a product in FP8.
    ///
    /// # Errors
    /// When there is no way to compute it.
    fn gemm_fp8(&self, gemm: &GemmFp8) -> Result<(), DeviceError>;

    /// Encodes a tensor map.
    ///
    /// # Errors
    /// When addresses, strides or tile sizes break the copy engine's rules.
    fn tensor_map(&self, spec: &TensorSpec) -> Result<TensorMap, DeviceError>;

    /// Begins a branch and says in which lane, from 1: work of one lane is in order, whatever branch it belongs to. At
    /// most `LANES - 1` branches lie within one another. Until they are joined nothing is uploaded, downloaded or waited
    /// for, and memory that is given back gets no new user.
    ///
    /// # Errors
    /// When it cannot be queued, or too many branches are open.
    fn begin_branch(&self) -> Result<usize, DeviceError>;

    /// Ends the innermost branch that was begun: what follows runs beside it.
    ///
    /// # Errors
    /// When none was begun.
    fn end_branch(&self) -> Result<(), DeviceError>;

    /// What is queued from now on follows the innermost branch that was ended.
    ///
    /// # Errors
    /// When none was ended, or it cannot be queued.
    fn join_branch(&self) -> Result<(), DeviceError>;

    /// Begins to record instead of to run what is queued by this thread.
    ///
    /// # Errors
    /// When a recording is already in progress.
    fn begin_recording(&self) -> Result<(), DeviceError>;

    /// Ends the recording and returns a handle for [`replay`](Self::replay). Nothing of it has run yet.
    ///
    /// # Errors
    /// When something was done in between that cannot be recorded.
    fn end_recording(&self) -> Result<Box<dyn Recorded>, DeviceError>;

    /// Queues everything that was recorded, in order, with the same arguments.
    ///
    /// # Errors
    /// When it cannot be queued.
    fn replay(&self, recorded: &dyn Recorded) -> Result<(), DeviceError>;

    /// Waits until everything queued is done.
    ///
    /// # Errors
    /// When something of it failed.
    fn synchronize(&self) -> Result<(), DeviceError>;
}

/// A recorded sequence of operations of one driver: a CUDA graph, or its emulation.
pub trait Recorded: Send + Sync + std::fmt::Debug {
    /// For the driver that made it.
    fn as_any(&self) -> &dyn std::any::Any;
}
