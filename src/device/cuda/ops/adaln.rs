//! Launches `kernels/adaln.cu`.

use half::bf16;

use super::{In, Out, aligned};
use crate::device::cuda::Cuda;
use crate::device::cuda::abi::{
    ADALN_ANY_THREADS, ADALN_FINALIZE_THREADS, ADALN_MAX_THREADS, ADALN_NO_COLUMN, ADALN_WIDTH, AdalnBranch, AdalnFinalizeParams,
    AdalnNorm, AdalnParams,
};
use crate::device::cuda::driver::{Address, Grid, Kernel};
use crate::device::cuda::memory::{Buffer, Located, address_or_null};
use crate::device::{AdalnShape, Branch, BranchGrad, Modulation, NormGrad, NormOut, Storage};
use crate::model::NORM_EPS;

const FILE: &str = "adaln";
/// Kernels by number of branches and norms, for rows that one block holds in registers.
const FORWARD: [[&str; 3]; 3] =
    [["", "adaln_r0_m1", "adaln_r0_m2"], ["adaln_r1_m0", "adaln_r1_m1", "adaln_r1_m2"], ["adaln_r2_m0", "adaln_r2_m1", "adaln_r2_m2"]];
const BACKWARD: [[&str; 3]; 3] = [
    ["", "adaln_backward_r0_m1", "adaln_backward_r0_m2"],
    ["adaln_backward_r1_m0", "adaln_backward_r1_m1", "adaln_backward_r1_m2"],
    ["adaln_backward_r2_m0", "adaln_backward_r2_m1", "adaln_backward_r2_m2"],
];
const BACKWARD_SUMS: [[&str; 3]; 3] = [
    ["", "adaln_backward_sums_r0_m1", "adaln_backward_sums_r0_m2"],
    ["adaln_backward_sums_r1_m0", "adaln_backward_sums_r1_m1", "adaln_backward_sums_r1_m2"],
    ["adaln_backward_sums_r2_m0", "adaln_backward_sums_r2_m1", "adaln_backward_sums_r2_m2"],
];
/// Fewest tokens of a block: the modulation is loaded once for all of them, and column sums are written once.
const LEAST_ROWS: u32 = 4;
/// Blocks per multiprocessor: enough that none runs dry for long at the end; fewer where each leaves column sums to add up.
const BLOCKS: u32 = 8;
const BLOCKS_WITH_SUMS: u32 = 3;

/// The shape in the kernels' widths, and what else both directions share.
fn params(shape: &AdalnShape) -> AdalnParams {
    let AdalnShape { batch, tokens, hidden, stride } = *shape;
    let fits = |n: usize| u32::try_from(n).is_ok();
    assert!(fits(batch * tokens) && fits(hidden) && fits(stride) && batch <= 65535 && hidden > 0, "{shape:?} is too large for adaln");
    AdalnParams { tokens: tokens as u32, hidden: hidden as u32, stride: stride as u32, eps: NORM_EPS as f32, ..AdalnParams::default() }
}

/// Address of a chunk of the first sample's row of the table.
fn chunk(shape: &AdalnShape, table: In<'_>, column: usize) -> Address {
    assert!(column + shape.hidden <= shape.stride, "columns from {column} of {} in a table of {}", shape.hidden, shape.stride);
    table.address() + 2 * column as u64
}

fn modulation(shape: &AdalnShape, table: Option<In<'_>>, modulation: Option<Modulation>) -> [Address; 2] {
    match (modulation, table) {
        (Some(m), Some(table)) => [chunk(shape, table, m.shift), chunk(shape, table, m.scale)],
        _ => [0, 0],
    }
}

/// Checks the table's size, and that there is one for the branches.
fn check_table(shape: &AdalnShape, table: Option<In<'_>>, branches: usize) {
    assert!(branches == 0 || table.is_some(), "{branches} branches without a table of gates");
    let len = table.map_or(usize::MAX, |table| table.len);
    assert!(len >= shape.batch * shape.stride, "a table of {len} values for {shape:?}");
}

