//! Launches `kernels/adamw.cu`.

use super::aligned;
use crate::device::cuda::Cuda;
use crate::device::cuda::abi::{ADAMW_THREADS, AdamwCoefficients, AdamwParams, NORM_MAX_PARTS, NORM_THREADS, NormParams, StepParams};
use crate::device::cuda::driver::{Address, Grid, Kernel};
use crate::device::cuda::memory::Buffer;
use crate::device::packed::{PACK_BLOCK, Packing};
use crate::device::{ADAMW_COUNTERS, AdamwShape, AdamwState, Moment, Storage};
use crate::flow::philox::stream;

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

/// Addresses of a moment of `len` weights, and of its scales where it is packed.
fn located(moment: &Moment<Cuda>, len: usize, packing: Packing) -> (Address, Address) {
    let (address, held, scales) = match moment {
        Moment::Full(values) => (values.address(), values.len(), 0),
        Moment::Packed { codes, scales } => {
            assert!(scales.len() == len.div_ceil(PACK_BLOCK), "{} scales for {len} weights", scales.len());
            (codes.address(), codes.len() / packing.bytes(), scales.address())
        }
    };
    assert!(held == len && aligned(&[address]), "a moment of {held} values for {len} weights");
    (address, scales)
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
    let ema = ema.map(|ema| &*ema);
    assert!(moment1.is_some() || shape.beta1 == 0.0, "AdamW without a first moment, and beta1 = {}", shape.beta1);
    let (moment1, moment2) = (moment1.map(|moment| located(moment, len, Packing::SIGNED)), located(moment2, len, Packing::UNSIGNED));
    assert!(moment1.is_none_or(|(_, scales)| (scales == 0) == (moment2.1 == 0)), "one moment is packed, the other is not");
    let arenas = [Some(grads), Some(&*master), ema];
    for arena in arenas.into_iter().flatten() {
        assert!(arena.len() == len && aligned(&[arena.address()]), "an arena of {} values for {len} weights", arena.len());
    }
    let AdamwShape { lr_index, beta1, beta2, eps, weight_decay, clip, ema_decay } = *shape;
    assert!(counters.len() >= ADAMW_COUNTERS && !norm.is_empty() && lr_index < 2, "{} counters, {shape:?}", counters.len());
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
        moment1: moment1.unwrap_or_default().0,
        moment2: moment2.0,
        scales1: moment1.unwrap_or_default().1,
        scales2: moment2.1,
        ema: ema.map_or(0, Buffer::address),
        beta1,
        beta2,
        eps,
        weight_decay,
        max_norm: clip,
        ema_decay,
        lr_index: lr_index as u32,
        rounding: stream::MOMENTS + lr_index as u32,
    };
    cuda.launch(kernel("adamw_prepare"), Grid { blocks: [1, 1, 1], threads: 1, shared: 0 }, &params);
    let name = if params.scales2 == 0 { "adamw" } else { "adamw_packed" };
    cuda.launch(kernel(name), cuda.strided_grid(params.len.div_ceil(8), ADAMW_THREADS), &params);
}
