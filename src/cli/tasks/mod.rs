//! Editing and inpainting around the training: the data set of a task, and a teacher for it, fine-tuned from one that draws from
//! prompts alone.

pub mod bench;
pub mod pairs;
pub mod picture;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::common::{Loaded, Outcome, latents, network, output};
use super::pretrain::{Course, Start, train};
use crate::config::Config;
use crate::data::fashion_mnist::{CLASS_NAMES, IMAGE_SHAPE, Split};
use crate::data::{FashionMnist, LatentDataset};
use crate::device::Backend;
use crate::edit::Task;
use crate::format::Dtype;
use crate::train::{Purpose, Record, RunFolder};
use crate::vae::CodecConfig;
use crate::{Error, Result};

/// Folder of the teacher's own run, within that of a distillation.
const TEACHER_RUN: &str = "teacher-run";

/// Reads a network that must be for `task`.
///
/// # Errors
/// When there is no such network, the file is damaged, or it is for another task.
pub fn load(name: &str, task: Task) -> Result<Loaded> {
    let loaded = network::load(name)?;
    check(&loaded, task)?;
    Ok(loaded)
}

/// Refuses a network that is for another task.
///
/// # Errors
/// Says what it is for, and what to do.
pub fn check(loaded: &Loaded, task: Task) -> Result<()> {
    let found = Task::of(&loaded.pipeline().model);
    if found == task {
        return Ok(());
    }
    let makes = |task: Task| match task {
        Task::Generate => "draws from prompts alone: use `ladd-fast sample`",
        Task::Edit => "edits pictures: use `ladd-fast edit`",
        Task::Inpaint => "fills holes in pictures: use `ladd-fast inpaint`",
    };
    let other = if task == Task::Generate {
        String::new()
    } else {
        format!(", or train one with `ladd-fast distill --preset demo-{}`", task.name())
    };
    Err(Error::Usage(format!("{} {}{other}", loaded.name, makes(found))))
}

/// A base network, widened by zeros to read what `task` conditions on.
pub fn widened(base: &Loaded, task: Task) -> Result<Loaded> {
    let mut wide = base.widened(task)?;
    wide.pipeline.notes.insert("base".into(), base.fingerprint()?);
    Ok(wide)
}

/// Real pictures: those of `data.images`.
pub fn real_images(config: &Config, split: Split) -> Result<FashionMnist> {
    match config.data.images.as_str() {
        "builtin" => FashionMnist::builtin(split),
        folder => FashionMnist::load(folder, split),
    }
}

/// The samples of a task: pairs that the base teacher makes in `folder`, or real pictures; or what `data.shards` names.
pub fn dataset<B: Backend>(b: &B, config: &Config, base: &Loaded, folder: &Path) -> Outcome<Arc<LatentDataset>> {
    if !config.data.shards.is_empty() {
        let folder = PathBuf::from(&config.data.shards);
        let dataset = latents::open(&folder)?;
        latents::check_fit(&dataset, base, &folder)?;
        let whole = base.pipeline().model.in_channels;
        let wanted = if config.task == Task::Edit { 2 * whole } else { whole };
        if let Some(other) = dataset.buckets().iter().find(|bucket| bucket.shape[0] != wanted) {
            return Err(Error::file(
                folder,
                format!("holds samples of {} channels; {} needs {wanted}", other.shape[0], config.task.name()),
            )
            .into());
        }
        return Ok(Arc::new(dataset));
    }
    if !matches!(base.pipeline().codec, CodecConfig::Dct { .. }) {
        return Err(Error::Usage(format!(
            "a data set for {} is made of the demo's pictures only: name a folder of latents with --data",
            config.task.name()
        ))
        .into());
    }
    if config.task == Task::Edit {
        pairs::make(b, config, base, folder)?;
        return Ok(Arc::new(latents::open(folder)?));
    }
    let (images, codec) = (real_images(config, Split::Train)?, &base.pipeline().codec);
    let labels = images.labels().iter().map(|label| u32::from(*label)).collect();
    let latents = codec.encode(&images.images(0..images.len()), IMAGE_SHAPE)?;
    Ok(Arc::new(LatentDataset::from_memory(latents, codec.latent_shape(IMAGE_SHAPE)?, labels, CLASS_NAMES.map(String::from).to_vec())?))
}

/// Refuses a teacher of which no teacher for `task` can be made.
///
/// # Errors
/// Says what the teacher is for.
pub fn check_teacher(teacher: &Loaded, task: Task) -> Result<()> {
    let found = Task::of(&teacher.pipeline().model);
    if [Task::Generate, task].contains(&found) {
        return Ok(());
    }
    Err(Error::Usage(format!("the teacher {} is for {}: say --task {}", teacher.name, found.name(), found.name())))
}

/// What a distillation for a task begins with.
pub struct Prepared {
    /// The teacher, which reads what the task conditions on.
    pub teacher: Loaded,
    /// The samples.
    pub dataset: Arc<LatentDataset>,
}

/// The samples, and the teacher: the one given, or what becomes of it when it is widened and trained on the samples. Goes on where
/// an interrupted run stopped.
pub fn prepare<B: Backend>(b: &B, config: &Config, given: &Loaded, run: &mut RunFolder) -> Outcome<Prepared> {
    let found = Task::of(&given.pipeline().model);
    let started = Instant::now();
    let dataset = dataset(b, config, given, &run.join("latents"))?;
    phase(run, "pairs", started)?;
    if found == config.task {
        let teacher = Loaded { name: given.name.clone(), pipeline: given.pipeline.clone(), tensors: given.tensors.clone() };
        return Ok(Prepared { teacher, dataset });
    }
    let folder = run.join(TEACHER_RUN);
    let file = folder.join("teacher/teacher.safetensors");
    if !file.is_file() {
        let started = Instant::now();
        let mut own = match folder.join("config.toml").is_file() {
            true => RunFolder::open(&folder, Purpose::Pretrain)?,
            false => RunFolder::create(Some(&folder), config, Purpose::Pretrain)?,
        };
        let start = Start::From(Box::new(widened(given, config.task)?));
        let course = Course { dataset: dataset.clone(), start, dtype: Dtype::F32 };
        output::note(&format!("first a teacher that {}s, from {}", config.task.name(), given.name));
        train(b, config, &course, &mut own)?;
        phase(run, "teacher", started)?;
    }
    Ok(Prepared { teacher: network::load(&file.to_string_lossy())?, dataset })
}

fn phase(run: &mut RunFolder, name: &str, started: Instant) -> Result<()> {
    run.append(&Record::Phase { name: name.to_owned(), seconds: started.elapsed().as_secs_f64(), step: 0 })
}
