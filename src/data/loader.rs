//! Batches for training. Which samples a batch holds depends on the seed, the step and the micro-batch only, so a run
//! that is killed and resumed sees what it would have seen.
//!
//! Every bucket (latent shape) is an endless stream: its samples in a new random order each epoch, none left out. A
//! step is the next piece of one stream, namely the one that lags furthest behind its share of the data set.

use std::sync::Arc;

use super::LatentDataset;
use crate::flow::philox;
use crate::{Error, Result};

/// Hands out batches of one latent shape each.
#[derive(Debug)]
pub struct Loader {
    dataset: Arc<LatentDataset>,
    seed: u64,
    batch_size: usize,
    micro_batches: usize,
    turns: Turns,
    /// The order of the current epoch of each bucket.
    orders: Vec<Option<Order>>,
}

/// Samples of one shape.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Shape of each latent, `[C, H, W]`.
    pub shape: [usize; 3],
    /// The latents, `[batch_size, C, H, W]`.
    pub latents: Vec<f32>,
    /// Places of their prompts in [`LatentDataset::prompts`], `[batch_size]`.
    pub prompts: Vec<u32>,
    /// Their numbers in the data set, `[batch_size]`.
    pub samples: Vec<usize>,
}

impl Loader {
    /// A loader of `micro_batches` batches a step (gradient accumulation times ranks) of `batch_size` samples each.
    ///
    /// # Errors
    /// When one of the two is zero.
    pub fn new(dataset: Arc<LatentDataset>, seed: u64, batch_size: usize, micro_batches: usize) -> Result<Self> {
        if batch_size == 0 || micro_batches == 0 {
            return Err(Error::Config(format!("batch size {batch_size} and micro-batches {micro_batches} must be at least 1")));
        }
        let sizes: Vec<u64> = dataset.buckets().iter().map(|bucket| bucket.samples.len() as u64).collect();
        let orders = sizes.iter().map(|_| None).collect();
        Ok(Self { dataset, seed, batch_size, micro_batches, turns: Turns::new(sizes), orders })
    }

    /// The data set.
    pub fn dataset(&self) -> &LatentDataset {
        &self.dataset
    }

    /// Micro-batch `micro` of `step`, both counted from 0.
    ///
    /// # Errors
    /// When `micro` is not below the number of micro-batches, or a latent cannot be read.
    pub fn batch(&mut self, step: u32, micro: usize) -> Result<Batch> {
        let mut batch = Batch::default();
        self.batch_into(step, micro, &mut batch)?;
        Ok(batch)
    }

    /// As [`Loader::batch`], into the memory of an earlier batch.
    ///
    /// # Errors
    /// As [`Loader::batch`].
    pub fn batch_into(&mut self, step: u32, micro: usize, batch: &mut Batch) -> Result<()> {
        if micro >= self.micro_batches {
            return Err(Error::Usage(format!("there is no micro-batch {micro} among {}", self.micro_batches)));
        }
        // All micro-batches of a step come from one bucket: together they are one batch.
        let (bucket, turn) = self.turns.at(u64::from(step));
        let first = (turn * self.micro_batches as u64 + micro as u64) * self.batch_size as u64;
        batch.samples.clear();
        for position in first..first + self.batch_size as u64 {
            batch.samples.push(self.sample_at(bucket, position));
        }
        batch.shape = self.dataset.buckets()[bucket].shape;
        let size: usize = batch.shape.iter().product();
        batch.latents.resize(self.batch_size * size, 0.0);
        batch.prompts.clear();
        for (index, latent) in batch.samples.iter().zip(batch.latents.chunks_exact_mut(size)) {
            batch.prompts.push(self.dataset.sample(*index, latent)?);
        }
        Ok(())
    }

