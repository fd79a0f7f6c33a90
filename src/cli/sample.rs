//! `ladd-fast sample`: images from prompts, one PNG each and a grid of all. No file that is there already is overwritten.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use image::RgbImage;

use super::common::device::on_device;
use super::common::draw::{Order, pictures};
use super::common::output::many;
use super::common::{Device, Encoders, Globals, Loaded, Loras, Outcome, Painter, Progress, flag, measure, network, number, output};
use super::tasks;
use crate::config::{Config, SampleConfig, SamplerChoice};
use crate::data::parse_size;
use crate::device::Backend;
use crate::edit::Task;
use crate::flow::{SampleSettings, SamplerKind};
use crate::format::{Pipeline, Role};
use crate::report::{Grid, Group, Row, draw_grid, save_png};
use crate::{Error, Result};

/// Most columns of the grid.
const COLUMNS: usize = 10;

/// Draw images from prompts.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ladd-fast sample --network runs/NAME \"ankle boot\" dress
  ladd-fast sample --network runs/NAME --steps 1 --count 8 --seed 7 bag
  ladd-fast sample --network builtin --steps 50 --guidance 3 --negative coat dress
  ladd-fast sample --network SD3 --lora dpo.safetensors --lora-scale 0.7 \"a lighthouse in a storm\"

Pictures are numbered on behind those that are there already: nothing is overwritten.")]
pub struct Arguments {
    /// The prompts.
    #[arg(required = true, value_name = "PROMPT")]
    prompts: Vec<String>,
    /// The network: a run folder, a checkpoint, or `builtin`.
    #[arg(long, value_name = "PATH", default_value = "builtin")]
    network: String,
    #[command(flatten)]
    loras: Loras,
    /// What guidance steers away from.
    #[arg(long, value_name = "PROMPT", default_value = "")]
    negative: String,
    /// Images per prompt.
    #[arg(long, value_name = "N", default_value_t = 1)]
    count: usize,
    /// Sampling steps [default: 4 for students, 28 for teachers].
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Guidance scale, 1 is unguided [default: 1 for students, 3 for teachers].
    #[arg(long, value_name = "X")]
    guidance: Option<f64>,
    /// The sampler [default: renoise for students, euler for teachers].
    #[arg(long, value_enum)]
    sampler: Option<Sampler>,
    /// Image size in pixels, HEIGHTxWIDTH [default: the size the network was trained for].
    #[arg(long, value_name = "HxW", conflicts_with_all = ["height", "width"])]
    size: Option<String>,
    /// Image height in pixels [default: the size the network was trained for].
    #[arg(long, value_name = "N")]
    height: Option<u64>,
    /// Image width in pixels.
    #[arg(long, value_name = "N")]
    width: Option<u64>,
    /// Seed.
    #[arg(long, value_name = "N", value_parser = super::common::seed)]
    seed: Option<u64>,
    /// Folder for the images.
    #[arg(long, value_name = "FOLDER", default_value = "samples")]
    out: PathBuf,
}

/// A sampler, on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Sampler {
    Renoise,
    Euler,
}

pub(super) fn run(globals: &Globals, arguments: &Arguments) -> Outcome {
    let sampler = arguments.sampler.map(|s| match s {
        Sampler::Renoise => "renoise",
        Sampler::Euler => "euler",
    });
    let size = arguments.size.as_deref().map(size).transpose()?;
    let config = globals.load(vec![
        number("sample.steps", "--steps", arguments.steps),
        flag("sample.guidance", "--guidance", arguments.guidance),
        flag("sample.sampler", "--sampler", sampler),
        number("sample.height", "--height", size.map(|(height, _)| height).or(arguments.height)),
        number("sample.width", "--width", size.map(|(_, width)| width).or(arguments.width)),
        number("seed", "--seed", arguments.seed),
    ])?;
    if arguments.count == 0 || arguments.count > 100_000 {
        return Err(Error::Usage(format!("--count {} must be between 1 and 100000", arguments.count)).into());
    }
    let mut loaded = tasks::load(&arguments.network, Task::Generate)?;
    arguments.loras.apply(&mut loaded)?;
    let pipeline = loaded.pipeline();
    let settings = settings(&config.sample, pipeline);
    settings.times()?;

    let which: Vec<usize> = (0..arguments.prompts.len()).flat_map(|p| std::iter::repeat_n(p, arguments.count)).collect();
    let device = Device::open(&config.device, config.deterministic)?;
    let images = on_device!(device, |b| draw(b, &config, arguments, &loaded, &settings, &which))?;
    write(&arguments.out, arguments, &images, &which, &settings, config.seed)?;
    Ok(())
}

/// Draws one image for each entry of `which`, an index into the prompts.
fn draw<B: Backend>(
    b: &B,
    config: &Config,
    arguments: &Arguments,
    loaded: &Loaded,
    settings: &SampleSettings,
    which: &[usize],
) -> Outcome<Vec<RgbImage>> {
    let pipeline = loaded.pipeline();
    let shape = network::latent_shape(pipeline, config.sample.height, config.sample.width)?;
    create(&arguments.out)?; // before anything slow is done
    let encoders = Encoders::new(&config.encoders, pipeline, &loaded.name);
    let negative = std::slice::from_ref(&arguments.negative);
    encoders.prompts(&[&arguments.prompts, negative].concat())?; // at once: loading the encoders is slow
    let prompts = encoders.prompts(&arguments.prompts)?;
    let model = loaded.model(b)?;
    let params = loaded.params(b)?;
    let mut painter = Painter::new(b, model, &encoders, shape, config.sample.batch.min(which.len()), &arguments.negative)?;
    let mut progress = Progress::new("sampling", which.len() as u64, 0);
    let order = Order { settings, seed: config.seed, first: 0, prompts: &prompts, which, conditioning: None };
    let pixels = painter.pixels(&params, &order, |drawn| progress.set(drawn as u64, String::new))?;
    let images = pictures(&pixels, painter.image_shape()?);
    progress.finish(&format!("{}, {}, {}", many(images.len(), "image"), settings.kind.name(), measure::label(settings)));
    Ok(images)
}

