//! Reductions over a row: sixteen partial sums in a fixed order, which vectorise and give the same bits on every run.

use super::real::Real;

const LANES: usize = 16;

/// Sum of `value(i)` for `i < len`.
#[inline(always)]
pub fn sum<T: Real>(len: usize, value: impl Fn(usize) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let whole = len - len % LANES;
    let mut i = 0;
    while i < whole {
        for lane in 0..LANES {
            lanes[lane] += value(i + lane);
        }
        i += LANES;
    }
    while i < len {
        lanes[i - whole] += value(i);
        i += 1;
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Sum of `value(i)` in f64: for losses and norms, where many terms meet.
#[inline(always)]
pub fn sum_f64(len: usize, value: impl Fn(usize) -> f64) -> f64 {
    sum(len, value)
}
