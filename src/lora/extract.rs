//! The low-rank adapter nearest to the difference of two matrices: its largest singular values and their vectors (Eckart and
//! Young, 1936). Turns a student with all weights trained into a LoRA of its teacher.

use faer::MatRef;

use super::{Adapter, Target};
use crate::format::Tensors;
use crate::{Error, Result};

/// How much of a difference is kept, in squares.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Share {
    /// Sum of the squares that the adapter has.
    pub kept: f64,
    /// Sum of the squares of the difference.
    pub whole: f64,
}

impl Share {
    /// From 0 to 1; 1 where there is no difference.
    pub fn value(self) -> f64 {
        if self.whole > 0.0 { self.kept / self.whole } else { 1.0 }
    }
}

impl std::ops::AddAssign for Share {
    fn add_assign(&mut self, other: Self) {
        self.kept += other.kept;
        self.whole += other.whole;
    }
}

/// An adapter and what it keeps.
#[derive(Clone, Debug)]
pub struct Extracted {
    /// The adapter; none where the matrices are equal.
    pub adapter: Option<Adapter>,
    /// What it keeps of the difference.
    pub share: Share,
}

/// The target's rows of `to` minus those of `from`, in diffusers' order.
///
/// # Errors
/// When a network lacks the tensor or it is too small.
pub fn difference(target: &Target, from: &Tensors, to: &Tensors) -> Result<Vec<f32>> {
    let find = |tensors: &'_ Tensors| tensors.get(&target.tensor).and_then(|t| t.data.get(target.range())).map(<[f32]>::to_vec);
    let (Some(from), Some(mut to)) = (find(from), find(to)) else {
        return Err(Error::Usage(format!("`{}` is missing or too small in one of the networks", target.tensor)));
    };
    to.iter_mut().zip(&from).for_each(|(to, from)| *to -= from);
    if target.swapped {
        let half = to.len() / 2;
        to.rotate_left(half);
    }
    Ok(to)
}

impl Extracted {
    /// The adapter of rank `rank`, or less where the matrix has less, nearest to `difference` `[outputs, inputs]`.
    ///
    /// # Errors
    /// When the difference holds something else than finite numbers.
    pub fn new(target: &Target, difference: &[f32], rank: usize) -> Result<Self> {
        let (outputs, inputs) = (target.outputs, target.inputs);
        let whole: f64 = difference.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
        if whole == 0.0 {
            return Ok(Self { adapter: None, share: Share::default() });
        }
        let failed = || Error::Usage(format!("the difference of `{}` cannot be taken apart: it holds no finite numbers", target.module));
        if !whole.is_finite() {
            return Err(failed());
        }
        let values: Vec<f64> = difference.iter().map(|value| f64::from(*value)).collect();
        let svd = MatRef::from_row_major_slice(&values, outputs, inputs).thin_svd().map_err(|_| failed())?;
        let (u, s, v) = (svd.U(), svd.S(), svd.V());
        let rank = rank.min(outputs).min(inputs);
        let root = |r: usize| s[r].max(0.0).sqrt();
        let a = (0..rank).flat_map(|r| (0..inputs).map(move |i| (v[(i, r)] * root(r)) as f32)).collect();
        let b = (0..outputs).flat_map(|o| (0..rank).map(move |r| (u[(o, r)] * root(r)) as f32)).collect();
        let kept = (0..rank).map(|r| s[r] * s[r]).sum::<f64>().min(whole);
        Ok(Self { adapter: Some(Adapter { rank, inputs, outputs, a, b, scale: 1.0 }), share: Share { kept, whole } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::philox::fill_normals;

    fn normals(stream: u32, len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        fill_normals(3, 0, stream, 0, &mut values);
        values
    }

    #[test]
    fn a_difference_of_low_rank_is_found_whole_and_more_is_cut_at_the_largest() {
        let target = Target { module: "m".into(), tensor: "t".into(), row: 0, outputs: 9, inputs: 14, swapped: false };
        let made = Adapter { rank: 3, inputs: 14, outputs: 9, a: normals(1, 42), b: normals(2, 27), scale: 0.5 };
        let change = made.change(2.0);
        let found = Extracted::new(&target, &change, 3).unwrap();
        assert!((found.share.value() - 1.0).abs() < 1e-9, "{:?}", found.share);
        for (a, b) in found.adapter.unwrap().change(1.0).iter().zip(&change) {
            approx::assert_abs_diff_eq!(a, b, epsilon = 1e-5);
        }
        let two = Extracted::new(&target, &change, 2).unwrap();
        let left: f64 = two.adapter.unwrap().change(1.0).iter().zip(&change).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        assert!((left - (two.share.whole - two.share.kept)).abs() < 1e-5 * two.share.whole, "what is not kept is the error");
        assert!(two.share.value() > 2.0 / 3.0, "the largest are kept");
        let all = Extracted::new(&target, &change, 100).unwrap();
        assert_eq!(all.adapter.unwrap().rank, 9);
    }

    #[test]
    fn no_difference_has_no_adapter_and_no_number_none() {
        let target = Target { module: "m".into(), tensor: "t".into(), row: 0, outputs: 2, inputs: 2, swapped: false };
        let none = Extracted::new(&target, &[0.0; 4], 1).unwrap();
        assert!(none.adapter.is_none() && none.share.value() == 1.0);
        assert!(Extracted::new(&target, &[0.0, f32::NAN, 0.0, 0.0], 1).unwrap_err().to_string().contains("`m`"));
    }
}
