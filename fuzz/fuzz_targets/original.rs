//! An original Stable Diffusion 3 file: the architecture is read off its tensors.
#![no_main]

use ladd_fast::format::original;
use ladd_fast_fuzz::{files, folder, judge};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    files(&["original.safetensors"], input);
    judge(original::import(folder().join("original.safetensors")));
});
