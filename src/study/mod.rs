//! Studies: the same distillation with one thing varied at a time, its results side by side, and the plots of the paper (arXiv
//! 2403.12015: quality against training for students, teachers and data of several sizes, against the noise the judge sees, and
//! of several methods against sampling steps). `ladd-fast study` runs them.

mod plan;
mod plots;
mod results;

pub(crate) use plan::assignments;
pub use plan::{Draw, NetworkPlan, RunPlan, Study, Variation};
pub use plots::pictures;
pub use results::{StudyResults, StudyRun};
