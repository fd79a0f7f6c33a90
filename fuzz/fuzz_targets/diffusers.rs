//! A diffusers folder: config.json, the index, two shards or one file.
#![no_main]

use ladd_fast::format::diffusers;
use ladd_fast_fuzz::{files, folder, judge};
use libfuzzer_sys::fuzz_target;

const FILES: [&str; 4] = [
    "diffusers/config.json",
    "diffusers/diffusion_pytorch_model.safetensors.index.json",
    "diffusers/diffusion_pytorch_model-00001-of-00002.safetensors",
    "diffusers/diffusion_pytorch_model-00002-of-00002.safetensors",
];

fuzz_target!(|input: &[u8]| {
    files(&FILES, input);
    judge(diffusers::import(folder().join("diffusers")));
});
