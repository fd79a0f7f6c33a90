//! Launches `kernels/flow_noise.cu`.

use super::{StatIn, StatOut, aligned, kernel_of_width};
use crate::device::Stream;
use crate::device::cuda::Cuda;
use crate::device::cuda::abi::{
    EulerParams, FLOW_THREADS, FlowNoiseParams, NormalParams, RenoiseBackwardParams, RenoiseParams, StepParams, TIMESTEPS_MAX_DISCRETE,
    TimestepsParams,
};
use crate::device::cuda::driver::{Grid, Kernel};
use crate::device::cuda::memory::{Buffer, Located, address_or_null};
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
    x_t: StatIn<'_>,
    velocity: StatIn<'_>,
    t: StatIn<'_>,
    t_hat: StatIn<'_>,
    x0_hat: StatOut<'_>,
    renoised: StatOut<'_>,
) {
    let (batch, numel) = samples(x0_hat.len, t.len);
    let lens = [x_t.len, velocity.len, renoised.len];
    assert!(lens.iter().all(|len| *len == x0_hat.len), "x_t, velocity, renoised hold {lens:?} values, x0_hat {}", x0_hat.len);
    assert_eq!(t_hat.len, t.len, "{} values of t_hat for {} samples", t_hat.len, t.len);
    let params = RenoiseParams {
        numel,
        step: step.address(),
        x_t: x_t.address(),
        velocity: velocity.address(),
        t: t.address(),
        t_hat: t_hat.address(),
        x0_hat: x0_hat.address(),
        renoised: renoised.address(),
        stream,
        batch,
    };
    let wide = aligned(&[params.x_t, params.velocity, params.x0_hat, params.renoised]) && numel % QUAD == 0;
    let (name, _) = kernel_of_width(wide, [("predict_x0_renoise_x4", QUAD), ("predict_x0_renoise_x1", 1)]);
    cuda.launch(Kernel { file: "flow_noise", name }, sample_grid(cuda, numel, batch), &params);
}

pub fn predict_x0_renoise_backward(
    cuda: &Cuda,
    t: StatIn<'_>,
    t_hat: StatIn<'_>,
    d_renoised: Option<StatIn<'_>>,
    d_x0_hat: Option<StatIn<'_>>,
    d_velocity: StatOut<'_>,
) {
    let (batch, numel) = samples(d_velocity.len, t.len);
    assert_eq!(t_hat.len, t.len, "{} values of t_hat for {} samples", t_hat.len, t.len);
    for upstream in [&d_renoised, &d_x0_hat].into_iter().flatten() {
        assert_eq!(upstream.len, d_velocity.len, "an upstream gradient of {} values for {}", upstream.len, d_velocity.len);
    }
    let params = RenoiseBackwardParams {
        numel,
        t: t.address(),
        t_hat: t_hat.address(),
        d_renoised: address_or_null(d_renoised.as_ref()),
        d_x0_hat: address_or_null(d_x0_hat.as_ref()),
        d_velocity: d_velocity.address(),
        batch,
        unused: 0,
    };
    let wide = aligned(&[params.d_renoised, params.d_x0_hat, params.d_velocity]) && numel % QUAD == 0;
    let (name, _) = kernel_of_width(wide, [("predict_x0_renoise_backward_x4", QUAD), ("predict_x0_renoise_backward_x1", 1)]);
    cuda.launch(Kernel { file: "flow_noise", name }, sample_grid(cuda, numel, batch), &params);
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
