//! The list of operations. Each is one method here, one file in `kernels/`, one function in `device/cpu/`, one golden
//! case and one benchmark, and they bear the same name.
//!
//! Buffers live on the device. `Data` holds weights and activations in the compute type (f32 on the CPU, bf16 on CUDA);
//! `Stat` holds what must keep fp32: latents, times, statistics, logits, losses, gradients of weights, master weights and
//! moments. An operation is queued and returns at once; one that fails on the device puts the backend into a failed
//! state, which the next `synchronize` or `download` reports. No operation reads a host value that changes from step to
//! step: those live in [`Backend::Step`].
//!
//! Rows are tokens: a stream of B samples with N tokens of width h is `[B * N, h]`, row-major. Every operation may be
//! given a smaller batch than its buffers were planned for; it then works on their first samples.

use super::packed::{PACK_BLOCK, Packing};
use super::shapes::{
    AdalnShape, AdamwShape, AttentionShape, ConvShape, HeadLogitsShape, HingeShape, Linear, Modulation, PatchShape, QkNormShape,
    QuantizeShape, StepValues, Stream,
};
use super::{DeviceError, Storage, View, ViewMut};
use crate::flow::TimestepDistribution;

/// A branch that joins the residual stream: `x + gate * y`.
#[derive(Debug)]
pub struct Branch<'a, B: Backend> {
    /// Output of the branch `[B * N, h]`.
    pub y: View<'a, B::Data>,
    /// Column of the modulation table at which the gate begins.
    pub gate: usize,
}

/// A normalised output of [`Backend::adaln`].
#[derive(Debug)]
pub struct NormOut<'a, B: Backend> {
    /// `LN(x) * (1 + scale) + shift`, or plain `LN(x)` where there is no modulation; `[B * N, h]`.
    pub out: ViewMut<'a, B::Data>,
    /// Its modulation.
    pub modulation: Option<Modulation>,
}

/// Gradient of a normalised output, for [`Backend::adaln_backward`].
#[derive(Debug)]
pub struct NormGrad<'a, B: Backend> {
    /// Gradient of the output `[B * N, h]`.
    pub d_out: View<'a, B::Data>,
    /// Its modulation.
    pub modulation: Option<Modulation>,
}

/// Gradient of a branch, for [`Backend::adaln_backward`].
#[derive(Debug)]
pub struct BranchGrad<'a, B: Backend> {
    /// Output of the branch, as in the forward.
    pub y: View<'a, B::Data>,
    /// Column of its gate.
    pub gate: usize,
    /// Where its gradient goes `[B * N, h]`.
    pub d_y: ViewMut<'a, B::Data>,
}

/// A matrix in FP8 (see [`e4m3`](super::e4m3)), which [`Backend::quantize_rows`] makes: `code * scale` of its row.
#[derive(Debug)]
pub struct Quantized<'a, B: Backend> {
    /// The codes `[rows, width]`.
    pub codes: View<'a, B::Bytes>,
    /// The scale of each row `[rows]`.
    pub scales: View<'a, B::Stat>,
}

/// A moment of an optimiser.
#[derive(Debug)]
pub enum Moment<B: Backend> {
    /// In fp32.
    Full(B::Stat),
    /// In few bits: see [`packed`](super::packed).
    Packed {
        /// The codes, one or two bytes a weight.
        codes: B::Bytes,
        /// The scale of every [`PACK_BLOCK`] weights.
        scales: B::Stat,
    },
}

impl<B: Backend> Moment<B> {
    /// Zeros for `len` weights, packed where `packing` says how.
    ///
    /// # Errors
    /// When the device's memory is exhausted.
    pub fn new(b: &B, len: usize, packing: Option<Packing>) -> Result<Self, DeviceError> {
        let Some(packing) = packing else { return Ok(Self::Full(b.alloc_stat(len)?)) };
        Ok(Self::Packed { codes: b.alloc_bytes(len * packing.bytes())?, scales: b.alloc_stat(len.div_ceil(PACK_BLOCK))? })
    }
}

