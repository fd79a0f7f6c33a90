//! Dense layers: cuBLASLt products with their epilogues, and `kernels/linear.cu` for what cuBLASLt may refuse and for the
//! gradients of biases.

use half::bf16;

use super::{In, Out, aligned, kernel_of_width};
use crate::device::cuda::Cuda;
use crate::device::cuda::abi::{COLUMN_SUM_THREADS, ColumnSumParams, GEMM_ANY_THREADS, GEMM_ANY_TILE, GemmAnyParams, GemmOperand};
use crate::device::cuda::driver::{Address, Element, Epilogue, Gemm, Grid, Kernel, Operand};
use crate::device::cuda::memory::{Buffer, Located};
use crate::device::{Linear, Storage};

const FILE: &str = "linear";
/// cuBLASLt wants rows that begin at multiples of 16 bytes.
const GRANULE: usize = 8;
/// Blocks per multiprocessor of a column sum, and the fewest rows that are worth one.
const COLUMN_BLOCKS: u32 = 4;
const LEAST_ROWS: u32 = 64;

fn operand(address: Address, ld: usize) -> Operand {
    Operand { address, ld, transposed: false }
}

/// The weight `[outputs, inputs]` as stored.
fn weight(params: &Buffer<bf16>, layer: &Linear) -> Operand {
    let end = layer.weight + layer.inputs * layer.outputs;
    assert!(end <= params.len(), "a weight that ends at {end} of {} parameters: {layer:?}", params.len());
    operand(params.address() + 2 * layer.weight as u64, layer.inputs)
}

pub(super) fn bias(params: &Buffer<bf16>, layer: &Linear) -> Address {
    let end = layer.bias + layer.outputs;
    assert!(end <= params.len(), "a bias that ends at {end} of {} parameters: {layer:?}", params.len());
    params.address() + 2 * layer.bias as u64
}

/// Fails unless `[rows, width]` fits `len` values.
pub(super) fn check(what: &str, len: usize, rows: usize, width: usize) {
    assert!(len >= rows * width, "{what} of {len} values, {rows} x {width} are needed");
}

/// Whether every pointer and row allows the 16-byte accesses of cuBLASLt's fast kernels.
fn regular(gemm: &Gemm) -> bool {
    let [bias, pre] = match gemm.epilogue {
        Epilogue::None => [0, 0],
        Epilogue::Bias(bias) => [bias, 0],
        Epilogue::BiasGelu { bias, pre } => [bias, pre],
        Epilogue::GeluBackward { pre } => [0, pre],
    };
    aligned(&[gemm.a.address, gemm.b.address, gemm.out, bias, pre])
        && [gemm.a.ld, gemm.b.ld, gemm.columns].iter().all(|width| width.is_multiple_of(GRANULE))
}

/// Queues a product: by cuBLASLt where it is sure to take it, else by the slow kernel.
fn product(cuda: &Cuda, gemm: &Gemm) {
    if gemm.rows == 0 || gemm.columns == 0 {
        return;
    }
    if regular(gemm) {
        cuda.gemm(gemm);
        return;
    }
    let Gemm { rows, columns, depth, a, b, out, element, accumulate, epilogue } = *gemm;
    assert!([rows, columns, depth].iter().all(|n| *n < 1 << 31) && rows.div_ceil(GEMM_ANY_TILE as usize) <= 65535, "{gemm:?} is too large");
    let [a, b] = [a, b].map(|o| GemmOperand { address: o.address, ld: o.ld as u64, transposed: o.transposed.into(), unused: 0 });
    let mut params = GemmAnyParams {
        a,
        b,
        out,
        rows: rows as u32,
        columns: columns as u32,
        depth: depth as u32,
        accumulate: accumulate.into(),
        fp32: (element == Element::F32).into(),
        ..GemmAnyParams::default()
    };
    match epilogue {
        Epilogue::None => (),
        Epilogue::Bias(bias) => params.bias = bias,
        Epilogue::BiasGelu { bias, pre } => (params.bias, params.kept) = (bias, pre),
        Epilogue::GeluBackward { pre } => params.pre = pre,
    }
    let blocks = [params.columns.div_ceil(GEMM_ANY_TILE), params.rows.div_ceil(GEMM_ANY_TILE), 1];
    cuda.launch(Kernel { file: FILE, name: "gemm_any" }, Grid { blocks, threads: GEMM_ANY_THREADS, shared: 0 }, &params);
}

/// `x W^T` into `[rows, outputs]`.
fn forward(params: &Buffer<bf16>, layer: &Linear, rows: usize, x: In<'_>, out: Address, accumulate: bool, epilogue: Epilogue) -> Gemm {
    let Linear { inputs, outputs, .. } = *layer;
    check("x", x.len, rows, inputs);
    Gemm {
        rows,
        columns: outputs,
        depth: inputs,
        a: operand(x.address(), inputs),
        b: Operand { transposed: true, ..weight(params, layer) },
        out,
        element: Element::Bf16,
        accumulate,
        epilogue,
    }
}

