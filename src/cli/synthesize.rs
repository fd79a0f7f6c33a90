//! `ladd-fast synthesize`: training latents, drawn by the teacher at constant guidance. An interrupted call goes on where
//! it stopped when it is repeated.

use std::path::PathBuf;

use clap::Args;

use super::common::device::on_device;
use super::common::{Device, Encoders, Globals, Outcome, Stop, flag, latents, network, number, output, path};

/// Draw training latents with a teacher.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ladd-fast synthesize --out latents
  ladd-fast synthesize --teacher teacher.safetensors --prompts prompts.txt --count 20000 --guidance 2.5 --out latents
  ladd-fast distill --teacher teacher.safetensors --data latents

A call that was interrupted goes on when it is repeated.")]
pub struct Arguments {
    /// Folder for the shards.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// The teacher: a checkpoint, or `builtin`.
    #[arg(long, value_name = "FILE")]
    teacher: Option<PathBuf>,
    /// Text file with one prompt a line.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// How many latents.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Euler steps per latent.
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Guidance scale.
    #[arg(long, value_name = "X")]
    guidance: Option<f64>,
    /// Seed.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

pub(super) fn run(globals: &Globals, arguments: &Arguments) -> Outcome {
    let config = globals.load(vec![
        path("teacher.checkpoint", "--teacher", arguments.teacher.as_ref()),
        path("synthesize.prompts", "--prompts", arguments.prompts.as_ref()),
        number("synthesize.count", "--count", arguments.count),
        number("synthesize.steps", "--steps", arguments.steps),
        flag("synthesize.guidance", "--guidance", arguments.guidance),
        number("seed", "--seed", arguments.seed),
    ])?;
    let teacher = network::load(&config.teacher.checkpoint)?;
    let device = Device::open(&config.device, config.deterministic)?;
    let encoders = Encoders::new(&config.encoders, teacher.pipeline(), &teacher.name);
    let made = on_device!(device, |b| latents::synthesize(b, &teacher, &encoders, &config.synthesize, config.seed, &arguments.out));
    if matches!(made, Err(Stop::Interrupted)) {
        output::note("interrupted; the same command goes on where it stopped");
    }
    made?;
    output::result(&format!("{} latents in {}", config.synthesize.count, arguments.out.display()));
    Ok(())
}
