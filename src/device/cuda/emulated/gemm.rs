//! What cuBLASLt computes, in plain loops: bf16 operands, fp32 sums, epilogues in fp32. The alignments that its kernels
//! with epilogues want are wanted here too, so that a launcher which would fail on a GPU fails on the emulator.

use half::bf16;
use rayon::prelude::*;

use super::Emulated;
use crate::device::DeviceError;
use crate::device::cuda::driver::{Address, Element, Epilogue, Gemm, Operand};

/// Bytes that every matrix and vector must be aligned to.
const ALIGNMENT: u64 = 16;
/// Elements that every row's length must be a multiple of.
const GRANULE: usize = 8;
/// Rows that one task computes.
const ROWS: usize = 8;

/// Runs a product.
pub fn run(driver: &Emulated, gemm: &Gemm) -> Result<(), DeviceError> {
    check_rules(gemm).map_err(|cause| driver.failed("gemm", format!("{cause}: {gemm:?}")))?;
    let Gemm { rows, columns, depth, .. } = *gemm;
    let a = read_operand(driver, &gemm.a, rows, depth)?;
    let b = read_operand(driver, &gemm.b, depth, columns)?;
    let mut sums = match (gemm.accumulate, gemm.element) {
        (false, _) => vec![0.0; rows * columns],
        (true, Element::F32) => driver.values::<f32>(gemm.out, rows * columns)?.to_vec(),
        (true, Element::Bf16) => widened(driver.values(gemm.out, rows * columns)?),
    };
    multiply(&a, &b, &mut sums, columns);
    apply(driver, gemm, &mut sums)?;
    match gemm.element {
        Element::F32 => driver.values_mut::<f32>(gemm.out, sums.len())?.copy_from_slice(&sums),
        Element::Bf16 => round_into(driver.values_mut(gemm.out, sums.len())?, &sums),
    }
    Ok(())
}

fn check_rules(gemm: &Gemm) -> Result<(), &'static str> {
    let Gemm { rows, columns, depth, a, b, out, .. } = *gemm;
    let (bias, pre) = match gemm.epilogue {
        Epilogue::None => (0, 0),
        Epilogue::Bias(bias) => (bias, 0),
        Epilogue::BiasGelu { bias, pre } => (bias, pre),
        Epilogue::GeluBackward { pre } => (0, pre),
    };
    let stored = |operand: Operand, rows: usize, columns: usize| if operand.transposed { rows } else { columns };
    let fits = |operand: Operand, rows, columns| operand.ld >= stored(operand, rows, columns);
    if rows == 0 || columns == 0 || depth == 0 {
        return Err("a dimension is 0");
    }
    if !fits(a, rows, depth) || !fits(b, depth, columns) {
        return Err("a leading dimension is shorter than a row");
    }
    if [a.ld, b.ld, columns].iter().any(|length| length % GRANULE != 0) {
        return Err("a leading dimension is no multiple of 8");
    }
    if [a.address, b.address, out, bias, pre].iter().any(|address| address % ALIGNMENT != 0) {
        return Err("an address is no multiple of 16");
    }
    Ok(())
}

fn widened(values: &[bf16]) -> Vec<f32> {
    values.iter().map(|value| value.to_f32()).collect()
}

pub(super) fn round_into(out: &mut [bf16], values: &[f32]) {
    out.iter_mut().zip(values).for_each(|(out, value)| *out = bf16::from_f32(*value));
}

/// The operand as a row-major fp32 matrix.
fn read_operand(driver: &Emulated, operand: &Operand, rows: usize, columns: usize) -> Result<Vec<f32>, DeviceError> {
    let (stored_rows, stored_columns) = if operand.transposed { (columns, rows) } else { (rows, columns) };
    let stored = driver.values::<bf16>(operand.address, (stored_rows - 1) * operand.ld + stored_columns)?;
    let mut matrix = vec![0.0; rows * columns];
    for (i, row) in stored.chunks(operand.ld).enumerate() {
        for (j, value) in row[..stored_columns].iter().enumerate() {
            let at = if operand.transposed { j * columns + i } else { i * columns + j };
            matrix[at] = value.to_f32();
        }
    }
    Ok(matrix)
}

/// `sums += a b`, each element's terms in order.
pub(super) fn multiply(a: &[f32], b: &[f32], sums: &mut [f32], columns: usize) {
    let depth = b.len() / columns;
    sums.par_chunks_mut(ROWS * columns).zip(a.par_chunks(ROWS * depth)).for_each(|(sums, a)| {
        for (p, b) in b.chunks_exact(columns).enumerate() {
            for (sums, a) in sums.chunks_exact_mut(columns).zip(a.chunks_exact(depth)) {
                let factor = a[p];
                sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += factor * b);
            }
        }
    });
}

fn apply(driver: &Emulated, gemm: &Gemm, sums: &mut [f32]) -> Result<(), DeviceError> {
    match gemm.epilogue {
        Epilogue::None => (),
        Epilogue::Bias(bias) => add_bias(driver, bias, sums, gemm.columns)?,
        Epilogue::BiasGelu { bias, pre } => {
            add_bias(driver, bias, sums, gemm.columns)?;
            round_into(driver.values_mut(pre, sums.len())?, sums);
            sums.iter_mut().for_each(|sum| *sum = gelu(*sum));
        }
        Epilogue::GeluBackward { pre } => {
            let pre = driver.values::<bf16>(pre, sums.len())?;
            sums.iter_mut().zip(pre).for_each(|(sum, x)| *sum *= gelu_slope(x.to_f32()));
        }
    }
    Ok(())
}

pub(super) fn add_bias(driver: &Emulated, bias: Address, sums: &mut [f32], columns: usize) -> Result<(), DeviceError> {
    let bias = widened(driver.values(bias, columns)?);
    sums.chunks_exact_mut(columns).for_each(|row| row.iter_mut().zip(&bias).for_each(|(sum, bias)| *sum += bias));
    Ok(())
}

const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + (GELU_SCALE * (x + GELU_CUBIC * x * x * x)).tanh())
}

fn gelu_slope(x: f32) -> f32 {
    let tanh = (GELU_SCALE * (x + GELU_CUBIC * x * x * x)).tanh();
    0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * x * x)
}
