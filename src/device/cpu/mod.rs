//! The native CPU backend: every operation in plain Rust over slices, rayon for threads, the `gemm` crate for products.
//! It is the oracle for the kernels, so each operation's file says its formula and follows it; results do not depend on
//! the number of threads.
//!
//! The type parameter is `f32` for work and `f64` for finite differences.

mod activation;
mod adaln;
mod adamw;
mod attention;
mod embed;
mod flow_noise;
mod head_conv;
mod hinge;
mod linear;
mod matmul;
mod patchify;
mod qk_norm;
mod quantize;
mod real;
mod reduce;

use std::sync::Mutex;

pub(crate) use matmul::{Mat, MatMut, Threads, matmul};
pub use real::Real;

use super::shapes::{
    AdalnShape, AdamwShape, AttentionShape, ConvShape, HeadLogitsShape, HingeShape, Linear, PatchShape, QkNormShape, QuantizeShape,
    StepValues, Stream,
};
use super::{AdamwState, Backend, Branch, BranchGrad, DeviceError, NormGrad, NormOut, Quantized, Storage, View, ViewMut};
use crate::flow::TimestepDistribution;

/// Elements of one task of an elementwise operation: 32 KB of f32, which stays in the first cache with its operands.
const GRAIN: usize = 8192;

/// Runs a loop compiled for the widest vectors this processor has.
#[inline(always)]
fn simd<R>(body: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(body)
}

/// Memory of the CPU backend.
#[derive(Debug)]
pub struct Buffer<T>(Vec<T>);

impl<T: Send + Sync> Storage for Buffer<T> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn place(&self) -> u64 {
        self.0.as_ptr() as u64
    }
}

impl<T> std::ops::Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> std::ops::DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

impl<'a, T> View<'a, Buffer<T>> {
    /// The values.
    pub fn slice(self) -> &'a [T] {
        &self.buffer.0[self.range()]
    }
}

impl<'a, T> ViewMut<'a, Buffer<T>> {
    /// The values.
    pub fn slice(self) -> &'a mut [T] {
        let range = self.range();
        &mut self.buffer.0[range]
    }
}

/// The backend. Work runs in rayon's current thread pool.
#[derive(Debug, Default)]
pub struct Cpu<T> {
    /// Reused by operations that need room for an intermediate.
    scratch: Mutex<Vec<T>>,
}

impl<T: Real> Cpu<T> {
    /// The CPU; it is always there.
    pub fn new() -> Self {
        Self { scratch: Mutex::new(Vec::new()) }
    }

    fn alloc<E: Clone + Default>(&self, len: usize) -> Result<Buffer<E>, DeviceError> {
        let mut values = Vec::new();
        values
            .try_reserve_exact(len)
            .map_err(|_| DeviceError::OutOfMemory { device: self.name(), requested: (len * size_of::<E>()) as u64 })?;
        values.resize(len, E::default());
        Ok(Buffer(values))
    }

    fn with_scratch<R>(&self, len: usize, work: impl FnOnce(&mut [T]) -> R) -> R {
        let mut scratch = self.scratch.lock().map(|mut kept| std::mem::take(&mut *kept)).unwrap_or_default();
        if scratch.len() < len {
            scratch.resize(len, T::ZERO);
        }
        let result = work(&mut scratch[..len]);
        if let Ok(mut kept) = self.scratch.lock() {
            *kept = scratch;
        }
        result
    }
}

type In<'a, T> = View<'a, Buffer<T>>;
type Out<'a, T> = ViewMut<'a, Buffer<T>>;

fn upload<T: Real>(src: &[f32], dst: Out<'_, T>) {
    assert_eq!(src.len(), dst.len, "upload of {} values into a view of {}", src.len(), dst.len);
    dst.slice().iter_mut().zip(src).for_each(|(d, s)| *d = T::from_f32(*s));
}

fn download<T: Real>(src: In<'_, T>) -> Vec<f32> {
    src.slice().iter().map(|v| v.to_f32()).collect()
}

