//! `ladd-fast pretrain`: rectified-flow training of a teacher on Fashion-MNIST or on prepared pictures, for those who have none.
//! The built-in teacher was made by it. With
//! `--task edit` or `inpaint`: fine-tuning of a teacher that was widened to read a picture too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::{Args, ValueEnum};

use super::common::device::on_device;
use super::common::measure::{Bench, teacher_settings};
use super::common::network::Finished;
use super::common::progress::duration;
use super::common::resume;
use super::common::{
    Device, Encoders, Ending, Globals, Loaded, Outcome, Painter, Progress, Stop, flag, interrupt, latents, network, number, output, path,
    start_threads,
};
use super::tasks;
use super::tasks::bench::{self, TaskBench};
use crate::config::Config;
use crate::data::fashion_mnist::{CLASS_NAMES, IMAGE_SHAPE, Split};
use crate::data::{Batch, LatentDataset, Loader};
use crate::device::Backend;
use crate::edit::{Conditioned, Task};
use crate::format::{Dtype, Pipeline, Role};
use crate::model::mmdit::sinusoidal_grid;
use crate::model::{Mmdit, Shape};
use crate::report::{Grid, Group, Results, TaskResults, draw_grid, draw_panels, pretrain_panels, save_png};
use crate::text::TextConfig;
use crate::train::checkpoint::{self, TrainingState};
use crate::train::run_folder::quoted;
use crate::train::{PretrainRecord, PretrainSettings, Pretrainer, Purpose, Record, RunFolder, initial_weights};
use crate::vae::CodecConfig;
use crate::{Error, Result};

/// Images that the scales of the latents are fitted to.
const FITTED: usize = 10_000;

/// Train a teacher on Fashion-MNIST, or on prepared pictures.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  scripts/get-demo-data                                 fetches the images
  ladd-fast pretrain --images data/fashion-mnist
  ladd-fast pretrain --images data/fashion-mnist --steps 4000 --set model.hidden=256 --run runs/teacher
  ladd-fast pretrain --data data/emoji-small --preset emoji-small    on what `prepare` made
  ladd-fast pretrain --run runs/teacher --resume
  ladd-fast pretrain --preset demo-edit --run runs/editor
  ladd-fast distill --teacher runs/teacher")]
pub struct Arguments {
    /// What the teacher is for: generate, edit or inpaint [default: generate].
    #[arg(long, value_name = "TASK")]
    task: Option<String>,
    /// For editing and inpainting, the network to begin from [default: builtin].
    #[arg(long, value_name = "FILE")]
    teacher: Option<PathBuf>,
    /// Folder of the Fashion-MNIST files, or `builtin`.
    #[arg(long, value_name = "FOLDER")]
    images: Option<PathBuf>,
    /// Folder of latents from `prepare`, instead of Fashion-MNIST.
    #[arg(long, value_name = "FOLDER", conflicts_with = "images")]
    data: Option<PathBuf>,
    /// Optimiser steps.
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Samples per step.
    #[arg(long, value_name = "N")]
    batch: Option<u64>,
    /// Seed.
    #[arg(long, value_name = "N", value_parser = super::common::seed)]
    seed: Option<u64>,
    /// Type of the weights in the teacher's file.
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    dtype: Precision,
    /// The run's folder [default: runs/DATE-TIME].
    #[arg(long, value_name = "FOLDER")]
    run: Option<PathBuf>,
    /// Go on with the run in --run behind its last checkpoint.
    #[arg(long, requires = "run")]
    resume: bool,
}

/// Type of stored weights, on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Precision {
    F32,
    F16,
}

