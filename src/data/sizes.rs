//! Which sample of a synthesis has which size, and which process draws it.
//!
//! The size of sample `i` is a draw of its own, by the sizes' weights, from (seed, i). Samples are then ordered by size, and each
//! size cut into shards; shard `j` belongs to process `j mod n`. All of it depends on nothing but the settings.

use std::ops::Range;

use crate::flow::philox;
use crate::{Error, Result};

/// A size of images with its share of the samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ImageSize {
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// Share, in proportion to the other sizes'.
    pub weight: f64,
}

/// Reads `HEIGHTxWIDTH` in pixels, with a weight where there is one, as in `1024x768@2`.
///
/// # Errors
/// When it is written otherwise.
pub fn parse_size(text: &str) -> Result<ImageSize, String> {
    let bad = || format!("`{text}` is no size: write it as HEIGHTxWIDTH in pixels, such as 1024x768, or 1024x768@2 for twice as many");
    let (size, weight) = weighted(text).ok_or_else(bad)?;
    let (height, width) = size.split_once(['x', 'X', '×']).ok_or_else(bad)?;
    let side = |text: &str| text.trim().parse().ok().filter(|side| (1..=1 << 20).contains(side)).ok_or_else(bad);
    Ok(ImageSize { height: side(height)?, width: side(width)?, weight })
}

/// Reads `WIDTH:HEIGHT`, with a weight where there is one, as in `3:2@0.5`: the size of that aspect nearest to `area` pixels whose
/// sides are multiples of `multiple`.
///
/// # Errors
/// When it is written otherwise.
pub fn parse_aspect(text: &str, area: usize, multiple: usize) -> Result<ImageSize, String> {
    let bad = || format!("`{text}` is no aspect: write it as WIDTH:HEIGHT, such as 3:2, or 3:2@0.5 for half as many");
    let (aspect, weight) = weighted(text).ok_or_else(bad)?;
    let (width, height) = aspect.split_once(':').ok_or_else(bad)?;
    let part = |text: &str| text.trim().parse::<f64>().ok().filter(|part| (1e-3..=1e3).contains(part)).ok_or_else(bad);
    let ratio = part(width)? / part(height)?;
    if !(0.1..=10.0).contains(&ratio) {
        return Err(format!("`{text}` is too narrow: aspects reach from 1:10 to 10:1"));
    }
    let side = |exact: f64| ((exact / multiple as f64).round() as usize).max(1) * multiple;
    let area = area as f64;
    Ok(ImageSize { height: side((area / ratio).sqrt()), width: side((area * ratio).sqrt()), weight })
}

fn weighted(text: &str) -> Option<(&str, f64)> {
    let (what, weight) = text.split_once('@').unwrap_or((text, "1"));
    let weight = weight.trim().parse().ok().filter(|weight| (1e-6..=1e6).contains(weight))?;
    Some((what, weight))
}

/// Which of `n` processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which, from 0.
    pub index: usize,
    /// Of how many.
    pub of: usize,
}

impl Share {
    /// One process draws all.
    pub const WHOLE: Self = Self { index: 0, of: 1 };

    /// Reads `2/4`: the second of four.
    ///
    /// # Errors
    /// When it is written otherwise.
    pub fn parse(text: &str) -> Result<Self> {
        let parts = text.split_once('/').and_then(|(which, of)| Some((which.trim().parse().ok()?, of.trim().parse().ok()?)));
        match parts {
            Some((which @ 1.., of)) if which <= of && of <= 4096 => Ok(Self { index: which - 1, of }),
            _ => Err(Error::Usage(format!("--shard {text}: write it as 2/4 for the second of four processes"))),
        }
    }
}

/// The samples of a synthesis in the order in which they are drawn.
#[derive(Debug)]
pub struct DrawPlan {
    /// Number of each sample, in order; a sample's noise is that of its place here.
    order: Vec<u32>,
    /// Runs of places of one size: the shards of this process.
    runs: Vec<Run>,
}

/// Samples of one size that go into one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which size.
    pub size: usize,
    /// Places in the order.
    pub places: Range<usize>,
}

impl DrawPlan {
    /// Plans `total` samples of sizes with `weights`, in shards of up to `shard_size`, for one process.
    pub fn new(seed: u64, total: usize, weights: &[f64], shard_size: usize, share: Share) -> Self {
        let sizes = sizes(seed, total, weights);
        let mut order: Vec<u32> = (0..total as u32).collect();
        order.sort_by_key(|sample| sizes[*sample as usize]); // stable
        let mut runs = Vec::new();
        let mut start = 0;
        for size in 0..weights.len() {
            let end = start + sizes.iter().filter(|other| usize::from(**other) == size).count();
            runs.extend((start..end).step_by(shard_size).map(|first| Run { size, places: first..end.min(first + shard_size) }));
            start = end;
        }
        let own = runs.into_iter().enumerate().filter(|(shard, _)| shard % share.of == share.index).map(|(_, run)| run);
        Self { order, runs: own.collect() }
    }

    /// Samples this process draws.
    pub fn count(&self) -> usize {
        self.runs.iter().map(|run| run.places.len()).sum()
    }

