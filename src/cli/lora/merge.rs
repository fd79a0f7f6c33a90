//! `lora merge` and `lora unmerge`.

use std::path::PathBuf;

use clap::Args;

use super::ToNetwork;
use crate::cli::common::{Outcome, lora, output};
use crate::config::Config;
use crate::format::Role;
use crate::lora::{Distance, distance, merge as add_to};

/// Add adapters to a network's weights.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ladd-fast lora merge runs/sd3 dpo.safetensors --scale 0.7 --out student-dpo
  ladd-fast lora merge SD3 style.safetensors detail.safetensors --scale 0.8 --scale 0.3 --out mixed.safetensors")]
pub struct Merge {
    /// The network: a run, a checkpoint, a diffusers folder, or `builtin`.
    network: PathBuf,
    /// The adapters, one or more.
    #[arg(required = true, value_name = "LORA")]
    loras: Vec<PathBuf>,
    /// How strongly; given once, or once for each LORA.
    #[arg(long, value_name = "X", default_value = "1", allow_negative_numbers = true)]
    scale: Vec<f32>,
    #[command(flatten)]
    pub target: ToNetwork,
}

/// Take adapters away from a network that they were merged into.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ladd-fast lora unmerge student-dpo dpo.safetensors --scale 0.7 --out student
  ladd-fast lora unmerge student-dpo dpo.safetensors --scale 0.7 --out student --against runs/sd3

The weights come back up to rounding; it is measured by merging once more, and with --against on the original itself.")]
pub struct Unmerge {
    /// The network.
    network: PathBuf,
    /// The adapters, one or more.
    #[arg(required = true, value_name = "LORA")]
    loras: Vec<PathBuf>,
    /// The scale with which they were merged; given once, or once for each LORA.
    #[arg(long, value_name = "X", default_value = "1", allow_negative_numbers = true)]
    scale: Vec<f32>,
    /// The network before the adapters were merged, to compare with.
    #[arg(long, value_name = "NETWORK")]
    against: Option<PathBuf>,
    #[command(flatten)]
    pub target: ToNetwork,
}

pub fn merge(config: &Config, arguments: &Merge) -> Outcome {
    let mut loaded = super::load(&arguments.network)?;
    for (path, strength) in lora::strengths(&arguments.loras, &arguments.scale, "--scale")? {
        lora::add(&mut loaded, path, strength)?;
    }
    Ok(super::write(config, loaded, &arguments.target)?)
}

pub fn unmerge(config: &Config, arguments: &Unmerge) -> Outcome {
    let mut loaded = super::load(&arguments.network)?;
    let model = loaded.pipeline().model.clone();
    let given = loaded.tensors.load()?;
    let mut loras = Vec::new();
    for (path, strength) in lora::strengths(&arguments.loras, &arguments.scale, "--scale")? {
        loras.push((lora::read(&loaded, path)?, strength));
    }
    for (adapters, strength) in loras.iter().rev() {
        lora::merge_into(&mut loaded, adapters, -strength)?;
    }
    if loras.iter().any(|(lora, _)| lora.role == Some(Role::Student)) {
        loaded.pipeline.role = Role::Teacher;
    }
    loaded.pipeline.notes.remove("lora");

    let mut again = loaded.tensors.load()?;
    for (lora, strength) in &loras {
        add_to(&model, &mut again, lora, *strength)?;
    }
    output::result(&described("merged once more, it is off", distance(&given, &again)?));
    drop((given, again));
    if let Some(against) = &arguments.against {
        let original = super::load(against)?;
        output::result(&described("it is off the original", distance(&original.tensors.load()?, &loaded.tensors.load()?)?));
    }
    Ok(super::write(config, loaded, &arguments.target)?)
}

fn described(what: &str, distance: Distance) -> String {
    let Distance { values, differ, largest, relative } = distance;
    format!("{what} by {largest:.1e} at most, by {relative:.1e} of its norm ({differ} of {values} values differ)")
}
