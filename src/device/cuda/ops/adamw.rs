//! Launches `kernels/adamw.cu`.

use super::aligned;
use crate::device::cuda::Cuda;
use crate::device::cuda::abi::{ADAMW_THREADS, AdamwCoefficients, AdamwParams, NORM_MAX_PARTS, NORM_THREADS, NormParams, StepParams};
use crate::device::cuda::driver::{Grid, Kernel};
use crate::device::cuda::memory::Buffer;
use crate::device::{ADAMW_COUNTERS, AdamwShape, AdamwState, Storage};

fn kernel(name: &'static str) -> Kernel {
    Kernel { file: "adamw", name }
}

pub fn global_norm(cuda: &Cuda, grads: &Buffer<f32>, norm: &mut Buffer<f32>) {
    assert!(!norm.is_empty(), "no room for the norm");
    assert!(aligned(&[grads.address()]), "an arena at {:#x}", grads.address());
    let len = grads.len() as u64;
    let blocks = len.div_ceil(4).div_ceil(NORM_THREADS.into());
    let parts = blocks.clamp(1, NORM_MAX_PARTS.into()) as u32;
    let Some(partials) = cuda.scratch(parts as usize * size_of::<f64>()) else { return };
    let params = NormParams { len, grads: grads.address(), partials, norm: norm.address(), parts, unused: 0 };
    let grid = Grid { blocks: [parts, 1, 1], threads: NORM_THREADS, shared: 0 };
    cuda.launch(kernel("global_norm_partial"), grid, &params);
    cuda.launch(kernel("global_norm_finalize"), Grid { blocks: [1, 1, 1], ..grid }, &params);
}

pub fn adamw(
    cuda: &Cuda,
    step: &Buffer<StepParams>,
    shape: &AdamwShape,
    grads: &Buffer<f32>,
    norm: &Buffer<f32>,
    state: AdamwState<'_, Cuda>,
) {
    let AdamwState { params, master, moment1, moment2, ema, counters } = state;
    let len = params.len();
    let [moment1, ema] = [moment1, ema].map(|arena| arena.map(|arena| &*arena));
    let arenas = [Some(grads), Some(&*master), moment1, Some(&*moment2), ema];
    for arena in arenas.into_iter().flatten() {
        assert!(arena.len() == len && aligned(&[arena.address()]), "an arena of {} values for {len} weights", arena.len());
    }
    let AdamwShape { lr_index, beta1, beta2, eps, weight_decay, clip, ema_decay } = *shape;
    assert!(counters.len() >= ADAMW_COUNTERS && !norm.is_empty() && lr_index < 2, "{} counters, {shape:?}", counters.len());
    assert!(moment1.is_some() || beta1 == 0.0, "AdamW without a first moment, and beta1 = {beta1}");
    assert!(aligned(&[params.address()]), "weights at {:#x}", params.address());

    let Some(coefficients) = cuda.scratch(size_of::<AdamwCoefficients>()) else { return };
    let params = AdamwParams {
        len: len as u64,
        step: step.address(),
        norm: norm.address(),
        counters: counters.address(),
        coefficients,
        grads: grads.address(),
        params: params.address(),
        master: master.address(),
        moment1: moment1.map_or(0, Buffer::address),
        moment2: moment2.address(),
        ema: ema.map_or(0, Buffer::address),
        beta1,
        beta2,
        eps,
        weight_decay,
        max_norm: clip,
        ema_decay,
        lr_index: lr_index as u32,
        unused: 0,
    };
    cuda.launch(kernel("adamw_prepare"), Grid { blocks: [1, 1, 1], threads: 1, shared: 0 }, &params);
    cuda.launch(kernel("adamw"), cuda.strided_grid(params.len.div_ceil(8), ADAMW_THREADS), &params);
}
