//! The same pictures, instructions, masks and seeds for every network: rows to look at, and numbers. The demo's test pictures, which
//! no network was trained on.

use std::collections::BTreeMap;

use image::RgbImage;

use crate::cli::common::draw::{Order, Prompts, pictures};
use crate::cli::common::measure::label;
use crate::cli::common::{Encoders, Outcome, Painter, Progress, network};
use crate::config::{Config, EvalConfig};
use crate::data::FashionMnist;
use crate::data::fashion_mnist::{CLASS_NAMES, IMAGE_SHAPE, Split};
use crate::device::Backend;
use crate::edit::instructions::{Change, INSTRUCTIONS};
use crate::edit::{Dice, Mask, MaskKind, Task, masked_latent};
use crate::eval::{Evaluator, Psnr, overlap};
use crate::flow::{SampleSettings, SamplerKind};
use crate::format::Pipeline;
use crate::report::Row;
use crate::train::TaskRecord;
use crate::vae::CodecConfig;
use crate::{Error, Result};

/// Added to the run's seed, so that no picture that is measured begins from the noise of a training step.
const SEED_OFFSET: u64 = 0x0e7a_2000;
/// What is shown of editing: the class of the source and which of its ten pictures, for each instruction.
const SHOWN: [(usize, usize); 10] = [(2, 1), (0, 4), (4, 2), (0, 2), (7, 1), (9, 3), (7, 4), (9, 0), (3, 2), (8, 1)];
/// Values of a picture.
const SIZE: usize = IMAGE_SHAPE[0] * IMAGE_SHAPE[1] * IMAGE_SHAPE[2];

/// One picture to be changed.
#[derive(Clone, Debug)]
struct Item {
    source: usize,
    /// The instruction, or the class.
    prompt: usize,
    /// What is painted, at the latent's resolution; for inpainting.
    mask: Option<Mask>,
}

/// Draws and measures.
#[derive(Debug)]
pub struct TaskBench {
    task: Task,
    pipeline: Pipeline,
    evaluator: Evaluator,
    images: FashionMnist,
    /// Latents of all of them.
    latents: Vec<f32>,
    /// Pixels of a latent's position.
    factor: usize,
    prompts: Prompts,
    measured: Vec<Item>,
    shown: Vec<Item>,
    seed: u64,
}

impl TaskBench {
    /// For networks with these encoders, or nothing if theirs are not the demo's pictures.
    pub fn new(task: Task, encoders: &Encoders<'_>, config: &Config) -> Outcome<Option<Self>> {
        let pipeline = encoders.pipeline.clone();
        let CodecConfig::Dct { block: factor, .. } = pipeline.codec else { return Ok(None) };
        if encoders.image_shape(network::latent_shape(&pipeline, 0, 0)?)? != IMAGE_SHAPE {
            return Ok(None);
        }
        let images = FashionMnist::builtin(Split::Test)?;
        let names: Vec<String> = match task {
            Task::Edit => INSTRUCTIONS.iter().map(|i| i.prompt.to_owned()).collect(),
            _ => CLASS_NAMES.map(String::from).to_vec(),
        };
        let mut bench = Self {
            task,
            evaluator: Evaluator::demo()?,
            latents: pipeline.codec.encode(&images.images(0..images.len()), IMAGE_SHAPE)?,
            pipeline,
            factor,
            prompts: encoders.prompts(&names)?,
            images,
            measured: Vec::new(),
            shown: Vec::new(),
            seed: config.seed.wrapping_add(SEED_OFFSET) >> 1,
        };
        bench.measured = (0..config.eval.samples).map(|index| bench.item(index)).collect();
        bench.shown = (0..10).map(|column| bench.shown_item(column)).collect();
        Ok(Some(bench))
    }

    fn class(&self, source: usize) -> usize {
        usize::from(self.images.labels()[source])
    }

