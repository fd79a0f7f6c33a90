//! The CUDA devices that tests run on.

use std::sync::Arc;

use ladd_fast::device::cuda::Cuda;
use ladd_fast::device::cuda::emulated::{Emulated, Schedule};

/// The emulated device under one schedule.
pub fn emulated_with(schedule: Schedule) -> Cuda {
    println!("{schedule:?}");
    Cuda::new(Arc::new(Emulated::new(schedule)))
}

/// The emulated device under every schedule.
pub fn emulated() -> impl Iterator<Item = Cuda> {
    Schedule::ALL.into_iter().map(emulated_with)
}

/// The emulated device under the plainest and the most hostile schedule, for long tests.
pub fn emulated_twice() -> impl Iterator<Item = Cuda> {
    [Schedule::ALL[0], Schedule::ALL[3]].into_iter().map(emulated_with)
}

/// The GPU of this machine.
#[cfg(feature = "cuda")]
pub fn gpu() -> Cuda {
    Cuda::open(0).unwrap()
}
