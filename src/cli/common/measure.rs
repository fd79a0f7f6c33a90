//! The same prompts and seeds for every network and sampler: rows of pictures to look at, and quality where it can be measured.

use super::draw::{Order, Painter, Prompts, pictures};
use super::{Encoders, Outcome, Progress, network};
use crate::config::EvalConfig;
use crate::data::fashion_mnist;
use crate::device::Backend;
use crate::eval::Evaluator;
use crate::flow::{SampleSettings, SamplerKind, Spacing};
use crate::format::Pipeline;
use crate::report::Row;
use crate::train::QualityRecord;

/// Pictures in a row.
const COLUMNS: usize = 10;
/// Added to the run's seed, so that no image that is measured begins from the noise of a training latent.
const SEED_OFFSET: u64 = 0x0e7a_1000;

/// Draws and measures.
#[derive(Debug)]
pub struct Bench {
    evaluator: Option<Evaluator>,
    prompts: Prompts,
    samples: usize,
    seed: u64,
    /// Latent shapes of the columns, in turn; one or none means the painter's.
    shapes: Vec<[usize; 3]>,
}

impl Bench {
    /// For networks with these encoders; `names` are the prompts of the columns where nothing can be measured. None if
    /// images cannot be decoded here.
    pub fn new(encoders: &Encoders<'_>, config: &EvalConfig, seed: u64, names: &[String]) -> Outcome<Option<Self>> {
        if !encoders.draws() {
            return Ok(None);
        }
        let evaluator = Evaluator::demo()?;
        let image = encoders.image_shape(network::latent_shape(encoders.pipeline, 0, 0)?)?;
        let classes = fashion_mnist::CLASS_NAMES.map(String::from);
        let demo = image == evaluator.image_shape() && (names.is_empty() || names.iter().all(|n| classes.contains(n)));
        let names = if demo { classes.to_vec() } else { spread(names) };
        let prompts = encoders.prompts(&names)?;
        Ok(Some(Self {
            evaluator: demo.then_some(evaluator),
            prompts,
            samples: config.samples,
            seed: seed.wrapping_add(SEED_OFFSET) >> 1,
            shapes: Vec::new(),
        }))
    }

    /// With the columns of a row in several latent shapes, in turn.
    #[must_use]
    pub fn with_shapes(self, shapes: Vec<[usize; 3]>) -> Self {
        Self { shapes, ..self }
    }

    /// Whether quality can be measured: for the demo's images and prompts only.
    pub fn measures(&self) -> bool {
        self.evaluator.is_some()
    }

    /// The prompts of the columns.
    pub fn columns(&self) -> Vec<String> {
        self.prompts.names.iter().take(COLUMNS).cloned().collect()
    }

    /// One row of pictures.
    pub fn row<B: Backend>(&self, painter: &mut Painter<'_, B>, params: &B::Data, settings: &SampleSettings, note: String) -> Outcome<Row> {
        let which: Vec<usize> = (0..self.prompts.names.len().min(COLUMNS)).collect();
        if self.shapes.len() < 2 {
            let images = painter.pictures(params, &self.order(settings, &which))?;
            return Ok(Row { label: label(settings), note, images });
        }
        let mut images = Vec::new();
        for (column, shape) in which.iter().zip(self.shapes.iter().cycle()) {
            let usual = painter.change((*shape, 1));
            let order = Order { first: *column as u32, ..self.order(settings, std::slice::from_ref(column)) };
            let drawn = painter.pictures(params, &order);
            painter.change(usual);
            images.extend(drawn?);
        }
        Ok(Row { label: label(settings), note, images })
    }

    /// Draws and measures `eval.samples` images; the first of them are the row.
    pub fn measure<B: Backend>(
        &self,
        painter: &mut Painter<'_, B>,
        params: &B::Data,
        settings: &SampleSettings,
        (network, step): (&str, u32),
        progress: &mut Progress,
    ) -> Outcome<Option<(QualityRecord, Row)>> {
        let Some(evaluator) = &self.evaluator else { return Ok(None) };
        let classes: Vec<usize> = (0..self.samples).map(|i| i % self.prompts.names.len()).collect();
        let before = progress.done();
        let cost = settings.evaluations() as u64;
        let pixels = painter.pixels(params, &self.order(settings, &classes), |drawn| {
            progress.set(before + drawn as u64 * cost, || format!("{network}, {}", label(settings)));
        })?;
        let quality = evaluator.measure(&pixels, &classes)?;
        let shape = painter.image_shape()?;
        let size: usize = shape.iter().product();
        let images = pictures(&pixels[..size * COLUMNS.min(self.samples)], shape);
        let record = QualityRecord {
            step,
            network: network.to_owned(),
            sampler: settings.kind.name().to_owned(),
            steps: settings.steps,
            guidance: settings.guidance,
            evaluations: settings.evaluations(),
            fd: quality.fd,
            accuracy: quality.accuracy,
            diversity: quality.diversity,
            samples: self.samples,
        };
        let row = Row { label: label(settings), note: fd_note(&record), images };
        Ok(Some((record, row)))
    }

    /// Network evaluations that measuring `settings` costs, for the progress bar.
    pub fn cost(&self, settings: &[SampleSettings]) -> u64 {
        settings.iter().map(|s| (s.evaluations() * self.samples) as u64).sum()
    }

    fn order<'a>(&'a self, settings: &'a SampleSettings, which: &'a [usize]) -> Order<'a> {
        Order { settings, seed: self.seed, first: 0, prompts: &self.prompts, which, conditioning: None }
    }
}

/// As many names as there are columns, from all over the list.
fn spread(names: &[String]) -> Vec<String> {
    let count = names.len().min(COLUMNS);
    (0..count).map(|column| names[column * names.len() / count].clone()).collect()
}

/// How students are measured: unguided, with the renoise sampler.
pub fn student_settings(config: &EvalConfig) -> Vec<SampleSettings> {
    let student = |steps: &usize| SampleSettings {
        kind: SamplerKind::Renoise,
        steps: *steps,
        guidance: 1.0,
        image_guidance: 1.0,
        shift: 1.0,
        spacing: Spacing::Trailing,
        start: 1.0,
    };
    config.student_steps.iter().map(student).collect()
}

/// How teachers are measured: Euler, guided and unguided.
pub fn teacher_settings(config: &EvalConfig, pipeline: &Pipeline) -> Vec<SampleSettings> {
    let Pipeline { shift, spacing, .. } = *pipeline;
    let scales = if config.guidance == 1.0 { vec![1.0] } else { vec![config.guidance, 1.0] };
    let with = |guidance: f32| {
        config.teacher_steps.iter().map(move |steps| SampleSettings {
            kind: SamplerKind::Euler,
            steps: *steps,
            guidance,
            image_guidance: 1.0,
            shift,
            spacing,
            start: 1.0,
        })
    };
    scales.into_iter().flat_map(with).collect()
}

/// `FD 8.71`, to stand below a row's label.
pub fn fd_note(record: &QualityRecord) -> String {
    format!("FD {:.2}", record.fd)
}

/// `4 steps, guidance 3`.
pub fn label(settings: &SampleSettings) -> String {
    let plural = if settings.steps == 1 { "" } else { "s" };
    let guidance = if settings.guidance == 1.0 { String::new() } else { format!(", guidance {}", settings.guidance) };
    format!("{} step{plural}{guidance}", settings.steps)
}
