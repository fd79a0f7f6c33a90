//! Integration tests: one binary, generic over the backend, so that every device runs the same cases.

mod abi;
mod aspects;
mod branches;
#[cfg(feature = "cuda")]
mod built;
mod catalogue;
mod checkpoints;
mod cli;
mod cuda;
mod determinism;
mod devices;
mod emulator;
mod golden;
mod lab;
mod ladd;
mod lora;
mod map;
mod model;
mod operations;
mod performance_goals;
#[cfg(feature = "text")]
mod pipelines;
mod prepare;
mod rig;
mod step_benchmark;
mod study;
mod tasks;

/// The project's folder. `LADD_FAST_ROOT` names another one, for a test binary that was carried to another machine.
fn root() -> std::path::PathBuf {
    std::env::var_os("LADD_FAST_ROOT").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), Into::into)
}
