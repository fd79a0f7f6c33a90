//! `ladd-fast info`: what a file or folder is, or what this program and this machine are.

use std::path::{Path, PathBuf};

use clap::Args;

use super::common;
use super::common::{Device, Globals, Loaded, Outcome, network, output};
use crate::config::PRESETS;
use crate::data::{Manifest, Origin, Preparation, Synthesis};
use crate::model::ModelConfig;
use crate::train::{Record, RunFolder};
use crate::{Error, Result};

/// Describe a network, a folder of latents, a run, or this machine.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ladd-fast info                          version, device, presets
  ladd-fast info builtin                  the demo's teacher
  ladd-fast info runs/NAME                a run: how far it is, what it reached
  ladd-fast info latents --verify         a folder of training latents, every checksum compared
  ladd-fast info sd3.5_medium.safetensors")]
pub struct Arguments {
    /// A network, a folder of latents, a run; without it: the program and the machine.
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    /// Compare the checksum of every shard of a folder of latents.
    #[arg(long, requires = "path")]
    verify: bool,
}

pub(super) fn run(globals: &Globals, arguments: &Arguments) -> Outcome {
    let config = globals.load(Vec::new())?;
    let lines = match arguments.path.as_deref() {
        None => program(&config.device)?,
        Some(path) if Manifest::is_there(path) => latents(path, arguments.verify)?,
        Some(path) if arguments.verify => {
            return Err(Error::file(path, "is no folder of latents: only those can be verified").into());
        }
        Some(path) if path.join("config.toml").is_file() && path.join("metrics.jsonl").is_file() => run_folder(path)?,
        Some(path) if path != Path::new("builtin") && !path.exists() => {
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(Error::io("read", path, missing).into());
        }
        Some(path) => describe(&network::load(&path.to_string_lossy())?)?,
    };
    lines.iter().for_each(|line| output::result(line));
    Ok(())
}

fn program(device: &str) -> Result<Vec<String>> {
    let mut lines = vec![
        entry("ladd-fast", env!("CARGO_PKG_VERSION")),
        entry("device", format!("{} (chosen by `{device}`)", Device::open(device, true)?.name())),
        entry("threads", rayon::current_num_threads()),
    ];
    lines.extend(gpus());
    lines.push(entry("presets", ""));
    lines.extend(PRESETS.iter().map(|p| format!("  {:<14} {}", p.name, p.about)));
    Ok(lines)
}

/// The GPUs of this machine, and what the kernels were built for.
#[cfg(feature = "cuda")]
fn gpus() -> Vec<String> {
    use crate::device::cuda::{built::KERNELS, real};
    let version = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
    let mut lines = match real::count() {
        Ok(count) => vec![entry("gpus", format!("{count}, driver for CUDA {}", real::driver_version().map_or("?".into(), version)))],
        Err(cause) => vec![entry("gpus", format!("none: {cause}"))],
    };
    for ordinal in 0..real::count().unwrap_or(0) {
        lines.push(match real::properties(ordinal) {
            Ok(gpu) => format!(
                "  cuda:{ordinal} {}, compute capability {}.{}, {} multiprocessors, {:.0} GiB",
                gpu.name,
                gpu.capability.0,
                gpu.capability.1,
                gpu.multiprocessors,
                gpu.memory as f64 / f64::from(1 << 30)
            ),
            Err(cause) => format!("  cuda:{ordinal} {cause}"),
        });
    }
    let mut architectures: Vec<&str> = KERNELS.iter().map(|kernel| kernel.arch).collect();
    architectures.sort_unstable();
    architectures.dedup();
    let names: std::collections::BTreeSet<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
    lines.push(entry("kernels", format!("{}, built for {} and as PTX for newer devices", names.len(), architectures.join(" and "))));
    lines
}

/// The GPUs of this machine, and what the kernels were built for.
#[cfg(not(feature = "cuda"))]
fn gpus() -> Vec<String> {
    vec![entry("kernels", "none: built without the feature `cuda`")]
}

fn describe(loaded: &Loaded) -> Result<Vec<String>> {
    let pipeline = loaded.pipeline();
    let mut lines = vec![
        entry("network", &loaded.name),
        entry("role", format!("{:?}", pipeline.role).to_lowercase()),
        entry("parameters", format!("{:.2} M", loaded.parameters() as f64 / 1e6)),
        entry("model", model(&pipeline.model)),
        entry("latents", summary(&pipeline.codec)),
        entry("text", summary(&pipeline.text)),
        entry("shift", pipeline.shift),
        entry("fingerprint", loaded.fingerprint()?),
    ];
    lines.extend(pipeline.notes.iter().map(|(key, value)| entry(key, value)));
    Ok(lines)
}