impl<T: Real> Backend for Cpu<T> {
    type Data = Buffer<T>;
    type Stat = Buffer<T>;
    type Bytes = Buffer<u8>;
    type Step = StepValues;
    type Recording = ();

    fn name(&self) -> String {
        format!("cpu ({}, {} threads)", T::NAME, rayon::current_num_threads())
    }

    fn alloc_data(&self, len: usize) -> Result<Buffer<T>, DeviceError> {
        self.alloc(len)
    }

    fn alloc_stat(&self, len: usize) -> Result<Buffer<T>, DeviceError> {
        self.alloc(len)
    }

    fn alloc_bytes(&self, len: usize) -> Result<Buffer<u8>, DeviceError> {
        self.alloc(len)
    }

    fn alloc_step(&self) -> Result<StepValues, DeviceError> {
        Ok(StepValues::default())
    }

    fn upload_data(&self, src: &[f32], dst: Out<'_, T>) {
        upload(src, dst);
    }

    fn upload_bytes(&self, src: &[u8], dst: ViewMut<'_, Buffer<u8>>) {
        dst.slice().copy_from_slice(src);
    }

    fn upload_stat(&self, src: &[f32], dst: Out<'_, T>) {
        upload(src, dst);
    }

    fn upload_step(&self, values: &StepValues, dst: &mut StepValues) {
        *dst = *values;
    }

    fn download_data(&self, src: In<'_, T>) -> Result<Vec<f32>, DeviceError> {
        Ok(download(src))
    }

    fn download_stat(&self, src: In<'_, T>) -> Result<Vec<f32>, DeviceError> {
        Ok(download(src))
    }

    fn download_bytes(&self, src: View<'_, Buffer<u8>>) -> Result<Vec<u8>, DeviceError> {
        Ok(src.slice().to_vec())
    }

