//! `ladd-fast synthesize`: training latents, drawn by the teacher at constant guidance. An interrupted call goes on where
//! it stopped when it is repeated.

use std::path::PathBuf;

use clap::Args;

use super::common::device::on_device;
use super::common::output::many;
use super::common::{Device, Encoders, Globals, Outcome, Stop, flag, latents, number, output, path};
use super::tasks;
use crate::data::{Manifest, Share};
use crate::edit::Task;

/// Draw training latents with a teacher.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ladd-fast synthesize --out latents
  ladd-fast synthesize --teacher teacher.safetensors --prompts prompts.txt --count 20000 --guidance 2.5 --out latents
  ladd-fast synthesize --preset sd3-medium --teacher SD3 --prompts captions.parquet --prompt-key caption --aspects 1:1@2,3:2,2:3 --out latents
  ladd-fast synthesize --preset sd3-medium --teacher SD3 --prompts prompts.jsonl --shard 2/4 --device cuda:1 --out latents
  ladd-fast distill --teacher teacher.safetensors --data latents

A call that was interrupted goes on when it is repeated. With --shard 1/N ... N/N, N processes (on one machine or on several that share the
folder) draw a data set together.")]
pub struct Arguments {
    /// Folder for the shards.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// The teacher: a checkpoint, or `builtin`.
    #[arg(long, value_name = "FILE")]
    teacher: Option<PathBuf>,
    /// File of prompts: .txt with one a line, .jsonl, .parquet.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Key or column of the prompts [default: prompt, text or caption].
    #[arg(long, value_name = "NAME")]
    prompt_key: Option<String>,
    /// How many latents.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Euler steps per latent.
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Guidance scale.
    #[arg(long, value_name = "X")]
    guidance: Option<f64>,
    /// Shift of the sampler's times [default: the teacher's].
    #[arg(long, value_name = "X")]
    shift: Option<f64>,
    /// Sizes in pixels with weights, such as 1024x1024@2,832x1216.
    #[arg(long, value_name = "HxW,...", value_delimiter = ',', conflicts_with = "aspects")]
    sizes: Option<Vec<String>>,
    /// Aspects WIDTH:HEIGHT with weights, such as 1:1@2,3:2,2:3, at the usual area.
    #[arg(long, value_name = "W:H,...", value_delimiter = ',')]
    aspects: Option<Vec<String>>,
    /// Draw the share of one of several processes, such as 2/4 for the second of four.
    #[arg(long, value_name = "I/N")]
    shard: Option<String>,
    /// Seed.
    #[arg(long, value_name = "N", value_parser = super::common::seed)]
    seed: Option<u64>,
}

pub(super) fn run(globals: &Globals, arguments: &Arguments) -> Outcome {
    let config = globals.load(vec![
        path("teacher.checkpoint", "--teacher", arguments.teacher.as_ref()),
        path("synthesize.prompts", "--prompts", arguments.prompts.as_ref()),
        flag("synthesize.prompt_key", "--prompt-key", arguments.prompt_key.as_deref()),
        number("synthesize.count", "--count", arguments.count),
        number("synthesize.steps", "--steps", arguments.steps),
        flag("synthesize.guidance", "--guidance", arguments.guidance),
        flag("synthesize.shift", "--shift", arguments.shift),
        // Each in the place of the other, which a preset may hold.
        flag("synthesize.aspects", "--sizes", arguments.sizes.as_ref().map(|_| Vec::<String>::new())),
        flag("synthesize.sizes", "--aspects", arguments.aspects.as_ref().map(|_| Vec::<String>::new())),
        flag("synthesize.sizes", "--sizes", arguments.sizes.clone()),
        flag("synthesize.aspects", "--aspects", arguments.aspects.clone()),
        number("seed", "--seed", arguments.seed),
    ])?;
    let share = arguments.shard.as_deref().map_or(Ok(Share::WHOLE), Share::parse)?;
    let teacher = tasks::load(&config.teacher.checkpoint, Task::Generate)?;
    let device = Device::open(&config.device, config.deterministic)?;
    let encoders = Encoders::new(&config.encoders, teacher.pipeline(), &teacher.name);
    let made = on_device!(device, |b| latents::synthesize(b, &teacher, &encoders, &config.synthesize, config.seed, &arguments.out, share));
    if matches!(made, Err(Stop::Interrupted)) {
        output::note("interrupted; the same command goes on where it stopped");
    }
    made?;
    let manifest = Manifest::read(&arguments.out)?;
    let (count, total) = (manifest.count(), config.synthesize.count);
    let all = if count == total { String::new() } else { format!(" of {total}, other processes draw the rest") };
    output::result(&format!("{}{all} in {}", many(count, "latent"), arguments.out.display()));
    Ok(())
}
