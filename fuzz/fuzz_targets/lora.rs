//! A file of adapters and PEFT's settings beside it, read for a tiny network.
#![no_main]

use ladd_fast::lora::LoraFile;
use ladd_fast::model::ModelConfig;
use ladd_fast_fuzz::{files, folder, judge};
use libfuzzer_sys::fuzz_target;

/// The transformer of `tests/golden/pipelines/sd3`.
fn tiny() -> ModelConfig {
    ModelConfig {
        depth: 2,
        heads: 2,
        head_dim: 16,
        in_channels: 4,
        patch: 2,
        context_dim: 48,
        pooled_dim: 40,
        pos_embed_max: 12,
        qk_norm: true,
        dual_attention_blocks: 1,
        conditioning_channels: 0,
    }
}

fuzz_target!(|input: &[u8]| {
    files(&["lora/adapter_config.json", "lora/adapter_model.safetensors"], input);
    let Some(file) = judge(LoraFile::open(folder().join("lora"))) else { return };
    (file.type_name(), file.layout(), file.role(), file.ignored().len());
    judge(file.read(&tiny()));
});
