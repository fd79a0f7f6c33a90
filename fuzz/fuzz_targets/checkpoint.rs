//! A checkpoint of the project: the settings in its metadata, its tensors' names and shapes.
#![no_main]

use ladd_fast::format::Checkpoint;
use ladd_fast_fuzz::{files, folder, judge};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    files(&["network.safetensors"], input);
    judge(Checkpoint::load(folder().join("network.safetensors")));
});
