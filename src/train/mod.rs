//! Training: optimiser, schedules, metrics, checkpoints, the run folder.

mod metrics;
mod optim;

pub use metrics::{HeadStats, PretrainRecord, QualityRecord, StepRecord};
pub use optim::{OptimConfig, Schedule};