/// `--size 1024x768`.
fn size(text: &str) -> Result<(u64, u64)> {
    let size = parse_size(text).ok().filter(|size| size.weight == 1.0);
    let size = size.ok_or_else(|| Error::Usage(format!("--size {text}: write it as HEIGHTxWIDTH in pixels, such as 1024x768")))?;
    Ok((size.height as u64, size.width as u64))
}

/// What the configuration leaves open follows the network's role.
pub(super) fn settings(config: &SampleConfig, pipeline: &Pipeline) -> SampleSettings {
    let student = pipeline.role == Role::Student;
    let kind = match config.sampler {
        SamplerChoice::Euler => SamplerKind::Euler,
        SamplerChoice::Renoise => SamplerKind::Renoise,
        SamplerChoice::Auto if student => SamplerKind::Renoise,
        SamplerChoice::Auto => SamplerKind::Euler,
    };
    let (steps, guidance) = if student { (4, 1.0) } else { (28, 3.0) };
    let image_guidance = if student || Task::of(&pipeline.model) != Task::Edit { 1.0 } else { 1.5 };
    SampleSettings {
        kind,
        steps: if config.steps == 0 { steps } else { config.steps },
        guidance: if config.guidance == 0.0 { guidance } else { config.guidance },
        image_guidance: if config.image_guidance == 0.0 { image_guidance } else { config.image_guidance },
        shift: if config.shift == 0.0 { pipeline.shift } else { config.shift },
        spacing: pipeline.spacing,
        start: 1.0,
    }
}

/// Creates the folder for the images.
fn create(folder: &Path) -> Result<()> {
    if folder.exists() && !folder.is_dir() {
        return Err(Error::Usage(format!("--out {}: is a file: name a folder for the images", folder.display())));
    }
    std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))
}

/// One file per image, numbered after those that are there already, and a grid with a row per prompt.
fn write(folder: &Path, arguments: &Arguments, images: &[RgbImage], which: &[usize], settings: &SampleSettings, seed: u64) -> Result<()> {
    let mut names = Names::new(folder);
    for (image, prompt) in images.iter().zip(which) {
        save_png(image, &names.next(&format!("{}-seed{seed}", file_name(&arguments.prompts[*prompt]))))?;
    }
    let rows = arguments.prompts.iter().zip(images.chunks(arguments.count)).flat_map(|(prompt, images)| {
        images.chunks(COLUMNS).enumerate().map(|(line, images)| Row {
            label: if line == 0 { prompt.clone() } else { String::new() },
            note: String::new(),
            images: images.to_vec(),
        })
    });
    let grid = Grid {
        title: arguments.network.clone(),
        subtitle: format!("{}, {}, seed {seed}", settings.kind.name(), measure::label(settings)),
        columns: Vec::new(),
        groups: vec![Group { title: String::new(), rows: rows.collect() }],
    };
    let plain = folder.join("grid.png");
    let path = if plain.exists() { names.next("grid") } else { plain };
    save_png(&draw_grid(&grid), &path)?;
    output::result(&format!("{} in {}, all together in {}", many(images.len(), "image"), folder.display(), path.display()));
    Ok(())
}

/// Names that no file in a folder has.
struct Names<'a> {
    folder: &'a Path,
    /// Where to go on, by what a name begins with.
    next: HashMap<String, usize>,
}

impl<'a> Names<'a> {
    fn new(folder: &'a Path) -> Self {
        Self { folder, next: HashMap::new() }
    }

    /// `BEGIN-00.png`, or the first number behind it that is free.
    fn next(&mut self, begin: &str) -> PathBuf {
        let number = self.next.entry(begin.to_owned()).or_default();
        loop {
            let path = self.folder.join(format!("{begin}-{number:02}.png"));
            *number += 1;
            if path.symlink_metadata().is_err() {
                return path;
            }
        }
    }
}

/// A prompt as a part of a file name.
fn file_name(prompt: &str) -> String {
    let safe = |c: char| if c.is_alphanumeric() { c } else { '-' };
    let name: String = prompt.chars().take(48).map(safe).collect();
    if name.is_empty() { "empty".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let touch = |name: &str| std::fs::write(folder.path().join(name), name).unwrap();
        touch("bag-seed0-00.png");
        touch("bag-seed0-02.png");
        let mut names = Names::new(folder.path());
        let mut next = |begin: &str| {
            let path = names.next(begin);
            std::fs::write(&path, "").unwrap();
            path.file_name().unwrap().to_string_lossy().into_owned()
        };
        assert_eq!(
            [next("bag-seed0"), next("bag-seed0"), next("dress-seed0")],
            ["bag-seed0-01.png", "bag-seed0-03.png", "dress-seed0-00.png"]
        );
        assert_eq!(next("bag-seed0"), "bag-seed0-04.png");
    }
}
