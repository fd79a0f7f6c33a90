//! `ladd-fast eval --pairs`: the (style, object) pairs of the emoji, those that were trained on and those that were not, as
//! numbers and as pictures beside the true ones.

use std::fmt::Write as _;
use std::path::Path;

use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::cli::common::draw::{Order, Painter, pictures};
use crate::cli::common::{Encoders, Loaded, Outcome, Progress, latents, measure, output};
use crate::cli::prepare::HELD_OUT;
use crate::config::Config;
use crate::data::LatentDataset;
use crate::device::Backend;
use crate::eval::{Gallery, PairQuality};
use crate::flow::SampleSettings;
use crate::report::{Grid, Group, Row, draw_grid, save_png};
use crate::train::run_folder::write_whole;
use crate::{Error, Result};

/// Pictures in a row.
const COLUMNS: usize = 10;
/// Added to the seed, so that no picture begins from the noise of a training latent.
const SEED_OFFSET: u64 = 0x0e7a_2000;

/// What was measured, as `pairs.json` holds it.
#[derive(Debug, Serialize, Deserialize)]
struct Pairs {
    version: String,
    network: String,
    parameters: usize,
    seed: u64,
    styles: usize,
    objects: usize,
    rows: Vec<PairRow>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PairRow {
    /// `seen` or `held out`.
    pairs: String,
    sampler: String,
    steps: usize,
    guidance: f32,
    #[serde(flatten)]
    quality: PairQuality,
}

/// The true pictures, with their captions.
struct Truth {
    gallery: Gallery,
    captions: Vec<String>,
    images: Vec<RgbImage>,
    /// Pairs that are drawn: seen ones, held-out ones.
    drawn: [Vec<usize>; 2],
}

const SETS: [&str; 2] = ["seen", "held out"];

pub fn run<B: Backend>(b: &B, config: &Config, loaded: &Loaded, settings: &[SampleSettings], folder: &Path, out: Option<&Path>) -> Outcome {
    let pipeline = loaded.pipeline();
    let encoders = Encoders::new(&config.encoders, pipeline, &loaded.name);
    let (seen, held) = (open(folder, pipeline)?, open(&folder.join(HELD_OUT), pipeline)?);
    let truth = Truth::new(&encoders, &seen, &held)?;
    let model = loaded.model(b)?;
    let params = loaded.params(b)?;
    let mut painter = Painter::new(b, model, &encoders, seen.shape(0)?, config.eval.batch, "")?;
    let prompts = encoders.prompts(&truth.captions)?;
    let (styles, objects) = truth.gallery.sizes();
    let mut results = Pairs {
        version: env!("CARGO_PKG_VERSION").into(),
        network: format!("{:?}", pipeline.role).to_lowercase(),
        parameters: loaded.parameters(),
        seed: config.seed,
        styles,
        objects,
        rows: Vec::new(),
    };
    let mut groups = Vec::new();
    let total: usize = settings.iter().map(|s| s.evaluations() * truth.drawn.iter().map(Vec::len).sum::<usize>()).sum();
    let mut progress = Progress::new("pairs", total as u64, 0);
    for (set, which) in SETS.iter().zip(&truth.drawn) {
        let mut rows = vec![truth.row(which)];
        for settings in settings {
            let seed = config.seed.wrapping_add(SEED_OFFSET) >> 1;
            let before = progress.done();
            let order = Order { settings, seed, first: 0, prompts: &prompts, which, conditioning: None };
            let pixels =
                painter.pixels(&params, &order, |drawn| progress.set(before + (drawn * settings.evaluations()) as u64, String::new))?;
            let quality = truth.gallery.measure(which, &pixels)?;
            let shape = painter.image_shape()?;
            let shown = shape.iter().product::<usize>() * which.len().min(COLUMNS);
            let note = format!("object {:.0} %, style {:.0} %", 100.0 * quality.object_accuracy, 100.0 * quality.style_accuracy);
            rows.push(Row { label: measure::label(settings), note, images: pictures(&pixels[..shown], shape) });
            let (sampler, steps, guidance) = (settings.kind.name().to_owned(), settings.steps, settings.guidance);
            results.rows.push(PairRow { pairs: (*set).to_owned(), sampler, steps, guidance, quality });
        }
        groups.push((format!("{} pairs", capital(set)), rows));
    }
    progress.finish("");
    output::result(&results.markdown());
    if let Some(out) = out {
        std::fs::create_dir_all(out).map_err(|e| Error::io("create", out, e))?;
        results.write(out)?;
        save_png(&draw_grid(&grid(&results, groups)), &out.join("pairs.png"))?;
        output::result(&format!("pairs.json, pairs.md and pairs.png in {}", out.display()));
    }
    Ok(())
}

fn open(folder: &Path, pipeline: &crate::format::Pipeline) -> Result<LatentDataset> {
    let dataset = latents::open(folder)?;
    let fits = dataset.settings().is_some_and(|settings| settings.pipeline.codec == pipeline.codec);
    match (fits, dataset.buckets()) {
        (false, _) => Err(Error::file(folder, "holds latents of another codec than the network's: name those it was trained on")),
        (true, [_]) => Ok(dataset),
        (true, buckets) => Err(Error::file(folder, format!("holds pictures of {} sizes, where pairs need one", buckets.len()))),
    }
}

impl Truth {
    /// All pictures of both sets. All held-out pairs are drawn, and as many seen ones, spread evenly.
    fn new(encoders: &Encoders<'_>, seen: &LatentDataset, held: &LatentDataset) -> Result<Self> {
        let shape = seen.shape(0)?;
        if held.shape(0)? != shape {
            return Err(Error::Usage("the held-out pictures have another size than the others: prepare them again together".into()));
        }
        let (mut captions, mut latents) = (Vec::new(), Vec::new());
        for dataset in [seen, held] {
            for index in 0..dataset.len() {
                let mut latent = vec![0.0; shape.iter().product()];
                let prompt = dataset.sample(index, &mut latent)?;
                captions.extend(dataset.prompts().get(prompt as usize).cloned());
                latents.extend(latent);
            }
        }
        let image_shape = encoders.image_shape(shape)?;
        let pixels = encoders.decode(&latents, shape)?;
        let names: Vec<&str> = captions.iter().map(String::as_str).collect();
        let gallery = Gallery::new(&names, &pixels, image_shape)?;
        let count = held.len().min(seen.len());
        let drawn = [(0..count).map(|i| i * seen.len() / count).collect(), (seen.len()..captions.len()).collect()];
        Ok(Self { gallery, images: pictures(&pixels, image_shape), captions, drawn })
    }

