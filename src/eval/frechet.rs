//! Fréchet distance between two Gaussians (Dowson and Landau, 1982), the distance behind FID:
//!
//! `d^2 = |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1^1/2 C2 C1^1/2)^1/2`, in f64, by two symmetric eigendecompositions.

use faer::{Mat, MatRef, Side};

use crate::{Error, Result};

/// Mean and covariance of features.
#[derive(Clone, Debug, PartialEq)]
pub struct Gaussian {
    /// Mean, `[dim]`.
    pub mean: Vec<f64>,
    /// Covariance, `[dim, dim]`.
    pub covariance: Vec<f64>,
}

impl Gaussian {
    /// Mean and unbiased covariance of `features`, `[n, dim]`.
    ///
    /// # Errors
    /// When there are fewer than two rows, or not a whole number of them.
    pub fn fit(features: &[f32], dim: usize) -> Result<Self> {
        if dim == 0 || !features.len().is_multiple_of(dim) || features.len() < 2 * dim {
            return Err(Error::Usage(format!("statistics need at least two images, not {} numbers of {dim} features", features.len())));
        }
        let n = features.len() / dim;
        let mut mean = vec![0.0; dim];
        for row in features.chunks_exact(dim) {
            mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value) / n as f64);
        }
        let centred: Vec<f64> =
            features.chunks_exact(dim).flat_map(|row| row.iter().zip(&mean).map(|(value, mean)| f64::from(*value) - mean)).collect();
        let centred = MatRef::from_row_major_slice(&centred, n, dim);
        let covariance = centred.transpose() * centred;
        let covariance = (0..dim * dim).map(|e| covariance[(e / dim, e % dim)] / (n - 1) as f64).collect();
        Ok(Self { mean, covariance })
    }

    fn matrix(&self) -> MatRef<'_, f64> {
        MatRef::from_row_major_slice(&self.covariance, self.mean.len(), self.mean.len())
    }

    fn trace(&self) -> f64 {
        self.covariance.iter().step_by(self.mean.len() + 1).sum()
    }
}

/// The squared Fréchet distance, as FID reports it; never below zero.
///
/// # Errors
/// When the dimensions differ or a number is not finite.
pub fn frechet_distance(a: &Gaussian, b: &Gaussian) -> Result<f64> {
    let dim = a.mean.len();
    let sizes = [a.covariance.len(), b.mean.len() * dim, b.covariance.len()];
    if sizes != [dim * dim; 3] {
        return Err(Error::Usage(format!("a Fréchet distance needs Gaussians of one dimension, not of {dim} and {}", b.mean.len())));
    }
    if [&a.mean, &a.covariance, &b.mean, &b.covariance].into_iter().flatten().any(|value| !value.is_finite()) {
        return Err(Error::Usage("the Fréchet distance of features that are not finite numbers is not defined".into()));
    }
    let root = square_root(a.matrix())?;
    let product = &root * b.matrix() * &root;
    let overlap: f64 = product.self_adjoint_eigenvalues(Side::Lower).map_err(|_| diverged())?.iter().map(|e| e.max(0.0).sqrt()).sum();
    let means: f64 = a.mean.iter().zip(&b.mean).map(|(a, b)| (a - b).powi(2)).sum();
    Ok((means + a.trace() + b.trace() - 2.0 * overlap).max(0.0))
}

/// The symmetric square root of a positive semi-definite matrix; rounding's negative eigenvalues count as zero.
fn square_root(matrix: MatRef<'_, f64>) -> Result<Mat<f64>> {
    let decomposition = matrix.self_adjoint_eigen(Side::Lower).map_err(|_| diverged())?;
    let (vectors, values) = (decomposition.U(), decomposition.S());
    let scaled = Mat::from_fn(vectors.nrows(), vectors.ncols(), |i, j| vectors[(i, j)] * values[j].max(0.0).sqrt());
    Ok(&scaled * vectors.transpose())
}

