//! `ladd-fast distill`: from a teacher to a student that draws in one to four steps. Without arguments it is the demo.
//!
//! The parts of a run, in order: load the teacher, synthesize latents, measure what there is before, distil (with sample
//! grids, measurements and checkpoints on the way), train the regression control, write pictures, curves and tables.
//! Every part can be interrupted; `--resume` goes on behind the last checkpoint.

mod adapters;
mod applying;
mod batches;
mod showing;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;

use super::common::device::on_device;
use super::common::encoders;
use super::common::network::Finished;
use super::common::progress::duration;
use super::common::resume;
use super::common::{
    Device, Encoders, Ending, Globals, Loaded, Outcome, Progress, Stop, flag, interrupt, latents, network, number, output, path,
    start_threads,
};
use super::tasks;
use crate::config::{Config, Sources};
use crate::data::{LatentDataset, Loader, Share};
use crate::device::Backend;
use crate::edit::Task;
use crate::format::{Dtype, Role};
use crate::ladd::{LaddConfig, TeacherPrecision};
use crate::report::{distillation_panels, draw_panels, save_png};
use crate::train::checkpoint::{self, TrainingState};
use crate::train::{DistillSettings, Distiller, Network, Purpose, QualityRecord, Record, RunFolder, StepRecord, Watch};
use crate::{Error, Result};

use adapters::Reapplied;
use applying::Applying;
use batches::Batches;
use showing::{Showing, Shows};

/// Distil a teacher into a student that draws in 1-4 steps; without arguments, the demo.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ladd-fast distill                                     the demo: under five minutes on two cores
  ladd-fast distill --preset demo-quick                 the same in about a minute
  ladd-fast distill --steps 1600 --set ladd.update=alternating
  ladd-fast distill --set lora.rank=16                  train adapters (LoRA) instead of all weights
  ladd-fast distill --teacher SD3 --data latents --preset sd3-medium --reapply-lora dpo.safetensors
  ladd-fast distill --preset demo-edit                  a student that edits, with its teacher: docs/edit.md
  ladd-fast distill --preset demo-inpaint               a student that fills holes
  ladd-fast distill --run runs/NAME --resume            go on with an interrupted run
  ladd-fast distill --teacher teacher.safetensors --data latents --config my-run.toml

A run writes everything to its own folder: settings, metrics, sample grids, curves, checkpoints, the student.")]
pub struct Arguments {
    /// What the student is for: generate, edit or inpaint [default: generate].
    #[arg(long, value_name = "TASK")]
    task: Option<String>,
    /// The teacher: a checkpoint, or `builtin` for the demo's.
    #[arg(long, value_name = "FILE")]
    teacher: Option<PathBuf>,
    /// Folder of latents from `synthesize` [default: draw them first].
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Optimiser steps.
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Samples per step.
    #[arg(long, value_name = "N")]
    batch: Option<u64>,
    /// Seed.
    #[arg(long, value_name = "N", value_parser = super::common::seed)]
    seed: Option<u64>,
    /// Adapters (LoRA) to merge into the finished student, such as the teacher's from a preference training (DPO); may be repeated.
    #[arg(long, value_name = "PATH")]
    reapply_lora: Vec<String>,
    /// The run's folder [default: runs/DATE-TIME].
    #[arg(long, value_name = "FOLDER")]
    run: Option<PathBuf>,
    /// Go on with the run in --run behind its last checkpoint.
    #[arg(long, requires = "run")]
    resume: bool,
}

