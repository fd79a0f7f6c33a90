//! `ladd-fast info`: what a file or folder is, or what this program and this machine are.

use std::path::{Path, PathBuf};

use clap::Args;

use super::common;
use super::common::output::many;
use super::common::{Device, Globals, Loaded, Outcome, network, output};
use super::prepare::SKIPPED;
use crate::config::PRESETS;
use crate::data::{Manifest, Origin, Preparation, Synthesis};
use crate::edit::Task;
use crate::model::ModelConfig;
use crate::study::StudyResults;
use crate::train::{Purpose, Record, RunFolder};
use crate::{Error, Result};

/// Folder of the teacher's own run, within that of a distillation for a task.
const TEACHER_RUN: &str = "teacher-run";

/// Describe a network, a folder of latents, a run, a study, or this machine.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ladd-fast info                          version, device, presets
  ladd-fast info builtin                  the demo's teacher
  ladd-fast info runs/NAME                a run: how far it is, how to go on, what it reached
  ladd-fast info latents --verify         a folder of training latents, every checksum compared
  ladd-fast info sd3.5_medium.safetensors")]
pub struct Arguments {
    /// A network, a folder of latents, a run, a study; without it: the program and the machine.
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
        Some(path) if path != Path::new("builtin") && !path.exists() => {
            let about = "there is nothing of that name: give a network, a folder of latents, a run, or `builtin`";
            return Err(Error::file(path, about).into());
        }
        Some(path) if Manifest::is_there(path) => latents(path, arguments.verify)?,
        Some(path) if arguments.verify => {
            return Err(Error::file(path, "is no folder of latents: only those can be verified").into());
        }
        Some(path) if path.join("config.toml").is_file() && path.join("metrics.jsonl").is_file() => run_folder(path)?,
        Some(path) if is_study(path) => study(path),
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
        entry("task", task(&pipeline.model)),
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

/// What a network is for.
fn task(model: &ModelConfig) -> &'static str {
    match Task::of(model) {
        Task::Generate => "draws from prompts alone, with `ladd-fast sample`",
        Task::Edit => "edits pictures, with `ladd-fast edit`",
        Task::Inpaint => "fills holes in pictures, with `ladd-fast inpaint`",
    }
}

fn model(model: &ModelConfig) -> String {
    let some = |count: usize, text: String| if count > 0 { text } else { String::new() };
    let dual = some(model.dual_attention_blocks, format!(", dual attention in {}", many(model.dual_attention_blocks, "block")));
    let conditioning = some(model.conditioning_channels, format!(" and {} that condition", model.conditioning_channels));
    format!(
        "{}, {} of {}, hidden {}, patch {}, {}{conditioning}, positional grid {G}x{G}{}{dual}",
        many(model.depth, "block"),
        many(model.heads, "head"),
        model.head_dim,
        model.hidden(),
        model.patch,
        many(model.in_channels, "channel"),
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
    let total = settings.total.saturating_sub(manifest.skipped);
    let mut lines = vec![
        entry("latents", path.display()),
        entry(
            "complete",
            format!("{count} of {total} in {}, {:.1} MB{verified}", many(manifest.shards.len(), "shard"), bytes as f64 / 1e6),
        ),
        entry("shapes", shapes.join(", ") + if settings.pairs() { "; each an edit and its source" } else { "" }),
        entry("seed", settings.seed),
        entry("prompts", format!("{}, such as {:?}", settings.prompts.len(), settings.prompts.first().map_or("", String::as_str))),
    ];
    lines.extend(origin(&settings.origin));
    // The list also has what was passed over before any picture was read; held-out pictures have none of their own.
    let listed = std::fs::read_to_string(path.join(SKIPPED)).map(|list| list.lines().count());
    let skipped = listed.unwrap_or(manifest.skipped);
    if skipped > 0 {
        lines.push(entry("skipped", format!("{} that could not be used", many(skipped, "picture"))));
    }
    lines.push(entry("made by", &manifest.created_by));
    Ok(lines)
}

/// What latents were made from.
fn origin(origin: &Origin) -> Vec<String> {
    match origin {
        Origin::Synthesized(Synthesis { teacher, guidance, sampler, sampler_steps }) => {
            vec![entry("sampler", format!("{sampler}, {}, guidance {guidance}", many(*sampler_steps, "step"))), entry("teacher", teacher)]
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
    let state = if is_finished(path) { "finished".to_owned() } else { format!("unfinished; {}", how_to_go_on(path, &run)?) };
    lines.push(entry("state", state));
    lines.extend(tables(path));
    Ok(lines)
}

/// The run of a teacher that a distillation makes for its task, with the folder of the latter.
fn is_part_of(path: &Path) -> Option<&Path> {
    let whole = path.parent().filter(|whole| whole.join("config.toml").is_file())?;
    path.ends_with(TEACHER_RUN).then_some(whole)
}

/// Whether a run has come to its end: its results are there; the run of a task's teacher ends with its network.
fn is_finished(path: &Path) -> bool {
    path.join("results.json").is_file() || is_part_of(path).is_some() && path.join("teacher/teacher.safetensors").is_file()
}

/// The command that goes on with a run.
fn how_to_go_on(path: &Path, run: &RunFolder) -> Result<String> {
    let whole = is_part_of(path);
    let purpose = if whole.is_some() { None } else { run.purpose()? };
    let folder = whole.unwrap_or(path);
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    Ok(format!("unless it is running now, go on with: {}", purpose.unwrap_or(Purpose::Distill).resumption(folder)))
}

/// The tables of a run or a study, behind an empty line.
fn tables(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path.join("results.md"));
    text.map_or(Vec::new(), |text| std::iter::once("").chain(text.lines()).map(str::to_owned).collect())
}

/// The results of a study so far, if the folder is one's.
fn study_results(path: &Path) -> Option<StudyResults> {
    serde_json::from_slice(&std::fs::read(path.join("results.json")).ok()?).ok()
}

/// Whether a folder is that of a study: its results are there, or, before the first run is done, its networks' runs.
fn is_study(path: &Path) -> bool {
    let networks = || std::fs::read_dir(path.join("networks")).into_iter().flatten().flatten();
    study_results(path).is_some() || networks().any(|network| network.path().join("config.toml").is_file())
}

fn study(path: &Path) -> Vec<String> {
    let mut lines = vec![entry("study", path.display())];
    let results = study_results(path);
    if let Some(results) = &results {
        lines.push(entry("title", &results.title));
        lines.push(entry("runs", format!("{} of {}", results.runs.len(), results.planned)));
    }
    let finished = results.is_some_and(|results| results.runs.len() >= results.planned);
    lines.push(entry("state", if finished { "finished" } else { "unfinished; the `ladd-fast study` command that began it goes on" }));
    lines.push(entry("parts", "runs/ and networks/ have a run's folder each, which `ladd-fast info` describes"));
    lines.extend(tables(path));
    lines
}

/// A line of a description.
pub(super) fn entry(key: &str, value: impl std::fmt::Display) -> String {
    format!("{key:<12} {value}").trim_end().to_owned()
}
