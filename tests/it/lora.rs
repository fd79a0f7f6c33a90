//! Adapters (LoRA): files against diffusers and PEFT, training, and the commands.

mod commands;
mod files;
mod training;

use std::path::PathBuf;

use ladd_fast::format::{SafetensorsFile, Tensors, diffusers};
use ladd_fast::lora::{Lora, LoraFile};
use ladd_fast::model::{ModelConfig, Shape};

use crate::rig::HostInputs;

/// A file or folder that `reference/tiny_loras.py` wrote.
pub fn golden(name: &str) -> PathBuf {
    crate::root().join("tests/golden/lora").join(name)
}

/// What diffusers and PEFT compute.
pub fn expected() -> SafetensorsFile {
    SafetensorsFile::open(golden("expected.safetensors")).unwrap()
}

/// The network that the adapters are for.
pub fn network() -> (ModelConfig, Tensors) {
    diffusers::import(crate::root().join("tests/golden/pipelines/sd3")).unwrap()
}

/// Adapters for it.
pub fn read(name: &str) -> Lora {
    LoraFile::open(golden(name)).unwrap().read(&network().0).unwrap()
}

/// What the network was given.
pub fn inputs() -> HostInputs {
    let file = expected();
    let get = |name: &str| file.f32(&format!("in.{name}")).unwrap();
    HostInputs {
        shape: Shape { batch: 2, height: 8, width: 12, text: 7 },
        latent: get("hidden_states"),
        conditioning: None,
        t: get("timestep").iter().map(|t| t / 1000.0).collect(),
        context: get("encoder_hidden_states"),
        pooled: get("pooled_projections"),
    }
}