    /// Every source in turn, with every instruction that suits it, or every kind of mask, in turn.
    fn item(&self, index: usize) -> Item {
        let (source, round) = (index % self.images.len(), index / self.images.len());
        if self.task == Task::Edit {
            let fit: Vec<usize> = (0..INSTRUCTIONS.len()).filter(|i| INSTRUCTIONS[*i].suits(self.class(source))).collect();
            return Item { source, prompt: fit[(round + source) % fit.len()], mask: None };
        }
        let kind = MaskKind::ALL[(round + source) % MaskKind::ALL.len()];
        Item { source, prompt: self.class(source), mask: Some(self.mask(kind, index)) }
    }

    fn mask(&self, kind: MaskKind, index: usize) -> Mask {
        let [_, height, width] = IMAGE_SHAPE;
        Mask::draw(&[kind], height / self.factor, width / self.factor, &mut Dice::new(self.seed, 0, index as u64))
    }

    fn shown_item(&self, column: usize) -> Item {
        let of_class = |class: usize, which: usize| (0..self.images.len()).filter(|i| self.class(*i) == class).nth(which).unwrap_or(class);
        if self.task == Task::Edit {
            let (class, which) = SHOWN[column];
            return Item { source: of_class(class, which), prompt: column, mask: None };
        }
        let kind = MaskKind::ALL[column % MaskKind::ALL.len()];
        Item { source: of_class(column, 3), prompt: column, mask: Some(self.mask(kind, 100_000 + column)) }
    }

    /// What the columns show.
    pub fn columns(&self) -> Vec<String> {
        self.prompts.names.clone()
    }

    fn source(&self, item: &Item) -> Vec<f32> {
        self.images.images(item.source..item.source + 1)
    }

    fn latent(&self, item: &Item) -> &[f32] {
        let numel = self.latents.len() / self.images.len();
        &self.latents[item.source * numel..(item.source + 1) * numel]
    }

    /// What the network reads beside the noisy latents `[n, K, H, W]`.
    fn conditioning(&self, items: &[Item]) -> Vec<f32> {
        let of = |item: &Item| item.mask.as_ref().map_or_else(|| self.latent(item).to_vec(), |mask| masked_latent(self.latent(item), mask));
        items.iter().flat_map(of).collect()
    }

    /// Pixels `[n, 1, 32, 32]` that a network draws; with `given` false what conditions them is withheld.
    fn draw<B: Backend>(
        &self,
        painter: &mut Painter<'_, B>,
        params: &B::Data,
        settings: &SampleSettings,
        items: &[Item],
        given: bool,
        drawn: impl FnMut(usize),
    ) -> Outcome<Vec<f32>> {
        let which: Vec<usize> = items.iter().map(|item| item.prompt).collect();
        let mut conditioning = self.conditioning(items);
        if !given {
            conditioning.fill(0.0);
        }
        let order = Order { settings, seed: self.seed, first: 0, prompts: &self.prompts, which: &which, conditioning: Some(&conditioning) };
        painter.pixels(params, &order, drawn)
    }

    /// The kept pixels of the sources around the painted ones of `pixels`.
    fn pasted(&self, items: &[Item], pixels: &[f32]) -> Vec<f32> {
        let mut out = pixels.to_vec();
        for (item, out) in items.iter().zip(out.chunks_exact_mut(SIZE)) {
            let Some(mask) = item.mask.as_ref().map(|mask| mask.enlarged(self.factor)) else { continue };
            let kept = out.iter_mut().zip(self.source(item)).zip(&mask.values).filter(|(_, painted)| **painted == 0.0);
            kept.for_each(|((pixel, source), _)| *pixel = source);
        }
        out
    }

