//! Launches `kernels/hinge.cu`.

use super::{StatIn, StatOut, aligned, kernel_of_width};
use crate::device::cuda::Cuda;
use crate::device::cuda::abi::{HINGE_CHUNK, HINGE_SUMS, HINGE_THREADS, HingeParams, MSE_MAX_PARTS, MSE_THREADS, MseParams};
use crate::device::cuda::driver::{Grid, Kernel};
use crate::device::cuda::memory::{Located, address_or_null};
use crate::device::{HINGE_STATS, HingeShape};
use crate::ladd::AdversarialLoss;

const _: () = assert!(HINGE_STATS == HINGE_SUMS as usize);

fn kernel(name: &'static str) -> Kernel {
    Kernel { file: "hinge", name }
}

pub fn mse(cuda: &Cuda, a: StatIn<'_>, b: StatIn<'_>, share: f32, weight: f32, d_a: Option<StatOut<'_>>, loss: StatOut<'_>) {
    assert!(a.len > 0 && b.len >= a.len && loss.len > 0, "mse of {} and {} values into {}", a.len, b.len, loss.len);
    if let Some(d_a) = &d_a {
        assert_eq!(d_a.len, a.len, "the gradient holds {} values, a {}", d_a.len, a.len);
    }
    let (a_, b_, d_a) = (a.address(), b.address(), address_or_null(d_a.as_ref()));
    let wide = aligned(&[a_, b_, d_a]) && a.len.is_multiple_of(4);
    let (name, width) = kernel_of_width(wide, [("mse_x4", 4), ("mse_x1", 1)]);
    let blocks = (a.len as u64).div_ceil(width).div_ceil(MSE_THREADS.into());
    let parts = blocks.min(MSE_MAX_PARTS.into()) as u32;
    let Some(partials) = cuda.scratch(parts as usize * size_of::<f64>()) else { return };
    let share = f64::from(share) / a.len as f64;
    let factor = (2.0 * f64::from(weight) * share) as f32;
    let params = MseParams { len: a.len as u64, a: a_, b: b_, d_a, partials, loss: loss.address(), share, factor, parts };
    cuda.launch(kernel(name), Grid { blocks: [parts, 1, 1], threads: MSE_THREADS, shared: 0 }, &params);
    cuda.launch(kernel("mse_finalize"), Grid { blocks: [1, 1, 1], threads: 32, shared: 0 }, &params);
}

pub fn hinge(
    cuda: &Cuda,
    shape: &HingeShape,
    logits: StatIn<'_>,
    d_logits_d: Option<StatOut<'_>>,
    d_logits_g: Option<StatOut<'_>>,
    stats: StatOut<'_>,
) {
    let HingeShape { loss, heads, groups, batch, positions, .. } = *shape;
    let per_group = batch * positions;
    let all = heads * groups.count() * per_group;
    assert!(groups.real || groups.count() == 1, "{groups:?} needs real latents");
    let [has_d, has_g] = [&d_logits_d, &d_logits_g].map(|d| d.as_ref().map_or(usize::MAX, |d| d.len));
    let enough = logits.len >= all && has_d >= all && has_g >= heads * per_group && stats.len >= heads * HINGE_STATS;
    assert!(enough, "{shape:?} with {} logits, gradients of {has_d} and {has_g}, {} statistics", logits.len, stats.len);
    if all == 0 {
        return;
    }

    let parts = per_group.div_ceil(HINGE_CHUNK as usize);
    let Some(partials) = cuda.scratch(heads * parts * HINGE_STATS * size_of::<f64>()) else { return };
    // The gradients are those of a mean over heads, samples and positions; the statistics are means of one head.
    let share = f64::from(shape.share) / per_group as f64;
    let weight = share / heads as f64;
    let params = HingeParams {
        per_group: per_group as u64,
        logits: logits.address(),
        d_logits_d: address_or_null(d_logits_d.as_ref()),
        d_logits_g: address_or_null(d_logits_g.as_ref()),
        partials,
        stats: stats.address(),
        share,
        heads: heads as u32,
        groups: groups.count() as u32,
        parts: parts as u32,
        real: groups.real.into(),
        mismatch: groups.mismatch_index().unwrap_or_default() as u32,
        perturbed: groups.perturbed_index().unwrap_or_default() as u32,
        mismatch_weight: shape.mismatch_weight,
        r1_weight: shape.r1_weight,
        weight_d: weight as f32,
        weight_g: (f64::from(shape.generator_weight) * weight) as f32,
    };
    let wide = aligned(&[params.logits, params.d_logits_d, params.d_logits_g]) && per_group % 4 == 0;
    let variants = match loss {
        AdversarialLoss::Hinge => [("hinge_x4", 4), ("hinge_x1", 1)],
        AdversarialLoss::NonSaturating => [("non_saturating_x4", 4), ("non_saturating_x1", 1)],
    };
    let (name, _) = kernel_of_width(wide, variants);
    cuda.launch(kernel(name), Grid { blocks: [params.parts, params.heads, 1], threads: HINGE_THREADS, shared: 0 }, &params);
    let warps = params.heads * HINGE_SUMS;
    let blocks = warps.div_ceil(HINGE_THREADS / 32);
    cuda.launch(kernel("hinge_finalize"), Grid { blocks: [blocks, 1, 1], threads: HINGE_THREADS, shared: 0 }, &params);
}