pub(super) fn run(globals: &Globals, arguments: &Arguments) -> Outcome {
    let flags = vec![
        flag("task", "--task", arguments.task.clone()),
        path("teacher.checkpoint", "--teacher", arguments.teacher.as_ref()),
        path("data.shards", "--data", arguments.data.as_ref()),
        number("distill.steps", "--steps", arguments.steps),
        number("distill.batch", "--batch", arguments.batch),
        number("seed", "--seed", arguments.seed),
        flag("lora.reapply", "--reapply-lora", (!arguments.reapply_lora.is_empty()).then(|| arguments.reapply_lora.clone())),
    ];
    let (config, networks, opened) = match &arguments.run {
        Some(folder) if arguments.resume => {
            globals.refuse_settings(&flags)?;
            let run = RunFolder::open(folder, Purpose::Distill)?;
            let config = run.config()?;
            start_threads(globals.threads.unwrap_or(config.threads))?;
            let networks = Networks::load(&config)?;
            (config, networks, Some(run))
        }
        _ => {
            let config = globals.load(flags)?;
            let networks = Networks::load(&config)?;
            tasks::check_teacher(&networks.teacher, config.task)?;
            Encoders::new(&config.encoders, networks.teacher.pipeline(), &networks.teacher.name).tokens()?;
            (config, networks, None)
        }
    };
    config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    let device = Device::open(globals.device.as_deref().unwrap_or(&config.device), config.deterministic)?;
    let fresh = opened.is_none();
    let mut run = match opened {
        Some(run) => run,
        None => RunFolder::create(arguments.run.as_deref(), &config, Purpose::Distill)?,
    };
    device.choose_algorithms(config.gemm_algorithms, run.path())?;
    let done = on_device!(device, |b| distill(b, &config, &networks, &mut run, Ending::Told));
    match &done {
        Err(Stop::Interrupted) => output::note(&format!("interrupted; go on with: {}", Purpose::Distill.resumption(run.path()))),
        Err(Stop::Error(_)) if fresh => run.discard_untouched(),
        _ => (),
    }
    done
}

/// The networks a distillation begins with.
pub(super) struct Networks {
    teacher: Loaded,
    /// Where the student does not begin as the teacher.
    student: Option<Loaded>,
    /// What is merged into the student at the end.
    reapplied: Reapplied,
}

impl Networks {
    /// Reads them.
    ///
    /// # Errors
    /// When there is no such network, or the student reads other latents or prompts than the teacher.
    pub fn load(config: &Config) -> Result<Self> {
        let teacher = network::load(&config.teacher.checkpoint)?;
        let student = match config.distill.student.as_str() {
            "" => None,
            name => Some(network::load(name)?),
        };
        if let Some(student) = &student {
            let (ours, theirs) = (student.pipeline(), teacher.pipeline());
            if ours.codec != theirs.codec || ours.text != theirs.text {
                return Err(Error::Config(format!(
                    "distill.student = {:?} has another codec or text encoder than the teacher {:?}: both must read the same latents and prompts",
                    student.name, teacher.name
                )));
            }
        }
        let begins = student.as_ref().unwrap_or(&teacher);
        adapters::plan(config, &begins.pipeline().model)?;
        Ok(Self { reapplied: Reapplied::read(config, begins)?, teacher, student })
    }

    /// The network that judges.
    pub fn teacher(&self) -> &Loaded {
        &self.teacher
    }

    /// The network that the student begins as.
    pub fn student(&self) -> &Loaded {
        self.student.as_ref().unwrap_or(&self.teacher)
    }
}

/// A distillation with everything around it.
struct Session<'a, B: Backend> {
    b: &'a B,
    config: &'a Config,
    teacher: &'a Loaded,
    student: &'a Loaded,
    encoders: &'a Encoders<'a>,
    reapplied: &'a Reapplied,
    run: &'a mut RunFolder,
    records: Vec<Record>,
}