/// Fails unless a matrix of the rows fits `len` values.
fn check_rows(shape: &AdalnShape, what: &str, len: usize) {
    let needed = shape.batch * shape.tokens * shape.hidden;
    assert!(len >= needed, "{what} of {len} values, {needed} are needed for {shape:?}");
}

/// Whether rows can be read 16 bytes at a time and fit one block's registers; notes whether the table can.
fn wide(params: &mut AdalnParams) -> bool {
    let mut rows = vec![params.x, params.out, params.extra];
    let mut table = Vec::new();
    for norm in &params.norms {
        rows.push(norm.out);
        table.extend([norm.shift, norm.scale]);
    }
    for branch in &params.branches {
        rows.extend([branch.y, branch.d_y]);
        table.push(branch.gate);
    }
    params.table_aligned = (aligned(&table) && params.stride.is_multiple_of(ADALN_WIDTH)).into();
    aligned(&rows) && params.hidden.is_multiple_of(ADALN_WIDTH) && params.hidden <= ADALN_WIDTH * ADALN_MAX_THREADS
}

/// Cuts every sample's tokens into blocks and returns the grid.
fn grid(cuda: &Cuda, batch: usize, blocks_per_multiprocessor: u32, wide: bool, params: &mut AdalnParams) -> Grid {
    let most = cuda.properties().multiprocessors * blocks_per_multiprocessor / batch.max(1) as u32;
    params.rows_per_block = params.tokens.div_ceil(most.max(1)).max(LEAST_ROWS);
    let blocks = params.tokens.div_ceil(params.rows_per_block);
    let threads = if wide { params.hidden.div_ceil(ADALN_WIDTH).next_multiple_of(32) } else { ADALN_ANY_THREADS };
    Grid { blocks: [blocks, batch as u32, 1], threads, shared: 0 }
}

