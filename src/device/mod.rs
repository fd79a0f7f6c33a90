//! Devices: the [`Backend`] trait lists the fused operations; `cpu` implements them natively.

mod error;

pub use error::DeviceError;