pub(super) fn distill<B: Backend>(b: &B, config: &Config, networks: &Networks, run: &mut RunFolder, ending: Ending) -> Outcome {
    let started = Instant::now();
    banner(b, config, &networks.teacher, run, ending);
    let prepared = match config.task {
        Task::Generate => None,
        _ => Some(tasks::prepare(b, config, &networks.teacher, run)?),
    };
    let teacher = prepared.as_ref().map_or(&networks.teacher, |prepared| &prepared.teacher);
    let folder = match config.data.shards.as_str() {
        "" => run.join("latents"),
        shards => PathBuf::from(shards),
    };
    let model = teacher.model(b)?;
    if config.ladd.teacher_precision == TeacherPrecision::Fp8 && config.step().adversarial_weight > 0.0 {
        // Before minutes go into latents.
        model.check_fp8(b, model.config().depth)?;
    }
    drop(model);
    let encoders = Encoders::new(&config.encoders, teacher.pipeline(), &teacher.name);
    let reached = run.latest_checkpoint()?.map_or(0, |(step, _)| step);
    let records = run.truncate_after(reached)?;
    let reapplied = &networks.reapplied;
    let student = if prepared.is_some() { teacher } else { networks.student() };
    let mut session = Session { b, config, teacher, student, encoders: &encoders, reapplied, records, run };
    let dataset = match &prepared {
        Some(prepared) => prepared.dataset.clone(),
        None => {
            if config.data.shards.is_empty() {
                session.phase("synthesis", 0, |_| {
                    latents::synthesize(b, teacher, &encoders, &config.synthesize, config.seed, &folder, Share::WHOLE)
                })?;
            }
            let dataset = latents::open(&folder)?;
            latents::check_fit(&dataset, teacher, &folder)?;
            Arc::new(dataset)
        }
    };

    let mut distiller = session.distiller(config.step(), config.distill.steps)?;
    let seconds = session.restore(&mut distiller)?;
    let mut showing: Box<dyn Shows<B>> = match config.task {
        Task::Generate => Box::new(Showing::new(&session, &dataset)?),
        _ => Box::new(Applying::new(&session)?),
    };
    let showing = showing.as_mut();
    session.phase("evaluation", 0, |session| showing.before(session))?;
    let resumed = distiller.done();
    let trained = session.train(&mut distiller, &dataset, showing, seconds);
    if distiller.done() > resumed && matches!(trained, Err(Stop::Interrupted)) {
        session.draw_curves()?; // whoever looks at an interrupted run wants to see how far it came
    }
    trained?;

    let weights = distiller.student.averaged_weights(b)?;
    if showing.measures() && !showing.measured(&session, config.distill.steps) {
        session.phase("evaluation", config.distill.steps, |session| showing.student(session, &weights, config.distill.steps, true))?;
    }
    let finished = session.save_student(&distiller, &weights)?;
    drop(distiller);
    if let Some(finished) = finished
        && showing.measures()
    {
        session.phase("evaluation", config.distill.steps, |session| showing.reapplied(session, &network::upload(session.b, &finished)?))?;
    }
    if config.distill.control && showing.measures() {
        session.phase("control", config.distill.steps, |session| session.control(&dataset, showing))?;
    }
    session.phase("evaluation", config.distill.steps, |session| showing.comparison(session, &weights))?;
    session.draw_curves()?;
    session.results(showing, started.elapsed().as_secs_f64(), ending)
}

/// Warns of latent shapes with so few samples that a batch holds some of them twice.
fn small_buckets(dataset: &LatentDataset, batch: usize) {
    for bucket in dataset.buckets().iter().filter(|bucket| bucket.samples.len() < batch) {
        let ([_, height, width], count) = (bucket.shape, bucket.samples.len());
        tracing::warn!("only {count} latents are {height}x{width}, fewer than a batch of {batch}: every batch of this shape repeats some");
    }
}

/// One line on what will happen.
fn banner<B: Backend>(b: &B, config: &Config, teacher: &Loaded, run: &RunFolder, ending: Ending) {
    // Of the preset as it is.
    let of_preset = Config::load(&Sources { preset: Some(&config.preset), ..Sources::default() });
    let usual = of_preset.is_ok_and(|usual| usual.distill == config.distill && usual.synthesize == config.synthesize);
    let length = match config.preset.as_str() {
        _ if ending == Ending::Silent || !usual => "",
        "demo" => ", under five minutes on two cores",
        "demo-quick" => ", about a minute on two cores",
        "demo-edit" | "demo-inpaint" => ", its teacher included",
        _ => "",
    };
    let adapters = match config.lora.rank {
        0 => String::new(),
        rank => format!(" into adapters of rank {rank}"),
    };
    output::note(&format!(
        "distilling {} ({:.1} M parameters){adapters} in {} steps of {} on {}{length}; everything goes to {}",
        match teacher.name.as_str() {
            "builtin" => "the built-in teacher",
            name => name,
        },
        teacher.parameters() as f64 / 1e6,
        config.distill.steps,
        config.distill.batch,
        b.name(),
        run.path().display()
    ));
}

