//! `ladd-fast study`: many distillations that differ in one thing at a time, and what comes of it side by side.
//!
//! Networks, latents and runs lie in folders named after what they are and a digest of their settings: whatever is there is
//! not made again, whatever was interrupted goes on, and two variations share a run whose settings are the same.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use clap::Args;
use sha2::{Digest, Sha256};
use toml::{Table, Value};

use super::common::device::on_device;
use super::common::resume;
use super::common::{Device, Encoders, Ending, Globals, Outcome, Progress, Stop, latents, network, output};
use super::distill::{self, Networks};
use super::pretrain;
use crate::config::{Config, Sources};
use crate::data::Share;
use crate::device::Backend;
use crate::format::Dtype;
use crate::model::Shape;
use crate::report::save_png;
use crate::study::{NetworkPlan, RunPlan, Study, StudyResults, StudyRun, Variation, assignments, pictures};
use crate::train::run_folder::write_whole;
use crate::train::{Purpose, Record, RunFolder};
use crate::{Error, Result};

/// What a finished run leaves in its folder for the study.
const SUMMARY: &str = "study.json";
/// What a finished network leaves in its folder.
const RESULTS: &str = "results.json";

/// Vary sizes, noise and methods one at a time, and draw the plots of the paper.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ladd-fast study --what noise,methods                  the built-in study on the demo, in part
  scripts/get-demo-data && ladd-fast study              all of it; networks of other sizes are trained on Fashion-MNIST
  ladd-fast study --what student-size --out runs/sizes --seeds 3
  ladd-fast study --study my-study.toml --config my-settings.toml
  ladd-fast study --set distill.steps=400               --set holds for every run

Called again with the same --out, it goes on: what is finished is not repeated.")]
pub struct Arguments {
    /// Which variations, by name or group [default: all].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    what: Vec<String>,
    /// A study of your own, in TOML (see docs/study.md) [default: the demo's].
    #[arg(long, value_name = "FILE")]
    study: Option<PathBuf>,
    /// Folder of the study.
    #[arg(long, value_name = "FOLDER", default_value = "runs/study")]
    out: PathBuf,
    /// Runs of each kind, with as many seeds.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100))]
    seeds: u64,
}

/// One run to be done, or done.
struct Job<'s> {
    variation: &'s Variation,
    plan: &'s RunPlan,
    config: Config,
    networks: Vec<usize>,
    folder: PathBuf,
    /// Where its latents go, if they are to be drawn.
    latents: Option<Drawn>,
}

/// Latents to be drawn, or drawn.
struct Drawn {
    folder: PathBuf,
    /// The network that draws them.
    artist: String,
    seed: u64,
}

/// A network to be trained, or trained.
struct Training {
    config: Config,
    folder: PathBuf,
}

pub(super) fn run(globals: &Globals, arguments: &Arguments) -> Outcome {
    let study = match &arguments.study {
        Some(path) => Study::load(path)?,
        None => Study::demo()?,
    };
    let what = study.select(&arguments.what)?;
    let layers = Layers::new(globals, &study)?;
    let trainings = study.networks.iter().map(|plan| layers.training(plan, &arguments.out)).collect::<Result<Vec<_>>>()?;
    let mut jobs = Vec::new();
    for variation in what {
        for plan in &variation.runs {
            for seed in 0..arguments.seeds {
                jobs.push(layers.job(&study, variation, plan, seed, &trainings, &arguments.out)?);
            }
        }
    }
    let device = Device::open(&layers.base.device, layers.base.deterministic)?;
    let done = on_device!(device, |b| all(b, &study, &jobs, &trainings, &arguments.out));
    if matches!(done, Err(Stop::Interrupted)) {
        output::note("interrupted; the same command goes on");
    }
    done
}

/// The settings that all runs share, and how a run's own are laid over them.
struct Layers<'s> {
    base: Config,
    study: &'s Study,
    /// `--config`.
    file: Vec<String>,
    /// `--set`, `--threads` and `--device`.
    arguments: Vec<String>,
}

