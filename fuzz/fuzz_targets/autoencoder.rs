//! A diffusers autoencoder: config.json and weights.
#![no_main]

use ladd_fast::vae::Autoencoder;
use ladd_fast_fuzz::{files, folder, judge};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    files(&["vae/config.json", "vae/diffusion_pytorch_model.safetensors"], input);
    judge(Autoencoder::open(&folder().join("vae")));
});
