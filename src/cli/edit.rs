//! `ladd-fast edit`: a picture, changed as a prompt says.

use std::path::{Path, PathBuf};

use clap::Args;
use image::RgbImage;

use super::common::device::on_device;
use super::common::draw::{Order, pictures};
use super::common::{Device, Encoders, Globals, Loaded, Outcome, Painter, flag, number, output};
use super::sample;
use super::tasks::bench::scales;
use super::tasks::picture::Source;
use super::tasks::{self};
use crate::config::Config;
use crate::device::Backend;
use crate::edit::Task;
use crate::flow::SampleSettings;
use crate::report::{Grid, Group, Row, draw_grid, save_png};
use crate::{Error, Result};

/// Change a picture as a prompt says.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ladd-fast edit pullover.png --prompt \"make a coat\" --network runs/NAME
  ladd-fast edit boot.png --prompt \"make a sneaker\" --network runs/NAME --steps 1 --out sneaker.png
  ladd-fast edit boot.png --prompt \"invert it\" --network runs/NAME/teacher-run --steps 50 --guidance 3 --image-guidance 1.5")]
pub struct Arguments {
    /// The picture: PNG, JPEG or WebP.
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// What to do with it.
    #[arg(long, value_name = "PROMPT")]
    prompt: String,
    #[command(flatten)]
    drawing: Drawing,
}

/// What `edit` and `inpaint` both take.
#[derive(Debug, Args)]
pub(super) struct Drawing {
    /// The network: a run folder or a checkpoint.
    #[arg(long, value_name = "PATH")]
    pub network: String,
    /// Sampling steps [default: 4 for students, 28 for teachers].
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// Guidance scale of the prompt, 1 is unguided [default: 1 for students, 3 for teachers].
    #[arg(long, value_name = "X")]
    pub guidance: Option<f64>,
    /// Guidance scale of the picture, 1 is unguided [default: 1 for students, 1.5 for teachers that edit].
    #[arg(long, value_name = "X")]
    pub image_guidance: Option<f64>,
    /// Seed.
    #[arg(long, value_name = "N", value_parser = super::common::seed)]
    pub seed: Option<u64>,
    /// The PNG file to write, none of those that are read; beside it goes FILE-before-after.png.
    #[arg(long, value_name = "FILE", default_value = "drawn.png")]
    pub out: PathBuf,
}

impl Drawing {
    /// The settings, and the network, which must be for `task`. No file that is read may be written.
    pub fn load(&self, globals: &Globals, task: Task, read: &[&Path]) -> Result<(Config, Loaded, SampleSettings)> {
        let config = globals.load(vec![
            number("sample.steps", "--steps", self.steps),
            flag("sample.guidance", "--guidance", self.guidance),
            flag("sample.image_guidance", "--image-guidance", self.image_guidance),
            number("seed", "--seed", self.seed),
        ])?;
        if self.out.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("png")) {
            return Err(Error::Usage(format!("--out {}: the file to write must end in .png", self.out.display())));
        }
        for (read, written) in read.iter().flat_map(|read| [self.out.clone(), self.beside()].map(|written| (read, written))) {
            if is_same(read, &written) {
                let (out, read) = (self.out.display(), read.display());
                return Err(Error::Usage(format!("--out {out}: {read} would be overwritten: name another file")));
            }
        }
        let loaded = tasks::load(&self.network, task)?;
        let settings = sample::settings(&config.sample, loaded.pipeline());
        settings.times()?;
        Ok((config, loaded, settings))
    }

    /// Writes the picture, and what it was before beside it.
    pub fn write(&self, drawn: &RgbImage, before: Vec<(&str, RgbImage)>, prompt: &str, settings: &SampleSettings, seed: u64) -> Result<()> {
        if let Some(folder) = self.out.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        }
        save_png(drawn, &self.out)?;
        let (names, images): (Vec<&str>, Vec<RgbImage>) = before.into_iter().chain([("after", drawn.clone())]).unzip();
        let grid = Grid {
            title: prompt.to_owned(),
            subtitle: format!("{}, seed {seed}", scales(settings)),
            columns: names.into_iter().map(str::to_owned).collect(),
            groups: vec![Group { title: String::new(), rows: vec![Row { label: String::new(), note: String::new(), images }] }],
        };
        let beside = self.beside();
        save_png(&draw_grid(&grid), &beside)?;
        output::result(&format!("{}, and before and after in {}", self.out.display(), beside.display()));
        Ok(())
    }

    /// Where before and after go.
    fn beside(&self) -> PathBuf {
        self.out.with_file_name(format!("{}-before-after.png", self.out.file_stem().unwrap_or_default().to_string_lossy()))
    }
}

/// Whether two paths, by whatever links, lead to one file that exists.
fn is_same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

pub(super) fn run(globals: &Globals, arguments: &Arguments) -> Outcome {
    let (config, loaded, settings) = arguments.drawing.load(globals, Task::Edit, &[&arguments.image])?;
    let encoders = Encoders::new(&config.encoders, loaded.pipeline(), &loaded.name);
    let source = Source::read(&arguments.image, &encoders)?;
    let device = Device::open(&config.device, config.deterministic)?;
    let (prompt, conditioning) = (&arguments.prompt, &source.latent);
    let drawn = on_device!(device, |b| draw(b, &config, &loaded, &encoders, (prompt, source.latent_shape, conditioning), &settings))?;
    arguments.drawing.write(&drawn, vec![("before", source.image)], prompt, &settings, config.seed)?;
    Ok(())
}

/// Draws one picture from a prompt and what conditions it.
pub(super) fn draw<B: Backend>(
    b: &B,
    config: &Config,
    loaded: &Loaded,
    encoders: &Encoders<'_>,
    (prompt, latent, conditioning): (&str, [usize; 3], &[f32]),
    settings: &SampleSettings,
) -> Outcome<RgbImage> {
    encoders.prompts(&[prompt.to_owned(), String::new()])?; // at once: loading the encoders is slow
    let prompts = encoders.prompts(&[prompt.to_owned()])?;
    let model = loaded.model(b)?;
    let params = loaded.params(b)?;
    let mut painter = Painter::new(b, model, encoders, latent, 1, "")?;
    let order = Order { settings, seed: config.seed, first: 0, prompts: &prompts, which: &[0], conditioning: Some(conditioning) };
    let pixels = painter.pixels(&params, &order, |_| ())?;
    let drawn = pictures(&pixels, painter.image_shape()?).pop();
    drawn.ok_or_else(|| Error::Usage("nothing was drawn".into()).into())
}
