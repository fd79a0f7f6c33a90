//! The CUDA devices that tests run on.

use std::sync::Arc;

use ladd_fast::device::cuda::Cuda;
use ladd_fast::device::cuda::emulated::{Emulated, Schedule};

/// The emulated device under every schedule.
pub fn emulated() -> impl Iterator<Item = Cuda> {
    Schedule::ALL.into_iter().map(|schedule| {
        println!("{schedule:?}");
        Cuda::new(Arc::new(Emulated::new(schedule)))
    })
}

/// The GPU of this machine; says so when there is none.
#[cfg(feature = "cuda")]
pub fn gpu() -> Option<Cuda> {
    None
}
