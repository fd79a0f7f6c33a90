//! Launches `kernels/qk_norm.cu`.

use half::bf16;

use super::{In, Out, aligned};
use crate::device::cuda::Cuda;
use crate::device::cuda::abi::{QK_NORM_FINALIZE_THREADS, QK_NORM_THREADS, QK_NORM_WIDTH, QkNormFinalizeParams, QkNormParams};
use crate::device::cuda::driver::{Grid, Kernel};
use crate::device::cuda::memory::{Buffer, Located};
use crate::device::{QkNormShape, Storage};
use crate::model::NORM_EPS;

const FILE: &str = "qk_norm";
/// Blocks of a multiprocessor where each leaves partial sums: as many as its registers hold at a time.
const BLOCKS_WITH_SUMS: u32 = 2;

/// The kernels for one width of heads.
struct Variant {
    head_dim: usize,
    forward: &'static str,
    backward: &'static str,
    backward_sums: &'static str,
}

const WIDE: [Variant; 3] = [
    Variant { head_dim: 32, forward: "qk_norm_d32", backward: "qk_norm_backward_d32", backward_sums: "qk_norm_backward_sums_d32" },
    Variant { head_dim: 64, forward: "qk_norm_d64", backward: "qk_norm_backward_d64", backward_sums: "qk_norm_backward_sums_d64" },
    Variant { head_dim: 128, forward: "qk_norm_d128", backward: "qk_norm_backward_d128", backward_sums: "qk_norm_backward_sums_d128" },
];
/// For every other width, and for rows that cannot be read 16 bytes at a time.
const ANY: Variant =
    Variant { head_dim: 0, forward: "qk_norm_any", backward: "qk_norm_backward_any", backward_sums: "qk_norm_backward_any" };

/// The shape in the kernels' widths. Fails unless it fits them, the fused rows and the joint buffers.
fn params(params: &Buffer<bf16>, shape: &QkNormShape, qkv: usize, joint: [usize; 3], rstd: usize) -> QkNormParams {
    let QkNormShape { batch, tokens, heads, head_dim, sequence, start, norm } = *shape;
    let rows = batch * tokens;
    let values = rows * heads * head_dim;
    // The wide kernels count eight values at a time, and a grid's stride beyond the last.
    assert!(values < 1 << 33 && rows * heads < 1 << 31 && sequence < 1 << 31, "{shape:?} is too large for qk_norm");
    assert!(start + tokens <= sequence, "tokens {start}..{} of a sequence of {sequence}", start + tokens);
    assert!(qkv >= 3 * values, "fused rows of {qkv} values for {shape:?}");
    let needed = batch * heads * sequence * head_dim;
    assert!(joint.iter().all(|len| *len >= needed), "joint buffers of {joint:?} values, {needed} are needed for {shape:?}");
    let mut weights = [0; 2];
    if let Some((query, key)) = norm {
        assert!(query.max(key) + head_dim <= params.len(), "norm weights at {query} and {key} of {} parameters", params.len());
        assert!(rstd >= 2 * rows * heads, "statistics of {rstd} values for {shape:?}");
        weights = [query, key].map(|offset| params.address() + 2 * offset as u64);
    }
    QkNormParams {
        weights,
        rows: rows as u32,
        tokens: tokens as u32,
        heads: heads as u32,
        head_dim: head_dim as u32,
        sequence: sequence as u32,
        start: start as u32,
        queries: 1,
        eps: NORM_EPS as f32,
        ..QkNormParams::default()
    }
}

/// The variant for these addresses, and its grid.
fn variant(cuda: &Cuda, params: &QkNormParams, sums: bool) -> (&'static Variant, Grid) {
    let [q, k, v] = params.joint;
    let wide = aligned(&[params.qkv, q, k, v, params.d_qkv]);
    let found = WIDE.iter().find(|variant| wide && variant.head_dim == params.head_dim as usize);
    let heads = u64::from(params.rows) * u64::from(params.heads);
    let mut grid = match found {
        Some(variant) => cuda.strided_grid(heads * (variant.head_dim as u64 / u64::from(QK_NORM_WIDTH)), QK_NORM_THREADS),
        None => cuda.strided_grid(32 * heads, 32),
    };
    if sums {
        grid.blocks[0] = grid.blocks[0].min(BLOCKS_WITH_SUMS * cuda.properties().multiprocessors);
    }
    (found.unwrap_or(&ANY), grid)
}

pub fn qk_norm(
    cuda: &Cuda,
    parameters: &Buffer<bf16>,
    shape: &QkNormShape,
    qkv: In<'_>,
    q: &mut Buffer<bf16>,
    k: &mut Buffer<bf16>,
    v: &mut Buffer<bf16>,
    rstd: &mut Buffer<f32>,
) {
    let params = QkNormParams {
        qkv: qkv.address(),
        joint: [q.address(), k.address(), v.address()],
        rstd: rstd.address(),
        ..params(parameters, shape, qkv.len, [q.len(), k.len(), v.len()], rstd.len())
    };
    if params.rows == 0 {
        return;
    }
    let (variant, grid) = variant(cuda, &params, false);
    cuda.launch(Kernel { file: FILE, name: variant.forward }, grid, &params);
}

pub fn qk_norm_backward(
    cuda: &Cuda,
    parameters: &Buffer<bf16>,
    grads: Option<&mut Buffer<f32>>,
    shape: &QkNormShape,
    queries: bool,
    qkv: In<'_>,
    rstd: &Buffer<f32>,
    d_joint: [&Buffer<bf16>; 3],
    d_qkv: Out<'_>,
) {
    let mut params = QkNormParams {
        qkv: qkv.address(),
        joint: d_joint.map(Buffer::address),
        rstd: rstd.address(),
        d_qkv: d_qkv.address(),
        queries: queries.into(),
        ..params(parameters, shape, qkv.len.min(d_qkv.len), d_joint.map(Storage::len), rstd.len())
    };
    if params.rows == 0 {
        return;
    }
    let (Some(grads), Some((query, key))) = (grads, shape.norm) else {
        let (variant, grid) = variant(cuda, &params, false);
        cuda.launch(Kernel { file: FILE, name: variant.backward }, grid, &params);
        return;
    };

    assert!(query.max(key) + shape.head_dim <= grads.len(), "norm weights at {query} and {key} of {} gradients", grads.len());
    let (variant, grid) = variant(cuda, &params, true);
    let parts = grid.blocks[0];
    let Some(partials) = cuda.scratch(size_of::<f32>() * parts as usize * 2 * shape.head_dim) else { return };
    params.partials = partials;
    cuda.launch(Kernel { file: FILE, name: variant.backward_sums }, grid, &params);
    let finalize = QkNormFinalizeParams {
        partials,
        d_query_weight: grads.address() + 4 * query as u64,
        d_key_weight: grads.address() + 4 * key as u64,
        parts,
        head_dim: params.head_dim,
    };
    let grid = Grid { blocks: [(2 * params.head_dim).div_ceil(32), 1, 1], threads: QK_NORM_FINALIZE_THREADS, shared: 0 };
    cuda.launch(Kernel { file: FILE, name: "qk_norm_finalize" }, grid, &finalize);
}
