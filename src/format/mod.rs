//! Checkpoints: safetensors, SD3 name maps, diffusers export.