    /// The sample at a position of a bucket's endless stream.
    fn sample_at(&mut self, bucket: usize, position: u64) -> usize {
        let samples = &self.dataset.buckets()[bucket].samples;
        let (epoch, place) = (position / samples.len() as u64, position % samples.len() as u64);
        let order = match self.orders[bucket].take() {
            Some(order) if order.epoch == epoch => order,
            _ => Order { epoch, places: shuffled(samples.len(), self.seed, epoch, bucket) },
        };
        let place = order.places[place as usize];
        self.orders[bucket] = Some(order);
        samples[place as usize] as usize
    }
}

#[derive(Debug)]
struct Order {
    epoch: u64,
    places: Vec<u32>,
}

/// A random order of `0 .. n` (Fisher and Yates), from the Philox stream of this epoch and bucket.
fn shuffled(n: usize, seed: u64, epoch: u64, bucket: usize) -> Vec<u32> {
    let mut places: Vec<u32> = (0..n as u32).collect();
    for last in (1..n).rev() {
        let [a, b, ..] = philox::block(seed, epoch as u32, philox::stream::SHUFFLE, (bucket as u64) << 32 | last as u64);
        let word = u64::from(a) << 32 | u64::from(b);
        let chosen = (u128::from(word) * (last as u128 + 1)) >> 64; // below last + 1
        places.swap(last, chosen as usize);
    }
    places
}

/// Whose turn it is: buckets take turns in proportion to their sizes.
#[derive(Debug)]
struct Turns {
    sizes: Vec<u64>,
    /// Turns each bucket had before `next`.
    had: Vec<u64>,
    next: u64,
    /// Bucket of turn `next - 1`.
    last: usize,
}

impl Turns {
    fn new(sizes: Vec<u64>) -> Self {
        Self { had: vec![0; sizes.len()], sizes, next: 0, last: 0 }
    }

    /// The bucket of a turn, and how many turns it had before. Going back starts counting from the beginning.
    fn at(&mut self, turn: u64) -> (usize, u64) {
        if self.sizes.len() == 1 {
            return (0, turn);
        }
        if turn + 1 < self.next {
            *self = Self::new(std::mem::take(&mut self.sizes));
        }
        while self.next <= turn {
            self.advance();
        }
        (self.last, self.had[self.last] - 1)
    }