    fn row(&self, which: &[usize]) -> Row {
        let images = which.iter().take(COLUMNS).map(|pair| self.images[*pair].clone()).collect();
        Row { label: "true".into(), note: String::new(), images }
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn grid(results: &Pairs, groups: Vec<(String, Vec<Row>)>) -> Grid {
    Grid {
        title: format!("Pairs of style and object, drawn by a {} of {:.1} M parameters", results.network, results.parameters as f64 / 1e6),
        subtitle: "Held-out pairs were never trained on; every style and every object in them was, with others.".into(),
        columns: Vec::new(),
        groups: groups.into_iter().map(|(title, rows)| Group { title, rows }).collect(),
    }
}

impl Pairs {
    fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join("pairs.json");
        let mut json = serde_json::to_vec_pretty(self).map_err(|e| Error::file(&path, e.to_string()))?;
        json.push(b'\n');
        write_whole(&path, &json)?;
        write_whole(&folder.join("pairs.md"), self.markdown().as_bytes())
    }

    /// The table, with what its columns mean.
    fn markdown(&self) -> String {
        let mut text = String::from(
            "| pairs    | sampler | steps | guidance |  n | object | style | error | another object | another style |\n\
             | -------- | ------- | ----: | -------: | -: | -----: | ----: | ----: | -------------: | ------------: |\n",
        );
        for row in &self.rows {
            let (q, scale) = (&row.quality, if row.guidance == 1.0 { "none".to_owned() } else { row.guidance.to_string() });
            let _ = writeln!(
                text,
                "| {:<8} | {:<7} | {:>5} | {scale:>8} | {:>2} | {:>6.3} | {:>5.3} | {:>5.3} | {:>14.3} | {:>13.3} |",
                row.pairs,
                row.sampler,
                row.steps,
                q.count,
                q.object_accuracy,
                q.style_accuracy,
                q.error,
                q.error_of_another_object,
                q.error_of_another_style
            );
        }
        let chance = self.rows.first().map(|row| (row.quality.object_chance, row.quality.style_chance)).unwrap_or_default();
        let _ = write!(
            text,
            "\n- object: share of the drawn pictures whose nearest true picture among the {} objects of the style is the right one (chance {:.3}); \
             style: among the {} styles of the object (chance {:.3}).\n\
             - error: mean root mean square difference to the true picture on a 16 x 16 grid, 0 to 1, beside that of another object of the style \
             (chance) and that of the object in another style (copying).\n",
            self.objects, chance.0, self.styles, chance.1
        );
        text
    }
}
