//! Launches `kernels/flow_noise.cu`.

use super::{In, Out, StatIn, StatOut, aligned, kernel_of_width};
use crate::device::cuda::Cuda;
use crate::device::cuda::abi::{
    EulerParams, FLOW_THREADS, FlowNoiseParams, NormalParams, RENOISE_PAD, RENOISE_TOKENS, RenoiseBackwardParams, RenoiseParams,
    StepParams, TIMESTEPS_MAX_DISCRETE, TimestepsParams,
};
use crate::device::cuda::driver::{Grid, Kernel};
use crate::device::cuda::memory::{Buffer, Located, address_or_null};
use crate::device::{PatchShape, Stream};
use crate::flow::{MAX_DISCRETE, TimestepDistribution};

const _: () = assert!(MAX_DISCRETE == TIMESTEPS_MAX_DISCRETE as usize);

/// Values of a Philox block, and of a 16-byte access.
const QUAD: u64 = 4;

/// Samples and values of each in a buffer `[batch, numel]`.
fn samples(len: usize, batch: usize) -> (u32, u64) {
    assert!(batch > 0 && len.is_multiple_of(batch), "{len} values are not {batch} samples of equal length");
    (batch as u32, (len / batch) as u64)
}

/// A grid for `numel` values in each of `batch` samples, which lie along y; a thread takes a Philox block at a time.
fn sample_grid(cuda: &Cuda, numel: u64, batch: u32) -> Grid {
    // A sample that does not begin with a Philox block reaches into one more.
    let quads = numel.div_ceil(QUAD) + 1;
    let whole = cuda.strided_grid(quads * u64::from(batch), FLOW_THREADS);
    Grid { blocks: [whole.blocks[0].div_ceil(batch), batch.min(u32::from(u16::MAX)), 1], ..whole }
}

pub fn timesteps(cuda: &Cuda, step: &Buffer<StepParams>, stream: Stream, distribution: &TimestepDistribution, t: StatOut<'_>) {
    let mut params = TimestepsParams { step: step.address(), t: t.address(), stream, batch: t.len as u32, ..Default::default() };
    let name = match distribution {
        TimestepDistribution::Discrete { values, probs, warmup_probs, warmup_steps } => {
            let warmup_probs = if warmup_probs.is_empty() { probs } else { warmup_probs };
            let count = values.len();
            let fits = (1..=MAX_DISCRETE).contains(&count) && probs.len() == count && warmup_probs.len() == count;
            assert!(fits, "{count} times with {} and {} probabilities, at most {MAX_DISCRETE}", probs.len(), warmup_probs.len());
            params.count = count as u32;
            params.warmup_steps = *warmup_steps;
            params.values[..count].copy_from_slice(values);
            params.probs[..count].copy_from_slice(probs);
            params.warmup_probs[..count].copy_from_slice(warmup_probs);
            "timesteps_discrete"
        }
        TimestepDistribution::LogitNormal { mean, std } => {
            (params.mean, params.std) = (*mean, *std);
            "timesteps_logit_normal"
        }
        TimestepDistribution::Uniform => "timesteps_uniform",
        TimestepDistribution::Shifted { shift } => {
            params.shift = *shift;
            "timesteps_shifted"
        }
    };
    let blocks = params.batch.div_ceil(FLOW_THREADS).max(1);
    cuda.launch(Kernel { file: "flow_noise", name }, Grid { blocks: [blocks, 1, 1], threads: FLOW_THREADS, shared: 0 }, &params);
}

pub fn normal(cuda: &Cuda, step: &Buffer<StepParams>, stream: Stream, numel: usize, out: StatOut<'_>) {
    assert!(numel > 0 && out.len.is_multiple_of(numel), "{} values are not samples of {numel}", out.len);
    let batch = (out.len / numel) as u32;
    if batch == 0 {
        return;
    }
    let params = NormalParams { numel: numel as u64, step: step.address(), out: out.address(), stream, batch };
    let wide = aligned(&[params.out]) && params.numel.is_multiple_of(QUAD);
    let (name, _) = kernel_of_width(wide, [("normal_x4", QUAD), ("normal_x1", 1)]);
    cuda.launch(Kernel { file: "flow_noise", name }, sample_grid(cuda, params.numel, batch), &params);
}

pub fn flow_noise(
    cuda: &Cuda,
    step: &Buffer<StepParams>,
    stream: Stream,
    perturb: Option<(Stream, f32)>,
    x0: StatIn<'_>,
    t: StatIn<'_>,
    x_t: StatOut<'_>,
    velocity: Option<StatOut<'_>>,
) {
    let (batch, numel) = samples(x_t.len, t.len);
    assert!(x0.len >= x_t.len, "x0 holds {} values, x_t {}", x0.len, x_t.len);
    if let Some(velocity) = &velocity {
        assert_eq!(velocity.len, x_t.len, "the velocity holds {} values, x_t {}", velocity.len, x_t.len);
    }
    let (perturb_stream, sigma) = perturb.unwrap_or_default();
    let params = FlowNoiseParams {
        numel,
        step: step.address(),
        x0: x0.address(),
        t: t.address(),
        x_t: x_t.address(),
        velocity: address_or_null(velocity.as_ref()),
        stream,
        batch,
        perturbed: perturb.is_some().into(),
        perturb_stream,
        sigma,
        unused: 0,
    };
    let wide = aligned(&[params.x0, params.x_t, params.velocity]) && numel % QUAD == 0;
    let (name, _) = kernel_of_width(wide, [("flow_noise_x4", QUAD), ("flow_noise_x1", 1)]);
    cuda.launch(Kernel { file: "flow_noise", name }, sample_grid(cuda, numel, batch), &params);
}

