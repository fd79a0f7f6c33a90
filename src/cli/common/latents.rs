//! Training latents: drawn by the teacher, or opened from a folder.

use std::path::Path;
use std::sync::Mutex;

use super::draw::{Order, Painter};
use super::{Encoders, Loaded, Outcome, Progress, interrupt, network, output};
use crate::config::SynthesizeConfig;
use crate::data::{DatasetSettings, LatentDataset, ShardWriter, fashion_mnist, read_prompts, unique_prompts};
use crate::device::Backend;
use crate::flow::{SampleSettings, SamplerKind};
use crate::format::{Dtype, Pipeline};
use crate::{Error, Result};

/// Draws the latents of `config` into `folder`, or what is still missing there.
pub fn synthesize<B: Backend>(
    b: &B,
    teacher: &Loaded,
    encoders: &Encoders<'_>,
    config: &SynthesizeConfig,
    seed: u64,
    folder: &Path,
) -> Outcome {
    let pipeline = teacher.pipeline();
    let list = match config.prompts.as_str() {
        "" => fashion_mnist::CLASS_NAMES.map(String::from).to_vec(),
        path => read_prompts(path)?,
    };
    let (names, places) = unique_prompts(&list);
    let Pipeline { shift, spacing, .. } = *pipeline;
    let settings = SampleSettings { kind: SamplerKind::Euler, steps: config.steps, guidance: config.guidance, shift, spacing };
    let away = if config.negative_prompt.is_empty() { String::new() } else { format!(" away from {:?}", config.negative_prompt) };
    let dataset = DatasetSettings {
        teacher: teacher.checkpoint.fingerprint(),
        pipeline: pipeline.clone(),
        guidance: config.guidance,
        sampler: format!("{}{away}", settings.kind.name()),
        sampler_steps: config.steps,
        seed,
        dtype: Dtype::F16,
        total: config.count,
        prompts: names.clone(),
    };
    let mut writer = ShardWriter::open(folder, dataset, config.shard_size)?;
    if writer.remaining() == 0 {
        writer.finish()?;
        output::note(&format!("{} latents are there already, in {}", config.count, folder.display()));
        return Ok(());
    }
    let negative = std::slice::from_ref(&config.negative_prompt);
    encoders.prompts(&[&names, negative].concat())?; // at once: loading the encoders is slow
    let prompts = encoders.prompts(&names)?;
    let shape = network::latent_shape(pipeline, config.height, config.width)?;
    let model = teacher.model(b)?;
    let params = network::upload(b, &teacher.weights(&model)?)?;
    let mut painter = Painter::new(b, model, encoders, shape, config.batch, &config.negative_prompt)?;
    let size: usize = shape.iter().product();
    let mut progress = Progress::new("synthesis", config.count as u64, writer.written() as u64);
    let mut next = writer.written();
    while next < config.count {
        if interrupt::requested() {
            writer.flush()?;
            interrupt::check()?;
        }
        let count = config.batch.min(config.count - next);
        let which: Vec<usize> = (next..next + count).map(|i| places[i % places.len()] as usize).collect();
        let order = Order { settings: &settings, seed, first: next as u32, prompts: &prompts, which: &which };
        let latents = painter.latents(&params, &order, |_| ())?;
        for (latent, prompt) in latents.chunks_exact(size).zip(&which) {
            writer.push(latent, shape, *prompt as u32, seed)?;
        }
        next += count;
        progress.set(next as u64, String::new);
    }
    writer.finish()?;
    progress.finish(&format!("{} latents, {} steps at guidance {}", config.count, config.steps, config.guidance));
    Ok(())
}

/// Opens a folder of latents and compares the checksums.
pub fn open(folder: &Path) -> Result<LatentDataset> {
    let progress = Mutex::new(None::<Progress>);
    LatentDataset::open(folder, &|done, total| {
        if let Ok(mut progress) = progress.lock() {
            progress.get_or_insert_with(|| Progress::new("checking MB", total >> 20, 0)).set(done >> 20, String::new);
        }
    })
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
    if settings.teacher != teacher.checkpoint.fingerprint() {
        tracing::warn!("{}: these latents were drawn by another teacher", folder.display());
    }
    Ok(())
}
