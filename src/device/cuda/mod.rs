//! The CUDA backend: hand-written kernels (`kernels/`) and cuBLASLt behind the [`Backend`] trait. bf16 weights and
//! activations, fp32 sums, statistics, master weights and moments.
//!
//! [`driver`] says what is needed of a driver and has two implementations: a GPU, and the CPU running the same kernels.
//! `ops/` holds the launch code, one file per kernel file. All `unsafe` code of the CUDA backend is in here.

#[rustfmt::skip]
// Some constants are for the kernels alone.
#[allow(missing_docs, non_upper_case_globals, non_camel_case_types, dead_code)]
mod abi;
pub mod algorithms;
#[cfg(feature = "cuda")]
pub mod built;
pub mod driver;
#[cfg(feature = "emulator")]
pub mod emulated;
mod memory;
mod ops;
pub mod policy;
#[cfg(feature = "cuda")]
pub mod real;

use std::path::Path;
use std::sync::{Arc, Mutex};

use bytemuck::Pod;
use half::bf16;
use half::slice::HalfFloatSliceExt;

use abi::StepParams;
use driver::{Address, Driver, Gemm, GemmFp8, Grid, Kernel, LANES, Properties, Recorded, TensorMap, TensorSpec};
pub use memory::Buffer;
use memory::Located;
use ops::{In, Out, StatIn, StatOut};
use policy::Choices;

use super::shapes::{
    AdalnShape, AdamwShape, AttentionShape, ConvShape, HeadLogitsShape, HingeShape, Linear, PatchShape, QkNormShape, QuantizeShape,
    StepValues, Stream,
};
use super::{AdamwState, Backend, Branch, BranchGrad, DeviceError, NormGrad, NormOut, Quantized, Storage, View, ViewMut};
use crate::flow::TimestepDistribution;

/// Blocks per multiprocessor of a grid that strides over its data: enough to fill the device, few enough that each
/// block has work for long.
const BLOCKS_PER_MULTIPROCESSOR: u32 = 8;

/// Scratch memory is aligned to as many bytes (on a GPU).
const SCRATCH_ALIGNMENT: usize = 256;

/// A CUDA device, real or emulated.
#[derive(Debug)]
pub struct Cuda {
    driver: Arc<dyn Driver>,
    /// The first failure; every later operation is dropped, and the next wait reports it.
    failed: Mutex<Option<DeviceError>>,
    scratch: Mutex<Lanes>,
    replays: bool,
    branches: bool,
    ordered: bool,
    choices: Choices,
}

/// A step on its way to being replayed: see [`Backend::replay`].
#[derive(Debug, Default)]
pub enum Recording {
    /// Never run.
    #[default]
    Empty,
    /// Run once.
    Warm,
    /// Recorded.
    Ready(Box<dyn Recorded>),
}

/// Scratch memory of every lane: operations of different lanes run side by side.
#[derive(Debug, Default)]
struct Lanes {
    scratch: [Scratch; LANES],
    /// The lane of what is being queued.
    current: usize,
    /// Branches that are not joined yet.
    open: usize,
}

/// Memory for intermediate results within one operation. Outgrown buffers are kept: a recording may still name them.
#[derive(Debug, Default)]
struct Scratch {
    current: Option<Buffer<u8>>,
    outgrown: Vec<Buffer<u8>>,
}

impl Cuda {
    /// The backend over a driver, with the variants of kernels that the environment forces.
    pub fn new(driver: Arc<dyn Driver>) -> Self {
        let choices = Choices::from_environment();
        Self { driver, failed: Mutex::default(), scratch: Mutex::default(), replays: true, branches: true, ordered: true, choices }
    }

    /// The backend on a GPU of this machine.
    ///
    /// # Errors
    /// Says what is missing: a driver, a device, one that is new enough, cuBLASLt.
    #[cfg(feature = "cuda")]
    pub fn open(ordinal: usize) -> Result<Self, DeviceError> {
        Ok(Self::new(Arc::new(real::Real::open(ordinal)?)))
    }

    /// Runs every step as it is instead of replaying a recording of it, for profilers and tests.
    #[must_use]
    pub fn without_replay(self) -> Self {
        Self { replays: false, ..self }
    }

    /// Runs branches one after the other ([`Backend::parallel`]), for comparisons and profilers. The bits are the same.
    #[must_use]
    pub fn without_branches(self) -> Self {
        Self { branches: false, ..self }
    }