fn model(model: &ModelConfig) -> String {
    let dual =
        if model.dual_attention_blocks > 0 { format!(", dual attention in {} blocks", model.dual_attention_blocks) } else { String::new() };
    format!(
        "{} blocks, {} heads of {}, hidden {}, patch {}, {} channels, positional grid {G}x{G}{}{dual}",
        model.depth,
        model.heads,
        model.head_dim,
        model.hidden(),
        model.patch,
        model.in_channels,
        if model.qk_norm { ", QK-RMSNorm" } else { "" },
        G = model.pos_embed_max
    )
}

/// A setting as JSON without its long lists of numbers.
fn summary(setting: &impl serde::Serialize) -> String {
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(setting) else { return String::new() };
    let short = fields.iter().filter(|(key, value)| *key != "kind" && !value.is_array()).map(|(key, value)| format!("{key} {value}"));
    let kind = fields.get("kind").and_then(|k| k.as_str()).unwrap_or_default().to_owned();
    std::iter::once(kind).chain(short).collect::<Vec<_>>().join(", ")
}

fn latents(path: &Path, verify: bool) -> Result<Vec<String>> {
    let manifest = if verify { common::latents::verify(path)? } else { Manifest::read(path)? };
    let settings = &manifest.settings;
    let (count, bytes) = (manifest.count(), manifest.shards.iter().map(|s| s.bytes).sum::<u64>());
    let mut shapes = std::collections::BTreeMap::new();
    manifest.shards.iter().for_each(|shard| *shapes.entry(shard.shape).or_insert(0) += shard.count);
    let shapes: Vec<_> = shapes.iter().map(|([c, h, w], count)| format!("{count} of {c}x{h}x{w}")).collect();
    let verified = if verify { ", all checksums right" } else { "" };
    let mut lines = vec![
        entry("latents", path.display()),
        entry(
            "complete",
            format!("{count} of {} in {} shards, {:.1} MB{verified}", settings.total, manifest.shards.len(), bytes as f64 / 1e6),
        ),
        entry("shapes", shapes.join(", ") + if settings.pairs() { "; each an edit and its source" } else { "" }),
        entry("seed", settings.seed),
        entry("prompts", format!("{}, such as {:?}", settings.prompts.len(), settings.prompts.first().map_or("", String::as_str))),
    ];
    lines.extend(origin(&settings.origin));
    if manifest.skipped > 0 {
        lines.push(entry("skipped", format!("{} pictures that could not be used", manifest.skipped)));
    }
    lines.push(entry("made by", &manifest.created_by));
    Ok(lines)
}

/// What latents were made from.
fn origin(origin: &Origin) -> Vec<String> {
    match origin {
        Origin::Synthesized(Synthesis { teacher, guidance, sampler, sampler_steps }) => {
            vec![entry("sampler", format!("{sampler}, {sampler_steps} steps, guidance {guidance}")), entry("teacher", teacher)]
        }
        Origin::Prepared(Preparation { area, multiple, max_ratio, crop, .. }) => {
            let sizes = format!("up to {area} pixels, sides multiples of {multiple}, ratio up to {max_ratio}, crop {crop}");
            vec![entry("pictures", sizes)]
        }
    }
}

fn run_folder(path: &Path) -> Result<Vec<String>> {
    let run = RunFolder::look_at(path)?;
    let (config, records) = (run.config()?, run.records()?);
    let step = records.iter().filter(|r| matches!(r, Record::Step(_) | Record::Pretrain(_))).map(Record::step).max().unwrap_or(0);
    let pretrain = records.iter().any(|r| matches!(r, Record::Pretrain(_)));
    let total = if pretrain { config.pretrain.steps } else { config.distill.steps };
    let mut lines = vec![
        entry("run", path.display()),
        entry("what", if pretrain { "pretraining" } else { "distillation" }),
        entry("preset", &config.preset),
        entry("seed", config.seed),
        entry("steps", format!("{step} of {total}")),
    ];
    if let Some((step, folder)) = run.latest_checkpoint()? {
        lines.push(entry("checkpoint", format!("step {step}, {}", folder.display())));
    }
    let table = run.join("results.md");
    if let Ok(text) = std::fs::read_to_string(&table) {
        lines.push(String::new());
        lines.extend(text.lines().map(str::to_owned));
    }
    Ok(lines)
}

/// A line of a description.
pub(super) fn entry(key: &str, value: impl std::fmt::Display) -> String {
    format!("{key:<12} {value}").trim_end().to_owned()
}
