//! Choosing the device: `--device`, or the configuration's `device`.

use std::path::Path;

use crate::config::GemmAlgorithms;
use crate::device::cpu::Cpu;
#[cfg(any(feature = "cuda", feature = "emulator"))]
use crate::device::cuda::{Cuda, algorithms};
use crate::device::{Backend, DeviceError};

/// A device that a command runs on; see [`on_device!`].
#[derive(Debug)]
pub enum Device {
    /// This machine's processor.
    Cpu(Cpu<f32>),
    /// A GPU, or its emulation.
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    Cuda(Cuda),
}

/// Runs an expression with a reference to the device's backend: `on_device!(device, |b| work(b))`.
macro_rules! on_device {
    ($device:expr, |$b:ident| $work:expr) => {
        match &$device {
            $crate::cli::common::device::Device::Cpu($b) => $work,
            #[cfg(any(feature = "cuda", feature = "emulator"))]
            $crate::cli::common::device::Device::Cuda($b) => $work,
        }
    };
}
pub(in crate::cli) use on_device;

impl Device {
    /// Opens the device of a name that the configuration accepts: `auto`, `cpu`, `cuda`, `cuda:N`.
    ///
    /// # Errors
    /// When it is not there, saying what to do. `auto` takes the first GPU that can be used, else the processor.
    pub fn open(name: &str) -> Result<Self, DeviceError> {
        match name {
            "cpu" => Ok(Self::Cpu(Cpu::new())),
            "auto" => Ok(Self::gpu(0).unwrap_or_else(|cause| {
                if has_gpu() {
                    tracing::warn!("the processor is used although there is a GPU: {cause}");
                }
                Self::Cpu(Cpu::new())
            })),
            #[cfg(feature = "emulator")]
            "emulated" => {
                let driver = crate::device::cuda::emulated::Emulated::new(crate::device::cuda::emulated::Schedule::default());
                Ok(Self::Cuda(Cuda::new(std::sync::Arc::new(driver))))
            }
            gpu => Self::gpu(gpu.strip_prefix("cuda:").and_then(|n| n.parse().ok()).unwrap_or(0)),
        }
    }

    /// Measures the algorithms of matrix products and keeps them in the run's folder, where the configuration wants it and the
    /// device has any.
    ///
    /// # Errors
    /// When the list of an earlier run is damaged.
    #[cfg_attr(not(any(feature = "cuda", feature = "emulator")), allow(unused_variables))]
    pub fn choose_algorithms(&self, how: GemmAlgorithms, run: &Path) -> crate::Result<()> {
        #[cfg(any(feature = "cuda", feature = "emulator"))]
        if let (Self::Cuda(cuda), GemmAlgorithms::Measured) = (self, how)
            && let Some(warning) = cuda.measure_algorithms(&run.join(algorithms::FILE))?
        {
            tracing::warn!("{warning}");
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn gpu(ordinal: usize) -> Result<Self, DeviceError> {
        Cuda::open(ordinal).map(Self::Cuda)
    }

    #[cfg(not(feature = "cuda"))]
    fn gpu(_: usize) -> Result<Self, DeviceError> {
        let cause = "this program was built without CUDA: build it with `cargo build --release --features cuda`, or use --device cpu";
        Err(DeviceError::Unavailable { device: "cuda".into(), cause: cause.into() })
    }

    /// Its name.
    pub fn name(&self) -> String {
        on_device!(self, |b| b.name())
    }
}

/// Whether this machine has a GPU, usable or not.
#[cfg(feature = "cuda")]
fn has_gpu() -> bool {
    crate::device::cuda::real::count().is_ok_and(|count| count > 0)
}

#[cfg(not(feature = "cuda"))]
fn has_gpu() -> bool {
    false
}