/// The state that one AdamW pass reads and writes; all buffers have the arena's length.
#[derive(Debug)]
pub struct AdamwState<'a, B: Backend> {
    /// Weights in the compute type: written, a rounded copy of `master`.
    pub params: &'a mut B::Data,
    /// Weights in fp32.
    pub master: &'a mut B::Stat,
    /// First moment; not needed where `beta1` is 0, for then it is the gradient.
    pub moment1: Option<&'a mut Moment<B>>,
    /// Second moment, kept in the same way.
    pub moment2: &'a mut Moment<B>,
    /// Moving average of the weights.
    pub ema: Option<&'a mut B::Stat>,
    /// Updates applied and skipped, `[ADAMW_COUNTERS]`.
    pub counters: &'a mut B::Stat,
}

/// A device and its fused operations. Gradients with respect to activations are overwritten unless `accumulate` is
/// said; gradients of weights are always added to the gradient arena, which the step zeroes once.
pub trait Backend: Send + Sync + Sized + std::fmt::Debug + 'static {
    /// Buffer in the compute type.
    type Data: Storage + std::fmt::Debug;
    /// Buffer in fp32.
    type Stat: Storage + std::fmt::Debug;
    /// Buffer of bytes.
    type Bytes: Storage + std::fmt::Debug;
    /// The device-side copy of [`StepValues`].
    type Step: Send + Sync + std::fmt::Debug;
    /// A recorded sequence of operations, for [`replay`](Self::replay); empty at first.
    type Recording: Default + Send + Sync + std::fmt::Debug;

    // ---- memory -------------------------------------------------------------------------------------------------

    /// Name of the device, for messages and reports.
    fn name(&self) -> String;

    /// A zeroed buffer of `len` elements in the compute type.
    ///
    /// # Errors
    /// When the device's memory is exhausted.
    fn alloc_data(&self, len: usize) -> Result<Self::Data, DeviceError>;

    /// A zeroed fp32 buffer of `len` elements.
    ///
    /// # Errors
    /// When the device's memory is exhausted.
    fn alloc_stat(&self, len: usize) -> Result<Self::Stat, DeviceError>;

    /// A zeroed buffer of `len` bytes.
    ///
    /// # Errors
    /// When the device's memory is exhausted.
    fn alloc_bytes(&self, len: usize) -> Result<Self::Bytes, DeviceError>;

    /// Room for the values of a step.
    ///
    /// # Errors
    /// When the device's memory is exhausted.
    fn alloc_step(&self) -> Result<Self::Step, DeviceError>;

    /// Copies host values into a buffer, rounding to the compute type. `src` must have the view's length.
    fn upload_data(&self, src: &[f32], dst: ViewMut<'_, Self::Data>);

    /// Copies host values into an fp32 buffer. `src` must have the view's length.
    fn upload_stat(&self, src: &[f32], dst: ViewMut<'_, Self::Stat>);

    /// Copies bytes into a buffer. `src` must have the view's length.
    fn upload_bytes(&self, src: &[u8], dst: ViewMut<'_, Self::Bytes>);

    /// Queues the values of the next step.
    fn upload_step(&self, values: &StepValues, dst: &mut Self::Step);

    /// Waits for the device and copies a buffer to the host.
    ///
    /// # Errors
    /// When an operation before it failed.
    fn download_data(&self, src: View<'_, Self::Data>) -> Result<Vec<f32>, DeviceError>;

    /// Waits for the device and copies an fp32 buffer to the host.
    ///
    /// # Errors
    /// When an operation before it failed.
    fn download_stat(&self, src: View<'_, Self::Stat>) -> Result<Vec<f32>, DeviceError>;

    /// Waits for the device and copies bytes to the host.
    ///
    /// # Errors
    /// When an operation before it failed.
    fn download_bytes(&self, src: View<'_, Self::Bytes>) -> Result<Vec<u8>, DeviceError>;

    /// Runs `work`. A device that can records what it queues and from then on replays the recording instead: with one
    /// `recording`, `work` must queue the same operations on the same buffers every time, and neither allocate nor wait.
    fn replay(&self, recording: &mut Self::Recording, work: impl FnOnce());

    /// Queues two pieces of work that may run side by side: `side`, and `main`. Each follows what was queued before, and
    /// what is queued later follows both. Neither may touch what the other writes. The borrow checker sees to that, except
    /// for `shared`, which both are given: of its buffers they must write different parts, or only read them. The pieces
    /// queue operations and nothing else: they neither upload, download nor wait.
    ///
    /// Here they run one after the other.
    fn parallel<S>(&self, shared: &mut S, main: impl FnOnce(&mut S), side: impl FnOnce(&mut S)) {
        side(shared);
        main(shared);
    }

    /// Waits until everything queued is done.
    ///
    /// # Errors
    /// When one of the operations failed.
    fn synchronize(&self) -> Result<(), DeviceError>;

    /// Sets every element of an fp32 buffer.
    fn fill(&self, dst: ViewMut<'_, Self::Stat>, value: f32);

    /// Copies between fp32 buffers of equal length.
    fn copy(&self, src: View<'_, Self::Stat>, dst: ViewMut<'_, Self::Stat>);

    /// Copies between buffers in the compute type, of equal length.
    fn copy_data(&self, src: View<'_, Self::Data>, dst: ViewMut<'_, Self::Data>);

    /// Rounds fp32 values to the compute type; equal lengths.
    fn cast(&self, src: View<'_, Self::Stat>, dst: ViewMut<'_, Self::Data>);

    // ---- linear: GEMMs with their epilogues ---------------------------------------------------------------------

    /// `y = x W^T + b` (`y += ...` with `accumulate`; `b` is left out where the layer has none); x `[rows, inputs]`, y
    /// `[rows, outputs]`.
    fn linear(
        &self,
        params: &Self::Data,
        layer: &Linear,
        rows: usize,
        x: View<'_, Self::Data>,
        y: ViewMut<'_, Self::Data>,
        accumulate: bool,
    );

    /// `pre = x W^T + b`, `y = gelu(pre)` with the tanh approximation; both `[rows, outputs]` and kept for the backward.
    fn linear_gelu(
        &self,
        params: &Self::Data,
        layer: &Linear,
        rows: usize,
        x: View<'_, Self::Data>,
        pre: ViewMut<'_, Self::Data>,
        y: ViewMut<'_, Self::Data>,
    );

    /// `dx = dy W` (`dx += ...` with `accumulate`); dy `[rows, outputs]`, dx `[rows, inputs]`.
    fn linear_backward_input(
        &self,
        params: &Self::Data,
        layer: &Linear,
        rows: usize,
        dy: View<'_, Self::Data>,
        dx: ViewMut<'_, Self::Data>,
        accumulate: bool,
    );

    /// `d_pre = (dy W) * gelu'(pre)`: the backward of a layer whose input was `gelu(pre)`; `d_pre` `[rows, inputs]`.
    fn linear_backward_input_gelu(
        &self,
        params: &Self::Data,
        layer: &Linear,
        rows: usize,
        dy: View<'_, Self::Data>,
        pre: View<'_, Self::Data>,
        d_pre: ViewMut<'_, Self::Data>,
    );

    /// `dW += dy^T x`, `db += sum over rows of dy` where there is a bias, into the gradient arena.
    fn linear_backward_weight(
        &self,
        grads: &mut Self::Stat,
        layer: &Linear,
        rows: usize,
        x: View<'_, Self::Data>,
        dy: View<'_, Self::Data>,
    );

    // ---- quantize: products in FP8 ------------------------------------------------------------------------------

    /// `codes = e4m3(f(x) 448 / m)` and `scales = m / 448`, where `m` is the row's largest `|f(x)|` and `f` is GELU or nothing; x
    /// and codes `[rows, width]`, scales `[rows]`. Rounds to nearest even, saturates; what is no number stays none. A row of
    /// zeros has scale 1.
    fn quantize_rows(
        &self,
        shape: &QuantizeShape,
        x: View<'_, Self::Data>,
        codes: ViewMut<'_, Self::Bytes>,
        scales: ViewMut<'_, Self::Stat>,
    );

    /// Whether [`linear_fp8`](Self::linear_fp8) takes this layer and number of rows; chooses its algorithm where there is one
    /// to choose.
    ///
    /// # Errors
    /// Says what the device lacks, or which width is no multiple of [`FP8_GRANULE`](super::FP8_GRANULE).
    fn prepare_linear_fp8(&self, layer: &Linear, rows: usize) -> Result<(), DeviceError>;

    /// `y = x W^T + b` of quantised x `[rows, inputs]` and W `[outputs, inputs]`, sums in fp32; y `[rows, outputs]`. The bias
    /// comes from `params`.
    fn linear_fp8(
        &self,
        params: &Self::Data,
        layer: &Linear,
        rows: usize,
        x: Quantized<'_, Self>,
        weight: Quantized<'_, Self>,
        y: ViewMut<'_, Self::Data>,
    );

    // ---- activations --------------------------------------------------------------------------------------------

    /// `y = x * sigmoid(x)`.
    fn silu(&self, x: View<'_, Self::Data>, y: ViewMut<'_, Self::Data>);

    /// `dx = dy * silu'(x)`.
    fn silu_backward(&self, x: View<'_, Self::Data>, dy: View<'_, Self::Data>, dx: ViewMut<'_, Self::Data>);

    /// `y = leaky_relu(x) [+ residual]`, slope 0.2 below zero.
    fn leaky_relu(&self, x: View<'_, Self::Data>, residual: Option<View<'_, Self::Data>>, y: ViewMut<'_, Self::Data>);

    /// `dx = dy * leaky_relu'(x)`. The residual's gradient is `dy` itself.
    fn leaky_relu_backward(&self, x: View<'_, Self::Data>, dy: View<'_, Self::Data>, dx: ViewMut<'_, Self::Data>);

    // ---- attention ----------------------------------------------------------------------------------------------

    /// Splits `qkv` `[B * tokens, 3 H D]` into the joint `q`, `k`, `v` `[B, H, S, D]` at `start`, with RMSNorm of every
    /// query and key head where the shape has one. `rstd` `[B, tokens, 2, H]` is kept for the backward.
    fn qk_norm(
        &self,
        params: &Self::Data,
        shape: &QkNormShape,
        qkv: View<'_, Self::Data>,
        q: &mut Self::Data,
        k: &mut Self::Data,
        v: &mut Self::Data,
        rstd: &mut Self::Stat,
    );

    /// Gathers `dq`, `dk`, `dv` into `d_qkv`; adds the gradients of the norm weights to `grads` where it is given.
    /// With `queries` false the query part of `d_qkv` is set to zero and `dq` is not read.
    fn qk_norm_backward(
        &self,
        params: &Self::Data,
        grads: Option<&mut Self::Stat>,
        shape: &QkNormShape,
        queries: bool,
        qkv: View<'_, Self::Data>,
        rstd: &Self::Stat,
        d_joint: [&Self::Data; 3],
        d_qkv: ViewMut<'_, Self::Data>,
    );

    /// `softmax(q k^T / sqrt(D)) v` for the asking tokens. The result is split by stream: `out_image` `[B * N, H D]`,
    /// `out_text` `[B * L, H D]` (written where text asks). `lse` `[B, H, S]` keeps the natural log of the row sums.
    fn attention(
        &self,
        shape: &AttentionShape,
        qkv: [&Self::Data; 3],
        out_image: &mut Self::Data,
        out_text: Option<&mut Self::Data>,
        lse: &mut Self::Stat,
    );

    /// Gradients of `q`, `k`, `v` from those of both outputs. `dq` is written for the asking tokens only. An absent output
    /// or gradient counts as zeros.
    fn attention_backward(
        &self,
        shape: &AttentionShape,
        qkv: [&Self::Data; 3],
        out: [Option<&Self::Data>; 2],
        lse: &Self::Stat,
        d_out: [Option<&Self::Data>; 2],
        d_qkv: [&mut Self::Data; 3],
    );

    // ---- adaln --------------------------------------------------------------------------------------------------

    /// Gated residuals, LayerNorm and modulation in one pass: `x_out = x + sum gate_i * y_i`, then for each norm
    /// `out = LN(x_out) * (1 + scale) + shift`. `x_out` is written where there are branches (without them it is `x`);
    /// `stats` `[B * N, 2]` keeps mean and reciprocal standard deviation where there are norms.
    fn adaln(
        &self,
        shape: &AdalnShape,
        x: View<'_, Self::Data>,
        branches: &[Branch<'_, Self>],
        table: Option<View<'_, Self::Data>>,
        x_out: Option<ViewMut<'_, Self::Data>>,
        norms: &mut [NormOut<'_, Self>],
        stats: Option<&mut Self::Stat>,
    );

    /// Backward of [`adaln`](Self::adaln). On entry `dx` holds the gradient of `x_out` that comes along the residual
    /// stream (it is not read with `accumulate` false); `extra` is one more gradient of `x_out` (a tapped feature's).
    /// On return `dx` is the gradient of `x`, each branch has its `d_y`, and the gradients of shift, scale and gate are
    /// written to `d_table` `[B, stride]` where it is given.
    fn adaln_backward(
        &self,
        shape: &AdalnShape,
        x_out: View<'_, Self::Data>,
        stats: Option<&Self::Stat>,
        table: Option<View<'_, Self::Data>>,
        dx: ViewMut<'_, Self::Data>,
        accumulate: bool,
        extra: Option<View<'_, Self::Data>>,
        norms: &[NormGrad<'_, Self>],
        branches: &mut [BranchGrad<'_, Self>],
        d_table: Option<&mut Self::Data>,
    );

    // ---- patchify, embed ----------------------------------------------------------------------------------------

    /// Latent `[B, C, H, W]` to tokens `[B * N, C p p]`. The adjoint of [`unpatchify`](Self::unpatchify).
    fn patchify(&self, shape: &PatchShape, latent: View<'_, Self::Stat>, tokens: ViewMut<'_, Self::Data>);

    /// Tokens `[B * N, C p p]` to latent `[B, C, H, W]`.
    fn unpatchify(&self, shape: &PatchShape, tokens: View<'_, Self::Data>, latent: ViewMut<'_, Self::Stat>);

    /// Adds the centre crop of `pos` `[max * max, h]` to `x` `[B * rows * columns, h]`.
    fn pos_embed(&self, batch: usize, grid: (usize, usize), max: usize, pos: &Self::Data, x: ViewMut<'_, Self::Data>);

    /// Sinusoids of `1000 t` (cosines first, maximum period 10000), followed by `pooled` `[B, P]` where it is given:
    /// `out` `[B, FREQUENCIES + P]`.
    fn timestep_embedding(&self, t: View<'_, Self::Stat>, pooled: Option<View<'_, Self::Data>>, out: ViewMut<'_, Self::Data>);

    // ---- flow_noise ---------------------------------------------------------------------------------------------

    /// Draws one time per sample.
    fn timesteps(&self, step: &Self::Step, stream: Stream, distribution: &TimestepDistribution, t: ViewMut<'_, Self::Stat>);

    /// Standard normals `[B, numel]`.
    fn normal(&self, step: &Self::Step, stream: Stream, numel: usize, out: ViewMut<'_, Self::Stat>);

    /// `x_t = (1 - t) x0 + t ε`, and the velocity `ε - x0` where `velocity` is given. With `perturb = (stream, sigma)`,
    /// `x0 + sigma n` takes the place of `x0`.
    fn flow_noise(
        &self,
        step: &Self::Step,
        stream: Stream,
        perturb: Option<(Stream, f32)>,
        x0: View<'_, Self::Stat>,
        t: View<'_, Self::Stat>,
        x_t: ViewMut<'_, Self::Stat>,
        velocity: Option<ViewMut<'_, Self::Stat>>,
    );

    /// `x̂0 = x_t - t v̂` `[B, C, H, W]`, then `renoised = (1 - t̂) x̂0 + t̂ ε'` with fresh noise: from the tokens of one
    /// network's velocity, channel last, to those that another embeds, channel first, whatever the order of `shape`. The noise
    /// is that of [`normal`](Self::normal) over the latent.
    fn predict_x0_renoise(
        &self,
        step: &Self::Step,
        stream: Stream,
        shape: &PatchShape,
        x_t: View<'_, Self::Stat>,
        velocity: View<'_, Self::Data>,
        t: View<'_, Self::Stat>,
        t_hat: View<'_, Self::Stat>,
        x0_hat: ViewMut<'_, Self::Stat>,
        renoised: ViewMut<'_, Self::Data>,
    );

    /// `dv̂ = -t ((1 - t̂) d_renoised + d_x0_hat)`, in the orders of [`predict_x0_renoise`](Self::predict_x0_renoise).
    fn predict_x0_renoise_backward(
        &self,
        shape: &PatchShape,
        t: View<'_, Self::Stat>,
        t_hat: View<'_, Self::Stat>,
        d_renoised: Option<View<'_, Self::Data>>,
        d_x0_hat: Option<View<'_, Self::Stat>>,
        d_velocity: ViewMut<'_, Self::Data>,
    );

    /// One Euler step `x += dt v`, with classifier-free guidance `v = v_u + guidance (v_c - v_u)` where the
    /// unconditional velocity is given.
    fn euler_cfg(
        &self,
        x: ViewMut<'_, Self::Stat>,
        velocity: View<'_, Self::Stat>,
        unconditional: Option<View<'_, Self::Stat>>,
        guidance: f32,
        dt: f32,
    );

    // ---- losses -------------------------------------------------------------------------------------------------

    /// `loss += share * mean (a - b)^2`, and its gradient times `weight` with respect to `a` where `d_a` is given.
    fn mse(
        &self,
        a: View<'_, Self::Stat>,
        b: View<'_, Self::Stat>,
        share: f32,
        weight: f32,
        d_a: Option<ViewMut<'_, Self::Stat>>,
        loss: ViewMut<'_, Self::Stat>,
    );

    /// Both adversarial losses in one pass over `logits` `[heads, groups, B, positions]`: `d_logits_d` (same shape),
    /// `d_logits_g` `[heads, B, positions]` for the student's samples, and `stats` `[heads, HINGE_STATS]`, added up.
    fn hinge(
        &self,
        shape: &HingeShape,
        logits: View<'_, Self::Stat>,
        d_logits_d: Option<ViewMut<'_, Self::Stat>>,
        d_logits_g: Option<ViewMut<'_, Self::Stat>>,
        stats: ViewMut<'_, Self::Stat>,
    );

    // ---- discriminator heads ------------------------------------------------------------------------------------

    /// 3x3 convolution with zero padding; x `[B * rows * columns, cin]`, y `[.., cout]`.
    fn conv3x3(&self, params: &Self::Data, shape: &ConvShape, x: View<'_, Self::Data>, y: ViewMut<'_, Self::Data>);

    /// Gradient of the convolution's input (`dx += ...` with `accumulate`).
    fn conv3x3_backward_input(
        &self,
        params: &Self::Data,
        shape: &ConvShape,
        dy: View<'_, Self::Data>,
        dx: ViewMut<'_, Self::Data>,
        accumulate: bool,
    );

    /// Gradient of the convolution's weight and bias, added to the arena.
    fn conv3x3_backward_weight(&self, grads: &mut Self::Stat, shape: &ConvShape, x: View<'_, Self::Data>, dy: View<'_, Self::Data>);

    /// `logit = leaky_relu(h) . w + b + mean_c(h_c cm_c)`; h `[B * positions, width]`, cm `[B, width]`.
    fn head_logits(
        &self,
        params: &Self::Data,
        shape: &HeadLogitsShape,
        h: View<'_, Self::Data>,
        cm: View<'_, Self::Data>,
        logits: ViewMut<'_, Self::Stat>,
    );

    /// Backward of [`head_logits`](Self::head_logits): `dh`, and with `grads` also `d_cm` and the projection's gradient.
    fn head_logits_backward(
        &self,
        params: &Self::Data,
        shape: &HeadLogitsShape,
        h: View<'_, Self::Data>,
        cm: View<'_, Self::Data>,
        d_logits: View<'_, Self::Stat>,
        dh: ViewMut<'_, Self::Data>,
        grads: Option<(&mut Self::Stat, ViewMut<'_, Self::Data>)>,
    );

    // ---- optimiser ----------------------------------------------------------------------------------------------

    /// L2 norm of a gradient arena into `norm[0]`, in a fixed order of summation.
    fn global_norm(&self, grads: &Self::Stat, norm: &mut Self::Stat);

    /// AdamW, clipping, moving average and cast in one pass. Nothing changes but a counter where the norm is not finite.
    ///
    /// # Panics
    /// When the first moment is missing and `beta1` is not 0, or one moment is packed and the other is not.
    fn adamw(&self, step: &Self::Step, shape: &AdamwShape, grads: &Self::Stat, norm: &Self::Stat, state: AdamwState<'_, Self>);
}