    /// Lets sums over blocks be added up in whatever order they come, where that is faster (the gradient of attention's
    /// queries on Hopper). Runs then differ in their last bits.
    #[must_use]
    pub fn without_order(self) -> Self {
        Self { ordered: false, ..self }
    }

    /// Whether all sums are added up in a fixed order.
    pub fn is_ordered(&self) -> bool {
        self.ordered
    }

    /// Another backend on the same device, with other variants of kernels: buffers of either serve both.
    #[must_use]
    pub fn choosing(&self, choices: Choices) -> Self {
        Self { choices, replays: self.replays, branches: self.branches, ordered: self.ordered, ..Self::new(self.driver.clone()) }
    }

    /// Measures cuBLASLt's algorithms from now on, each kind of product when it is first queued, and keeps the choices in
    /// `file`; those that it holds already are taken from there. Returns a warning where the file was made on another device
    /// or with another version of cuBLASLt and is left aside. Not for a backend that has recordings.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn measure_algorithms(&self, file: &Path) -> crate::Result<Option<String>> {
        self.driver.keep_algorithms(file)
    }

    /// What the device can do.
    pub fn properties(&self) -> &Properties {
        self.driver.properties()
    }

    /// Bytes of device memory that buffers and scratch took at most since the device was opened; what the driver keeps
    /// for itself (context, kernels, graphs) is not in it.
    pub fn peak_memory(&self) -> u64 {
        self.driver.peak_memory()
    }

    /// Remembers a failure; the first one counts.
    fn note<T>(&self, result: Result<T, DeviceError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                if let Ok(mut failed) = self.failed.lock() {
                    failed.get_or_insert(error);
                }
                None
            }
        }
    }

    /// The failure so far, if any.
    fn check(&self) -> Result<(), DeviceError> {
        match self.failed.lock() {
            Ok(failed) => failed.clone().map_or(Ok(()), Err),
            Err(_) => Ok(()),
        }
    }

    /// Fails an operation that no kernel can do.
    fn refuse(&self, what: &str, cause: String) {
        self.note::<()>(Err(DeviceError::Failed { device: self.properties().name.clone(), what: what.to_owned(), cause }));
    }

    /// Queues a kernel that takes one parameter struct.
    fn launch<P: Pod>(&self, kernel: Kernel, grid: Grid, params: &P) {
        self.launch_with(kernel, grid, &[bytemuck::bytes_of(params)]);
    }

    /// Queues a kernel with several arguments, each as its bytes.
    fn launch_with(&self, kernel: Kernel, grid: Grid, parameters: &[&[u8]]) {
        if self.check().is_ok() {
            self.note(self.driver.launch(kernel, grid, parameters));
        }
    }

    /// Queues a matrix product.
    fn gemm(&self, gemm: &Gemm) {
        if self.check().is_ok() {
            self.note(self.driver.gemm(gemm));
        }
    }

    /// Queues a product in FP8.
    fn gemm_fp8(&self, gemm: &GemmFp8) {
        if self.check().is_ok() {
            self.note(self.driver.gemm_fp8(gemm));
        }
    }

    /// Encodes a tensor map; `None` when that failed, which is then noted.
    fn tensor_map(&self, spec: &TensorSpec) -> Option<TensorMap> {
        self.note(self.driver.tensor_map(spec))
    }

    fn copy_bytes(&self, from: Address, to: Address, bytes: usize) {
        if bytes > 0 && self.check().is_ok() {
            self.note(self.driver.copy(from, to, bytes));
        }
    }

    /// `bytes` bytes for the operation being queued; the next operation may overwrite them. 256-byte aligned, not zeroed.
    /// `None` when there is no more memory, which is then noted.
    fn scratch(&self, bytes: usize) -> Option<Address> {
        let mut lanes = self.scratch.lock().ok()?;
        let current = lanes.current;
        let scratch = &mut lanes.scratch[current];
        if scratch.current.as_ref().is_none_or(|buffer| buffer.len() < bytes) {
            let grown = self.note(Buffer::new(&self.driver, bytes.next_power_of_two().max(SCRATCH_ALIGNMENT)))?;
            let outgrown = scratch.current.replace(grown);
            scratch.outgrown.extend(outgrown);
        }
        // The last bytes of the buffer: on the emulator, memory behind them is inaccessible.
        let rounded = bytes.next_multiple_of(SCRATCH_ALIGNMENT);
        scratch.current.as_ref().map(|buffer| buffer.address() + (buffer.len() - rounded) as u64)
    }

    /// Begins a branch and says from which lane; `None` where its work is to be queued in order.
    fn begin_branch(&self) -> Option<usize> {
        if !self.branches || self.check().is_err() || self.scratch.lock().ok()?.open + 1 == LANES {
            return None;
        }
        let lane = self.note(self.driver.begin_branch())?;
        let mut lanes = self.scratch.lock().ok()?;
        lanes.open += 1;
        Some(std::mem::replace(&mut lanes.current, lane))
    }

    /// Goes back to the lane that a branch was begun from.
    fn end_branch(&self, lane: usize) {
        self.note(self.driver.end_branch());
        if let Ok(mut lanes) = self.scratch.lock() {
            lanes.current = lane;
        }
    }

    fn join_branch(&self) {
        self.note(self.driver.join_branch());
        if let Ok(mut lanes) = self.scratch.lock() {
            lanes.open -= 1;
        }
    }

    /// A grid for `threads` threads of work in blocks of `block`, at most as many as fill the device a few times over:
    /// the kernel strides over the rest.
    fn strided_grid(&self, threads: u64, block: u32) -> Grid {
        let most = u64::from(self.properties().multiprocessors * BLOCKS_PER_MULTIPROCESSOR);
        let blocks = threads.div_ceil(u64::from(block)).clamp(1, most) as u32;
        Grid { blocks: [blocks, 1, 1], threads: block, shared: 0 }
    }

    fn write<T: Pod>(&self, to: Address, values: &[T]) {
        if !values.is_empty() && self.check().is_ok() {
            self.note(self.driver.write(to, bytemuck::cast_slice(values)));
        }
    }

    fn read<T: Pod>(&self, from: Address, len: usize) -> Result<Vec<T>, DeviceError> {
        self.check()?;
        let mut values = vec![T::zeroed(); len];
        if len > 0 {
            self.driver.read(from, bytemuck::cast_slice_mut(&mut values))?;
        }
        Ok(values)
    }
}

