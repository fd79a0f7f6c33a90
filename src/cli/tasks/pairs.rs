//! The demo's pairs for editing: real pictures, and targets that follow from an instruction. Targets of another class are drawn by
//! the base teacher from the noised source, `x_t = (1 - t) x + t ε` (SDEdit, arXiv 2108.01073), several for each source; that one is
//! kept which the classifier takes for what was asked and whose silhouette overlaps most with the source's.

use std::path::Path;

use super::real_images;
use crate::cli::common::{Encoders, Loaded, Outcome, Progress, interrupt, network, output};
use crate::config::Config;
use crate::data::fashion_mnist::{IMAGE_SHAPE, Split};
use crate::data::{DatasetSettings, FashionMnist, Origin, ShardWriter, Synthesis};
use crate::device::Backend;
use crate::edit::Task;
use crate::edit::instructions::{Change, INSTRUCTIONS, Instruction};
use crate::eval::{Evaluator, overlap};
use crate::flow::philox::{fill_normals, stream, uniform_at};
use crate::flow::{SampleSettings, Sampler, SamplerKind, TextBatch};
use crate::format::Dtype;
use crate::model::{Mmdit, Shape};
use crate::{Error, Result};

/// Pairs made at once.
const BATCH: usize = 64;
/// Pairs of a shard file.
const SHARD: usize = 1024;

/// What one pair is made of.
struct Plan {
    source: usize,
    instruction: usize,
    /// An instruction with one exact answer, in case no target shows what was asked for.
    otherwise: usize,
}

impl Plan {
    /// Pair `index` of the data set: the same whatever was made before it.
    fn new(config: &Config, images: &FashionMnist, index: usize) -> Self {
        let source = index % images.len();
        let class = usize::from(images.labels()[source]);
        let choose = |which: u64, exact: bool| {
            let wanted = |i: &usize| INSTRUCTIONS[*i].suits(class) && INSTRUCTIONS[*i].caption().is_none() == exact;
            let fit: Vec<usize> = (0..INSTRUCTIONS.len()).filter(wanted).collect();
            let u = uniform_at(config.seed, index as u32, stream::PAIRS + 1, which);
            fit.get((u * fit.len() as f32) as usize).copied()
        };
        let otherwise = choose(2, true).unwrap_or(INSTRUCTIONS.len() - 1);
        let exact = uniform_at(config.seed, index as u32, stream::PAIRS + 1, 0) < config.edit.exact;
        let other_class = if exact { None } else { choose(1, false) };
        Self { source, instruction: other_class.unwrap_or(otherwise), otherwise }
    }
}

/// Makes the pairs in `folder`, or those that are still missing there.
pub fn make<B: Backend>(b: &B, config: &Config, base: &Loaded, folder: &Path) -> Outcome {
    let images = real_images(config, Split::Train)?;
    let mut pipeline = base.pipeline().clone();
    pipeline.model.conditioning_channels = Task::Edit.conditioning_channels(pipeline.model.in_channels);
    let edit = &config.edit;
    let synthesis = Synthesis {
        teacher: base.fingerprint()?,
        guidance: edit.target_guidance,
        sampler: format!("euler from {}, best of {}, {} exact, of {} pictures", edit.strength, edit.candidates, edit.exact, images.len()),
        sampler_steps: edit.steps,
    };
    let settings = DatasetSettings {
        origin: Origin::Synthesized(synthesis),
        pipeline,
        seed: config.seed,
        dtype: Dtype::F16,
        total: edit.pairs,
        prompts: INSTRUCTIONS.iter().map(|instruction| instruction.prompt.to_owned()).collect(),
    };
    let mut writer = ShardWriter::open(folder, settings, SHARD)?;
    if writer.remaining() == 0 {
        writer.finish()?;
        output::note(&format!("{} pairs are there already, in {}", edit.pairs, folder.display()));
        return Ok(());
    }
    let encoders = Encoders::new(&config.encoders, base.pipeline(), &base.name);
    let mut maker = Maker::new(b, config, base, &encoders, images)?;
    let [channels, height, width] = maker.latent;
    let mut progress = Progress::new("pairs", edit.pairs as u64, writer.written() as u64);
    let (mut asked, mut found) = (0, 0);
    let mut next = writer.written();
    while next < edit.pairs {
        if interrupt::requested() {
            writer.suspend()?;
            interrupt::check()?;
        }
        let plans: Vec<Plan> = (next..edit.pairs.min(next + BATCH)).map(|index| Plan::new(config, &maker.images, index)).collect();
        let made = maker.targets(&plans, next)?;
        for (plan, target) in plans.iter().zip(&made) {
            let (target, instruction) = maker.settle(plan, target.as_deref())?;
            let wanted = INSTRUCTIONS[plan.instruction].caption().is_some();
            asked += usize::from(wanted);
            found += usize::from(wanted && instruction == plan.instruction);
            let pair = [target, maker.latents[plan.source * maker.numel()..(plan.source + 1) * maker.numel()].to_vec()].concat();
            writer.push(&pair, [2 * channels, height, width], instruction as u32, config.seed)?;
        }
        next += plans.len();
        progress.set(next as u64, || format!("{found} of {asked} changes of class recognised"));
    }
    writer.finish()?;
    progress.finish(&format!(
        "{}; {found} of {asked} changes of class recognised, exact ones in place of the rest",
        output::many(edit.pairs, "pair")
    ));
    Ok(())
}

/// Draws targets with the base teacher.
struct Maker<'a, B: Backend> {
    b: &'a B,
    config: &'a Config,
    base: &'a Loaded,
    images: FashionMnist,
    /// All pictures as latents.
    latents: Vec<f32>,
    latent: [usize; 3],
    evaluator: Evaluator,
    model: Mmdit<B>,
    params: B::Data,
    sampler: Sampler<B>,
    /// Context and pooled text of every instruction's caption, and of no text.
    captions: Vec<(Vec<f32>, Vec<f32>)>,
    nothing: (Vec<f32>, Vec<f32>),
}

