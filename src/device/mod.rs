//! Devices: the [`Backend`] trait lists the fused operations; [`cpu`] implements them natively, plain enough to be the
//! oracle for every kernel.

mod backend;
pub mod cpu;
#[cfg(any(feature = "cuda", feature = "emulator"))]
#[allow(unsafe_code)]
pub mod cuda;
pub mod e4m3;
mod error;
pub mod packed;
mod shapes;
mod view;

pub use backend::{AdamwState, Backend, Branch, BranchGrad, Moment, NormGrad, NormOut, Quantized};
pub use error::DeviceError;
pub use shapes::{
    ADAMW_COUNTERS, AdalnShape, AdamwShape, AttentionShape, ConvShape, FP8_GRANULE, Groups, HINGE_STATS, HeadLogitsShape, HingeShape,
    HingeStat, Linear, Modulation, PatchOrder, PatchShape, QkNormShape, QuantizeShape, StepValues, Stream,
};
pub use view::{Storage, View, ViewMut};