impl Backend for Cuda {
    type Data = Buffer<bf16>;
    type Stat = Buffer<f32>;
    type Bytes = Buffer<u8>;
    type Step = Buffer<StepParams>;
    type Recording = Recording;

    fn name(&self) -> String {
        let Properties { name, capability: (major, minor), .. } = self.properties();
        format!("cuda ({name}, compute capability {major}.{minor})")
    }

    fn alloc_data(&self, len: usize) -> Result<Buffer<bf16>, DeviceError> {
        Buffer::new(&self.driver, len)
    }

    fn alloc_stat(&self, len: usize) -> Result<Buffer<f32>, DeviceError> {
        Buffer::new(&self.driver, len)
    }

    fn alloc_bytes(&self, len: usize) -> Result<Buffer<u8>, DeviceError> {
        Buffer::new(&self.driver, len)
    }

    fn alloc_step(&self) -> Result<Buffer<StepParams>, DeviceError> {
        Buffer::new(&self.driver, 1)
    }

    fn upload_data(&self, src: &[f32], dst: Out<'_>) {
        assert_eq!(src.len(), dst.len, "upload of {} values into a view of {}", src.len(), dst.len);
        let mut rounded = vec![bf16::ZERO; src.len()];
        rounded.convert_from_f32_slice(src);
        self.write(dst.address(), &rounded);
    }

    fn upload_stat(&self, src: &[f32], dst: StatOut<'_>) {
        assert_eq!(src.len(), dst.len, "upload of {} values into a view of {}", src.len(), dst.len);
        self.write(dst.address(), src);
    }

    fn upload_bytes(&self, src: &[u8], dst: ViewMut<'_, Buffer<u8>>) {
        assert_eq!(src.len(), dst.len, "upload of {} bytes into a view of {}", src.len(), dst.len);
        self.write(dst.address(), src);
    }

    fn upload_step(&self, values: &StepValues, dst: &mut Buffer<StepParams>) {
        let StepValues { seed, step, first_sample, lr } = *values;
        self.write(dst.address(), &[StepParams { seed, step, first_sample, lr }]);
    }