    /// What is left after the first `done` samples of this process: parts of its runs of up to `batch` samples.
    pub fn batches(&self, done: usize, batch: usize) -> impl Iterator<Item = Run> {
        let mut skip = done;
        self.runs.iter().flat_map(move |Run { size, places }| {
            let skipped = skip.min(places.len());
            skip -= skipped;
            let (size, end) = (*size, places.end);
            (places.start + skipped..end).step_by(batch).map(move |first| Run { size, places: first..end.min(first + batch) })
        })
    }

    /// Numbers of the samples at `places`.
    pub fn samples(&self, places: Range<usize>) -> &[u32] {
        self.order.get(places).unwrap_or_default()
    }
}

/// The size of each sample.
fn sizes(seed: u64, total: usize, weights: &[f64]) -> Vec<u16> {
    let sum: f64 = weights.iter().sum();
    let bounds: Vec<f64> = weights
        .iter()
        .scan(0.0, |sum, weight| {
            Some({
                *sum += weight;
                *sum
            })
        })
        .collect();
    let size = |sample: usize| {
        let draw = f64::from(philox::uniform_at(seed, 0, philox::stream::IMAGE_SIZE, sample as u64)) * sum;
        bounds.iter().position(|bound| draw < *bound).unwrap_or(weights.len().saturating_sub(1)) as u16
    };
    (0..total).map(size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_and_aspects_are_read() {
        assert_eq!(parse_size("1024x768@2").unwrap(), ImageSize { height: 1024, width: 768, weight: 2.0 });
        assert_eq!(parse_size(" 64 x 32 ").unwrap(), ImageSize { height: 64, width: 32, weight: 1.0 });
        // The sizes in which models of a megapixel are trained.
        let aspect = |text: &str| parse_aspect(text, 1 << 20, 64).map(|size| (size.width, size.height, size.weight));
        assert_eq!(aspect("1:1").unwrap(), (1024, 1024, 1.0));
        assert_eq!(aspect("3:2@0.5").unwrap(), (1280, 832, 0.5));
        assert_eq!(aspect("9:16").unwrap(), (768, 1344, 1.0));
        assert_eq!(aspect("1.85:1").unwrap().0, 1408);
        for bad in ["", "1024", "1024x", "0x64", "-1x4", "64x64@0", "64x64@nan", "64x64@", "9999999x1"] {
            assert!(parse_size(bad).unwrap_err().contains("HEIGHTxWIDTH"), "{bad}");
        }
        for bad in ["", "3", "3:", "0:1", "nan:1", "1:1@x"] {
            assert!(aspect(bad).unwrap_err().contains("WIDTH:HEIGHT"), "{bad}");
        }
        assert!(aspect("1:20").unwrap_err().contains("too narrow"));
    }

    #[test]
    fn shares_are_read() {
        assert_eq!(Share::parse("2/4").unwrap(), Share { index: 1, of: 4 });
        assert_eq!(Share::parse("1/1").unwrap(), Share::WHOLE);
        for bad in ["", "2", "0/4", "5/4", "1/0", "a/b", "1/99999", "-1/2"] {
            assert!(Share::parse(bad).unwrap_err().to_string().contains("second of four"), "{bad}");
        }
    }

    #[test]
    fn one_size_is_drawn_in_order() {
        let plan = DrawPlan::new(3, 10, &[1.0], 4, Share::WHOLE);
        assert_eq!(plan.samples(0..10), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        let batches: Vec<_> = plan.batches(3, 3).map(|run| run.places).collect();
        assert_eq!(batches, [3..4, 4..7, 7..8, 8..10]);
        assert_eq!(plan.batches(10, 3).count(), 0);
    }

    #[test]
    fn shares_of_the_samples_are_those_of_the_weights() {
        let counts = |seed: u64| {
            let sizes = sizes(seed, 10_000, &[1.0, 2.0, 1.0]);
            [0, 1, 2].map(|size| sizes.iter().filter(|other| **other == size).count())
        };
        let [a, b, c] = counts(1);
        assert!(a.abs_diff(2500) < 150 && b.abs_diff(5000) < 200 && c.abs_diff(2500) < 150, "{a} {b} {c}");
        assert_ne!(counts(1), counts(2));
        // A sample's size does not depend on how many there are.
        assert_eq!(sizes(1, 100, &[1.0, 1.0]), sizes(1, 1000, &[1.0, 1.0])[..100]);
    }

    proptest! {
        #[test]
        fn every_sample_is_drawn_once_by_one_process(
            total in 1usize..300, weights in proptest::collection::vec(0.1f64..3.0, 1..5), shard in 1usize..40, of in 1usize..6, batch in 1usize..9
        ) {
            let mut places = Vec::new();
            for index in 0..of {
                let plan = DrawPlan::new(7, total, &weights, shard, Share { index, of });
                let own: Vec<_> = plan.batches(0, batch).collect();
                prop_assert_eq!(own.iter().map(|run| run.places.len()).sum::<usize>(), plan.count());
                let whole = DrawPlan::new(7, total, &weights, shard, Share::WHOLE);
                let sizes = sizes(7, total, &weights);
                for run in own {
                    for place in run.places.clone() {
                        prop_assert_eq!(plan.samples(place..place + 1), whole.samples(place..place + 1));
                        prop_assert_eq!(usize::from(sizes[plan.samples(place..place + 1)[0] as usize]), run.size);
                    }
                    places.extend(run.places);
                }
            }
            places.sort_unstable();
            prop_assert_eq!(places, (0..total).collect::<Vec<_>>());
        }
    }
}