pub(super) fn run(globals: &Globals, arguments: &Arguments) -> Outcome {
    let flags = vec![
        flag("task", "--task", arguments.task.clone()),
        path("teacher.checkpoint", "--teacher", arguments.teacher.as_ref()),
        path("data.images", "--images", arguments.images.as_ref()),
        path("data.shards", "--data", arguments.data.as_ref()),
        number("pretrain.steps", "--steps", arguments.steps),
        number("pretrain.batch", "--batch", arguments.batch),
        number("seed", "--seed", arguments.seed),
    ];
    let resumed = match &arguments.run {
        Some(folder) if arguments.resume => {
            globals.refuse_settings(&flags)?;
            Some(RunFolder::open(folder, Purpose::Pretrain)?)
        }
        _ => None,
    };
    let config = match &resumed {
        Some(run) => {
            let config = run.config()?;
            start_threads(globals.threads.unwrap_or(config.threads))?;
            config
        }
        None => globals.load(flags)?,
    };
    let base = match config.task {
        Task::Generate => None,
        _ => Some(tasks::load(&config.teacher.checkpoint, Task::Generate)?),
    };
    let fresh = if base.is_none() { Some(prepare(&config)?) } else { None };
    let dtype = match arguments.dtype {
        Precision::F32 => Dtype::F32,
        Precision::F16 => Dtype::F16,
    };
    let device = Device::open(globals.device.as_deref().unwrap_or(&config.device), config.deterministic)?;
    let first = resumed.is_none();
    let mut run = match resumed {
        Some(run) => run,
        None => RunFolder::create(arguments.run.as_deref(), &config, Purpose::Pretrain)?,
    };
    device.choose_algorithms(config.gemm_algorithms, run.path())?;
    let done = on_device!(device, |b| match (&base, &fresh) {
        (Some(base), _) => pretrain_task(b, &config, base, dtype, &mut run),
        (None, Some((dataset, pipeline))) => pretrain(b, &config, dataset.clone(), pipeline.clone(), dtype, &mut run, Ending::Told),
        (None, None) => Ok(()), // one of them was read before
    });
    match &done {
        Err(Stop::Interrupted) => output::note(&format!("interrupted; go on with: {}", Purpose::Pretrain.resumption(run.path()))),
        Err(Stop::Error(_)) if first => run.discard_untouched(),
        _ => (),
    }
    done
}

/// The training set as latents, and the settings of the network that will draw them.
pub(super) fn prepare(config: &Config) -> Result<(Arc<LatentDataset>, Pipeline)> {
    if config.data.shards.is_empty() { fashion_mnist(config) } else { prepared(config) }
}

/// Latents that `ladd-fast prepare` made.
fn prepared(config: &Config) -> Result<(Arc<LatentDataset>, Pipeline)> {
    let folder = Path::new(&config.data.shards);
    let dataset = latents::open(folder)?;
    if dataset.buckets().len() > 1 {
        let sizes = dataset.buckets().len();
        return Err(Error::file(
            folder,
            format!("holds pictures of {sizes} sizes, pretrain takes one: prepare them with prepare.max_ratio=1"),
        ));
    }
    let Some(settings) = dataset.settings() else { return Err(Error::file(folder, "has no manifest: make it with `ladd-fast prepare`")) };
    let notes = notes(config, &format!("{} pictures from {}", dataset.len(), folder.display()));
    let pipeline = Pipeline { model: config.model.clone(), role: Role::Teacher, notes, ..settings.pipeline.clone() };
    pipeline
        .validate()
        .map_err(|error| Error::file(folder, format!("does not fit this network ({error}): use the preset it was prepared with")))?;
    let [_, height, width] = dataset.shape(0)?;
    pipeline.model.grid(height, width)?;
    Ok((Arc::new(dataset), pipeline))
}