    fn download_data(&self, src: In<'_>) -> Result<Vec<f32>, DeviceError> {
        Ok(self.read::<bf16>(src.address(), src.len)?.to_f32_vec())
    }

    fn download_stat(&self, src: StatIn<'_>) -> Result<Vec<f32>, DeviceError> {
        self.read(src.address(), src.len)
    }

    fn download_bytes(&self, src: View<'_, Buffer<u8>>) -> Result<Vec<u8>, DeviceError> {
        self.read(src.address(), src.len)
    }

    fn replay(&self, recording: &mut Recording, work: impl FnOnce()) {
        match recording {
            _ if !self.replays => work(),
            // The first time runs as it is: scratch memory grows to its size, algorithms are chosen.
            Recording::Empty => {
                work();
                *recording = Recording::Warm;
            }
            Recording::Warm => {
                if self.check().is_err() || self.note(self.driver.begin_recording()).is_none() {
                    return;
                }
                work();
                if let Some(recorded) = self.note(self.driver.end_recording())
                    && self.check().is_ok()
                {
                    self.note(self.driver.replay(&*recorded));
                    *recording = Recording::Ready(recorded);
                }
            }
            Recording::Ready(recorded) => {
                if self.check().is_ok() {
                    self.note(self.driver.replay(&**recorded));
                }
            }
        }
    }

    fn parallel<S>(&self, shared: &mut S, main: impl FnOnce(&mut S), side: impl FnOnce(&mut S)) {
        // The side comes first: it is the shorter one, and its kernels then stand in the queues before the long ones.
        let Some(lane) = self.begin_branch() else {
            side(shared);
            main(shared);
            return;
        };
        side(shared);
        self.end_branch(lane);
        main(shared);
        self.join_branch();
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.check()?;
        self.driver.synchronize()
    }

    fn fill(&self, dst: StatOut<'_>, value: f32) {
        ops::memory::fill(self, dst, value);
    }

    fn copy(&self, src: StatIn<'_>, dst: StatOut<'_>) {
        ops::memory::copy(self, src, dst);
    }

    fn copy_data(&self, src: In<'_>, dst: Out<'_>) {
        ops::memory::copy_data(self, src, dst);
    }

    fn cast(&self, src: StatIn<'_>, dst: Out<'_>) {
        ops::memory::cast(self, src, dst);
    }

    fn linear(&self, params: &Buffer<bf16>, layer: &Linear, rows: usize, x: In<'_>, y: Out<'_>, accumulate: bool) {
        ops::linear::linear(self, params, layer, rows, x, y, accumulate);
    }

    fn linear_gelu(&self, params: &Buffer<bf16>, layer: &Linear, rows: usize, x: In<'_>, pre: Out<'_>, y: Out<'_>) {
        ops::linear::linear_gelu(self, params, layer, rows, x, pre, y);
    }

    fn linear_backward_input(&self, params: &Buffer<bf16>, layer: &Linear, rows: usize, dy: In<'_>, dx: Out<'_>, accumulate: bool) {
        ops::linear::linear_backward_input(self, params, layer, rows, dy, dx, accumulate);
    }

    fn linear_backward_input_gelu(&self, params: &Buffer<bf16>, layer: &Linear, rows: usize, dy: In<'_>, pre: In<'_>, d_pre: Out<'_>) {
        ops::linear::linear_backward_input_gelu(self, params, layer, rows, dy, pre, d_pre);
    }

    fn linear_backward_weight(&self, grads: &mut Buffer<f32>, layer: &Linear, rows: usize, x: In<'_>, dy: In<'_>) {
        ops::linear::linear_backward_weight(self, grads, layer, rows, x, dy);
    }

    fn quantize_rows(&self, shape: &QuantizeShape, x: In<'_>, codes: ViewMut<'_, Buffer<u8>>, scales: StatOut<'_>) {
        ops::quantize::quantize_rows(self, shape, x, codes, scales);
    }

    fn prepare_linear_fp8(&self, layer: &Linear, rows: usize) -> Result<(), DeviceError> {
        ops::quantize::prepare_linear_fp8(self, layer, rows)
    }

    fn linear_fp8(
        &self,
        params: &Buffer<bf16>,
        layer: &Linear,
        rows: usize,
        x: Quantized<'_, Cuda>,
        weight: Quantized<'_, Cuda>,
        y: Out<'_>,
    ) {
        ops::quantize::linear_fp8(self, params, layer, rows, x, weight, y);
    }

