//! A folder of latents: its manifest and one shard.
#![no_main]

use ladd_fast::data::LatentDataset;
use ladd_fast_fuzz::{files, folder, judge};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    files(&["latents/manifest.json", "latents/shard-00000.safetensors"], input);
    let Some(data) = judge(LatentDataset::open_unverified(folder().join("latents"))) else { return };
    for index in 0..data.len().min(4) {
        let Some(shape) = judge(data.shape(index)) else { continue };
        judge(data.sample(index, &mut vec![0.0; shape.iter().product()]));
    }
});
