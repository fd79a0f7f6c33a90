//! `ladd-fast inpaint`: the painted part of a picture, drawn anew.

use std::path::PathBuf;

use clap::Args;
use image::RgbImage;

use super::common::device::on_device;
use super::common::{Device, Encoders, Globals, Outcome};
use super::edit::{Drawing, draw};
use super::tasks::bench::tint;
use super::tasks::picture::{Source, read_mask};
use crate::edit::{Mask, Task, masked_latent};

/// Draw the painted part of a picture anew.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ladd-fast inpaint bag.png mask.png --prompt bag --network runs/NAME
  ladd-fast inpaint bag.png mask.png --prompt bag --network runs/NAME --steps 1 --no-paste --out filled.png
  ladd-fast inpaint bag.png mask.png --prompt bag --network runs/NAME/teacher-run --steps 50 --guidance 3

The mask is a picture of the same size, white where it is to be drawn anew; what is
black or transparent is kept.")]
pub struct Arguments {
    /// The picture: PNG, JPEG or WebP.
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// Its mask: white is drawn anew, black and transparent is kept.
    #[arg(value_name = "MASK")]
    mask: PathBuf,
    /// What the picture shows.
    #[arg(long, value_name = "PROMPT", default_value = "")]
    prompt: String,
    /// Leave what the network draws where nothing was painted, in place of the picture's own pixels.
    #[arg(long)]
    no_paste: bool,
    #[command(flatten)]
    drawing: Drawing,
}

pub(super) fn run(globals: &Globals, arguments: &Arguments) -> Outcome {
    let (config, loaded, settings) = arguments.drawing.load(globals, Task::Inpaint, &[&arguments.image, &arguments.mask])?;
    let encoders = Encoders::new(&config.encoders, loaded.pipeline(), &loaded.name);
    let source = Source::read(&arguments.image, &encoders)?;
    let mask = read_mask(&arguments.mask, &source.image)?;
    let conditioning = masked_latent(&source.latent, &mask.shrunk(source.factor));
    let device = Device::open(&config.device, config.deterministic)?;
    let prompt = &arguments.prompt;
    let mut drawn = on_device!(device, |b| draw(b, &config, &loaded, &encoders, (prompt, source.latent_shape, &conditioning), &settings))?;
    if !arguments.no_paste {
        paste(&mut drawn, &source.image, &mask);
    }
    let mut painted = source.image.clone();
    tint(&mut painted, &mask);
    let title = if prompt.is_empty() { "no prompt" } else { prompt };
    arguments.drawing.write(&drawn, vec![("before", source.image), ("painted", painted)], title, &settings, config.seed)?;
    Ok(())
}

/// Puts the picture's own pixels where nothing was painted.
fn paste(drawn: &mut RgbImage, source: &RgbImage, mask: &Mask) {
    let kept = drawn.pixels_mut().zip(source.pixels()).zip(&mask.values).filter(|(_, painted)| **painted == 0.0);
    kept.for_each(|((drawn, source), _)| *drawn = *source);
}
