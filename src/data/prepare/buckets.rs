//! Aspect buckets: the sizes to which pictures are brought, all of about one area, so that a batch has one shape and a picture
//! loses little to its crop.
//!
//! For every width that is a multiple of `multiple` the tallest height within the area, and the other way round; of all with a
//! ratio of at most `max_ratio` and sides of at most `longest`, a picture goes to the one nearest in `|ln aspect|`. Called by
//! `ladd-fast prepare`.

use crate::{Error, Result};

/// The sizes, width and height, by falling width.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AspectBuckets(Vec<(usize, usize)>);

impl AspectBuckets {
    /// The sizes of at most `area` pixels.
    ///
    /// # Errors
    /// When not even a square fits.
    pub fn new(area: usize, multiple: usize, max_ratio: f64, longest: usize) -> Result<Self> {
        let fail = |cause: String| Err(Error::Config(format!("prepare.area = {area}: {cause}")));
        if multiple == 0 || longest < multiple {
            return fail(format!("sides of at most {longest} pixels cannot be multiples of {multiple}"));
        }
        let longest = longest / multiple * multiple;
        let tallest = |width: usize| (area / width / multiple * multiple).min(longest);
        let ratio = |w: usize, h: usize| w.max(h) as f64 / w.min(h) as f64;
        let widths = (multiple..=longest.min(area / multiple)).step_by(multiple);
        let mut sizes: Vec<_> = widths.flat_map(|width| [(width, tallest(width)), (tallest(width), width)]).collect();
        sizes.retain(|(w, h)| ratio(*w, *h) <= max_ratio);
        // Those that could be wider or taller waste area, unless it is the longest side that holds them.
        let fits = |w: usize, h: usize| w * h <= area && ratio(w, h) <= max_ratio;
        let slack = |w: usize, h: usize| fits(w + multiple, h) || fits(w, h + multiple);
        sizes.retain(|(w, h)| w.max(h) == &longest || !slack(*w, *h));
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        sizes.dedup();
        if sizes.is_empty() {
            return fail(format!("no sides that are multiples of {multiple} have that area and a ratio of at most {max_ratio}"));
        }
        Ok(Self(sizes))
    }

    /// The sizes, width and height.
    pub fn sizes(&self) -> &[(usize, usize)] {
        &self.0
    }

    /// The size for a picture of `width` x `height`.
    pub fn nearest(&self, width: u32, height: u32) -> (usize, usize) {
        let aspect = |w: f64, h: f64| (w / h).ln();
        let wanted = aspect(f64::from(width.max(1)), f64::from(height.max(1)));
        let distance = |size: &(usize, usize)| (aspect(size.0 as f64, size.1 as f64) - wanted).abs();
        self.0.iter().copied().reduce(|best, size| if distance(&size) < distance(&best) { size } else { best }).unwrap_or((1, 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_megapixel_has_the_usual_sizes() {
        let buckets = AspectBuckets::new(1024 * 1024, 64, 2.0, 3072).unwrap();
        assert!(
            buckets.sizes().contains(&(1024, 1024)) && buckets.sizes().contains(&(1152, 896)) && buckets.sizes().contains(&(832, 1216))
        );
        for (w, h) in buckets.sizes() {
            assert!(w * h <= 1 << 20 && w * h > 900_000 && w % 64 == 0 && h % 64 == 0 && w <= &(2 * h) && h <= &(2 * w), "{w}x{h}");
        }
        assert_eq!(buckets.sizes().first(), Some(&(1408, 704)));
    }

    #[test]
    fn pictures_go_to_the_nearest_aspect() {
        let buckets = AspectBuckets::new(1024 * 1024, 64, 2.0, 3072).unwrap();
        assert_eq!(buckets.nearest(500, 500), (1024, 1024));
        assert_eq!(buckets.nearest(4000, 3000), (1152, 896));
        assert_eq!(buckets.nearest(3000, 4000), (896, 1152));
        assert_eq!(buckets.nearest(100, 10_000), *buckets.sizes().last().unwrap());
        assert_eq!(buckets.nearest(0, 0), (1024, 1024));
    }

    #[test]
    fn a_small_network_limits_the_sides() {
        // The demo's: 32 x 32 at most.
        let buckets = AspectBuckets::new(1024, 8, 2.0, 32).unwrap();
        assert_eq!(buckets.sizes(), [(32, 32), (32, 24), (32, 16), (24, 32), (16, 32)]);
        assert_eq!(AspectBuckets::new(4096, 64, 1.0, 64).unwrap().sizes(), [(64, 64)]);
        assert!(AspectBuckets::new(100, 64, 2.0, 64).is_err());
        assert!(AspectBuckets::new(4096, 64, 2.0, 32).is_err());
    }
}