fn diverged() -> Error {
    Error::Usage("the eigenvalues of a feature covariance did not converge: the features are degenerate".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn diagonal(mean: &[f64], variance: &[f64]) -> Gaussian {
        let n = mean.len();
        let covariance = (0..n * n).map(|e| if e / n == e % n { variance[e / n] } else { 0.0 }).collect();
        Gaussian { mean: mean.to_vec(), covariance }
    }

    fn noise(count: usize, seed: u32) -> Vec<f32> {
        let mut values = vec![0.0; count];
        crate::flow::philox::fill_normals(u64::from(seed), 0, 0, 0, &mut values);
        values
    }

    #[test]
    fn commuting_gaussians_have_the_closed_form() {
        // sum (m1 - m2)^2 + sum (s1 - s2)^2
        let a = diagonal(&[1.0, -2.0, 0.0], &[4.0, 9.0, 0.0]);
        let b = diagonal(&[0.0, 0.0, 0.5], &[1.0, 16.0, 0.25]);
        approx::assert_relative_eq!(frechet_distance(&a, &b).unwrap(), 5.25 + 1.0 + 1.0 + 0.25, epsilon = 1e-10);
        approx::assert_relative_eq!(frechet_distance(&b, &a).unwrap(), 7.5, epsilon = 1e-10);
    }

    #[test]
    fn non_commuting_gaussians_have_the_closed_form_of_two_dimensions() {
        // tr (A^1/2 B A^1/2)^1/2 = sqrt(tr AB + 2 sqrt(det A det B)) in two dimensions
        let a = Gaussian { mean: vec![0.0; 2], covariance: vec![2.0, 1.0, 1.0, 3.0] };
        let b = Gaussian { mean: vec![0.0; 2], covariance: vec![5.0, -2.0, -2.0, 1.0] };
        let trace_ab = 2.0 * 5.0 + 2.0 * (1.0 * -2.0) + 3.0 * 1.0;
        let expected = 5.0 + 6.0 - 2.0 * f64::sqrt(trace_ab + 2.0 * f64::sqrt(5.0 * 1.0));
        approx::assert_relative_eq!(frechet_distance(&a, &b).unwrap(), expected, epsilon = 1e-10);
    }

    #[test]
    fn a_moved_mean_costs_its_square() {
        let features = noise(500 * 16, 1);
        let fit = Gaussian::fit(&features, 16).unwrap();
        approx::assert_abs_diff_eq!(frechet_distance(&fit, &fit).unwrap(), 0.0, epsilon = 1e-9);
        for shift in [1.0, 2.0] {
            let moved: Vec<f32> = features.iter().map(|v| v + shift).collect();
            let distance = frechet_distance(&fit, &Gaussian::fit(&moved, 16).unwrap()).unwrap();
            approx::assert_relative_eq!(distance, 16.0 * f64::from(shift).powi(2), epsilon = 1e-4);
        }
    }

    #[test]
    fn fewer_images_than_features_still_have_a_distance() {
        let (few, many) = (Gaussian::fit(&noise(5 * 32, 1), 32).unwrap(), Gaussian::fit(&noise(500 * 32, 2), 32).unwrap());
        assert!(frechet_distance(&few, &many).unwrap() > 1.0);
        assert!(Gaussian::fit(&noise(32, 1), 32).is_err());
        assert!(Gaussian::fit(&[], 0).is_err());
        let mut bad = many.clone();
        bad.mean[0] = f64::NAN;
        assert!(frechet_distance(&bad, &many).is_err());
        bad.mean.pop();
        assert!(frechet_distance(&bad, &many).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn it_is_symmetric_and_not_negative(dim in 1usize..12, seed in 0u32..1000) {
            let a = Gaussian::fit(&noise(20 * dim, seed), dim).unwrap();
            let b = Gaussian::fit(&noise(30 * dim, seed + 1), dim).unwrap();
            let (ab, ba) = (frechet_distance(&a, &b).unwrap(), frechet_distance(&b, &a).unwrap());
            prop_assert!(ab >= 0.0 && (ab - ba).abs() < 1e-8 * (1.0 + ab));
        }
    }
}