impl<'a, B: Backend> Maker<'a, B> {
    fn new(b: &'a B, config: &'a Config, base: &'a Loaded, encoders: &Encoders<'_>, images: FashionMnist) -> Outcome<Self> {
        let (pipeline, evaluator) = (base.pipeline(), Evaluator::demo()?);
        if encoders.image_shape(network::latent_shape(pipeline, 0, 0)?)? != IMAGE_SHAPE {
            return Err(
                Error::Usage("pairs are made of the demo's pictures, 32x32 and grey: name a folder of pairs with --data".into()).into()
            );
        }
        let latent = pipeline.codec.latent_shape(IMAGE_SHAPE)?;
        let latents = pipeline.codec.encode(&images.images(0..images.len()), IMAGE_SHAPE)?;
        let names: Vec<String> = INSTRUCTIONS.iter().map(|i| i.caption().unwrap_or_default().to_owned()).chain([String::new()]).collect();
        let prompts = encoders.prompts(&names)?;
        let mut captions = Vec::new();
        for index in 0..names.len() {
            let (mut context, mut pooled) = (Vec::new(), Vec::new());
            prompts.gather(std::iter::once(index), &mut context, &mut pooled)?;
            captions.push((context, pooled));
        }
        let nothing = captions.pop().unwrap_or_default();
        let model = base.model(b)?;
        let params = base.params(b)?;
        let shape = Shape { batch: BATCH * config.edit.candidates, height: latent[1], width: latent[2], text: encoders.tokens()? };
        let sampler = Sampler::new(b, &model, shape, config.edit.target_guidance != 1.0)?;
        Ok(Self { b, config, base, images, latents, latent, evaluator, model, params, sampler, captions, nothing })
    }

    fn numel(&self) -> usize {
        self.latent.iter().product()
    }

    /// For each plan that asks for another class the best target's latent, if any shows that class.
    fn targets(&mut self, plans: &[Plan], first: usize) -> Result<Vec<Option<Vec<f32>>>> {
        let (edit, numel) = (&self.config.edit, self.numel());
        let (mut start, mut context, mut pooled, mut places) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (place, plan) in plans.iter().enumerate().filter(|(_, plan)| INSTRUCTIONS[plan.instruction].caption().is_some()) {
            let source = &self.latents[plan.source * numel..(plan.source + 1) * numel];
            let mut noise = vec![0.0; numel * edit.candidates];
            fill_normals(self.config.seed, (first + place) as u32, stream::PAIRS, 0, &mut noise);
            for noise in noise.chunks_exact(numel) {
                start.extend(source.iter().zip(noise).map(|(x, n)| (1.0 - edit.strength) * x + edit.strength * n));
                context.extend_from_slice(&self.captions[plan.instruction].0);
                pooled.extend_from_slice(&self.captions[plan.instruction].1);
            }
            places.push(place);
        }
        let mut targets: Vec<Option<Vec<f32>>> = plans.iter().map(|_| None).collect();
        if places.is_empty() {
            return Ok(targets);
        }
        let settings = SampleSettings {
            kind: SamplerKind::Euler,
            steps: edit.steps,
            guidance: edit.target_guidance,
            image_guidance: 1.0,
            shift: self.base.pipeline().shift,
            spacing: self.base.pipeline().spacing,
            start: edit.strength,
        };
        let (text, nothing) =
            (TextBatch { context: &context, pooled: &pooled }, TextBatch { context: &self.nothing.0, pooled: &self.nothing.1 });
        let drawn = self.sampler.sample_from(self.b, &self.model, &self.params, &settings, self.config.seed, &start, text, nothing)?;
        let mut pixels = self.base.pipeline().codec.decode(&drawn, self.latent)?;
        pixels.iter_mut().for_each(|pixel| *pixel = pixel.clamp(-1.0, 1.0));
        let seen: Vec<usize> = self.evaluator.classifier().classify(&pixels)?.classes().collect();
        let size = IMAGE_SHAPE.iter().product::<usize>();
        for (i, place) in places.into_iter().enumerate() {
            let plan = &plans[place];
            let source = self.images.images(plan.source..plan.source + 1);
            let drawn_of = |at: usize| &pixels[at * size..(at + 1) * size];
            let right = (i * edit.candidates..(i + 1) * edit.candidates)
                .filter(|at| INSTRUCTIONS[plan.instruction].change == Change::Class(seen[*at]));
            let best = right.max_by(|a, b| overlap(drawn_of(*a), &source).total_cmp(&overlap(drawn_of(*b), &source)));
            targets[place] = best.map(|at| drawn[at * numel..(at + 1) * numel].to_vec());
        }
        Ok(targets)
    }

    /// The latent and the instruction that a pair gets: the drawn target, or an exact answer.
    fn settle(&self, plan: &Plan, target: Option<&[f32]>) -> Result<(Vec<f32>, usize)> {
        if let Some(target) = target {
            return Ok((target.to_vec(), plan.instruction));
        }
        let source = self.images.images(plan.source..plan.source + 1);
        let exact = |instruction: usize| -> Option<(Vec<f32>, usize)> {
            Some((INSTRUCTIONS.get(instruction).and_then(|i: &Instruction| i.exact(&source))?, instruction))
        };
        let (pixels, instruction) = exact(plan.instruction).or_else(|| exact(plan.otherwise)).unwrap_or((source, plan.otherwise));
        Ok((self.base.pipeline().codec.encode(&pixels, IMAGE_SHAPE)?, instruction))
    }
}