    /// Rows of what is there before: the sources, and for inpainting what is left of them.
    pub fn before(&self) -> Result<Vec<Row>> {
        let sources: Vec<f32> = self.shown.iter().flat_map(|item| self.source(item)).collect();
        let mut rows = vec![Row { label: "source".into(), note: String::new(), images: pictures(&sources, IMAGE_SHAPE) }];
        if self.task == Task::Inpaint {
            let mut images = pictures(&sources, IMAGE_SHAPE);
            for (item, image) in self.shown.iter().zip(&mut images) {
                if let Some(mask) = &item.mask {
                    tint(image, &mask.enlarged(self.factor));
                }
            }
            rows.push(Row { label: "painted over".into(), note: "stroke, box, outpaint, ...".into(), images });
        }
        Ok(rows)
    }

    /// One row of pictures; filled holes are pasted.
    pub fn row<B: Backend>(&self, painter: &mut Painter<'_, B>, params: &B::Data, settings: &SampleSettings, note: String) -> Outcome<Row> {
        let pixels = self.draw(painter, params, settings, &self.shown, true, |_| ())?;
        Ok(Row { label: scales(settings), note, images: pictures(&self.pasted(&self.shown, &pixels), IMAGE_SHAPE) })
    }

    /// Draws and measures `eval.samples` pictures; with `given` false the source is withheld from the network.
    pub fn measure<B: Backend>(
        &self,
        painter: &mut Painter<'_, B>,
        params: &B::Data,
        settings: &SampleSettings,
        (name, step): (&str, u32),
        given: bool,
        progress: &mut Progress,
    ) -> Outcome<TaskRecord> {
        let (before, cost) = (progress.done(), settings.evaluations() as u64);
        let pixels = self.draw(painter, params, settings, &self.measured, given, |drawn| {
            progress.set(before + drawn as u64 * cost, || format!("{name}, {}", scales(settings)));
        })?;
        Ok(TaskRecord {
            step,
            network: name.to_owned(),
            sampler: settings.kind.name().to_owned(),
            steps: settings.steps,
            guidance: settings.guidance,
            image_guidance: settings.image_guidance,
            evaluations: settings.evaluations(),
            samples: self.measured.len(),
            numbers: self.numbers(&pixels)?,
        })
    }

    /// What no network has to be asked for: the sources as they are, and what inpainting leaves of them.
    pub fn without_network(&self) -> Result<Vec<TaskRecord>> {
        let sources: Vec<f32> = self.measured.iter().flat_map(|item| self.source(item)).collect();
        let record = |name: &str, pixels: &[f32]| {
            let numbers = self.numbers(pixels)?;
            Ok::<_, Error>(TaskRecord {
                network: name.into(),
                guidance: 1.0,
                image_guidance: 1.0,
                samples: self.measured.len(),
                numbers,
                ..TaskRecord::default()
            })
        };
        if self.task == Task::Edit {
            return Ok(vec![record("the source, unchanged", &sources)?]);
        }
        // The part of the conditioning that is a latent, of which the hole is zeros: the mean colour.
        let masked: Vec<f32> = self
            .measured
            .iter()
            .flat_map(|item| self.conditioning(std::slice::from_ref(item))[..self.latent(item).len()].to_vec())
            .collect();
        let empty = self.pipeline.codec.decode(&masked, self.pipeline.codec.latent_shape(IMAGE_SHAPE)?)?;
        let mut whole = record("the picture itself", &sources)?;
        whole.numbers.retain(|name, _| !["kept", "filled"].contains(&name.as_str()));
        let mut hole = record("the hole left empty", &empty)?;
        hole.numbers.remove("kept");
        Ok(vec![whole, hole])
    }

    /// Network evaluations that measuring `settings` costs.
    pub fn cost(&self, settings: &[SampleSettings]) -> u64 {
        settings.iter().map(|s| (s.evaluations() * self.measured.len()) as u64).sum()
    }

