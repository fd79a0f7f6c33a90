//! Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) of an MMDiT: `W = W0 + s B A` with `A` `[rank, inputs]`, `B` `[outputs, rank]`
//! and `s = alpha / rank`.
//!
//! [`Lora`] is a set of them by diffusers' module names, read from the files of diffusers, PEFT and sd-scripts ([`LoraFile`]) and
//! written as those of the first two. [`merge()`] adds one to a network's tensors, [`Extracted`] is the best one for a difference of
//! two networks, and [`Adapters`](crate::train::Adapters) are one in training.

mod adapter;
mod extract;
mod file;
mod merge;
mod names;
mod peft;
mod read;
mod select;
mod write;

pub use adapter::{Adapter, Lora};
pub use extract::{Extracted, Share, difference};
pub use file::{LoraFile, find};
pub use merge::{Distance, distance, merge};
pub use select::{LoraConfig, Target, select, targets};
pub use write::Layout;