impl<B: Backend> Session<'_, B> {
    /// Runs a part and records how long it took, also when it was interrupted.
    fn phase(&mut self, name: &str, step: u32, part: impl FnOnce(&mut Self) -> Outcome) -> Outcome {
        let started = Instant::now();
        let outcome = part(self);
        self.record(Record::Phase { name: name.to_owned(), seconds: started.elapsed().as_secs_f64(), step })?;
        outcome
    }

    fn record(&mut self, record: Record) -> Result<()> {
        self.run.append(&record)?;
        self.records.push(record);
        Ok(())
    }

    fn quality(&self) -> Vec<QualityRecord> {
        let quality = self.records.iter().filter_map(|r| match r {
            Record::Quality(quality) => Some(quality.clone()),
            _ => None,
        });
        quality.collect()
    }

    /// Whether the student does not begin as the teacher.
    fn has_student(&self) -> bool {
        !std::ptr::eq(self.student, self.teacher)
    }

    /// A fresh student and fresh heads.
    fn distiller(&self, ladd: LaddConfig, total_steps: u32) -> Outcome<Distiller<B>> {
        let config = self.config;
        let settings = DistillSettings {
            ladd,
            student: config.optim.student.clone(),
            heads: config.optim.heads.clone(),
            total_steps,
            ema_decay: config.distill.ema_decay,
            seed: config.seed,
            activation_checkpointing: config.distill.activation_checkpointing,
        };
        let (b, teacher, student) = (self.b, self.teacher, self.student);
        let (model, optim, decay) = (student.model(b)?, &settings.student, settings.ema_decay);
        let network = match adapters::plan(config, model.config())? {
            None => student.trained(b, optim, 0, decay)?,
            Some(plan) => {
                let arena = &model.layout().arena;
                Network::with_adapters(b, Arc::new(student.tensors.gather(arena)?), (arena, plan), optim, 0, decay)?
            }
        };
        let mut distiller = Distiller::from_device(b, settings, (teacher.model(b)?, teacher.params(b)?), (model, network))?;
        if distiller.needs_negative() {
            let (mut context, mut pooled) = (Vec::new(), Vec::new());
            let prompts = self.encoders.prompts(std::slice::from_ref(&config.synthesize.negative_prompt))?;
            prompts.gather(std::iter::once(0), &mut context, &mut pooled)?;
            distiller.set_negative(context, pooled);
        }
        Ok(distiller)
    }

    /// Continues behind the newest checkpoint, if there is one; returns the seconds trained so far.
    fn restore(&self, distiller: &mut Distiller<B>) -> Result<f64> {
        let Some((_, folder)) = self.run.latest_checkpoint()? else { return Ok(0.0) };
        let networks = &mut [("student", &mut distiller.student), ("heads", &mut distiller.heads)];
        let state = checkpoint::load(self.b, &folder, &resume::settings_in(&folder, self.config)?, networks)?;
        distiller.resume_at(state.step);
        output::note(&format!("going on behind step {}", state.step));
        Ok(state.seconds)
    }

    /// The distillation itself.
    fn train(&mut self, distiller: &mut Distiller<B>, dataset: &Arc<LatentDataset>, showing: &mut dyn Shows<B>, before: f64) -> Outcome {
        let config = &self.config.distill;
        if distiller.done() >= config.steps {
            return Ok(());
        }
        let mut batches = Batches::new(self.config, self.encoders, dataset, distiller.needs_mismatch())?;
        let mut loader = Loader::new(dataset.clone(), self.config.seed, config.micro_batch(), config.accumulate)?;
        small_buckets(dataset, config.batch);
        distiller.prepare(self.b, &batches.shapes(dataset, config.micro_batch()), config.accumulate)?;
        let mut progress = Progress::new("distillation", u64::from(config.steps), u64::from(distiller.done()));
        let (mut watch, mut seconds) = (Watch::default(), before);
        while distiller.done() < config.steps {
            let started = Instant::now();
            distiller.step(self.b, &batches.next(&mut loader, distiller.done())?)?;
            let step = distiller.done();
            let last = step == config.steps;
            if step.is_multiple_of(config.log_every) || last {
                let record = distiller.record(self.b, seconds + started.elapsed().as_secs_f64())?;
                progress.set(u64::from(step), || summary(&record));
                let warnings = watch.observe(&record);
                self.record(Record::Step(record))?;
                warnings?.iter().for_each(|warning| tracing::warn!("{warning}"));
            }
            seconds += started.elapsed().as_secs_f64();
            let stop = interrupt::requested();
            if !stop && (due(config.eval_every, step) || due(config.sample_every, step) || last) {
                let measure = due(config.eval_every, step) || last;
                let weights = distiller.student.averaged_weights(self.b)?;
                match self.phase("evaluation", step, |session| showing.student(session, &weights, step, measure)) {
                    Err(Stop::Interrupted) => {} // the checkpoint comes first
                    other => other?,
                }
                self.draw_curves()?;
            }
            if stop || interrupt::requested() || due(config.checkpoint_every, step) || last {
                self.write_checkpoint(distiller, seconds)?;
            }
            if !last {
                interrupt::check()?;
            }
        }
        progress.finish(&format!("{} steps", config.steps));
        self.record(Record::Phase { name: "distillation".into(), seconds, step: config.steps })?;
        interrupt::check()
    }

    fn write_checkpoint(&self, distiller: &Distiller<B>, seconds: f64) -> Result<()> {
        let step = distiller.done();
        let state = TrainingState::new(step, seconds, resume::settings(self.config)?);
        self.run.write_checkpoint(step, self.config.distill.keep_checkpoints, |folder| {
            checkpoint::save(self.b, folder, &state, &[("student", &distiller.student), ("heads", &distiller.heads)])
        })?;
        Ok(())
    }

    /// The averaged student, for this program and for diffusers; a LoRA student's adapters too. Returns its weights where something
    /// was merged into them.
    fn save_student(&self, distiller: &Distiller<B>, weights: &[f32]) -> Result<Option<Vec<f32>>> {
        let mut pipeline = self.student.pipeline().clone();
        pipeline.role = Role::Student;
        let notes = [
            ("made_by", format!("ladd-fast {} distill", env!("CARGO_PKG_VERSION"))),
            ("teacher", self.teacher.fingerprint()?),
            ("method", self.config.distill.method.name().to_owned()),
            ("steps", self.config.distill.steps.to_string()),
            ("seed", self.config.seed.to_string()),
        ];
        let origin = self.encoders.origin().map(|path| (encoders::NOTE, path));
        pipeline.notes = notes.into_iter().chain(origin).map(|(key, value)| (key.to_owned(), value)).collect();
        let student = Finished::new(self.b, distiller.student_model(), weights, pipeline)?;
        if let Some(lora) = distiller.student.averaged_adapters(self.b)? {
            adapters::save(self.run, lora, student.pipeline())?;
        }
        let folder = self.run.folder("student")?;
        if self.reapplied.is_empty() {
            student.save(&folder, "student", Dtype::F32)?;
            return Ok(None);
        }
        let mut finished = student.loaded("student")?;
        self.reapplied.apply(&mut finished)?;
        finished.save(&folder, "student", Dtype::F32)?;
        finished.tensors.gather(&distiller.student_model().layout().arena).map(Some)
    }

    /// The control: the same student, trained by plain regression onto the same latents.
    fn control(&mut self, dataset: &Arc<LatentDataset>, showing: &mut dyn Shows<B>) -> Outcome {
        let file = self.run.folder("control")?.join("student.safetensors");
        if file.is_file() {
            let loaded = network::load(&file.to_string_lossy())?;
            return showing.control(self, &loaded.params(self.b)?);
        }
        let config = &self.config.distill;
        let steps = if config.control_steps == 0 { config.steps } else { config.control_steps };
        let ladd = LaddConfig { adversarial_weight: 0.0, distillation_weight: 1.0, ..self.config.ladd.clone() };
        let mut distiller = self.distiller(ladd, steps)?;
        let mut batches = Batches::new(self.config, self.encoders, dataset, false)?;
        let mut loader = Loader::new(dataset.clone(), self.config.seed, config.micro_batch(), config.accumulate)?;
        let mut progress = Progress::new("control", u64::from(steps), 0);
        while distiller.done() < steps {
            interrupt::check()?;
            distiller.step(self.b, &batches.next(&mut loader, distiller.done())?)?;
            let record = distiller.record(self.b, 0.0)?;
            progress.set(u64::from(distiller.done()), || format!("regression {:.3}", record.loss_distillation));
        }
        progress.finish(&format!("{steps} steps of plain regression"));
        let weights = distiller.student.averaged_weights(self.b)?;
        let mut pipeline = self.student.pipeline().clone();
        pipeline.role = Role::Student;
        Finished::new(self.b, distiller.student_model(), &weights, pipeline)?.save_file(&file, Dtype::F32)?;
        let weights = network::upload(self.b, &weights)?;
        showing.control(self, &weights)
    }

    fn draw_curves(&self) -> Result<()> {
        let steps: Vec<StepRecord> =
            self.records.iter().filter_map(|r| if let Record::Step(s) = r { Some(s.clone()) } else { None }).collect();
        let chance = match self.config.ladd.loss {
            crate::ladd::AdversarialLoss::Hinge => 2.0,
            crate::ladd::AdversarialLoss::NonSaturating => 2.0 * f64::ln(2.0),
        };
        let panels = distillation_panels(&steps, &self.quality(), Some(chance));
        let title = format!("{}, preset {}, seed {}", self.config.distill.method.title(), self.config.preset, self.config.seed);
        save_png(&draw_panels(&title, &panels)?, &self.run.join("curves.png"))
    }

    /// The tables, and the names of the files to open.
    fn results(&self, showing: &dyn Shows<B>, seconds: f64, ending: Ending) -> Outcome {
        let mut parts = BTreeMap::new();
        for record in &self.records {
            if let Record::Phase { name, seconds, .. } = record {
                *parts.entry(name.clone()).or_insert(0.0) += seconds;
            }
        }
        let tables = showing.results(self, parts)?;
        if ending == Ending::Silent {
            return Ok(());
        }
        if !tables.is_empty() {
            output::result("");
            output::result(&tables);
        }
        let run = self.run.path().display();
        let student = match self.config.task {
            Task::Generate => "the student, for `ladd-fast sample --network` and for diffusers",
            Task::Edit => "the student, for `ladd-fast edit --network` and for diffusers",
            Task::Inpaint => "the student, for `ladd-fast inpaint --network` and for diffusers",
        };
        let controlled = self.run.join("control").is_dir();
        let files = [
            (
                "comparison.png",
                if controlled {
                    "teacher, control and student, same prompts and seeds"
                } else {
                    "teacher and student, same prompts and seeds"
                },
            ),
            ("curves.png", "losses, accuracy of the heads, gradient norms, quality over time"),
            (
                "results.md",
                if tables.is_empty() { "times; results.json for programs" } else { "the tables above; results.json for programs" },
            ),
            ("student", student),
            ("student/pytorch_lora_weights.safetensors", "its adapters alone, for `--lora` and for diffusers"),
        ];
        output::result(&format!("Done in {}. Open:", duration(seconds)));
        for (name, what) in files.iter().filter(|(name, _)| self.run.join(name).exists()) {
            output::result(&format!("  {:<40} {what}", format!("{run}/{name}")));
        }
        Ok(())
    }
}

fn due(every: u32, step: u32) -> bool {
    every > 0 && step.is_multiple_of(every)
}

/// The current losses, for the progress bar.
fn summary(record: &StepRecord) -> String {
    if record.heads.is_empty() {
        return format!("loss {:.4}", record.loss_distillation);
    }
    let mean = |value: fn(&crate::train::HeadStats) -> f32| record.heads.iter().map(value).sum::<f32>() / record.heads.len() as f32;
    format!(
        "D {:.2}  G {:+.2}  accuracy {:.2} real {:.2} fake",
        record.loss_d,
        record.loss_g,
        mean(|h| h.accuracy_real),
        mean(|h| h.accuracy_fake)
    )
}
