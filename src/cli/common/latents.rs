//! Training latents: drawn by the teacher, or opened from a folder.

use std::path::Path;
use std::sync::Mutex;

use super::draw::{Order, Painter};
use super::{Encoders, Loaded, Outcome, Progress, Stop, interrupt, network, output};
use crate::config::SynthesizeConfig;
use crate::data::{
    DatasetSettings, DrawPlan, LatentDataset, Manifest, Origin, Run, ShardWriter, Share, Synthesis, fashion_mnist, parse_aspect,
    parse_size, read_prompts, unique_prompts,
};
use crate::device::Backend;
use crate::flow::{SampleSettings, SamplerKind};
use crate::format::{Dtype, Pipeline};
use crate::vae::CodecConfig;
use crate::{Error, Result};

/// Draws the latents of `config` into `folder`, or what is still missing there: all, or the share of one of several processes.
pub fn synthesize<B: Backend>(
    b: &B,
    teacher: &Loaded,
    encoders: &Encoders<'_>,
    config: &SynthesizeConfig,
    seed: u64,
    folder: &Path,
    share: Share,
) -> Outcome {
    let pipeline = teacher.pipeline();
    let list = match config.prompts.as_str() {
        "" if matches!(pipeline.codec, CodecConfig::Dct { channels: 1, .. }) => fashion_mnist::CLASS_NAMES.map(String::from).to_vec(),
        "" => {
            return Err(Error::Config(format!(
                "{} draws other pictures than the demo's: name a file of prompts with synthesize.prompts (--prompts), or latents with --data",
                teacher.name
            ))
            .into());
        }
        path => read_prompts(path, &config.prompt_key)?,
    };
    let (names, places) = unique_prompts(&list);
    let Pipeline { spacing, .. } = *pipeline;
    let shift = if config.shift == 0.0 { pipeline.shift } else { config.shift };
    let settings = SampleSettings {
        kind: SamplerKind::Euler,
        steps: config.steps,
        guidance: config.guidance,
        image_guidance: 1.0,
        shift,
        spacing,
        start: 1.0,
    };
    settings.times()?;
    let pixels = network::pixels_of_latent(pipeline);
    let sizes = sizes(config, pipeline)?;
    let weights: Vec<f64> = sizes.iter().map(|(_, weight)| *weight).collect();
    let plan = DrawPlan::new(seed, config.count, &weights, config.shard_size, share);
    let synthesis = Synthesis {
        teacher: teacher.fingerprint()?,
        guidance: config.guidance,
        sampler: sampler(config, &settings, &sizes, pixels),
        sampler_steps: config.steps,
    };
    let dataset = DatasetSettings {
        origin: Origin::Synthesized(synthesis),
        pipeline: pipeline.clone(),
        seed,
        dtype: Dtype::F16,
        total: config.count,
        prompts: names.clone(),
    };
    let mut writer = ShardWriter::open_share(folder, dataset, config.shard_size, share, plan.count())?;
    if writer.remaining() == 0 {
        writer.finish()?;
        output::note(&format!("{} latents are there already, in {}", plan.count(), folder.display()));
        return Ok(());
    }
    let negative = std::slice::from_ref(&config.negative_prompt);
    encoders.prompts(&[&names, negative].concat())?; // at once: loading the encoders is slow
    let prompts = encoders.prompts(&names)?;
    let params = teacher.params(b)?;
    let mut painter = None;
    let mut progress = Progress::new("synthesis", plan.count() as u64, writer.written() as u64);
    for Run { size, places: run } in plan.batches(writer.written(), config.batch) {
        let (shape, _) = sizes[size];
        let which: Vec<usize> = plan.samples(run.clone()).iter().map(|i| places[*i as usize % places.len()] as usize).collect();
        let order = Order { settings: &settings, seed, first: run.start as u32, prompts: &prompts, which: &which, conditioning: None };
        let drawn = match &mut painter {
            Some((planned, painter)) if *planned == size => draw(painter, &params, &order),
            _ => {
                painter = None; // the memory of one size at a time
                let (_, painter) =
                    painter.insert((size, Painter::new(b, teacher.model(b)?, encoders, shape, config.batch, &config.negative_prompt)?));
                draw(painter, &params, &order)
            }
        };
        if matches!(drawn, Err(Stop::Interrupted)) {
            writer.suspend()?;
        }
        for (latent, prompt) in drawn?.chunks_exact(shape.iter().product()).zip(&which) {
            writer.push(latent, shape, *prompt as u32, seed)?;
        }
        progress.set(writer.written() as u64, String::new);
    }
    writer.finish()?;
    progress.finish(&format!("{} latents, {} steps at guidance {}", plan.count(), config.steps, config.guidance));
    Ok(())
}

