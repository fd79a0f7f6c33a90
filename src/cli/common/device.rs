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
    Cuda(Box<Cuda>),
}

/// Runs an expression with a reference to the device's backend: `on_device!(device, |b| work(b))`.
macro_rules! on_device {
    ($device:expr, |$b:ident| $work:expr) => {
        match &$device {
            $crate::cli::common::device::Device::Cpu($b) => $work,
            #[cfg(any(feature = "cuda", feature = "emulator"))]
            $crate::cli::common::device::Device::Cuda(cuda) => {
                let $b = &**cuda;
                $work
            }
        }
    };
}
pub(in crate::cli) use on_device;

impl Device {
    /// Opens the device of a name that the configuration accepts: `auto`, `cpu`, `cuda`, `cuda:N`. Where not `deterministic`, a
    /// GPU adds up sums as they come; the processor has no such mode.
    ///
    /// # Errors
    /// When it is not there, saying what to do. `auto` takes the first GPU that can be used, else the processor.
    #[cfg_attr(not(any(feature = "cuda", feature = "emulator")), allow(unused_variables))]
    pub fn open(name: &str, deterministic: bool) -> Result<Self, DeviceError> {
        Ok(match Self::named(name)? {
            #[cfg(any(feature = "cuda", feature = "emulator"))]
            Self::Cuda(cuda) if !deterministic => Self::Cuda(Box::new(cuda.without_order())),
            device => device,
        })
    }

    fn named(name: &str) -> Result<Self, DeviceError> {
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
                Ok(Self::Cuda(Box::new(Cuda::new(std::sync::Arc::new(driver)))))
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
        Cuda::open(ordinal).map(|cuda| Self::Cuda(Box::new(cuda)))
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

#[cfg(test)]
#[cfg(feature = "emulator")]
mod tests {
    use super::*;
    use crate::device::{AttentionShape, Storage};

    #[test]
    fn the_order_of_sums_is_as_asked_for() {
        for (name, deterministic) in [("emulated", true), ("emulated", false)] {
            let Device::Cuda(cuda) = Device::open(name, deterministic).unwrap() else { panic!("{name} is no CUDA device") };
            assert_eq!(cuda.is_ordered(), deterministic);
        }
        assert!(matches!(Device::open("cpu", false), Ok(Device::Cpu(_))));
    }

    /// The gradients of queries, keys and values of two blocks of keys, by kernels for Hopper.
    fn gradients(deterministic: bool) -> [Vec<f32>; 3] {
        let Ok(Device::Cuda(b)) = Device::open("emulated", deterministic) else { panic!("there is no emulator") };
        let shape = AttentionShape { batch: 1, heads: 2, head_dim: 64, image: 200, text: 0, text_queries: false };
        let (len, rows) = (200 * 128, 2 * 200);
        let random = |stream: u32| {
            let mut values = vec![0.0; len];
            crate::flow::philox::fill_normals(3, 0, stream, 0, &mut values);
            let mut buffer = b.alloc_data(len).unwrap();
            b.upload_data(&values, buffer.all_mut());
            buffer
        };
        let [q, k, v, d_out] = [1, 2, 3, 4].map(random);
        let (mut out, mut lse) = (b.alloc_data(len).unwrap(), b.alloc_stat(rows).unwrap());
        b.attention(&shape, [&q, &k, &v], &mut out, None, &mut lse);
        let [mut dq, mut dk, mut dv] = [(); 3].map(|()| b.alloc_data(len).unwrap());
        let (outs, d_outs) = ([Some(&out), None], [Some(&d_out), None]);
        b.attention_backward(&shape, [&q, &k, &v], outs, &lse, d_outs, [&mut dq, &mut dk, &mut dv]);
        [dq, dk, dv].map(|buffer| b.download_data(buffer.all()).unwrap())
    }

    /// fp32 sums in another order, rounded to bf16: at most an ulp apart here and there.
    #[test]
    fn both_orders_agree() {
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>();
        for (ordered, unordered) in gradients(true).iter().zip(gradients(false)) {
            let distance = square(&mut ordered.iter().zip(&unordered).map(|(a, b)| a - b));
            assert!(distance <= 4e-3_f64.powi(2) * square(&mut ordered.iter().copied()), "{distance}");
        }
    }
}
