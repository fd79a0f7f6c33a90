//! How much the images of one class differ: the mean distance between two of them, in pixels.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::{Error, Result};

/// Mean Euclidean distance between two images of a class, averaged over the classes that have at least two images.
/// `images` is `[n, size]`, `labels` `[n]`.
///
/// # Errors
/// When no class has two images, or the numbers do not match.
pub fn mean_distance_within_classes(images: &[f32], size: usize, labels: &[usize]) -> Result<f64> {
    if images.len() != labels.len() * size {
        return Err(Error::Usage(format!("{} numbers are not {} images of {size} pixels", images.len(), labels.len())));
    }
    let mut classes: BTreeMap<usize, Vec<&[f32]>> = BTreeMap::new();
    for (image, label) in images.chunks_exact(size.max(1)).zip(labels) {
        classes.entry(*label).or_default().push(image);
    }
    let means: Vec<f64> = classes.values().filter(|members| members.len() > 1).map(|members| mean_distance(members)).collect();
    if means.is_empty() {
        return Err(Error::Usage("diversity needs a class with at least two images: draw more (eval.samples, --samples)".into()));
    }
    Ok(means.iter().sum::<f64>() / means.len() as f64)
}

fn mean_distance(images: &[&[f32]]) -> f64 {
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
    let of_one = |i: usize| images[i + 1..].iter().map(|other| f64::from(distance(images[i], other))).sum::<f64>();
    // Collected before they are added: the order of the sum, and so its last bit, must not depend on the threads.
    let sums: Vec<f64> = (0..images.len()).into_par_iter().map(of_one).collect();
    sums.iter().sum::<f64>() / (images.len() * (images.len() - 1) / 2) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_averaged_within_and_then_over_classes() {
        let images = [0.0, 0.0, 3.0, 4.0, 7.0, 7.0, 0.0, 1.0, 6.0, 8.0, 0.0, 4.0]; // [6, 2]
        let labels = [0, 0, 9, 1, 0, 1];
        // class 0: 5, 10, 5 -> 20/3; class 1: 3; class 9 is alone
        let mean = mean_distance_within_classes(&images, 2, &labels).unwrap();
        approx::assert_relative_eq!(mean, (20.0 / 3.0 + 3.0) / 2.0, epsilon = 1e-6);
        assert!(mean_distance_within_classes(&images, 2, &[0, 1, 2, 3, 4, 5]).is_err());
        assert!(mean_distance_within_classes(&images, 2, &[0]).is_err());
    }
}