fn draw<B: Backend>(painter: &mut Painter<'_, B>, params: &B::Data, order: &Order<'_>) -> Outcome<Vec<f32>> {
    interrupt::check()?;
    painter.latents(params, order, |_| ())
}

/// The latent shapes of `config` with their weights, each once.
fn sizes(config: &SynthesizeConfig, pipeline: &Pipeline) -> Result<Vec<([usize; 3], f64)>> {
    let usual = network::latent_shape(pipeline, config.height, config.width)?;
    let (pixels, patch) = (network::pixels_of_latent(pipeline), pipeline.model.patch);
    let area = usual[1] * usual[2] * pixels * pixels;
    let multiple = if area >= 512 * 512 { 4 * pixels * patch } else { pixels * patch };
    let sizes = config.sizes.iter().map(|size| parse_size(size));
    let asked = sizes.chain(config.aspects.iter().map(|aspect| parse_aspect(aspect, area, multiple)));
    let mut shapes: Vec<([usize; 3], f64)> = Vec::new();
    for size in asked {
        let size = size.map_err(Error::Config)?;
        let shape = network::latent_shape(pipeline, size.height, size.width)?;
        match shapes.iter_mut().find(|(known, _)| *known == shape) {
            Some((_, weight)) => *weight += size.weight,
            None => shapes.push((shape, size.weight)),
        }
    }
    Ok(if shapes.is_empty() { vec![(usual, 1.0)] } else { shapes })
}

/// Everything in which two syntheses may differ and which has no place of its own in the manifest, in words.
fn sampler(config: &SynthesizeConfig, settings: &SampleSettings, sizes: &[([usize; 3], f64)], pixels: usize) -> String {
    let mut words = settings.kind.name().to_owned();
    if config.shift != 0.0 {
        words += &format!(" shifted by {}", config.shift);
    }
    if sizes.len() > 1 || config.height != 0 || config.width != 0 {
        let sizes = sizes.iter().map(|([_, h, w], weight)| format!("{}x{}@{weight}", h * pixels, w * pixels));
        words += &format!(" at {}", sizes.collect::<Vec<_>>().join(" "));
    }
    if !config.negative_prompt.is_empty() {
        words += &format!(" away from {:?}", config.negative_prompt);
    }
    words
}

/// Compares the checksums of a folder of latents, complete or not.
pub fn verify(folder: &Path) -> Result<Manifest> {
    crate::data::verify(folder, &checking())
}

/// A progress bar for checksums.
fn checking() -> impl Fn(u64, u64) + Sync {
    let progress = Mutex::new(None::<Progress>);
    move |done, total| {
        if let Ok(mut progress) = progress.lock() {
            progress.get_or_insert_with(|| Progress::new("checking MB", total >> 20, 0)).set(done >> 20, String::new);
        }
    }
}

/// Opens a folder of latents and compares the checksums.
pub fn open(folder: &Path) -> Result<LatentDataset> {
    LatentDataset::open(folder, &checking())
}

/// Checks that a network can be trained on latents that were made for `settings`.
pub fn check_fit(dataset: &LatentDataset, teacher: &Loaded, folder: &Path) -> Result<()> {
    let Some(settings) = dataset.settings() else { return Ok(()) };
    let (made_for, ours) = (&settings.pipeline, teacher.pipeline());
    if made_for.codec != ours.codec || made_for.text != ours.text {
        return Err(Error::file(
            folder,
            "these latents were made with another codec or text encoder than the teacher's: synthesize them with this teacher",
        ));
    }
    if let Origin::Synthesized(synthesis) = &settings.origin
        && synthesis.teacher != teacher.fingerprint()?
    {
        tracing::warn!("{}: these latents were drawn by another teacher", folder.display());
    }
    Ok(())
}
