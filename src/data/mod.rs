//! What training reads: the demo's images, prompt lists, and latents in shards.
//!
//! A data set is made once by the teacher ([`ShardWriter`]), checked when it is opened ([`LatentDataset`]), and read in
//! batches whose content depends on the seed and the step only ([`Loader`]). Missing data is an error, never noise.

mod dataset;
pub mod fashion_mnist;
mod loader;
mod manifest;
pub mod prepare;
mod prompts;
mod sizes;
mod writer;

pub use dataset::{Bucket, LatentDataset, verify};
pub use fashion_mnist::FashionMnist;
pub use loader::{Batch, Loader};
pub use manifest::{DatasetSettings, MANIFEST, Manifest, Origin, Part, Preparation, ShardInfo, Synthesis};
pub use prompts::{BadPrompts, parse_jsonl, parse_parquet, parse_text, read_prompts, unique_prompts};
pub use sizes::{DrawPlan, ImageSize, Run, Share, parse_aspect, parse_size};
pub use writer::ShardWriter;