    fn numbers(&self, pixels: &[f32]) -> Result<BTreeMap<String, f64>> {
        let numbers = if self.task == Task::Edit { self.edit_numbers(pixels)? } else { self.inpaint_numbers(pixels)? };
        Ok(numbers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    fn edit_numbers(&self, pixels: &[f32]) -> Result<Vec<(&'static str, f64)>> {
        let clamped: Vec<f32> = pixels.iter().map(|pixel| pixel.clamp(-1.0, 1.0)).collect();
        let seen: Vec<usize> = self.evaluator.classifier().classify(&clamped)?.classes().collect();
        let (mut agrees, mut overlaps, mut exact) = (0_usize, 0.0, Psnr::default());
        // Those that were to become another class.
        let (mut changed, mut classes) = (Vec::new(), Vec::new());
        for ((item, pixels), seen) in self.measured.iter().zip(clamped.chunks_exact(SIZE)).zip(seen) {
            let (instruction, source) = (&INSTRUCTIONS[item.prompt], self.source(item));
            if let Change::Class(class) = instruction.change {
                changed.extend_from_slice(pixels);
                classes.push(class);
                agrees += usize::from(seen == class);
                overlaps += overlap(pixels, &source);
            } else if let Some(answer) = instruction.exact(&source) {
                exact.add(pixels.iter().zip(&answer));
            }
        }
        let share = |sum: f64| sum / classes.len().max(1) as f64;
        let mut numbers = vec![("agrees", share(agrees as f64)), ("overlap", share(overlaps)), ("psnr", exact.decibels())];
        if classes.len() > 1 {
            numbers.push(("fd", self.evaluator.measure(&changed, &classes)?.fd));
        }
        Ok(numbers)
    }

    fn inpaint_numbers(&self, pixels: &[f32]) -> Result<Vec<(&'static str, f64)>> {
        let (mut kept, mut filled) = (Psnr::default(), Psnr::default());
        for (item, pixels) in self.measured.iter().zip(pixels.chunks_exact(SIZE)) {
            let Some(mask) = item.mask.as_ref().map(|mask| mask.enlarged(self.factor)) else { continue };
            let source = self.source(item);
            let of = |wanted: f32| {
                pixels.iter().zip(&source).zip(&mask.values).filter(move |(_, painted)| **painted == wanted).map(|(pair, _)| pair)
            };
            kept.add(of(0.0));
            filled.add(of(1.0));
        }
        let labels: Vec<usize> = self.measured.iter().map(|item| item.prompt).collect();
        let quality = self.evaluator.measure(&self.pasted(&self.measured, pixels), &labels)?;
        Ok(vec![("kept", kept.decibels()), ("filled", filled.decibels()), ("fd", quality.fd), ("agrees", quality.accuracy)])
    }
}

/// Blends an orange over what is painted.
pub fn tint(image: &mut RgbImage, mask: &Mask) {
    const COLOUR: [u8; 3] = [230, 120, 20];
    for (pixel, painted) in image.pixels_mut().zip(&mask.values) {
        if *painted > 0.0 {
            pixel.0.iter_mut().zip(COLOUR).for_each(|(value, colour)| *value = ((u16::from(*value) + 3 * u16::from(colour)) / 4) as u8);
        }
    }
}

/// How a teacher of a task is measured: with all its guidance at its most steps, and with its fewest.
pub fn teacher_settings(task: Task, config: &EvalConfig, pipeline: &Pipeline) -> Vec<SampleSettings> {
    let image_guidance = if task == Task::Edit { config.image_guidance } else { 1.0 };
    let Pipeline { shift, spacing, .. } = *pipeline;
    let with = |steps: &usize| SampleSettings {
        kind: SamplerKind::Euler,
        steps: *steps,
        guidance: config.guidance,
        image_guidance,
        shift,
        spacing,
        start: 1.0,
    };
    config.teacher_steps.iter().map(with).collect()
}

/// `4 steps, guidance 3, image 1.5`.
pub fn scales(settings: &SampleSettings) -> String {
    let image = if settings.image_guidance == 1.0 { String::new() } else { format!(", image {}", settings.image_guidance) };
    format!("{}{image}", label(settings))
}