pub fn predict_x0_renoise(
    cuda: &Cuda,
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
    check(shape, &[x_t.len, velocity.len, x0_hat.len, renoised.len], [t.len, t_hat.len]);
    let [batch, channels, height, width, patch] = sizes(shape);
    let params = RenoiseParams {
        step: step.address(),
        x_t: x_t.address(),
        velocity: velocity.address(),
        t: t.address(),
        t_hat: t_hat.address(),
        x0_hat: x0_hat.address(),
        renoised: renoised.address(),
        stream,
        batch,
        channels,
        height,
        width,
        patch,
    };
    let wide = aligned(&[params.x_t, params.velocity, params.x0_hat, params.renoised]);
    let (name, grid) = tokens_grid(cuda, shape, wide, ["predict_x0_renoise_x4", "predict_x0_renoise_x1"]);
    cuda.launch(Kernel { file: "flow_noise", name }, grid, &params);
}

pub fn predict_x0_renoise_backward(
    cuda: &Cuda,
    shape: &PatchShape,
    t: StatIn<'_>,
    t_hat: StatIn<'_>,
    d_renoised: Option<In<'_>>,
    d_x0_hat: Option<StatIn<'_>>,
    d_velocity: Out<'_>,
) {
    let upstream = [d_renoised.as_ref().map(|d| d.len), d_x0_hat.as_ref().map(|d| d.len)];
    let lens: Vec<usize> = upstream.into_iter().flatten().chain([d_velocity.len]).collect();
    check(shape, &lens, [t.len, t_hat.len]);
    let [batch, channels, height, width, patch] = sizes(shape);
    let params = RenoiseBackwardParams {
        t: t.address(),
        t_hat: t_hat.address(),
        d_renoised: address_or_null(d_renoised.as_ref()),
        d_x0_hat: address_or_null(d_x0_hat.as_ref()),
        d_velocity: d_velocity.address(),
        batch,
        channels,
        height,
        width,
        patch,
        unused: 0,
    };
    let wide = aligned(&[params.d_renoised, params.d_x0_hat, params.d_velocity]);
    let (name, grid) = tokens_grid(cuda, shape, wide, ["predict_x0_renoise_backward_x4", "predict_x0_renoise_backward_x1"]);
    cuda.launch(Kernel { file: "flow_noise", name }, grid, &params);
}

fn sizes(shape: &PatchShape) -> [u32; 5] {
    [shape.batch, shape.channels, shape.height, shape.width, shape.patch].map(|size| size as u32)
}

/// What the kernels between latents and tokens assume of their operands' sizes.
fn check(shape: &PatchShape, lens: &[usize], times: [usize; 2]) {
    let PatchShape { batch, channels, height, width, patch, .. } = *shape;
    let whole = batch > 0 && patch > 0 && height % patch == 0 && width % patch == 0;
    let len = batch * channels * height * width;
    assert!(whole && lens.iter().all(|have| *have >= len), "{shape:?} with operands of {lens:?} values");
    assert!(times.iter().all(|have| *have >= batch), "{times:?} times for {batch} samples");
}

/// The wide kernel, a block for each strip of tokens, where patches are of 2 and rows and tokens allow 16-byte accesses, and its
/// two strips fit the shared memory every launch may have; else the narrow one, a thread a value.
fn tokens_grid(cuda: &Cuda, shape: &PatchShape, aligned: bool, [wide, narrow]: [&'static str; 2]) -> (&'static str, Grid) {
    let [batch, channels, height, width, patch] = sizes(shape);
    let samples = batch.min(u32::from(u16::MAX));
    let shared = 2 * 2 * RENOISE_TOKENS * (4 * channels + RENOISE_PAD);
    if aligned && patch == 2 && width % 4 == 0 && channels % 2 == 0 && shared <= 48 << 10 {
        let strips = (width / 2).div_ceil(RENOISE_TOKENS) * (height / 2);
        return (wide, Grid { blocks: [strips, samples, 1], threads: FLOW_THREADS, shared });
    }
    let numel = u64::from(channels) * u64::from(height) * u64::from(width);
    let whole = cuda.strided_grid(numel * u64::from(batch), FLOW_THREADS);
    (narrow, Grid { blocks: [whole.blocks[0].div_ceil(samples), samples, 1], ..whole })
}

pub fn euler_cfg(cuda: &Cuda, x: StatOut<'_>, velocity: StatIn<'_>, unconditional: Option<StatIn<'_>>, guidance: f32, dt: f32) {
    for v in [Some(&velocity), unconditional.as_ref()].into_iter().flatten() {
        assert!(v.len >= x.len, "a velocity of {} values for {}", v.len, x.len);
    }
    let params = EulerParams {
        len: x.len as u64,
        x: x.address(),
        velocity: velocity.address(),
        unconditional: address_or_null(unconditional.as_ref()),
        guidance,
        dt,
    };
    let wide = aligned(&[params.x, params.velocity, params.unconditional]) && params.len.is_multiple_of(QUAD);
    let (name, width) = kernel_of_width(wide, [("euler_cfg_x4", QUAD), ("euler_cfg_x1", 1)]);
    cuda.launch(Kernel { file: "flow_noise", name }, cuda.strided_grid(params.len.div_ceil(width), FLOW_THREADS), &params);
}