pub fn adaln(
    cuda: &Cuda,
    shape: &AdalnShape,
    x: In<'_>,
    branches: &[Branch<'_, Cuda>],
    table: Option<In<'_>>,
    x_out: Option<Out<'_>>,
    norms: &mut [NormOut<'_, Cuda>],
    stats: Option<&mut Buffer<f32>>,
) {
    let (r, m) = (branches.len(), norms.len());
    assert!(r <= 2 && m <= 2, "{r} branches and {m} norms; at most two of each");
    assert_eq!(r > 0, x_out.is_some(), "x_out is given where there are branches ({r})");
    assert_eq!(m > 0, stats.is_some(), "statistics are given where there are norms ({m})");
    if r + m == 0 || shape.batch * shape.tokens == 0 {
        return;
    }
    check_table(shape, table, r);
    check_rows(shape, "x", x.len);
    let mut params = AdalnParams { x: x.address(), norm_count: m as u32, branch_count: r as u32, ..params(shape) };
    if let Some(x_out) = x_out {
        check_rows(shape, "x_out", x_out.len);
        params.out = x_out.address();
    }
    if let Some(stats) = stats {
        assert!(stats.len() >= 2 * shape.batch * shape.tokens, "statistics of {} values for {shape:?}", stats.len());
        params.stats = stats.address();
    }
    for (to, norm) in params.norms.iter_mut().zip(norms) {
        check_rows(shape, "a norm", norm.out.len);
        let [shift, scale] = modulation(shape, table, norm.modulation);
        *to = AdalnNorm { out: norm.out.address(), shift, scale };
    }
    for (to, branch) in params.branches.iter_mut().zip(branches) {
        check_rows(shape, "a branch", branch.y.len);
        let gate = table.map_or(0, |table| chunk(shape, table, branch.gate));
        *to = AdalnBranch { y: branch.y.address(), d_y: 0, gate };
    }
    let wide = wide(&mut params);
    let name = if wide { FORWARD[r][m] } else { "adaln_any" };
    let grid = grid(cuda, shape.batch, BLOCKS, wide, &mut params);
    cuda.launch(Kernel { file: FILE, name }, grid, &params);
}

pub fn adaln_backward(
    cuda: &Cuda,
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
    let (r, m) = (branches.len(), norms.len());
    assert!(r <= 2 && m <= 2, "{r} branches and {m} norms; at most two of each");
    assert!(m == 0 || stats.is_some(), "{m} norms without their statistics");
    if shape.batch * shape.tokens == 0 {
        return;
    }
    check_table(shape, table, r);
    check_rows(shape, "x_out", x_out.len);
    check_rows(shape, "dx", dx.len);
    let mut params = AdalnParams {
        x: x_out.address(),
        out: dx.address(),
        extra: address_or_null(extra.as_ref()),
        norm_count: m as u32,
        branch_count: r as u32,
        accumulate: accumulate.into(),
        ..params(shape)
    };
    if let Some(extra) = extra {
        check_rows(shape, "extra", extra.len);
    }
    if let Some(stats) = stats {
        assert!(stats.len() >= 2 * shape.batch * shape.tokens, "statistics of {} values for {shape:?}", stats.len());
        params.stats = stats.address();
    }
    for (to, norm) in params.norms.iter_mut().zip(norms) {
        check_rows(shape, "a norm's gradient", norm.d_out.len);
        let [shift, scale] = modulation(shape, table, norm.modulation);
        *to = AdalnNorm { out: norm.d_out.address(), shift, scale };
    }
    for (to, branch) in params.branches.iter_mut().zip(&*branches) {
        check_rows(shape, "a branch", branch.y.len);
        check_rows(shape, "a branch's gradient", branch.d_y.len);
        let gate = table.map_or(0, |table| chunk(shape, table, branch.gate));
        *to = AdalnBranch { y: branch.y.address(), d_y: branch.d_y.address(), gate };
    }
    let wide = wide(&mut params) && r + m > 0;
    let Some(d_table) = d_table.filter(|_| r + m > 0 && table.is_some()) else {
        let name = if wide { BACKWARD[r][m] } else { "adaln_backward_any" };
        let grid = grid(cuda, shape.batch, BLOCKS, wide, &mut params);
        cuda.launch(Kernel { file: FILE, name }, grid, &params);
        return;
    };

    assert!(d_table.len() >= shape.batch * shape.stride, "a table's gradient of {} values for {shape:?}", d_table.len());
    let grid = grid(cuda, shape.batch, BLOCKS_WITH_SUMS, wide, &mut params);
    let (parts, sums) = (grid.blocks[0], (2 * m + r) as u32);
    let partials = shape.batch * parts as usize * sums as usize * shape.hidden;
    let Some(scratch) = cuda.scratch(size_of::<f32>() * partials) else { return };
    params.partials = scratch;
    let name = if wide { BACKWARD_SUMS[r][m] } else { "adaln_backward_any" };
    cuda.launch(Kernel { file: FILE, name }, grid, &params);

    let mut columns = [ADALN_NO_COLUMN; 6];
    for (i, norm) in norms.iter().enumerate() {
        if let Some(modulation) = norm.modulation {
            columns[2 * i] = modulation.shift as u32;
            columns[2 * i + 1] = modulation.scale as u32;
        }
    }
    for (i, branch) in branches.iter().enumerate() {
        columns[2 * m + i] = branch.gate as u32;
    }
    let AdalnParams { hidden, stride, .. } = params;
    let finalize = AdalnFinalizeParams { partials: scratch, d_table: d_table.address(), parts, sums, hidden, stride, columns };
    let blocks = (u64::from(sums) * u64::from(hidden)).div_ceil(32) as u32;
    let grid = Grid { blocks: [blocks, shape.batch as u32, 1], threads: ADALN_FINALIZE_THREADS, shared: 0 };
    cuda.launch(Kernel { file: FILE, name: "adaln_finalize" }, grid, &finalize);
}
