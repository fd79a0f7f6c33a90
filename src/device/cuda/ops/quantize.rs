//! Products in FP8: launches `kernels/quantize.cu`, and queues cuBLASLt's products of what it wrote.

use half::bf16;

use super::linear::{bias, check};
use super::{In, Out, StatOut, aligned};
use crate::device::cuda::Cuda;
use crate::device::cuda::abi::{QUANTIZE_ANY_THREADS, QUANTIZE_MAX_THREADS, QUANTIZE_ROWS, QUANTIZE_WIDTH, QuantizeRowsParams};
use crate::device::cuda::driver::{GemmFp8, Grid, Kernel};
use crate::device::cuda::memory::{Buffer, Located};
use crate::device::{DeviceError, Linear, QuantizeShape, Quantized, ViewMut};

const FILE: &str = "quantize";
/// Blocks per multiprocessor: more threads than it holds, so that none runs dry for long at the end.
const BLOCKS: u32 = 8;

pub fn quantize_rows(cuda: &Cuda, shape: &QuantizeShape, x: In<'_>, codes: ViewMut<'_, Buffer<u8>>, scales: StatOut<'_>) {
    let QuantizeShape { rows, width, gelu } = *shape;
    check("x", x.len, rows, width);
    check("codes", codes.len, rows, width);
    check("scales", scales.len, rows, 1);
    assert!(rows < 1 << 31 && width < 1 << 31, "{shape:?} is too large");
    if rows * width == 0 {
        return;
    }
    let params =
        QuantizeRowsParams { x: x.address(), codes: codes.address(), scales: scales.address(), rows: rows as u32, width: width as u32 };
    let threads = params.width.div_ceil(QUANTIZE_WIDTH).next_multiple_of(32);
    let wide = aligned(&[params.x, params.codes]) && params.width.is_multiple_of(QUANTIZE_WIDTH) && threads <= QUANTIZE_MAX_THREADS;
    let (name, threads, at_a_time) = match (wide, gelu) {
        (true, false) => ("quantize_rows_x16", threads, QUANTIZE_ROWS),
        (true, true) => ("quantize_rows_gelu_x16", threads, QUANTIZE_ROWS),
        (false, false) => ("quantize_rows_any", QUANTIZE_ANY_THREADS, 1),
        (false, true) => ("quantize_rows_gelu_any", QUANTIZE_ANY_THREADS, 1),
    };
    let blocks = params.rows.div_ceil(at_a_time).min(BLOCKS * cuda.properties().multiprocessors);
    cuda.launch(Kernel { file: FILE, name }, Grid { blocks: [blocks, 1, 1], threads, shared: 0 }, &params);
}

pub fn prepare_linear_fp8(cuda: &Cuda, layer: &Linear, rows: usize) -> Result<(), DeviceError> {
    layer.check_fp8(&cuda.properties().name)?;
    cuda.driver.prepare_gemm_fp8(rows, layer.outputs, layer.inputs)
}

pub fn linear_fp8(
    cuda: &Cuda,
    params: &Buffer<bf16>,
    layer: &Linear,
    rows: usize,
    x: Quantized<'_, Cuda>,
    weight: Quantized<'_, Cuda>,
    y: Out<'_>,
) {
    let Linear { inputs, outputs, .. } = *layer;
    check("codes of x", x.codes.len, rows, inputs);
    check("scales of x", x.scales.len, rows, 1);
    check("codes of the weight", weight.codes.len, outputs, inputs);
    check("scales of the weight", weight.scales.len, outputs, 1);
    check("y", y.len, rows, outputs);
    if rows == 0 {
        return;
    }
    cuda.gemm_fp8(&GemmFp8 {
        rows,
        columns: outputs,
        depth: inputs,
        a: x.codes.address(),
        a_scales: x.scales.address(),
        b: weight.codes.address(),
        b_scales: weight.scales.address(),
        bias: bias(params, layer),
        out: y.address(),
    });
}
