//! `ladd-fast lora`: adapters (LoRA) and networks: look at them, add them, take them away, find them, rewrite them.

mod extract;
mod inspect;
mod merge;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};

use super::common::{Globals, Loaded, Outcome, encoders, must_be_new, network, output};
use crate::Result;
use crate::config::Config;
use crate::format::{Dtype, Role, save};
use crate::lora::Layout;

/// Add adapters (LoRA) to a network, take them away, extract, convert or describe them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ladd-fast lora inspect dpo.safetensors --network SD3
  ladd-fast lora merge runs/sd3 dpo.safetensors --scale 0.7 --out student-dpo
  ladd-fast lora merge SD3 runs/sd3 style.safetensors --scale 1 --scale 0.5 --out mixed.safetensors
  ladd-fast lora unmerge student-dpo dpo.safetensors --scale 0.7 --out student --against runs/sd3
  ladd-fast lora extract SD3 runs/sd3 --rank 64 --out student-lora
  ladd-fast lora convert kohya.safetensors --network SD3 --layout peft --out adapter

Read are diffusers' pytorch_lora_weights.safetensors, PEFT's adapter_model.safetensors with adapter_config.json, and sd-scripts'
files. A network is a run, a checkpoint, a diffusers folder or an original single file.")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Inspect(inspect::Arguments),
    Merge(merge::Merge),
    Unmerge(merge::Unmerge),
    Extract(extract::Extract),
    Convert(extract::Convert),
}

/// Type of the weights that are written.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Written {
    #[default]
    F32,
    F16,
    Bf16,
}

impl From<Written> for Dtype {
    fn from(written: Written) -> Self {
        match written {
            Written::F32 => Self::F32,
            Written::F16 => Self::F16,
            Written::Bf16 => Self::BF16,
        }
    }
}

/// Where a network is written.
#[derive(Debug, Args)]
struct ToNetwork {
    /// A file to write (.safetensors), or a folder for this program and for diffusers; new, or an empty folder.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Type of the weights that are written.
    #[arg(long, value_enum, default_value_t)]
    dtype: Written,
}

/// Where adapters are written.
#[derive(Debug, Args)]
struct ToAdapters {
    /// A file to write (.safetensors), or a folder; new, or an empty folder.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Whose files are written.
    #[arg(long, value_enum, default_value_t)]
    layout: Layout,
    /// Type of the weights that are written.
    #[arg(long, value_enum, default_value_t)]
    dtype: Written,
}

pub(super) fn run(globals: &Globals, arguments: &Arguments) -> Outcome {
    let config = globals.load(Vec::new())?;
    let out = match &arguments.command {
        Command::Inspect(_) => None,
        Command::Merge(arguments) => Some(&arguments.target.out),
        Command::Unmerge(arguments) => Some(&arguments.target.out),
        Command::Extract(arguments) => Some(&arguments.target.out),
        Command::Convert(arguments) => Some(&arguments.target.out),
    };
    out.map_or(Ok(()), |out| must_be_new(out))?;
    match &arguments.command {
        Command::Inspect(arguments) => inspect::run(arguments),
        Command::Merge(arguments) => merge::merge(&config, arguments),
        Command::Unmerge(arguments) => merge::unmerge(&config, arguments),
        Command::Extract(arguments) => extract::extract(arguments),
        Command::Convert(arguments) => extract::convert(arguments),
    }
}

fn load(path: &Path) -> Result<Loaded> {
    network::load(&path.to_string_lossy())
}

/// Writes a network: to a file of this project where `out` ends in `.safetensors`, else to a folder, with diffusers' transformer.
fn write(config: &Config, mut loaded: Loaded, ToNetwork { out, dtype }: &ToNetwork) -> Result<()> {
    let dtype = (*dtype).into();
    // What is written elsewhere must still find its encoders.
    let origin = super::common::Encoders::new(&config.encoders, loaded.pipeline(), &loaded.name).origin();
    if let Some(origin) = origin {
        loaded.pipeline.notes.insert(encoders::NOTE.to_owned(), origin);
    }
    if out.extension().is_some_and(|ending| ending == "safetensors") {
        save(&loaded.pipeline, &loaded.tensors.views(), out, dtype)?;
        output::result(&format!("{}: for ladd-fast, and programs that read original Stable Diffusion 3 names", out.display()));
        return Ok(());
    }
    let name = match loaded.pipeline.role {
        Role::Student => "student",
        Role::Teacher => "teacher",
    };
    let file = loaded.save(out, name, dtype)?;
    output::result(&format!("{} and, for diffusers, {}", file.display(), out.join("transformer").display()));
    Ok(())
}

/// Writes adapters.
fn write_lora(lora: &crate::lora::Lora, ToAdapters { out, layout, dtype }: &ToAdapters) -> Result<()> {
    let file = lora.save(out, *layout, (*dtype).into())?;
    let values = lora.parameters() as f64 / 1e6;
    output::result(&format!("{}: {} adapters, {values:.2} M values", file.display(), lora.adapters.len()));
    Ok(())
}
