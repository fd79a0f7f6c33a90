//! What training reads: the demo's images, prompt lists, and latents in shards.
//!
//! A data set is made once by the teacher ([`ShardWriter`]), checked when it is opened ([`LatentDataset`]), and read in
//! batches whose content depends on the seed and the step only ([`Loader`]). Missing data is an error, never noise.

mod dataset;
pub mod fashion_mnist;
mod loader;
mod manifest;
mod prompts;
mod writer;

pub use dataset::{Bucket, LatentDataset};
pub use fashion_mnist::FashionMnist;
pub use loader::{Batch, Loader};
pub use manifest::{DatasetSettings, MANIFEST, Manifest, ShardInfo};
pub use prompts::{read_prompts, unique_prompts};
pub use writer::ShardWriter;
