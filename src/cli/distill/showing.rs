//! What a run shows: the student beside its teacher on the same prompts and seeds, as pictures and as numbers.

use std::collections::BTreeMap;

use super::Session;
use crate::cli::common::measure::{Bench, fd_note, student_settings, teacher_settings};
use crate::cli::common::{Loaded, Outcome, Painter, Progress, network, output};
use crate::data::LatentDataset;
use crate::device::Backend;
use crate::flow::SampleSettings;
use crate::ladd::Method;
use crate::report::{Grid, Group, Results, Row, draw_grid, save_png};
use crate::train::Record;

/// What a run shows and measures, in whatever way its task asks for.
pub trait Shows<B: Backend> {
    /// Whether anything can be measured.
    fn measures(&self) -> bool;

    /// Whether the student was measured after `step`.
    fn measured(&self, session: &Session<'_, B>, step: u32) -> bool;

    /// Measures the teacher and the network before the distillation, if that was not done yet, and draws the first grid.
    fn before(&mut self, session: &mut Session<'_, B>) -> Outcome;

    /// Measures the student if `measure`, and draws the grid of `step`.
    fn student(&mut self, session: &mut Session<'_, B>, weights: &[f32], step: u32, measure: bool) -> Outcome;

    /// Measures the regression control, if that was not done yet.
    fn control(&mut self, session: &mut Session<'_, B>, weights: &B::Data) -> Outcome;

    /// Measures the student with what was merged into it at the end, if that was not done yet.
    fn reapplied(&mut self, session: &mut Session<'_, B>, weights: &B::Data) -> Outcome;

    /// The picture at the end: everything above each other.
    fn comparison(&mut self, session: &mut Session<'_, B>, student: &[f32]) -> Outcome;

    /// Writes the tables, and returns them to be shown; empty where nothing was measured. `seconds` are those of each part.
    fn results(&self, session: &Session<'_, B>, seconds: BTreeMap<String, f64>) -> Outcome<String>;
}

/// Draws, measures and keeps the teacher's rows.
pub struct Showing<'a, B: Backend> {
    /// Nothing where images cannot be decoded here.
    tools: Option<Tools<'a, B>>,
    student: Vec<SampleSettings>,
    teacher: Vec<SampleSettings>,
    teacher_rows: Vec<Row>,
}

struct Tools<'a, B: Backend> {
    bench: Bench,
    painter: Painter<'a, B>,
    /// The student's, where it is of another architecture than the teacher.
    students: Option<Painter<'a, B>>,
}

impl<'a, B: Backend> Tools<'a, B> {
    fn of(&mut self, network: &str) -> (&Bench, &mut Painter<'a, B>) {
        match &mut self.students {
            Some(students) if network != "teacher" => (&self.bench, students),
            _ => (&self.bench, &mut self.painter),
        }
    }
}

impl<'a, B: Backend> Showing<'a, B> {
    /// For the networks of this run, with the prompts and shapes of its training latents.
    pub fn new(session: &Session<'a, B>, dataset: &LatentDataset) -> Outcome<Self> {
        let (config, pipeline) = (&session.config.eval, session.teacher.pipeline());
        let tools = match Bench::new(session.encoders, config, session.config.seed, dataset.prompts())? {
            Some(bench) => {
                let bench = bench.with_shapes(dataset.buckets().iter().map(|bucket| bucket.shape).collect());
                let shape = network::latent_shape(pipeline, 0, 0)?;
                let painter =
                    |network: &Loaded| Painter::new(session.b, network.model(session.b)?, session.encoders, shape, config.batch, "");
                let other = session.student.pipeline().model != pipeline.model;
                let students = other.then(|| painter(session.student)).transpose()?;
                Some(Tools { bench, painter: painter(session.teacher)?, students })
            }
            None => {
                output::note("images cannot be decoded here: this run has no sample grids and no measurements");
                None
            }
        };
        let (student, teacher) = (student_settings(config), teacher_settings(config, pipeline));
        student.iter().chain(&teacher).try_for_each(|s| s.times().map(drop))?;
        Ok(Self { tools, student, teacher, teacher_rows: Vec::new() })
    }
}

impl<B: Backend> Shows<B> for Showing<'_, B> {
    fn measures(&self) -> bool {
        self.tools.as_ref().is_some_and(|tools| tools.bench.measures())
    }

    fn measured(&self, session: &Session<'_, B>, step: u32) -> bool {
        session.quality().iter().any(|q| q.network == "student" && q.step == step)
    }

    fn before(&mut self, session: &mut Session<'_, B>) -> Outcome {
        let (b, other) = (session.b, session.has_student());
        let weights = session.teacher.params(b)?;
        let own = other.then(|| session.student.params(b)).transpose()?;
        let students = own.as_ref().unwrap_or(&weights);
        let (student, teacher) = (self.student.clone(), self.teacher.clone());
        if self.measures() && session.quality().iter().filter(|q| q.network == "before").count() < student.len() {
            let cost = self.cost(&student) + self.cost(&teacher);
            let mut progress = Progress::new("evaluation", cost, 0);
            self.measure(session, &weights, &teacher, ("teacher", 0), &mut progress)?;
            self.measure(session, students, &student, ("before", 0), &mut progress)?;
            progress.finish("the teacher, and the network before the distillation with the student's sampler");
        }
        let best = self.teacher_highlights();
        self.teacher_rows = self.rows(session, &weights, &best, "teacher", None)?;
        let rows = self.rows(session, students, &student, "before", None)?;
        self.save(session, "Student before the first step", rows, 0)
    }

    fn student(&mut self, session: &mut Session<'_, B>, weights: &[f32], step: u32, measure: bool) -> Outcome {
        let weights = network::upload(session.b, weights)?;
        let settings = self.student.clone();
        if measure && self.measures() {
            let mut progress = Progress::new("evaluation", self.cost(&settings), 0);
            let measured = self.measure(session, &weights, &settings, ("student", step), &mut progress)?;
            progress.finish(&format!("step {step}: {}", measured.join(", ")));
        }
        let rows = self.rows(session, &weights, &settings, "student", Some(step))?;
        self.save(session, &format!("Student after {step} steps"), rows, step)
    }

    fn control(&mut self, session: &mut Session<'_, B>, weights: &B::Data) -> Outcome {
        self.once(session, weights, "control")
    }

    fn reapplied(&mut self, session: &mut Session<'_, B>, weights: &B::Data) -> Outcome {
        self.once(session, weights, "reapplied")
    }

    fn comparison(&mut self, session: &mut Session<'_, B>, student: &[f32]) -> Outcome {
        let Some(Tools { bench, .. }) = &self.tools else { return Ok(()) };
        let columns = bench.columns();
        let (settings, b) = (self.student.clone(), session.b);
        let before = session.student.params(b)?;
        let student = network::upload(b, student)?;
        let mut groups = vec![
            Group { title: "Teacher".into(), rows: self.teacher_rows.clone() },
            Group {
                title: match session.has_student() {
                    false => format!("The same network with the student's sampler, before {}", session.config.distill.method.title()),
                    true => format!("The student before {}", session.config.distill.method.title()),
                },
                rows: self.rows(session, &before, &settings, "before", None)?,
            },
        ];
        let control = session.run.join("control/student.safetensors");
        if control.is_file() {
            let loaded = network::load(&control.to_string_lossy())?;
            let weights = loaded.params(b)?;
            let rows = self.rows(session, &weights, &settings, "control", None)?;
            groups.push(Group { title: "Control: plain regression onto the same latents".into(), rows });
        }
        let rows = self.rows(session, &student, &settings, "student", Some(session.config.distill.steps))?;
        groups.push(Group { title: "Student, unguided".into(), rows });
        let grid = Grid {
            title: match session.config.distill.method {
                Method::Ladd => "Latent Adversarial Diffusion Distillation".into(),
                other => format!("Baseline: {}", other.title()),
            },
            subtitle: format!(
                "{}, {} steps of {}, seed {}; same prompts and seeds in all rows",
                session.config.preset, session.config.distill.steps, session.config.distill.batch, session.config.seed
            ),
            columns,
            groups,
        };
        Ok(save_png(&draw_grid(&grid), &session.run.join("comparison.png"))?)
    }

    fn results(&self, session: &Session<'_, B>, seconds: BTreeMap<String, f64>) -> Outcome<String> {
        let config = session.config;
        let results = Results::new(&config.preset, config.seed, rayon::current_num_threads(), seconds, session.quality());
        let results = results.of_method(config.distill.method);
        results.write(session.run.path())?;
        Ok(if results.quality.is_empty() { String::new() } else { results.markdown() })
    }
}

impl<B: Backend> Showing<'_, B> {
    /// Measures a network that is measured once, at the end.
    fn once(&mut self, session: &mut Session<'_, B>, weights: &B::Data, name: &str) -> Outcome {
        if session.quality().iter().filter(|q| q.network == name).count() < self.student.len() {
            let settings = self.student.clone();
            let mut progress = Progress::new("evaluation", self.cost(&settings), 0);
            let measured = self.measure(session, weights, &settings, (name, session.config.distill.steps), &mut progress)?;
            progress.finish(&format!("{name}: {}", measured.join(", ")));
        }
        Ok(())
    }

    /// The teacher at its most steps, guided, and at four guided steps, where those are measured.
    fn teacher_highlights(&self) -> Vec<SampleSettings> {
        let guided: Vec<_> = self.teacher.iter().filter(|s| s.guidance != 1.0).collect();
        let pool = if guided.is_empty() { self.teacher.iter().collect() } else { guided };
        let most = pool.iter().max_by_key(|s| s.steps).map(|s| (*s).clone());
        let mut settings: Vec<SampleSettings> = most.into_iter().collect();
        for steps in [4, 1] {
            let wanted = pool.iter().find(|s| s.steps == steps && settings.first().is_some_and(|most| most.steps > steps));
            settings.extend(wanted.map(|s| (*s).clone()));
        }
        settings
    }

    /// Measures and records; returns `FD 8.71 at 1` and so on.
    fn measure(
        &mut self,
        session: &mut Session<'_, B>,
        params: &B::Data,
        settings: &[SampleSettings],
        what: (&str, u32),
        progress: &mut Progress,
    ) -> Outcome<Vec<String>> {
        let Some(tools) = &mut self.tools else { return Ok(Vec::new()) };
        let (bench, painter) = tools.of(what.0);
        let mut words = Vec::new();
        for settings in settings {
            if let Some((record, _)) = bench.measure(painter, params, settings, what, progress)? {
                words.push(format!("FD {:.2} at {}", record.fd, record.steps));
                session.record(Record::Quality(record))?;
            }
        }
        Ok(words)
    }

    /// Rows of pictures, with the quality where it was measured.
    fn rows(
        &mut self,
        session: &Session<'_, B>,
        params: &B::Data,
        settings: &[SampleSettings],
        network: &str,
        step: Option<u32>,
    ) -> Outcome<Vec<Row>> {
        let Some(tools) = &mut self.tools else { return Ok(Vec::new()) };
        let (bench, painter) = tools.of(network);
        let quality = session.quality();
        let mut rows = Vec::new();
        for settings in settings {
            let matches = |q: &&crate::train::QualityRecord| {
                let same = q.network == network && step.is_none_or(|step| q.step == step);
                same && q.steps == settings.steps && q.guidance == settings.guidance && q.sampler == settings.kind.name()
            };
            let note = quality.iter().rev().find(matches).map(fd_note).unwrap_or_default();
            rows.push(bench.row(painter, params, settings, note)?);
        }
        Ok(rows)
    }

    fn save(&self, session: &Session<'_, B>, title: &str, rows: Vec<Row>, step: u32) -> Outcome {
        let Some(Tools { bench, .. }) = &self.tools else { return Ok(()) };
        let grid = Grid {
            title: format!("Step {step}"),
            subtitle: "same prompts and seeds in all rows".into(),
            columns: bench.columns(),
            groups: vec![
                Group { title: "Teacher".into(), rows: self.teacher_rows.clone() },
                Group { title: format!("{title}, unguided"), rows },
            ],
        };
        Ok(save_png(&draw_grid(&grid), &session.run.sample_path(step))?)
    }

    fn cost(&self, settings: &[SampleSettings]) -> u64 {
        self.tools.as_ref().map_or(0, |tools| tools.bench.cost(settings))
    }
}
