//! Files of networks: safetensors, the project's own checkpoints, and the names other programs use for the same tensors.
//!
//! Inside the crate a network is a map from the original Stable Diffusion 3 names to f32 tensors ([`Tensors`]).
//! [`SafetensorsFile`] validates a file before any of its numbers is used; [`StoredTensors`] are the tensors where they are,
//! [`Tensors`] the same in memory; [`NetworkFile`] and [`Checkpoint`] add the settings that make them usable; [`diffusers`]
//! and [`original`] translate; everything written replaces its target atomically.

mod atomic;
mod checkpoint;
pub mod diffusers;
mod lock;
pub(crate) mod names;
pub mod original;
#[cfg(feature = "text")]
pub mod parts;
mod reader;
mod stored;
mod values;
mod writer;

pub use atomic::write_atomically;
pub use checkpoint::{Checkpoint, NetworkFile, Pipeline, Role, save};
pub use names::parameter_shapes;
pub use reader::SafetensorsFile;
pub use stored::{StoredTensors, TensorViews};
pub use values::TensorView;
pub use writer::{Dtype, Tensor, Tensors};

pub(crate) use atomic::{TEMPORARY, replace_folder};
pub(crate) use checkpoint::hex;
pub(crate) use lock::{LOCK, lock};
pub(crate) use writer::{Data, Entry, chunks, prepare_safetensors};
