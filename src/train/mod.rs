//! Training: optimiser, schedules, metrics, checkpoints, the run folder.

mod adapters;
pub mod checkpoint;
mod checkpointing;
mod distill;
mod metrics;
mod network;
mod optim;
mod pretrain;
pub mod run_folder;
mod watch;

pub use adapters::{AdapterPlan, Adapters};
pub use checkpointing::{Checkpointed, Checkpointing};
pub use distill::{DistillSettings, Distiller, MicroBatch};
pub use metrics::{HeadStats, PretrainRecord, QualityRecord, StepRecord, TaskRecord};
pub use network::Network;
pub use optim::{Moments, OptimConfig, Schedule};
pub use pretrain::{PretrainSettings, Pretrainer, initial_weights};
pub use run_folder::{Purpose, Record, RunFolder};
pub use watch::Watch;
