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
pub struct AttentionParams {
    pub q: DevicePtr,
    pub k: DevicePtr,
    pub v: DevicePtr,
    pub out_image: DevicePtr,
    pub out_text: DevicePtr,
    pub lse: DevicePtr,
    pub heads: u32,
    pub head_dim: u32,
    pub keys: u32,
    pub queries: u32,
    pub image: u32,
    pub scale: f32,
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AttentionBackwardParams {
    pub q: DevicePtr,
    pub k: DevicePtr,
    pub v: DevicePtr,
    pub out_image: DevicePtr,
    pub out_text: DevicePtr,
    pub d_out_image: DevicePtr,
    pub d_out_text: DevicePtr,
    pub lse: DevicePtr,
    pub statistics: DevicePtr,
    pub dq: DevicePtr,
    pub dk: DevicePtr,
    pub dv: DevicePtr,
    pub batch: u32,
    pub heads: u32,
    pub head_dim: u32,
    pub keys: u32,
    pub queries: u32,
    pub image: u32,
    pub scale: f32,
    pub unused: u32,
}
pub const ATTENTION_THREADS: _bindgen_ty_4 = 128;
pub const ATTENTION_QUERIES_D64: _bindgen_ty_4 = 128;
pub const ATTENTION_QUERIES_D128: _bindgen_ty_4 = 64;
pub const ATTENTION_KEYS: _bindgen_ty_4 = 64;
pub const ATTENTION_SHARED_D64: _bindgen_ty_4 = 49152;
pub const ATTENTION_SHARED_D128: _bindgen_ty_4 = 81920;
pub const ATTENTION_STATISTICS_LANES: _bindgen_ty_4 = 8;
pub const ATTENTION_BACKWARD_ROWS: _bindgen_ty_4 = 64;
pub const ATTENTION_BACKWARD_COLUMNS_D64: _bindgen_ty_4 = 64;
pub const ATTENTION_BACKWARD_COLUMNS_D128: _bindgen_ty_4 = 32;
pub const ATTENTION_BACKWARD_SHARED_D64: _bindgen_ty_4 = 50176;
pub const ATTENTION_BACKWARD_SHARED_D128: _bindgen_ty_4 = 66048;
pub type _bindgen_ty_4 = ::std::os::raw::c_uint;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AttentionSm90Params {
    pub out_image: DevicePtr,
    pub out_text: DevicePtr,
    pub lse: DevicePtr,
    pub parts: DevicePtr,
    pub heads: u32,
    pub keys: u32,
    pub queries: u32,
    pub image: u32,
    pub query_tiles: u32,
    pub key_tiles: u32,
    pub tiles: u32,
    pub whole: u32,
    pub blocks: u32,
    pub scale: f32,
}
pub const ATTENTION_SM90_GROUP_QUERIES: _bindgen_ty_5 = 64;
pub const ATTENTION_SM90_BARRIERS: _bindgen_ty_5 = 1024;
pub const ATTENTION_SM90_COMBINE_THREADS: _bindgen_ty_5 = 128;
pub type _bindgen_ty_5 = ::std::os::raw::c_uint;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AttentionBackwardSm90Params {
    pub of: AttentionBackwardParams,
    pub dq_sums: DevicePtr,
    pub flags: DevicePtr,
    pub ticket: DevicePtr,
    pub tiles: u32,
    pub image_tiles: u32,
    pub first_tile: u32,
    pub last_tile: u32,
    pub key_blocks: u32,
    pub ordered: u32,
}
pub const ATTENTION_BACKWARD_SM90_THREADS: _bindgen_ty_6 = 384;
pub const ATTENTION_BACKWARD_SM90_KEYS: _bindgen_ty_6 = 128;
pub const ATTENTION_BACKWARD_SM90_QUERIES: _bindgen_ty_6 = 64;
pub const ATTENTION_BACKWARD_SM90_SHARED_D64: _bindgen_ty_6 = 133120;
pub const ATTENTION_BACKWARD_SM90_SHARED_D128: _bindgen_ty_6 = 231424;
pub const ATTENTION_BACKWARD_SM90_FINISH_THREADS: _bindgen_ty_6 = 256;
pub type _bindgen_ty_6 = ::std::os::raw::c_uint;
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
pub const QK_NORM_WIDTH: _bindgen_ty_7 = 8;
pub const QK_NORM_THREADS: _bindgen_ty_7 = 256;
pub const QK_NORM_FINALIZE_THREADS: _bindgen_ty_7 = 1024;
pub type _bindgen_ty_7 = ::std::os::raw::c_uint;
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
pub const COLUMN_SUM_THREADS: _bindgen_ty_8 = 256;
pub const GEMM_ANY_THREADS: _bindgen_ty_8 = 256;
pub const GEMM_ANY_TILE: _bindgen_ty_8 = 64;
pub type _bindgen_ty_8 = ::std::os::raw::c_uint;
pub const TIMESTEPS_MAX_DISCRETE: _bindgen_ty_9 = 16;
pub type _bindgen_ty_9 = ::std::os::raw::c_uint;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct TimestepsParams {
    pub step: DevicePtr,
    pub t: DevicePtr,
    pub stream: u32,
    pub batch: u32,
    pub count: u32,
    pub warmup_steps: u32,
    pub mean: f32,
    pub std: f32,
    pub shift: f32,
    pub unused: u32,
    pub values: [f32; 16usize],
    pub probs: [f32; 16usize],
    pub warmup_probs: [f32; 16usize],
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct NormalParams {
    pub numel: u64,
    pub step: DevicePtr,
    pub out: DevicePtr,
    pub stream: u32,
    pub batch: u32,
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct FlowNoiseParams {
    pub numel: u64,
    pub step: DevicePtr,
    pub x0: DevicePtr,
    pub t: DevicePtr,
    pub x_t: DevicePtr,
    pub velocity: DevicePtr,
    pub stream: u32,
    pub batch: u32,
    pub perturbed: u32,
    pub perturb_stream: u32,
    pub sigma: f32,
    pub unused: u32,
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct RenoiseParams {
    pub step: DevicePtr,
    pub x_t: DevicePtr,
    pub velocity: DevicePtr,
    pub t: DevicePtr,
    pub t_hat: DevicePtr,
    pub x0_hat: DevicePtr,
    pub renoised: DevicePtr,
    pub stream: u32,
    pub batch: u32,
    pub channels: u32,
    pub height: u32,
    pub width: u32,
    pub patch: u32,
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct RenoiseBackwardParams {
    pub t: DevicePtr,
    pub t_hat: DevicePtr,
    pub d_renoised: DevicePtr,
    pub d_x0_hat: DevicePtr,
    pub d_velocity: DevicePtr,
    pub batch: u32,
    pub channels: u32,
    pub height: u32,
    pub width: u32,
    pub patch: u32,
    pub unused: u32,
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct EulerParams {
    pub len: u64,
    pub x: DevicePtr,
    pub velocity: DevicePtr,
    pub unconditional: DevicePtr,
    pub guidance: f32,
    pub dt: f32,
}
pub const FLOW_THREADS: _bindgen_ty_10 = 256;
pub const RENOISE_TOKENS: _bindgen_ty_10 = 32;
pub const RENOISE_PAD: _bindgen_ty_10 = 2;
pub type _bindgen_ty_10 = ::std::os::raw::c_uint;
pub const HINGE_SUMS: _bindgen_ty_11 = 7;
pub type _bindgen_ty_11 = ::std::os::raw::c_uint;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct HingeParams {
    pub per_group: u64,
    pub logits: DevicePtr,
    pub d_logits_d: DevicePtr,
    pub d_logits_g: DevicePtr,
    pub partials: DevicePtr,
    pub stats: DevicePtr,
    pub share: f64,
    pub heads: u32,
    pub groups: u32,
    pub parts: u32,
    pub real: u32,
    pub mismatch: u32,
    pub perturbed: u32,
    pub mismatch_weight: f32,
    pub r1_weight: f32,
    pub weight_d: f32,
    pub weight_g: f32,
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct MseParams {
    pub len: u64,
    pub a: DevicePtr,
    pub b: DevicePtr,
    pub d_a: DevicePtr,
    pub partials: DevicePtr,
    pub loss: DevicePtr,
    pub share: f64,
    pub factor: f32,
    pub parts: u32,
}
pub const HINGE_THREADS: _bindgen_ty_12 = 256;
pub const HINGE_CHUNK: _bindgen_ty_12 = 2048;
pub const MSE_THREADS: _bindgen_ty_12 = 256;
pub const MSE_MAX_PARTS: _bindgen_ty_12 = 1024;
pub type _bindgen_ty_12 = ::std::os::raw::c_uint;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ConvParams {
    pub source: DevicePtr,
    pub weight: DevicePtr,
    pub bias: DevicePtr,
    pub out: DevicePtr,
    pub tokens: u32,
    pub rows: u32,
    pub columns: u32,
    pub cin: u32,
    pub cout: u32,
    pub accumulate: u32,
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ConvWeightParams {
    pub x: DevicePtr,
    pub dy: DevicePtr,
    pub partial: DevicePtr,
    pub tokens: u32,
    pub chunk: u32,
    pub rows: u32,
    pub columns: u32,
    pub cin: u32,
    pub cout: u32,
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ConvFinishParams {
    pub weights: u64,
    pub partial: DevicePtr,
    pub d_weight: DevicePtr,
    pub d_bias: DevicePtr,
    pub chunks: u32,
    pub cout: u32,
}
pub const CONV_THREADS: _bindgen_ty_13 = 128;
pub const CONV_LARGE_TILE: _bindgen_ty_13 = 128;
pub const CONV_SMALL_TILE: _bindgen_ty_13 = 64;
pub const CONV_DEPTH: _bindgen_ty_13 = 32;
pub const CONV_STAGES: _bindgen_ty_13 = 4;
pub const CONV_PAD: _bindgen_ty_13 = 8;
pub const CONV_FINISH_THREADS: _bindgen_ty_13 = 256;
pub type _bindgen_ty_13 = ::std::os::raw::c_uint;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct HeadLogitsParams {
    pub h: DevicePtr,
    pub cm: DevicePtr,
    pub weight: DevicePtr,
    pub bias: DevicePtr,
    pub logits: DevicePtr,
    pub tokens: u32,
    pub positions: u32,
    pub width: u32,
    pub unused: u32,
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct HeadLogitsBackwardParams {
    pub h: DevicePtr,
    pub cm: DevicePtr,
    pub weight: DevicePtr,
    pub d_logits: DevicePtr,
    pub dh: DevicePtr,
    pub partial: DevicePtr,
    pub positions: u32,
    pub chunk: u32,
    pub width: u32,
    pub unused: u32,
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct HeadLogitsFinishParams {
    pub partial: DevicePtr,
    pub d_weight: DevicePtr,
    pub d_bias: DevicePtr,
    pub d_cm: DevicePtr,
    pub samples: u32,
    pub chunks: u32,
    pub width: u32,
    pub unused: u32,
}
pub const HEAD_LOGITS_WARPS: _bindgen_ty_14 = 8;
pub const HEAD_LOGITS_SLICES: _bindgen_ty_14 = 8;
pub type _bindgen_ty_14 = ::std::os::raw::c_uint;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct PatchParams {
    pub len: u64,
    pub latent: DevicePtr,
    pub tokens: DevicePtr,
    pub channels: u32,
    pub height: u32,
    pub width: u32,
    pub patch: u32,
}
pub const PATCH_THREADS: _bindgen_ty_15 = 256;
pub type _bindgen_ty_15 = ::std::os::raw::c_uint;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct PosEmbedParams {
    pub pos: DevicePtr,
    pub x: DevicePtr,
    pub rows: u32,
    pub grid_rows: u32,
    pub columns: u32,
    pub hidden: u32,
    pub max: u32,
    pub top: u32,
    pub left: u32,
    pub unused: u32,
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct TimestepEmbeddingParams {
    pub t: DevicePtr,
    pub pooled: DevicePtr,
    pub out: DevicePtr,
    pub batch: u32,
    pub half: u32,
    pub pooled_width: u32,
    pub unused: u32,
}
pub const EMBED_THREADS: _bindgen_ty_16 = 256;
pub type _bindgen_ty_16 = ::std::os::raw::c_uint;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct NormParams {
    pub len: u64,
    pub grads: DevicePtr,
    pub partials: DevicePtr,
    pub norm: DevicePtr,
    pub parts: u32,
    pub unused: u32,
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AdamwCoefficients {
    pub clip: f32,
    pub rate: f32,
    pub root: f32,
    pub keep: f32,
    pub follow: f32,
    pub apply: u32,
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AdamwParams {
    pub len: u64,
    pub step: DevicePtr,
    pub norm: DevicePtr,
    pub counters: DevicePtr,
    pub coefficients: DevicePtr,
    pub grads: DevicePtr,
    pub params: DevicePtr,
    pub master: DevicePtr,
    pub moment1: DevicePtr,
    pub moment2: DevicePtr,
    pub scales1: DevicePtr,
    pub scales2: DevicePtr,
    pub ema: DevicePtr,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    pub max_norm: f64,
    pub ema_decay: f64,
    pub lr_index: u32,
    pub rounding: u32,
}
pub const ADAMW_THREADS: _bindgen_ty_17 = 256;
pub const ADAMW_PACK_BLOCK: _bindgen_ty_17 = 256;
pub const NORM_THREADS: _bindgen_ty_17 = 256;
pub const NORM_MAX_PARTS: _bindgen_ty_17 = 1024;
pub type _bindgen_ty_17 = ::std::os::raw::c_uint;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck::Pod, bytemuck::Zeroable)]
pub struct QuantizeRowsParams {
    pub x: DevicePtr,
    pub codes: DevicePtr,
    pub scales: DevicePtr,
    pub rows: u32,
    pub width: u32,
}
pub const QUANTIZE_WIDTH: _bindgen_ty_18 = 16;
pub const QUANTIZE_ROWS: _bindgen_ty_18 = 4;
pub const QUANTIZE_MAX_THREADS: _bindgen_ty_18 = 640;
pub const QUANTIZE_ANY_THREADS: _bindgen_ty_18 = 128;
pub type _bindgen_ty_18 = ::std::os::raw::c_uint;
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
pub const MEMORY_THREADS: _bindgen_ty_19 = 256;
pub type _bindgen_ty_19 = ::std::os::raw::c_uint;
