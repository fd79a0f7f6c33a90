//! What cuBLASLt computes of e4m3 operands with a scale for each row, in plain loops, and the alignments it wants.

use half::bf16;

use super::Emulated;
use super::gemm::{add_bias, multiply, round_into};
use crate::device::cuda::driver::GemmFp8;
use crate::device::{DeviceError, FP8_GRANULE, e4m3};

/// Bytes that every matrix and vector must be aligned to.
const ALIGNMENT: u64 = 16;

/// Refuses what cuBLASLt has no algorithm for.
pub fn prepare(driver: &Emulated, columns: usize, depth: usize) -> Result<(), DeviceError> {
    let name = &driver.properties.name;
    if let Some(lack) = driver.properties.lacks_fp8() {
        return Err(DeviceError::no_fp8(name, lack));
    }
    if !columns.is_multiple_of(FP8_GRANULE) || !depth.is_multiple_of(FP8_GRANULE) {
        return Err(DeviceError::no_fp8(name, format!("{columns} columns and sums of {depth} are not multiples of {FP8_GRANULE}")));
    }
    Ok(())
}

/// Runs a product.
pub fn run(driver: &Emulated, gemm: &GemmFp8) -> Result<(), DeviceError> {
    let GemmFp8 { rows, columns, depth, a, a_scales, b, b_scales, bias, out } = *gemm;
    prepare(driver, columns, depth)?;
    if [a, a_scales, b, b_scales, bias, out].iter().any(|address| address % ALIGNMENT != 0) {
        return Err(driver.failed("gemm_fp8", format!("an address is no multiple of {ALIGNMENT}: {gemm:?}")));
    }
    let numbers = |codes: &[u8]| codes.iter().map(|code| e4m3::decode(*code)).collect::<Vec<_>>();
    let a = numbers(driver.values(a, rows * depth)?);
    let stored = driver.values::<u8>(b, columns * depth)?;
    let b = numbers(&(0..depth * columns).map(|i| stored[i % columns * depth + i / columns]).collect::<Vec<_>>());
    let mut sums = vec![0.0; rows * columns];
    multiply(&a, &b, &mut sums, columns);
    let (row_scales, column_scales) = (driver.values::<f32>(a_scales, rows)?, driver.values::<f32>(b_scales, columns)?);
    for (row, of_row) in sums.chunks_exact_mut(columns).zip(row_scales) {
        row.iter_mut().zip(column_scales).for_each(|(sum, of_column)| *sum *= of_row * of_column);
    }
    add_bias(driver, bias, &mut sums, columns)?;
    round_into(driver.values_mut::<bf16>(out, sums.len())?, &sums);
    Ok(())
}