/// `dy W` into `[rows, inputs]`.
fn backward_input(
    params: &Buffer<bf16>,
    layer: &Linear,
    rows: usize,
    dy: In<'_>,
    dx: Out<'_>,
    accumulate: bool,
    epilogue: Epilogue,
) -> Gemm {
    let Linear { inputs, outputs, .. } = *layer;
    check("dy", dy.len, rows, outputs);
    check("dx", dx.len, rows, inputs);
    Gemm {
        rows,
        columns: inputs,
        depth: outputs,
        a: operand(dy.address(), outputs),
        b: weight(params, layer),
        out: dx.address(),
        element: Element::Bf16,
        accumulate,
        epilogue,
    }
}

pub fn linear(cuda: &Cuda, params: &Buffer<bf16>, layer: &Linear, rows: usize, x: In<'_>, y: Out<'_>, accumulate: bool) {
    check("y", y.len, rows, layer.outputs);
    let epilogue = if layer.has_bias() { Epilogue::Bias(bias(params, layer)) } else { Epilogue::None };
    product(cuda, &forward(params, layer, rows, x, y.address(), accumulate, epilogue));
}

pub fn linear_gelu(cuda: &Cuda, params: &Buffer<bf16>, layer: &Linear, rows: usize, x: In<'_>, pre: Out<'_>, y: Out<'_>) {
    check("pre", pre.len, rows, layer.outputs);
    check("y", y.len, rows, layer.outputs);
    let epilogue = Epilogue::BiasGelu { bias: bias(params, layer), pre: pre.address() };
    product(cuda, &forward(params, layer, rows, x, y.address(), false, epilogue));
}

pub fn linear_backward_input(cuda: &Cuda, params: &Buffer<bf16>, layer: &Linear, rows: usize, dy: In<'_>, dx: Out<'_>, accumulate: bool) {
    product(cuda, &backward_input(params, layer, rows, dy, dx, accumulate, Epilogue::None));
}

pub fn linear_backward_input_gelu(
    cuda: &Cuda,
    params: &Buffer<bf16>,
    layer: &Linear,
    rows: usize,
    dy: In<'_>,
    pre: In<'_>,
    d_pre: Out<'_>,
) {
    check("pre", pre.len, rows, layer.inputs);
    let epilogue = Epilogue::GeluBackward { pre: pre.address() };
    product(cuda, &backward_input(params, layer, rows, dy, d_pre, false, epilogue));
}

pub fn linear_backward_weight(cuda: &Cuda, grads: &mut Buffer<f32>, layer: &Linear, rows: usize, x: In<'_>, dy: In<'_>) {
    let Linear { inputs, outputs, .. } = *layer;
    check("x", x.len, rows, inputs);
    check("dy", dy.len, rows, outputs);
    let bias_end = if layer.has_bias() { layer.bias + outputs } else { 0 };
    let end = (layer.weight + inputs * outputs).max(bias_end);
    assert!(end <= grads.len(), "a layer that ends at {end} of {} gradients: {layer:?}", grads.len());
    if rows == 0 {
        return;
    }
    product(
        cuda,
        &Gemm {
            rows: outputs,
            columns: inputs,
            depth: rows,
            a: Operand { transposed: true, ..operand(dy.address(), outputs) },
            b: operand(x.address(), inputs),
            out: grads.address() + 4 * layer.weight as u64,
            element: Element::F32,
            accumulate: true,
            epilogue: Epilogue::None,
        },
    );
    if layer.has_bias() {
        column_sum(cuda, rows, outputs, dy, grads.address() + 4 * layer.bias as u64);
    }
}

/// Adds the sums over the rows of `x` `[rows, columns]` to fp32 `sums` `[columns]`.
fn column_sum(cuda: &Cuda, rows: usize, columns: usize, x: In<'_>, sums: Address) {
    assert!(rows < 1 << 31 && columns < 1 << 31, "column sums of {rows} x {columns}");
    let (name, width) =
        kernel_of_width(aligned(&[x.address()]) && columns.is_multiple_of(GRANULE), [("column_sum_x8", 8), ("column_sum_x1", 1)]);
    let across = (columns as u64).div_ceil(32 * width) as u32;
    let most = (COLUMN_BLOCKS * cuda.properties().multiprocessors).div_ceil(across).min(65535);
    let rows_per_part = (rows as u32).div_ceil(most).max(LEAST_ROWS);
    let parts = (rows as u32).div_ceil(rows_per_part);
    let mut params = ColumnSumParams {
        columns: columns as u64,
        x: x.address(),
        sums,
        rows: rows as u32,
        parts,
        rows_per_part,
        ..ColumnSumParams::default()
    };
    if parts > 1 {
        let Some(partials) = cuda.scratch(size_of::<f32>() * parts as usize * columns) else { return };
        params.partials = partials;
    }
    let grid = |x: u32, y: u32| Grid { blocks: [x, y, 1], threads: COLUMN_SUM_THREADS, shared: 0 };
    cuda.launch(Kernel { file: FILE, name }, grid(across, parts), &params);
    if parts > 1 {
        cuda.launch(Kernel { file: FILE, name: "column_sum_finalize" }, grid((columns as u32).div_ceil(32), 1), &params);
    }
}