/// Where the network comes from.
fn notes(config: &Config, data: &str) -> BTreeMap<String, String> {
    let notes = [
        ("made_by", format!("ladd-fast {} pretrain", env!("CARGO_PKG_VERSION"))),
        ("data", data.to_owned()),
        ("steps", config.pretrain.steps.to_string()),
        ("batch", config.pretrain.batch.to_string()),
        ("seed", config.seed.to_string()),
    ];
    notes.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn fashion_mnist(config: &Config) -> Result<(Arc<LatentDataset>, Pipeline)> {
    if config.data.latent != "dct" || config.data.text != "words" {
        return Err(Error::Config("pretrain trains the demo's kind of teacher: data.latent = \"dct\" and data.text = \"words\"".into()));
    }
    let images = tasks::real_images(config, Split::Train)?;
    let codec = CodecConfig::fit(config.data.block, &images.images(0..FITTED), IMAGE_SHAPE, config.data.whiten)?;
    let text = TextConfig::Words { dim: config.model.context_dim, tokens: config.data.tokens };
    let notes = notes(config, "Fashion-MNIST, 60000 training images");
    let pipeline =
        Pipeline { model: config.model.clone(), codec, text, shift: 1.0, spacing: Default::default(), role: Role::Teacher, notes };
    pipeline.validate()?;
    let mut latents = Vec::with_capacity(images.len() * IMAGE_SHAPE.iter().product::<usize>());
    for start in (0..images.len()).step_by(FITTED) {
        latents.extend(pipeline.codec.encode(&images.images(start..start + FITTED), IMAGE_SHAPE)?);
    }
    let labels = images.labels().iter().map(|label| u32::from(*label)).collect();
    let shape = pipeline.codec.latent_shape(IMAGE_SHAPE)?;
    let dataset = LatentDataset::from_memory(latents, shape, labels, CLASS_NAMES.map(String::from).to_vec())?;
    Ok((Arc::new(dataset), pipeline))
}

/// Where a training begins.
pub(super) enum Start {
    /// With fresh weights of a network with these settings.
    Fresh(Pipeline),
    /// With the weights of a network.
    From(Box<Loaded>),
}

/// What is trained, and on what.
pub(super) struct Course {
    /// The samples.
    pub dataset: Arc<LatentDataset>,
    /// The weights to begin with.
    pub start: Start,
    /// Type of the weights in the teacher's file.
    pub dtype: Dtype,
}

/// Trains and measures a teacher that draws from prompts.
pub(super) fn pretrain<B: Backend>(
    b: &B,
    config: &Config,
    dataset: Arc<LatentDataset>,
    pipeline: Pipeline,
    dtype: Dtype,
    run: &mut RunFolder,
    ending: Ending,
) -> Outcome {
    let names = if config.data.shards.is_empty() { Vec::new() } else { dataset.prompts().to_vec() };
    let (teacher, seconds) = train(b, config, &Course { dataset, start: Start::Fresh(pipeline), dtype }, run)?;
    measure(b, config, &teacher, &names, run, seconds, ending)
}

/// Fine-tunes and measures a teacher for a task, from the network `base`.
fn pretrain_task<B: Backend>(b: &B, config: &Config, base: &Loaded, dtype: Dtype, run: &mut RunFolder) -> Outcome {
    let dataset = tasks::dataset(b, config, base, &run.join("latents"))?;
    let course = Course { dataset, start: Start::From(Box::new(tasks::widened(base, config.task)?)), dtype };
    let (teacher, seconds) = train(b, config, &course, run)?;
    measure_task(b, config, &teacher, run, seconds)
}

/// The training itself, from the last checkpoint of `run` where there is one; returns the teacher as it was saved, and the seconds
/// that it took.
pub(super) fn train<B: Backend>(b: &B, config: &Config, course: &Course, run: &mut RunFolder) -> Outcome<(Loaded, f64)> {
    let (settings, dataset) = (&config.pretrain, &course.dataset);
    let (model, weights, pipeline) = match &course.start {
        Start::Fresh(pipeline) => {
            let model = Mmdit::new(b, config.model.clone(), &sinusoidal_grid(&config.model))?;
            let weights = initial_weights(&model, config.seed);
            (model, weights, pipeline.clone())
        }
        Start::From(base) => (base.model(b)?, base.weights()?, base.pipeline().clone()),
    };
    let encoders = Encoders::new(&config.encoders, &pipeline, &config.teacher.checkpoint);
    let [_, height, width] = dataset.shape(0)?;
    let shape = Shape { batch: settings.batch, height, width, text: encoders.tokens()? };
    let names = if config.data.shards.is_empty() { &[] } else { dataset.prompts() };
    output::note(&format!(
        "training a teacher of {:.1} M parameters on {} {}, {} steps of {} on {}; everything goes to {}",
        model.layout().arena.parameters() as f64 / 1e6,
        dataset.len(),
        if config.task == Task::Edit { "pairs" } else { "images" },
        settings.steps,
        settings.batch,
        b.name(),
        run.path().display()
    ));
    let training = PretrainSettings {
        timesteps: settings.t.clone(),
        optim: settings.optim.clone(),
        total_steps: settings.steps,
        ema_decay: settings.ema_decay,
        caption_dropout: settings.caption_dropout,
        image_dropout: settings.image_dropout,
        seed: config.seed,
        activation_checkpointing: settings.activation_checkpointing,
    };
    let mut trainer = Pretrainer::new(b, training, model, &weights, shape)?;
    let mut seconds = 0.0;
    if let Some((_, folder)) = run.latest_checkpoint()? {
        let state = checkpoint::load(b, &folder, &resume::settings_in(&folder, config)?, &mut [("teacher", &mut trainer.network)])?;
        trainer.resume_at(state.step);
        seconds = state.seconds;
        output::note(&format!("going on behind step {}", state.step));
    }
    run.truncate_after(trainer.done())?;

    let mut loader = Loader::new(dataset.clone(), config.seed, settings.batch, 1)?;
    let prompts = encoders.prompts(dataset.prompts())?;
    let (mut batch, mut conditioned, mut context, mut pooled) = (Batch::default(), Conditioned::default(), Vec::new(), Vec::new());
    let mut progress = Progress::new("training", u64::from(settings.steps), u64::from(trainer.done()));
    while trainer.done() < settings.steps {
        let started = Instant::now();
        loader.batch_into(trainer.done(), 0, &mut batch)?;
        conditioned.prepare(config.task, &config.inpaint.masks, &batch, (config.seed, trainer.done(), 0))?;
        prompts.gather(batch.prompts.iter().map(|p| *p as usize), &mut context, &mut pooled)?;
        trainer.step(b, &conditioned.x0, conditioned.given(), &context, &pooled);
        let step = trainer.done();
        let last = step == settings.steps;
        if step.is_multiple_of(settings.log_every) || last {
            let record = trainer.record(b, seconds + started.elapsed().as_secs_f64())?;
            progress.set(u64::from(step), || format!("loss {:.3}", record.loss));
            if !record.loss.is_finite() {
                return Err(Error::Usage(format!(
                    "the training has diverged at step {step} (loss {}): begin again with a smaller pretrain.optim.lr",
                    record.loss
                ))
                .into());
            }
            run.append(&Record::Pretrain(record))?;
        }
        seconds += started.elapsed().as_secs_f64();
        let due = |every: u32| every > 0 && step.is_multiple_of(every);
        if due(settings.checkpoint_every) || last || interrupt::requested() {
            let state = TrainingState::new(step, seconds, resume::settings(config)?);
            run.write_checkpoint(step, settings.keep_checkpoints, |folder| {
                checkpoint::save(b, folder, &state, &[("teacher", &trainer.network)])
            })?;
        }
        if !last {
            interrupt::check()?;
        }
        if due(settings.sample_every) || last {
            let weights = trainer.network.averaged_weights(b)?;
            let teacher = Finished::new(b, trainer.model(), &weights, pipeline.clone())?;
            show(b, config, &teacher.loaded("teacher")?, names, run, step)?;
        }
    }
    progress.finish(&format!("{} steps", settings.steps));

    let weights = trainer.network.averaged_weights(b)?;
    let teacher = Finished::new(b, trainer.model(), &weights, pipeline)?;
    let file = teacher.save(&run.folder("teacher")?, "teacher", course.dtype)?;
    drop(trainer);
    Ok((network::load(&file.to_string_lossy())?, seconds)) // as it was saved
}

/// The curves so far, and a grid of samples.
fn show<B: Backend>(b: &B, config: &Config, teacher: &Loaded, names: &[String], run: &RunFolder, step: u32) -> Outcome {
    let records: Vec<PretrainRecord> =
        run.records()?.into_iter().filter_map(|r| if let Record::Pretrain(record) = r { Some(record) } else { None }).collect();
    save_png(&draw_panels("Pretraining", &pretrain_panels(&records))?, &run.join("curves.png"))?;
    let encoders = Encoders::new(&config.encoders, teacher.pipeline(), &teacher.name);
    if config.task != Task::Generate {
        return show_task(b, config, teacher, &encoders, run, step);
    }
    let Some(bench) = Bench::new(&encoders, &config.eval, config.seed, names)? else { return Ok(()) };
    let (model, shape) = (teacher.model(b)?, network::latent_shape(teacher.pipeline(), 0, 0)?);
    let params = teacher.params(b)?;
    let mut painter = Painter::new(b, model, &encoders, shape, config.eval.batch, "")?;
    let mut rows = Vec::new();
    for settings in teacher_settings(&config.eval, teacher.pipeline()) {
        rows.push(bench.row(&mut painter, &params, &settings, String::new())?);
    }
    let grid = Grid {
        title: format!("Teacher after {step} steps"),
        subtitle: "same prompts and seeds in all rows".into(),
        columns: bench.columns(),
        groups: vec![Group { title: String::new(), rows }],
    };
    Ok(save_png(&draw_grid(&grid), &run.sample_path(step))?)
}

/// Measures the teacher, writes the results and says what to open.
fn measure<B: Backend>(
    b: &B,
    config: &Config,
    teacher: &Loaded,
    names: &[String],
    run: &mut RunFolder,
    seconds: f64,
    ending: Ending,
) -> Outcome {
    let mut quality = Vec::new();
    let encoders = Encoders::new(&config.encoders, teacher.pipeline(), &teacher.name);
    if let Some(bench) = Bench::new(&encoders, &config.eval, config.seed, names)?.filter(Bench::measures) {
        let settings = teacher_settings(&config.eval, teacher.pipeline());
        let (model, shape) = (teacher.model(b)?, network::latent_shape(teacher.pipeline(), 0, 0)?);
        let params = teacher.params(b)?;
        let mut painter = Painter::new(b, model, &encoders, shape, config.eval.batch, "")?;
        let mut progress = Progress::new("evaluation", bench.cost(&settings), 0);
        for settings in &settings {
            if let Some((record, _)) = bench.measure(&mut painter, &params, settings, ("teacher", config.pretrain.steps), &mut progress)? {
                run.append(&Record::Quality(record.clone()))?;
                quality.push(record);
            }
        }
        progress.finish("");
    }
    let parts = BTreeMap::from([("training".to_owned(), seconds)]);
    let results = Results::new(&config.preset, config.seed, rayon::current_num_threads(), parts, quality);
    results.write(run.path())?;
    if ending == Ending::Silent {
        return Ok(());
    }
    output::result(&results.markdown());
    let (preset, teacher) = (&config.preset, quoted(run.path()));
    let next = match config.data.shards.as_str() {
        "" => format!("distil it with: ladd-fast distill --teacher {teacher}"),
        shards => format!(
            "draw with it, then distil it:\n  \
             ladd-fast synthesize --preset {preset} --teacher {teacher} --prompts {} --out LATENTS\n  \
             ladd-fast distill --preset {preset} --teacher {teacher} --data LATENTS",
            quoted(&Path::new(shards).join("captions.txt"))
        ),
    };
    let file = run.join("teacher/teacher.safetensors");
    output::result(&format!("Trained in {}. The teacher is {}; {next}", duration(seconds), file.display()));
    Ok(())
}

/// A grid of what the teacher makes of the demo's test pictures.
fn show_task<B: Backend>(b: &B, config: &Config, teacher: &Loaded, encoders: &Encoders<'_>, run: &RunFolder, step: u32) -> Outcome {
    let Some(bench) = TaskBench::new(config.task, encoders, config)? else { return Ok(()) };
    let (model, shape) = (teacher.model(b)?, network::latent_shape(teacher.pipeline(), 0, 0)?);
    let params = teacher.params(b)?;
    let mut painter = Painter::new(b, model, encoders, shape, config.eval.batch, "")?;
    let mut rows = bench.before()?;
    for settings in bench::teacher_settings(config.task, &config.eval, teacher.pipeline()) {
        rows.push(bench.row(&mut painter, &params, &settings, String::new())?);
    }
    let grid = Grid {
        title: format!("Teacher after {step} steps"),
        subtitle: "same sources, prompts and seeds in all rows".into(),
        columns: bench.columns(),
        groups: vec![Group { title: String::new(), rows }],
    };
    Ok(save_png(&draw_grid(&grid), &run.sample_path(step))?)
}

/// Measures a teacher of a task, writes the results and says what to open.
fn measure_task<B: Backend>(b: &B, config: &Config, teacher: &Loaded, run: &mut RunFolder, seconds: f64) -> Outcome {
    let encoders = Encoders::new(&config.encoders, teacher.pipeline(), &teacher.name);
    let mut measured = Vec::new();
    if let Some(bench) = TaskBench::new(config.task, &encoders, config)? {
        let settings = bench::teacher_settings(config.task, &config.eval, teacher.pipeline());
        let (model, shape) = (teacher.model(b)?, network::latent_shape(teacher.pipeline(), 0, 0)?);
        let params = teacher.params(b)?;
        let mut painter = Painter::new(b, model, &encoders, shape, config.eval.batch, "")?;
        let mut progress = Progress::new("evaluation", bench.cost(&settings), 0);
        measured = bench.without_network()?;
        for settings in &settings {
            measured.push(bench.measure(&mut painter, &params, settings, ("teacher", config.pretrain.steps), true, &mut progress)?);
        }
        progress.finish("");
    }
    measured.iter().try_for_each(|record| run.append(&Record::Task(record.clone())))?;
    let results = TaskResults {
        version: env!("CARGO_PKG_VERSION").into(),
        task: config.task,
        preset: config.preset.clone(),
        seed: config.seed,
        threads: rayon::current_num_threads(),
        seconds: BTreeMap::from([("training".to_owned(), seconds)]),
        measured,
    };
    results.write(run.path())?;
    output::result(&results.markdown());
    output::result(&format!(
        "Trained in {}. Distil it with: ladd-fast distill --preset {} --teacher {}",
        duration(seconds),
        config.preset,
        run.path().display()
    ));
    Ok(())
}
