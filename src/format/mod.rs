//! Files of networks: safetensors, the project's own checkpoints, and the names other programs use for the same tensors.
//!
//! Inside the crate a network is a map from the original Stable Diffusion 3 names to f32 tensors ([`Tensors`]).
//! [`SafetensorsFile`] validates a file before any of its numbers is used; [`Checkpoint`] adds the settings that make
//! the tensors usable; [`diffusers`] and [`original`] translate; everything written replaces its target atomically.

mod atomic;
mod checkpoint;
pub mod diffusers;
pub(crate) mod names;
pub mod original;
#[cfg(feature = "text")]
pub mod parts;
mod reader;
mod writer;

pub use atomic::write_atomically;
pub use checkpoint::{Checkpoint, Pipeline, Role};
pub use names::parameter_shapes;
pub use reader::SafetensorsFile;
pub use writer::{Dtype, Tensor, Tensors};

pub(crate) use atomic::TEMPORARY;
pub(crate) use checkpoint::hex;
pub(crate) use writer::{Data, Entry, prepare_safetensors};
