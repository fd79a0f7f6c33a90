//! Integration tests: one binary, generic over the backend, so that every device runs the same cases.

mod abi;
#[cfg(feature = "cuda")]
mod built;
mod catalogue;
mod cli;
mod determinism;
mod devices;
mod golden;
mod lab;
mod ladd;
mod model;
mod operations;
mod rig;
