// Made by bindgen from kernels/abi.h: BLESS=1 cargo test --test it abi

pub type DevicePtr = u64;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct StepParams {
    pub seed: u64,
    pub step: u32,
    pub first_sample: u32,
    pub lr: [f32; 2usize],
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ActivationParams {
    pub len: u64,
    pub x: DevicePtr,
    pub other: DevicePtr,
    pub out: DevicePtr,
}
pub const ACTIVATION_THREADS: _bindgen_ty_1 = 256;
pub type _bindgen_ty_1 = ::std::os::raw::c_uint;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AdalnNorm {
    pub out: DevicePtr,
    pub shift: DevicePtr,
    pub scale: DevicePtr,
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AdalnBranch {
    pub y: DevicePtr,
    pub d_y: DevicePtr,
    pub gate: DevicePtr,
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AdalnParams {
    pub x: DevicePtr,
    pub out: DevicePtr,
    pub extra: DevicePtr,
    pub stats: DevicePtr,
    pub partials: DevicePtr,
    pub norms: [AdalnNorm; 2usize],
    pub branches: [AdalnBranch; 2usize],
    pub stride: u32,
    pub tokens: u32,
    pub hidden: u32,
    pub rows_per_block: u32,
    pub norm_count: u32,
    pub branch_count: u32,
    pub accumulate: u32,
    pub table_aligned: u32,
    pub eps: f32,
    pub unused: u32,
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AdalnFinalizeParams {
    pub partials: DevicePtr,
    pub d_table: DevicePtr,
    pub parts: u32,
    pub sums: u32,
    pub hidden: u32,
    pub stride: u32,
    pub columns: [u32; 6usize],
}
pub const ADALN_WIDTH: _bindgen_ty_2 = 8;
pub const ADALN_MAX_THREADS: _bindgen_ty_2 = 320;
pub const ADALN_ANY_THREADS: _bindgen_ty_2 = 128;
pub const ADALN_FINALIZE_THREADS: _bindgen_ty_2 = 256;
pub type _bindgen_ty_2 = ::std::os::raw::c_uint;
pub const ADALN_NO_COLUMN: _bindgen_ty_3 = 2147483647;
pub type _bindgen_ty_3 = ::std::os::raw::c_uint;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct QkNormParams {
    pub qkv: DevicePtr,
    pub joint: [DevicePtr; 3usize],
    pub weights: [DevicePtr; 2usize],
    pub rstd: DevicePtr,
    pub d_qkv: DevicePtr,
    pub partials: DevicePtr,
    pub rows: u32,
    pub tokens: u32,
    pub heads: u32,
    pub head_dim: u32,
    pub sequence: u32,
    pub start: u32,
    pub queries: u32,
    pub eps: f32,
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct QkNormFinalizeParams {
    pub partials: DevicePtr,
    pub d_query_weight: DevicePtr,
    pub d_key_weight: DevicePtr,
    pub parts: u32,
    pub head_dim: u32,
}
pub const QK_NORM_WIDTH: _bindgen_ty_4 = 8;
pub const QK_NORM_THREADS: _bindgen_ty_4 = 256;
pub const QK_NORM_FINALIZE_THREADS: _bindgen_ty_4 = 1024;
pub type _bindgen_ty_4 = ::std::os::raw::c_uint;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ColumnSumParams {
    pub columns: u64,
    pub x: DevicePtr,
    pub partials: DevicePtr,
    pub sums: DevicePtr,
    pub rows: u32,
    pub parts: u32,
    pub rows_per_part: u32,
    pub unused: u32,
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct GemmOperand {
    pub address: DevicePtr,
    pub ld: u64,
    pub transposed: u32,
    pub unused: u32,
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct GemmAnyParams {
    pub a: GemmOperand,
    pub b: GemmOperand,
    pub out: DevicePtr,
    pub bias: DevicePtr,
    pub kept: DevicePtr,
    pub pre: DevicePtr,
    pub rows: u32,
    pub columns: u32,
    pub depth: u32,
    pub accumulate: u32,
    pub fp32: u32,
    pub unused: u32,
}
pub const COLUMN_SUM_THREADS: _bindgen_ty_5 = 256;
pub const GEMM_ANY_THREADS: _bindgen_ty_5 = 256;
pub const GEMM_ANY_TILE: _bindgen_ty_5 = 64;
pub type _bindgen_ty_5 = ::std::os::raw::c_uint;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct FillParams {
    pub len: u64,
    pub out: DevicePtr,
    pub value: f32,
    pub unused: u32,
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct CastParams {
    pub len: u64,
    pub x: DevicePtr,
    pub out: DevicePtr,
}
pub const MEMORY_THREADS: _bindgen_ty_6 = 256;
pub type _bindgen_ty_6 = ::std::os::raw::c_uint;