impl<'s> Layers<'s> {
    fn new(globals: &Globals, study: &'s Study) -> Result<Self> {
        let base = globals.load(Vec::new())?;
        let file = match &globals.config {
            None => Vec::new(),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| Error::io("read the configuration", path, e))?;
                let mut table: Table = toml::from_str(&text).map_err(|e| Error::file(path, e.message().to_owned()))?;
                table.remove("preset");
                assignments(&table)
            }
        };
        let device = globals.device.as_ref().map(|name| format!("device={}", Value::String(name.clone())));
        let threads = globals.threads.map(|n| format!("threads={n}"));
        let arguments = globals.sets.iter().cloned().chain(device).chain(threads).collect();
        Ok(Self { base, study, file, arguments })
    }

    /// Preset, the study's settings, `--config`, those of `own`, `--set`; later ones win.
    fn config(&self, what: &str, own: &[&Table]) -> Result<Config> {
        let own = own.iter().flat_map(|table| assignments(table));
        let sets: Vec<String> = assignments(&self.study.set)
            .into_iter()
            .chain(self.file.iter().cloned())
            .chain(own)
            .chain(self.arguments.iter().cloned())
            .collect();
        Config::load(&Sources { preset: Some(&self.base.preset), sets: &sets, ..Sources::default() }).map_err(|e| {
            let cause = match e {
                Error::Config(cause) => cause,
                other => other.to_string(),
            };
            Error::Config(format!("{what}: {cause}"))
        })
    }

    fn training(&self, plan: &NetworkPlan, out: &Path) -> Result<Training> {
        let config = self.config(&format!("network {:?}", plan.name), &[&plan.set])?;
        let part = (&config.model, &config.pretrain, config.data.whiten, config.seed);
        let folder = out.join("networks").join(file_name(&plan.name, &digest(&json(&part)?)));
        Ok(Training { config, folder })
    }

    fn job(
        &self,
        study: &Study,
        variation: &'s Variation,
        plan: &'s RunPlan,
        seed: u64,
        trainings: &[Training],
        out: &Path,
    ) -> Result<Job<'s>> {
        let what = format!("variation {:?}, run {:?}", variation.name, plan.name);
        let mut config = self.config(&what, &[&variation.set, &plan.set])?;
        let index = |name: &str| study.networks.iter().position(|n| n.name == name);
        let trained = |name: &str| index(name).and_then(|i| trainings.get(i)).map(|t| t.folder.to_string_lossy().into_owned());
        let artist = trained(&plan.data).unwrap_or_else(|| config.teacher.checkpoint.clone());
        if let Some(folder) = trained(&plan.teacher) {
            config.teacher.checkpoint = folder;
        }
        if let Some(folder) = trained(&plan.student) {
            config.distill.student = folder;
        }
        // All seeds share the latents: they are those of the first.
        let drawn = config.data.shards.is_empty().then(|| {
            let name = if plan.data.is_empty() { "teacher" } else { plan.data.as_str() };
            let settings = json(&(within(out, &artist), &config.synthesize, config.seed))?;
            let folder = out.join("latents").join(file_name(&format!("{name} {}", config.synthesize.count), &digest(&settings)));
            Ok::<_, Error>(Drawn { folder, artist, seed: config.seed })
        });
        let latents = drawn.transpose()?;
        if let Some(drawn) = &latents {
            config.data.shards = drawn.folder.to_string_lossy().into_owned();
        }
        config.seed = config.seed.wrapping_add(seed);
        config.validate()?;
        let mut portable = config.clone();
        for path in [&mut portable.teacher.checkpoint, &mut portable.distill.student, &mut portable.data.shards] {
            *path = within(out, path);
        }
        let settings = resume::settings(&portable)?;
        let name = file_name(&format!("{} {} seed {}", variation.name, plan.name, config.seed), &digest(&settings));
        let folder = existing(&out.join("runs"), &digest(&settings)).unwrap_or_else(|| out.join("runs").join(name));
        let networks = plan.networks().filter_map(index).collect();
        Ok(Job { variation, plan, config, networks, folder, latents })
    }
}