    fn advance(&mut self) {
        let total: u64 = self.sizes.iter().sum();
        self.next += 1;
        let behind =
            |bucket: usize| i128::from(self.next) * i128::from(self.sizes[bucket]) - i128::from(self.had[bucket]) * i128::from(total);
        self.last = (1..self.sizes.len()).fold(0, |most, bucket| if behind(bucket) > behind(most) { bucket } else { most });
        self.had[self.last] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::ShardWriter;
    use crate::data::writer::tests::{push, settings};
    use crate::format::Dtype;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn memory(n: usize) -> Arc<LatentDataset> {
        let latents = (0..n * 4).map(|i| i as f32).collect();
        let prompts = (0..n as u32).map(|i| i % 10).collect();
        Arc::new(LatentDataset::from_memory(latents, [1, 2, 2], prompts, (0..10).map(|i| format!("prompt {i}")).collect()).unwrap())
    }

    fn mixed() -> Arc<LatentDataset> {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::open(folder.path(), settings(23, Dtype::F16), 4).unwrap();
        push(&mut writer, 23, 7);
        writer.finish().unwrap();
        Arc::new(LatentDataset::open(folder.path(), &|_, _| ()).unwrap())
    }

    #[test]
    fn an_epoch_holds_every_sample_once_and_the_next_has_another_order() {
        let mut loader = Loader::new(memory(60), 3, 4, 3).unwrap();
        let mut epoch = |e: u32| -> Vec<usize> {
            (5 * e..5 * e + 5).flat_map(|step| [0, 1, 2].map(|micro| loader.batch(step, micro).unwrap().samples)).flatten().collect()
        };
        let (first, second) = (epoch(0), epoch(1));
        let sorted = |mut samples: Vec<usize>| {
            samples.sort_unstable();
            samples
        };
        assert_ne!(first, second);
        assert_ne!(first, sorted(first.clone()));
        assert_eq!(sorted(first), (0..60).collect::<Vec<_>>());
        assert_eq!(sorted(second), (0..60).collect::<Vec<_>>());
    }

    #[test]
    fn a_resumed_loader_hands_out_the_same_batches() {
        for dataset in [memory(13), mixed()] {
            let mut loader = Loader::new(dataset.clone(), 9, 3, 2).unwrap();
            let all: Vec<Batch> = (0..40).flat_map(|step| [loader.batch(step, 0).unwrap(), loader.batch(step, 1).unwrap()]).collect();
            let mut resumed = Loader::new(dataset.clone(), 9, 3, 2).unwrap();
            assert_eq!(resumed.batch(31, 1).unwrap(), all[63]);
            assert_eq!(resumed.batch(31, 1).unwrap(), all[63], "asked twice");
            assert_eq!(resumed.batch(4, 0).unwrap(), all[8], "backwards");
            assert_eq!(resumed.batch(32, 0).unwrap(), all[64]);
            assert_ne!(Loader::new(dataset, 10, 3, 2).unwrap().batch(0, 0).unwrap(), all[0], "another seed");
            assert!(resumed.batch(0, 2).is_err());
        }
        assert!(Loader::new(memory(3), 0, 0, 1).is_err());
        assert!(Loader::new(memory(3), 0, 1, 0).is_err());
    }

    #[test]
    fn batches_hold_one_shape_and_what_the_data_set_holds() {
        let dataset = mixed();
        let mut loader = Loader::new(dataset.clone(), 1, 5, 1).unwrap();
        let mut seen = BTreeMap::new();
        let mut batch = Batch::default();
        for step in 0..23 {
            loader.batch_into(step, 0, &mut batch).unwrap();
            *seen.entry(batch.shape).or_insert(0) += 1;
            let size: usize = batch.shape.iter().product();
            for (i, index) in batch.samples.iter().enumerate() {
                let mut latent = vec![0.0; size];
                assert_eq!(dataset.sample(*index, &mut latent).unwrap(), batch.prompts[i]);
                assert_eq!(latent, batch.latents[i * size..(i + 1) * size]);
            }
        }
        assert_eq!(seen, BTreeMap::from([([4, 2, 4], 7), ([4, 2, 2], 16)]), "23 turns over 7 and 16 samples");
    }

    #[test]
    fn a_bucket_smaller_than_a_batch_repeats_itself_evenly() {
        let mut loader = Loader::new(memory(3), 1, 8, 1).unwrap();
        let mut counts = [0; 3];
        (0..3).for_each(|step| loader.batch(step, 0).unwrap().samples.iter().for_each(|index| counts[*index] += 1));
        assert_eq!(counts, [8; 3]);
    }

    #[test]
    fn shuffling_is_uniform() {
        let mut counts = BTreeMap::new();
        (0..6000).for_each(|epoch| *counts.entry(shuffled(3, 5, epoch, 0)).or_insert(0) += 1);
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|count| (900..1100).contains(count)), "{counts:?}");
        assert_ne!(shuffled(50, 5, 0, 0), shuffled(50, 5, 0, 1));
    }

    proptest! {
        #[test]
        fn turns_keep_the_distribution(sizes in proptest::collection::vec(1u64..2000, 1..9), turns in 1u64..500) {
            let mut schedule = Turns::new(sizes.clone());
            let mut had = vec![0u64; sizes.len()];
            for turn in 0..turns {
                let (bucket, before) = schedule.at(turn);
                prop_assert_eq!(before, had[bucket]);
                had[bucket] += 1;
            }
            let total: u64 = sizes.iter().sum();
            for (had, size) in had.iter().zip(&sizes) {
                let share = turns as f64 * *size as f64 / total as f64;
                prop_assert!((*had as f64 - share).abs() < 2.0, "{} turns where {} are due", had, share);
            }
        }
    }
}
