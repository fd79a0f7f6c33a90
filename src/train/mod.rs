//! Training: optimiser, schedules, metrics, checkpoints, the run folder.

mod metrics;
mod network;
mod optim;

pub use metrics::{HeadStats, PretrainRecord, QualityRecord, StepRecord};
pub use network::Network;
pub use optim::{OptimConfig, Schedule};