/// A path without the study's own folder: where a study lies is no part of what it computes.
fn within(out: &Path, path: &str) -> String {
    match Path::new(path).strip_prefix(out) {
        Ok(inside) => format!("/{}", inside.display()),
        Err(_) => path.to_owned(),
    }
}

/// The folder in `runs` whose settings have this digest, whatever it is called.
fn existing(runs: &Path, digest: &str) -> Option<PathBuf> {
    let ends = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(&format!("-{digest}")));
    std::fs::read_dir(runs).ok()?.filter_map(|entry| Some(entry.ok()?.path())).find(ends)
}

/// A folder's name: what it is, and a digest of its settings.
fn file_name(what: &str, digest: &str) -> String {
    format!("{}-{digest}", what.replace(' ', "-"))
}

fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::Usage(format!("the settings cannot be written as JSON: {e}")))
}

/// Eight hexadecimal digits of SHA-256.
fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

fn all<B: Backend>(b: &B, study: &Study, jobs: &[Job<'_>], trainings: &[Training], out: &Path) -> Outcome {
    let mut results = StudyResults {
        version: env!("CARGO_PKG_VERSION").into(),
        title: study.title.clone(),
        device: b.name(),
        threads: rayon::current_num_threads(),
        planned: jobs.len(),
        runs: Vec::new(),
    };
    // What the first run does in many minutes' time should not be what ends it.
    for job in jobs.iter().filter(|job| job.networks.is_empty()) {
        Networks::load(&job.config)?;
    }
    let mut progress = Progress::new("study", jobs.len() as u64, 0);
    let mut summaries: HashMap<&Path, StudyRun> = HashMap::new();
    for (index, job) in jobs.iter().enumerate() {
        let name = format!("{}, {}, seed {}", job.variation.name, job.plan.name, job.config.seed);
        let summary = match summaries.get(job.folder.as_path()) {
            Some(summary) => summary.clone(),
            None => match finished(&job.folder)? {
                Some(summary) => summary,
                None => {
                    output::note(&format!("run {} of {}: {name}", index + 1, jobs.len()));
                    for network in &job.networks {
                        train(b, &trainings[*network])?;
                    }
                    one(b, job)?
                }
            },
        };
        summaries.insert(&job.folder, summary.clone());
        let folder = job.folder.strip_prefix(out).unwrap_or(&job.folder).to_string_lossy().into_owned();
        let (variation, run, value) = (job.variation.name.clone(), job.plan.name.clone(), job.plan.value);
        results.runs.push(StudyRun { variation, run, value, folder, ..summary });
        results.write(study, out)?;
        progress.set(index as u64 + 1, || name);
    }
    for (name, picture) in pictures(study, &results)? {
        save_png(&picture, &out.join(name))?;
    }
    progress.finish(&format!("{} runs", jobs.len()));
    output::result(&results.markdown(study));
    output::result("Open:");
    for (name, what) in [("results.md", "the tables above; results.json for programs"), ("runs", "a folder for each run")] {
        output::result(&format!("  {:<40} {what}", out.join(name).display().to_string()));
    }
    for variation in study.variations.iter().filter(|v| results.runs.iter().any(|r| r.variation == v.name)) {
        output::result(&format!("  {:<40} {}", out.join(format!("{}.png", variation.name)).display().to_string(), variation.title));
    }
    Ok(())
}

/// The summary of a run that is done.
fn finished(folder: &Path) -> Result<Option<StudyRun>> {
    let path = folder.join(SUMMARY);
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    let summary = serde_json::from_str(&text)
        .map_err(|e| Error::file(&path, format!("is damaged ({e}); delete it, and the run's results are read again")))?;
    Ok(Some(summary))
}

/// Opens a run folder to go on with it, or creates it.
fn open(folder: &Path, config: &Config, purpose: Purpose) -> Result<(RunFolder, Config)> {
    if folder.join("config.toml").is_file() {
        let run = RunFolder::open(folder, purpose)?;
        // As it began: its folders may have been named otherwise.
        let config = run.config()?;
        return Ok((run, config));
    }
    if folder.exists() {
        // A run that was killed before it wrote its settings.
        std::fs::remove_dir_all(folder).map_err(|e| Error::io("remove", folder, e))?;
    }
    Ok((RunFolder::create(Some(folder), config, purpose)?, config.clone()))
}

/// Trains a network by rectified flow, unless that is done.
fn train<B: Backend>(b: &B, training: &Training) -> Outcome {
    if training.folder.join(RESULTS).is_file() {
        return Ok(());
    }
    let (dataset, pipeline) = pretrain::prepare(&training.config)?;
    let (mut run, config) = open(&training.folder, &training.config, Purpose::Pretrain)?;
    pretrain::pretrain(b, &config, dataset, pipeline, Dtype::F32, &mut run, Ending::Silent)
}

/// Does one run: latents, distillation, summary.
fn one<B: Backend>(b: &B, job: &Job<'_>) -> Outcome<StudyRun> {
    if let Some(drawn) = &job.latents {
        draw(b, job, drawn)?;
    }
    let networks = Networks::load(&job.config)?;
    let (mut run, config) = open(&job.folder, &job.config, Purpose::Distill)?;
    distill::distill(b, &config, &networks, &mut run, Ending::Silent)?;
    let summary = summary(job, &networks, &run)?;
    let mut text = json(&summary)?;
    text.push('\n');
    write_whole(&run.join(SUMMARY), text.as_bytes())?;
    Ok(summary)
}

/// Draws the latents of a run, or what is missing of them.
fn draw<B: Backend>(b: &B, job: &Job<'_>, drawn: &Drawn) -> Outcome {
    let artist = network::load(&drawn.artist)?;
    let encoders = Encoders::new(&job.config.encoders, artist.pipeline(), &artist.name);
    latents::synthesize(b, &artist, &encoders, &job.config.synthesize, drawn.seed, &drawn.folder, Share::WHOLE)
}

/// Everything the study wants to know of a finished run.
fn summary(job: &Job<'_>, networks: &Networks, run: &RunFolder) -> Result<StudyRun> {
    let config = &job.config;
    let (student, teacher) = (networks.student(), networks.teacher());
    let [_, height, width] = network::latent_shape(teacher.pipeline(), config.synthesize.height, config.synthesize.width)?;
    let text = Encoders::new(&config.encoders, teacher.pipeline(), &teacher.name).tokens()?;
    let shape = Shape { batch: config.distill.micro_batch(), height, width, text };
    let flops = config.step().flops(&student.pipeline().model, &teacher.pipeline().model, shape)?.total();
    let records = run.records()?;
    let seconds = records.iter().filter_map(|r| if let Record::Step(step) = r { Some(step.seconds) } else { None });
    let quality = records.iter().filter_map(|r| match r {
        Record::Quality(quality) if ["student", "before"].contains(&quality.network.as_str()) => Some(quality.clone()),
        _ => None,
    });
    Ok(StudyRun {
        variation: job.variation.name.clone(),
        run: job.plan.name.clone(),
        value: job.plan.value,
        seed: config.seed,
        folder: String::new(),
        method: config.distill.method,
        student_parameters: student.parameters(),
        teacher_parameters: teacher.parameters(),
        latents: latents::open(Path::new(&config.data.shards))?.len(),
        flops_per_step: flops * config.distill.accumulate as u64,
        steps: config.distill.steps,
        seconds: seconds.fold(0.0, f64::max),
        quality: quality.collect(),
    })
}
