//! How like two pictures are: the peak signal-to-noise ratio, and how much two silhouettes overlap.

/// Pixels above this are part of what a picture of the demo shows: its ground is black, -1.
const SHOWN: f32 = -0.8;

/// Adds up squared errors of pixels in [-1, 1].
#[derive(Clone, Copy, Debug, Default)]
pub struct Psnr {
    sum: f64,
    count: usize,
}

impl Psnr {
    /// Adds pairs of pixels; both are clamped to [-1, 1].
    pub fn add<'a>(&mut self, pairs: impl Iterator<Item = (&'a f32, &'a f32)>) {
        for (a, b) in pairs {
            self.sum += f64::from(a.clamp(-1.0, 1.0) - b.clamp(-1.0, 1.0)).powi(2);
            self.count += 1;
        }
    }

    /// `10 log10(4 / mean squared error)`, in dB: 4 is the square of the range. At most 100, what 16 bits could tell apart.
    pub fn decibels(&self) -> f64 {
        (10.0 * (4.0 * self.count as f64 / self.sum.max(1e-30)).log10()).min(100.0)
    }
}

/// Area that both silhouettes share over the area of either (intersection over union); 1 where neither shows anything.
pub fn overlap(a: &[f32], b: &[f32]) -> f64 {
    let shown = a.iter().zip(b).map(|(a, b)| (*a > SHOWN, *b > SHOWN));
    let (both, either) = shown.fold((0, 0), |(both, either), (a, b)| (both + usize::from(a && b), either + usize::from(a || b)));
    if either == 0 { 1.0 } else { both as f64 / either as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_of_a_tenth_of_the_range_is_twenty_decibels() {
        let mut psnr = Psnr::default();
        psnr.add([0.0_f32, 0.5].iter().zip(&[0.2_f32, 0.3]));
        assert!((psnr.decibels() - 20.0).abs() < 1e-5);
        psnr.add([7.0_f32; 2].iter().zip(&[1.0; 2])); // clamped: no error
        assert!((psnr.decibels() - 23.0103).abs() < 1e-3);
        let mut same = Psnr::default();
        same.add([0.3_f32].iter().zip(&[0.3]));
        assert_eq!(same.decibels(), 100.0);
    }

    #[test]
    fn silhouettes_overlap_where_both_show_something() {
        assert_eq!(overlap(&[-1.0, 0.0, 1.0, -0.9], &[-1.0, -1.0, 0.1, 0.2]), 1.0 / 3.0);
        assert_eq!(overlap(&[-1.0; 4], &[-1.0; 4]), 1.0);
    }
}
