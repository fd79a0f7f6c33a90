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
pub const MEMORY_THREADS: _bindgen_ty_2 = 256;
pub type _bindgen_ty_2 = ::std::os::raw::c_uint;