    fn silu(&self, x: In<'_>, y: Out<'_>) {
        ops::activation::silu(self, x, y);
    }

    fn silu_backward(&self, x: In<'_>, dy: In<'_>, dx: Out<'_>) {
        ops::activation::silu_backward(self, x, dy, dx);
    }

    fn leaky_relu(&self, x: In<'_>, residual: Option<In<'_>>, y: Out<'_>) {
        ops::activation::leaky_relu(self, x, residual, y);
    }

    fn leaky_relu_backward(&self, x: In<'_>, dy: In<'_>, dx: Out<'_>) {
        ops::activation::leaky_relu_backward(self, x, dy, dx);
    }

    fn qk_norm(
        &self,
        params: &Buffer<bf16>,
        shape: &QkNormShape,
        qkv: In<'_>,
        q: &mut Buffer<bf16>,
        k: &mut Buffer<bf16>,
        v: &mut Buffer<bf16>,
        rstd: &mut Buffer<f32>,
    ) {
        ops::qk_norm::qk_norm(self, params, shape, qkv, q, k, v, rstd);
    }

    fn qk_norm_backward(
        &self,
        params: &Buffer<bf16>,
        grads: Option<&mut Buffer<f32>>,
        shape: &QkNormShape,
        queries: bool,
        qkv: In<'_>,
        rstd: &Buffer<f32>,
        d_joint: [&Buffer<bf16>; 3],
        d_qkv: Out<'_>,
    ) {
        ops::qk_norm::qk_norm_backward(self, params, grads, shape, queries, qkv, rstd, d_joint, d_qkv);
    }

    fn attention(
        &self,
        shape: &AttentionShape,
        qkv: [&Buffer<bf16>; 3],
        out_image: &mut Buffer<bf16>,
        out_text: Option<&mut Buffer<bf16>>,
        lse: &mut Buffer<f32>,
    ) {
        ops::attention::attention(self, shape, qkv, out_image, out_text, lse);
    }

    fn attention_backward(
        &self,
        shape: &AttentionShape,
        qkv: [&Buffer<bf16>; 3],
        out: [Option<&Buffer<bf16>>; 2],
        lse: &Buffer<f32>,
        d_out: [Option<&Buffer<bf16>>; 2],
        d_qkv: [&mut Buffer<bf16>; 3],
    ) {
        ops::attention_backward::attention_backward(self, shape, qkv, out, lse, d_out, d_qkv);
    }

