//! How an operation is timed.
//!
//! Several copies of its operands, together at least three times the largest L2 cache there is, are used in turn, so that
//! no run finds its operands in the cache. A sample is a number of runs queued back to back between two waits for the
//! device, recorded once and replayed (a CUDA graph), by the host's clock; the gaps between kernels count. The result is
//! the median over the samples. Operands of operations on a few kilobytes stay in the cache: there, latency is measured.

use std::time::{Duration, Instant};

use ladd_fast::device::Backend;
use ladd_fast::device::cuda::Cuda;

use super::catalogue::{Entry, Maker, Run};

/// Bytes of all copies together: three times 64 MiB, more than an A100, H100 or H200 has.
const ROTATED: usize = 3 * (64 << 20);
/// Copies beyond this would only cost time to make.
const MOST_COPIES: usize = 64;
/// A sample takes at least this long.
const SAMPLE: Duration = Duration::from_millis(2);

/// How thoroughly to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Samples of which the median is taken.
    pub samples: usize,
    /// Most copies of the operands.
    pub copies: usize,
    /// Shortest sample.
    pub sample: Duration,
    /// Pause before the first sample, for clocks and temperature.
    pub rest: Duration,
}

impl Effort {
    /// For results.
    pub const FULL: Self = Self { samples: 31, copies: MOST_COPIES, sample: SAMPLE, rest: Duration::from_secs(1) };
    /// For results where the GPU's time is short.
    pub const BRIEF: Self = Self { rest: Duration::from_millis(250), ..Self::FULL };
    /// To see that everything runs.
    pub const DRY: Self = Self { samples: 1, copies: 2, sample: Duration::ZERO, rest: Duration::ZERO };
}

/// An operation, its copies and a recording of them.
pub struct Bench<'a> {
    b: &'a Cuda,
    copies: Vec<Run<'a>>,
    /// Runs of one replay, a multiple of the copies.
    pub runs: usize,
    recording: <Cuda as Backend>::Recording,
}

/// Bytes of what a maker made.
fn bytes(made: [usize; 2]) -> usize {
    2 * made[0] + 4 * made[1]
}

impl<'a> Bench<'a> {
    /// Makes the copies, and finds out how many runs a sample needs.
    pub fn new(b: &'a Cuda, entry: &Entry<'a, Cuda>, effort: Effort) -> Self {
        let mut maker = Maker::new(b);
        let mut copies = vec![(entry.make)(&mut maker)];
        let wanted = ROTATED.div_ceil(bytes(maker.made).max(1)).clamp(1, effort.copies);
        copies.extend((1..wanted).map(|_| (entry.make)(&mut maker)));
        let mut bench = Self { b, runs: copies.len(), copies, recording: Default::default() };
        // The first time runs as it is and the second records: the third tells.
        bench.replay();
        bench.replay();
        let one = bench.replay();
        let times = effort.sample.as_secs_f64() / one.as_secs_f64().max(1e-9);
        if times > 1.0 {
            bench.runs *= times.ceil() as usize;
            bench.recording = Default::default();
            bench.replay();
            bench.replay();
        }
        bench
    }

    /// Runs all copies in turn, and waits.
    pub fn replay(&mut self) -> Duration {
        let (runs, copies) = (self.runs, &mut self.copies);
        let start = Instant::now();
        self.b.replay(&mut self.recording, || {
            for run in 0..runs {
                let i = run % copies.len();
                (copies[i])(false);
            }
        });
        self.b.synchronize().unwrap();
        start.elapsed()
    }

    /// Seconds of one run, in each sample.
    pub fn samples(&mut self, effort: Effort) -> Vec<f64> {
        std::thread::sleep(effort.rest);
        // Not counted: brings the clocks up again.
        self.replay();
        (0..effort.samples).map(|_| self.replay().as_secs_f64() / self.runs as f64).collect()
    }

    /// Number of copies.
    pub fn copies(&self) -> usize {
        self.copies.len()
    }

    /// What one run wrote.
    pub fn results(&mut self) -> Vec<f32> {
        (self.copies[0])(true)
    }
}

/// Median of the samples.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}