    fn replay(&self, (): &mut (), work: impl FnOnce()) {
        work();
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn fill(&self, dst: Out<'_, T>, value: f32) {
        dst.slice().fill(T::from_f32(value));
    }

    fn copy(&self, src: In<'_, T>, dst: Out<'_, T>) {
        dst.slice().copy_from_slice(src.slice());
    }

    fn copy_data(&self, src: In<'_, T>, dst: Out<'_, T>) {
        dst.slice().copy_from_slice(src.slice());
    }

    fn cast(&self, src: In<'_, T>, dst: Out<'_, T>) {
        dst.slice().copy_from_slice(src.slice());
    }

    fn linear(&self, params: &Buffer<T>, layer: &Linear, rows: usize, x: In<'_, T>, y: Out<'_, T>, accumulate: bool) {
        linear::linear(params, layer, rows, x.slice(), y.slice(), accumulate);
    }

    fn linear_gelu(&self, params: &Buffer<T>, layer: &Linear, rows: usize, x: In<'_, T>, pre: Out<'_, T>, y: Out<'_, T>) {
        linear::linear_gelu(params, layer, rows, x.slice(), pre.slice(), y.slice());
    }

    fn linear_backward_input(&self, params: &Buffer<T>, layer: &Linear, rows: usize, dy: In<'_, T>, dx: Out<'_, T>, accumulate: bool) {
        linear::linear_backward_input(params, layer, rows, dy.slice(), dx.slice(), accumulate);
    }

    fn linear_backward_input_gelu(
        &self,
        params: &Buffer<T>,
        layer: &Linear,
        rows: usize,
        dy: In<'_, T>,
        pre: In<'_, T>,
        d_pre: Out<'_, T>,
    ) {
        linear::linear_backward_input_gelu(params, layer, rows, dy.slice(), pre.slice(), d_pre.slice());
    }

    fn linear_backward_weight(&self, grads: &mut Buffer<T>, layer: &Linear, rows: usize, x: In<'_, T>, dy: In<'_, T>) {
        linear::linear_backward_weight(grads, layer, rows, x.slice(), dy.slice());
    }

    fn quantize_rows(&self, shape: &QuantizeShape, x: In<'_, T>, codes: ViewMut<'_, Buffer<u8>>, scales: Out<'_, T>) {
        quantize::quantize_rows(shape, x.slice(), codes.slice(), scales.slice());
    }

    fn prepare_linear_fp8(&self, layer: &Linear, _: usize) -> Result<(), DeviceError> {
        layer.check_fp8(&self.name())
    }

    fn linear_fp8(
        &self,
        params: &Buffer<T>,
        layer: &Linear,
        rows: usize,
        x: Quantized<'_, Self>,
        weight: Quantized<'_, Self>,
        y: Out<'_, T>,
    ) {
        let (inputs, outputs) = (layer.inputs, layer.outputs);
        let x = (&x.codes.slice()[..rows * inputs], &x.scales.slice()[..rows]);
        let weight = (&weight.codes.slice()[..outputs * inputs], &weight.scales.slice()[..outputs]);
        self.with_scratch((rows + outputs) * inputs, |room| quantize::linear_fp8(params, layer, rows, x, weight, y.slice(), room));
    }

    fn silu(&self, x: In<'_, T>, y: Out<'_, T>) {
        activation::silu(x.slice(), y.slice());
    }

    fn silu_backward(&self, x: In<'_, T>, dy: In<'_, T>, dx: Out<'_, T>) {
        activation::silu_backward(x.slice(), dy.slice(), dx.slice());
    }

    fn leaky_relu(&self, x: In<'_, T>, residual: Option<In<'_, T>>, y: Out<'_, T>) {
        activation::leaky_relu(x.slice(), residual.map(View::slice), y.slice());
    }

    fn leaky_relu_backward(&self, x: In<'_, T>, dy: In<'_, T>, dx: Out<'_, T>) {
        activation::leaky_relu_backward(x.slice(), dy.slice(), dx.slice());
    }

    fn qk_norm(
        &self,
        params: &Buffer<T>,
        shape: &QkNormShape,
        qkv: In<'_, T>,
        q: &mut Buffer<T>,
        k: &mut Buffer<T>,
        v: &mut Buffer<T>,
        rstd: &mut Buffer<T>,
    ) {
        qk_norm::qk_norm(params, shape, qkv.slice(), [q, k, v], rstd);
    }

    fn qk_norm_backward(
        &self,
        params: &Buffer<T>,
        grads: Option<&mut Buffer<T>>,
        shape: &QkNormShape,
        queries: bool,
        qkv: In<'_, T>,
        rstd: &Buffer<T>,
        d_joint: [&Buffer<T>; 3],
        d_qkv: Out<'_, T>,
    ) {
        let d_joint = d_joint.map(|d| &**d);
        qk_norm::qk_norm_backward(params, grads.map(|g| &mut **g), shape, queries, qkv.slice(), rstd, d_joint, d_qkv.slice());
    }

    fn attention(
        &self,
        shape: &AttentionShape,
        qkv: [&Buffer<T>; 3],
        out_image: &mut Buffer<T>,
        out_text: Option<&mut Buffer<T>>,
        lse: &mut Buffer<T>,
    ) {
        self.with_scratch(shape.batch * shape.heads * shape.queries() * shape.head_dim, |joint| {
            attention::attention(shape, qkv.map(|x| &**x), out_image, out_text.map(|o| &mut **o), lse, joint);
        });
    }

    fn attention_backward(
        &self,
        shape: &AttentionShape,
        qkv: [&Buffer<T>; 3],
        out: [Option<&Buffer<T>>; 2],
        lse: &Buffer<T>,
        d_out: [Option<&Buffer<T>>; 2],
        d_qkv: [&mut Buffer<T>; 3],
    ) {
        let (out, d_out) = (out.map(|o| o.map(|o| &**o)), d_out.map(|o| o.map(|o| &**o)));
        attention::attention_backward(shape, qkv.map(|x| &**x), out, lse, d_out, d_qkv.map(|x| &mut **x));
    }

    fn adaln(
        &self,
        shape: &AdalnShape,
        x: In<'_, T>,
        branches: &[Branch<'_, Self>],
        table: Option<In<'_, T>>,
        x_out: Option<Out<'_, T>>,
        norms: &mut [NormOut<'_, Self>],
        stats: Option<&mut Buffer<T>>,
    ) {
        let branches: Vec<_> = branches.iter().map(|b| (b.y.slice(), b.gate)).collect();
        let norms: Vec<_> = norms.iter_mut().map(|n| (&mut n.out.buffer.0[n.out.start..n.out.start + n.out.len], n.modulation)).collect();
        let (table, x_out) = (table.map(View::slice), x_out.map(ViewMut::slice));
        adaln::adaln(shape, x.slice(), &branches, table, x_out, norms, stats.map(|s| &mut **s));
    }

    fn adaln_backward(
        &self,
        shape: &AdalnShape,
        x_out: In<'_, T>,
        stats: Option<&Buffer<T>>,
        table: Option<In<'_, T>>,
        dx: Out<'_, T>,
        accumulate: bool,
        extra: Option<In<'_, T>>,
        norms: &[NormGrad<'_, Self>],
        branches: &mut [BranchGrad<'_, Self>],
        d_table: Option<&mut Buffer<T>>,
    ) {
        let norms: Vec<_> = norms.iter().map(|n| (n.d_out.slice(), n.modulation)).collect();
        let branches: Vec<_> =
            branches.iter_mut().map(|b| (b.y.slice(), b.gate, &mut b.d_y.buffer.0[b.d_y.start..b.d_y.start + b.d_y.len])).collect();
        let (stats, table, extra) = (stats.map(|s| &**s), table.map(View::slice), extra.map(View::slice));
        adaln::adaln_backward(
            shape,
            x_out.slice(),
            stats,
            table,
            dx.slice(),
            accumulate,
            extra,
            &norms,
            branches,
            d_table.map(|d| &mut **d),
        );
    }

    fn patchify(&self, shape: &PatchShape, latent: In<'_, T>, tokens: Out<'_, T>) {
        patchify::patchify(shape, latent.slice(), tokens.slice());
    }

    fn unpatchify(&self, shape: &PatchShape, tokens: In<'_, T>, latent: Out<'_, T>) {
        patchify::unpatchify(shape, tokens.slice(), latent.slice());
    }

    fn pos_embed(&self, batch: usize, grid: (usize, usize), max: usize, pos: &Buffer<T>, x: Out<'_, T>) {
        embed::pos_embed(batch, grid, max, pos, x.slice());
    }

    fn timestep_embedding(&self, t: In<'_, T>, pooled: Option<In<'_, T>>, out: Out<'_, T>) {
        embed::timestep_embedding(t.slice(), pooled.map(View::slice), out.slice());
    }

    fn timesteps(&self, step: &StepValues, stream: Stream, distribution: &TimestepDistribution, t: Out<'_, T>) {
        flow_noise::timesteps(step, stream, distribution, t.slice());
    }

    fn normal(&self, step: &StepValues, stream: Stream, numel: usize, out: Out<'_, T>) {
        flow_noise::normal(step, stream, numel, out.slice());
    }

    fn flow_noise(
        &self,
        step: &StepValues,
        stream: Stream,
        perturb: Option<(Stream, f32)>,
        x0: In<'_, T>,
        t: In<'_, T>,
        x_t: Out<'_, T>,
        velocity: Option<Out<'_, T>>,
    ) {
        flow_noise::flow_noise(step, stream, perturb, x0.slice(), t.slice(), x_t.slice(), velocity.map(ViewMut::slice));
    }

    fn predict_x0_renoise(
        &self,
        step: &StepValues,
        stream: Stream,
        shape: &PatchShape,
        x_t: In<'_, T>,
        velocity: In<'_, T>,
        t: In<'_, T>,
        t_hat: In<'_, T>,
        x0_hat: Out<'_, T>,
        renoised: Out<'_, T>,
    ) {
        let (t, t_hat) = (t.slice(), t_hat.slice());
        flow_noise::predict_x0_renoise(step, stream, shape, x_t.slice(), velocity.slice(), t, t_hat, x0_hat.slice(), renoised.slice());
    }

    fn predict_x0_renoise_backward(
        &self,
        shape: &PatchShape,
        t: In<'_, T>,
        t_hat: In<'_, T>,
        d_renoised: Option<In<'_, T>>,
        d_x0_hat: Option<In<'_, T>>,
        d_velocity: Out<'_, T>,
    ) {
        let (d_renoised, d_x0_hat) = (d_renoised.map(View::slice), d_x0_hat.map(View::slice));
        flow_noise::predict_x0_renoise_backward(shape, t.slice(), t_hat.slice(), d_renoised, d_x0_hat, d_velocity.slice());
    }

    fn euler_cfg(&self, x: Out<'_, T>, velocity: In<'_, T>, unconditional: Option<In<'_, T>>, guidance: f32, dt: f32) {
        let unconditional = unconditional.map(View::slice);
        flow_noise::euler_cfg(x.slice(), velocity.slice(), unconditional, T::from_f32(guidance), T::from_f32(dt));
    }

    fn mse(&self, a: In<'_, T>, b: In<'_, T>, share: f32, weight: f32, d_a: Option<Out<'_, T>>, loss: Out<'_, T>) {
        hinge::mse(a.slice(), b.slice(), share, weight, d_a.map(ViewMut::slice), loss.slice());
    }

    fn hinge(
        &self,
        shape: &HingeShape,
        logits: In<'_, T>,
        d_logits_d: Option<Out<'_, T>>,
        d_logits_g: Option<Out<'_, T>>,
        stats: Out<'_, T>,
    ) {
        hinge::hinge(shape, logits.slice(), d_logits_d.map(ViewMut::slice), d_logits_g.map(ViewMut::slice), stats.slice());
    }

    fn conv3x3(&self, params: &Buffer<T>, shape: &ConvShape, x: In<'_, T>, y: Out<'_, T>) {
        head_conv::conv3x3(params, shape, x.slice(), y.slice());
    }

    fn conv3x3_backward_input(&self, params: &Buffer<T>, shape: &ConvShape, dy: In<'_, T>, dx: Out<'_, T>, accumulate: bool) {
        head_conv::conv3x3_backward_input(params, shape, dy.slice(), dx.slice(), accumulate);
    }

    fn conv3x3_backward_weight(&self, grads: &mut Buffer<T>, shape: &ConvShape, x: In<'_, T>, dy: In<'_, T>) {
        head_conv::conv3x3_backward_weight(grads, shape, x.slice(), dy.slice());
    }

    fn head_logits(&self, params: &Buffer<T>, shape: &HeadLogitsShape, h: In<'_, T>, cm: In<'_, T>, logits: Out<'_, T>) {
        head_conv::head_logits(params, shape, h.slice(), cm.slice(), logits.slice());
    }

    fn head_logits_backward(
        &self,
        params: &Buffer<T>,
        shape: &HeadLogitsShape,
        h: In<'_, T>,
        cm: In<'_, T>,
        d_logits: In<'_, T>,
        dh: Out<'_, T>,
        grads: Option<(&mut Buffer<T>, Out<'_, T>)>,
    ) {
        let grads = grads.map(|(grads, d_cm)| (&mut **grads, d_cm.slice()));
        head_conv::head_logits_backward(params, shape, h.slice(), cm.slice(), d_logits.slice(), dh.slice(), grads);
    }

    fn global_norm(&self, grads: &Buffer<T>, norm: &mut Buffer<T>) {
        norm[0] = adamw::global_norm(grads);
    }

    fn adamw(&self, step: &StepValues, shape: &AdamwShape, grads: &Buffer<T>, norm: &Buffer<T>, state: AdamwState<'_, Self>) {
        let AdamwState { params, master, moment1, moment2, ema, counters } = state;
        let (moment1, moment2) = (moment1.map(adamw::Kept::of), adamw::Kept::of(moment2));
        let state = adamw::State { params, master, moment1, moment2, ema: ema.map(|e| &mut **e), counters };
        adamw::adamw(step, shape, grads, norm[0], state);
    }
}