    fn adaln(
        &self,
        shape: &AdalnShape,
        x: In<'_>,
        branches: &[Branch<'_, Cuda>],
        table: Option<In<'_>>,
        x_out: Option<Out<'_>>,
        norms: &mut [NormOut<'_, Cuda>],
        stats: Option<&mut Buffer<f32>>,
    ) {
        ops::adaln::adaln(self, shape, x, branches, table, x_out, norms, stats);
    }

    fn adaln_backward(
        &self,
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
        ops::adaln::adaln_backward(self, shape, x_out, stats, table, dx, accumulate, extra, norms, branches, d_table);
    }

    fn patchify(&self, shape: &PatchShape, latent: StatIn<'_>, tokens: Out<'_>) {
        ops::patchify::patchify(self, shape, latent, tokens);
    }

    fn unpatchify(&self, shape: &PatchShape, tokens: In<'_>, latent: StatOut<'_>) {
        ops::patchify::unpatchify(self, shape, tokens, latent);
    }

    fn pos_embed(&self, batch: usize, grid: (usize, usize), max: usize, pos: &Buffer<bf16>, x: Out<'_>) {
        ops::embed::pos_embed(self, batch, grid, max, pos, x);
    }

    fn timestep_embedding(&self, t: StatIn<'_>, pooled: Option<In<'_>>, out: Out<'_>) {
        ops::embed::timestep_embedding(self, t, pooled, out);
    }

    fn timesteps(&self, step: &Buffer<StepParams>, stream: Stream, distribution: &TimestepDistribution, t: StatOut<'_>) {
        ops::flow_noise::timesteps(self, step, stream, distribution, t);
    }

    fn normal(&self, step: &Buffer<StepParams>, stream: Stream, numel: usize, out: StatOut<'_>) {
        ops::flow_noise::normal(self, step, stream, numel, out);
    }

    fn flow_noise(
        &self,
        step: &Buffer<StepParams>,
        stream: Stream,
        perturb: Option<(Stream, f32)>,
        x0: StatIn<'_>,
        t: StatIn<'_>,
        x_t: StatOut<'_>,
        velocity: Option<StatOut<'_>>,
    ) {
        ops::flow_noise::flow_noise(self, step, stream, perturb, x0, t, x_t, velocity);
    }

    fn predict_x0_renoise(
        &self,
        step: &Buffer<StepParams>,
        stream: Stream,
        shape: &PatchShape,
        x_t: StatIn<'_>,
        velocity: In<'_>,
        t: StatIn<'_>,
        t_hat: StatIn<'_>,
        x0_hat: StatOut<'_>,
        renoised: Out<'_>,
    ) {
        ops::flow_noise::predict_x0_renoise(self, step, stream, shape, x_t, velocity, t, t_hat, x0_hat, renoised);
    }

    fn predict_x0_renoise_backward(
        &self,
        shape: &PatchShape,
        t: StatIn<'_>,
        t_hat: StatIn<'_>,
        d_renoised: Option<In<'_>>,
        d_x0_hat: Option<StatIn<'_>>,
        d_velocity: Out<'_>,
    ) {
        ops::flow_noise::predict_x0_renoise_backward(self, shape, t, t_hat, d_renoised, d_x0_hat, d_velocity);
    }

    fn euler_cfg(&self, x: StatOut<'_>, velocity: StatIn<'_>, unconditional: Option<StatIn<'_>>, guidance: f32, dt: f32) {
        ops::flow_noise::euler_cfg(self, x, velocity, unconditional, guidance, dt);
    }

    fn mse(&self, a: StatIn<'_>, b: StatIn<'_>, share: f32, weight: f32, d_a: Option<StatOut<'_>>, loss: StatOut<'_>) {
        ops::hinge::mse(self, a, b, share, weight, d_a, loss);
    }

    fn hinge(
        &self,
        shape: &HingeShape,
        logits: StatIn<'_>,
        d_logits_d: Option<StatOut<'_>>,
        d_logits_g: Option<StatOut<'_>>,
        stats: StatOut<'_>,
    ) {
        ops::hinge::hinge(self, shape, logits, d_logits_d, d_logits_g, stats);
    }

    fn conv3x3(&self, params: &Buffer<bf16>, shape: &ConvShape, x: In<'_>, y: Out<'_>) {
        ops::head_conv::conv3x3(self, params, shape, x, y);
    }

    fn conv3x3_backward_input(&self, params: &Buffer<bf16>, shape: &ConvShape, dy: In<'_>, dx: Out<'_>, accumulate: bool) {
        ops::head_conv::conv3x3_backward_input(self, params, shape, dy, dx, accumulate);
    }

    fn conv3x3_backward_weight(&self, grads: &mut Buffer<f32>, shape: &ConvShape, x: In<'_>, dy: In<'_>) {
        ops::head_conv::conv3x3_backward_weight(self, grads, shape, x, dy);
    }

    fn head_logits(&self, params: &Buffer<bf16>, shape: &HeadLogitsShape, h: In<'_>, cm: In<'_>, logits: StatOut<'_>) {
        ops::head_conv::head_logits(self, params, shape, h, cm, logits);
    }

    fn head_logits_backward(
        &self,
        params: &Buffer<bf16>,
        shape: &HeadLogitsShape,
        h: In<'_>,
        cm: In<'_>,
        d_logits: StatIn<'_>,
        dh: Out<'_>,
        grads: Option<(&mut Buffer<f32>, Out<'_>)>,
    ) {
        ops::head_conv::head_logits_backward(self, params, shape, h, cm, d_logits, dh, grads);
    }

    fn global_norm(&self, grads: &Buffer<f32>, norm: &mut Buffer<f32>) {
        ops::adamw::global_norm(self, grads, norm);
    }

    fn adamw(&self, step: &Buffer<StepParams>, shape: &AdamwShape, grads: &Buffer<f32>, norm: &Buffer<f32>, state: AdamwState<'_, Cuda>) {
        ops::adamw::adamw(self, step, shape, grads, norm, state);
    }
}
