//! What a run that edits or inpaints shows: sources, teacher and student above each other, and the numbers beside them.

use std::collections::BTreeMap;

use super::Session;
use super::showing::Shows;
use crate::cli::common::measure::student_settings;
use crate::cli::common::{Outcome, Painter, Progress, network, output};
use crate::cli::tasks::bench::{TaskBench, teacher_settings};
use crate::device::Backend;
use crate::edit::Task;
use crate::flow::SampleSettings;
use crate::report::{Grid, Group, Row, TaskResults, draw_grid, save_png};
use crate::train::{Record, TaskRecord};

/// Draws, measures and keeps the teacher's rows.
pub struct Applying<'a, B: Backend> {
    task: Task,
    /// Nothing where the pictures are not the demo's.
    tools: Option<(TaskBench, Painter<'a, B>)>,
    student: Vec<SampleSettings>,
    teacher: Vec<SampleSettings>,
    teacher_rows: Vec<Row>,
}

impl<'a, B: Backend> Applying<'a, B> {
    /// For the networks of this run.
    pub fn new(session: &Session<'a, B>) -> Outcome<Self> {
        let (config, pipeline) = (session.config, session.teacher.pipeline());
        let tools = match TaskBench::new(config.task, session.encoders, config)? {
            Some(bench) => {
                let shape = network::latent_shape(pipeline, 0, 0)?;
                let painter = Painter::new(session.b, session.teacher.model(session.b)?, session.encoders, shape, config.eval.batch, "")?;
                Some((bench, painter))
            }
            None => {
                output::note("these pictures are not the demo's: this run has no grids and no measurements");
                None
            }
        };
        let (student, teacher) = (student_settings(&config.eval), teacher_settings(config.task, &config.eval, pipeline));
        student.iter().chain(&teacher).try_for_each(|s| s.times().map(drop))?;
        Ok(Self { task: config.task, tools, student, teacher, teacher_rows: Vec::new() })
    }

    fn cost(&self, settings: &[SampleSettings]) -> u64 {
        self.tools.as_ref().map_or(0, |(bench, _)| bench.cost(settings))
    }

    fn measure(
        &mut self,
        session: &mut Session<'_, B>,
        params: &B::Data,
        settings: &[SampleSettings],
        (name, step, given): (&str, u32, bool),
        progress: &mut Progress,
    ) -> Outcome<Vec<String>> {
        let Some((bench, painter)) = &mut self.tools else { return Ok(Vec::new()) };
        let mut words = Vec::new();
        for settings in settings {
            let record = bench.measure(painter, params, settings, (name, step), given, progress)?;
            words.push(format!("{} at {}", note(self.task, &record), record.steps));
            session.record(Record::Task(record))?;
        }
        Ok(words)
    }

    /// Measures a network that is measured once, at the end.
    fn once(&mut self, session: &mut Session<'_, B>, weights: &B::Data, name: &str) -> Outcome {
        if measured(session).iter().filter(|record| record.network == name).count() < self.student.len() {
            let settings = self.student.clone();
            let mut progress = Progress::new("evaluation", self.cost(&settings), 0);
            let step = session.config.distill.steps;
            let words = self.measure(session, weights, &settings, (name, step, true), &mut progress)?;
            progress.finish(&format!("{name}: {}", words.join(", ")));
        }
        Ok(())
    }

    fn rows(
        &mut self,
        session: &Session<'_, B>,
        params: &B::Data,
        settings: &[SampleSettings],
        (name, step): (&str, u32),
    ) -> Outcome<Vec<Row>> {
        let Some((bench, painter)) = &mut self.tools else { return Ok(Vec::new()) };
        let records = measured(session);
        let mut rows = Vec::new();
        for settings in settings {
            let same = |r: &&TaskRecord| {
                r.network == name
                    && r.step == step
                    && (r.steps, r.guidance, r.image_guidance) == (settings.steps, settings.guidance, settings.image_guidance)
            };
            let note = records.iter().rev().find(same).map(|record| note(self.task, record)).unwrap_or_default();
            rows.push(bench.row(painter, params, settings, note)?);
        }
        Ok(rows)
    }

    fn save(&self, (title, subtitle): (String, String), groups: Vec<Group>, file: &std::path::Path) -> Outcome {
        let Some((bench, _)) = &self.tools else { return Ok(()) };
        let before = Group { title: "Before".into(), rows: bench.before()? };
        let teacher = Group { title: "Teacher".into(), rows: self.teacher_rows.clone() };
        let groups = [before, teacher].into_iter().chain(groups).collect();
        Ok(save_png(&draw_grid(&Grid { title, subtitle, columns: bench.columns(), groups }), file)?)
    }
}

impl<B: Backend> Shows<B> for Applying<'_, B> {
    fn measures(&self) -> bool {
        self.tools.is_some()
    }

    fn measured(&self, session: &Session<'_, B>, step: u32) -> bool {
        measured(session).iter().any(|record| record.network == "student" && record.step == step)
    }

    fn before(&mut self, session: &mut Session<'_, B>) -> Outcome {
        let Some((bench, _)) = &self.tools else { return Ok(()) };
        let weights = session.teacher.params(session.b)?;
        let (student, teacher) = (self.student.clone(), self.teacher.clone());
        if measured(session).iter().filter(|record| record.network == "before").count() < student.len() {
            for record in bench.without_network()? {
                session.record(Record::Task(record))?;
            }
            let most = teacher.iter().max_by_key(|s| s.steps).cloned().into_iter();
            let blind: Vec<SampleSettings> = most.map(|s| SampleSettings { image_guidance: 1.0, ..s }).collect();
            let mut progress = Progress::new("evaluation", self.cost(&student) + self.cost(&teacher) + self.cost(&blind), 0);
            self.measure(session, &weights, &blind, ("teacher, source withheld", 0, false), &mut progress)?;
            let words = self.measure(session, &weights, &teacher, ("teacher", 0, true), &mut progress)?;
            self.measure(session, &weights, &student, ("before", 0, true), &mut progress)?;
            progress.finish(&format!("the teacher: {}", words.join(", ")));
        }
        self.teacher_rows = self.rows(session, &weights, &teacher, ("teacher", 0))?;
        let rows = self.rows(session, &weights, &student, ("before", 0))?;
        let groups = vec![Group { title: "The same network with the student's sampler".into(), rows }];
        let file = session.run.sample_path(0);
        self.save(("Before the first step".into(), SAME.into()), groups, &file)
    }

    fn student(&mut self, session: &mut Session<'_, B>, weights: &[f32], step: u32, measure: bool) -> Outcome {
        let weights = network::upload(session.b, weights)?;
        let settings = self.student.clone();
        if measure && self.measures() {
            let mut progress = Progress::new("evaluation", self.cost(&settings), 0);
            let words = self.measure(session, &weights, &settings, ("student", step, true), &mut progress)?;
            progress.finish(&format!("step {step}: {}", words.join(", ")));
        }
        let rows = self.rows(session, &weights, &settings, ("student", step))?;
        let file = session.run.sample_path(step);
        self.save((format!("Step {step}"), SAME.into()), vec![Group { title: "Student, unguided".into(), rows }], &file)
    }

    fn control(&mut self, session: &mut Session<'_, B>, weights: &B::Data) -> Outcome {
        self.once(session, weights, "control")
    }

    fn reapplied(&mut self, session: &mut Session<'_, B>, weights: &B::Data) -> Outcome {
        self.once(session, weights, "reapplied")
    }

    fn comparison(&mut self, session: &mut Session<'_, B>, student: &[f32]) -> Outcome {
        let (settings, b, config) = (self.student.clone(), session.b, session.config);
        let (before, student) = (session.teacher.params(b)?, network::upload(b, student)?);
        let rows = self.rows(session, &before, &settings, ("before", 0))?;
        let mut groups = vec![Group { title: "The same network with the student's sampler, before LADD".into(), rows }];
        let control = session.run.join("control/student.safetensors");
        if control.is_file() {
            let loaded = network::load(&control.to_string_lossy())?;
            let weights = loaded.params(b)?;
            let rows = self.rows(session, &weights, &settings, ("control", config.distill.steps))?;
            groups.push(Group { title: "Control: plain regression onto the same latents".into(), rows });
        }
        let rows = self.rows(session, &student, &settings, ("student", config.distill.steps))?;
        groups.push(Group { title: "Student, unguided".into(), rows });
        let title = if self.task == Task::Edit { "Editing" } else { "Inpainting" };
        let about = format!("{}, {} steps of {}, seed {}; {SAME}", config.preset, config.distill.steps, config.distill.batch, config.seed);
        self.save((format!("{title} by Latent Adversarial Diffusion Distillation"), about), groups, &session.run.join("comparison.png"))
    }

    fn results(&self, session: &Session<'_, B>, seconds: BTreeMap<String, f64>) -> Outcome<String> {
        let (config, measured) = (session.config, measured(session));
        let results = TaskResults {
            version: env!("CARGO_PKG_VERSION").into(),
            task: self.task,
            preset: config.preset.clone(),
            seed: config.seed,
            threads: rayon::current_num_threads(),
            seconds,
            measured,
        };
        results.write(session.run.path())?;
        Ok(if results.measured.is_empty() { String::new() } else { results.markdown() })
    }
}

const SAME: &str = "same sources, prompts and seeds in all rows";

fn measured<B: Backend>(session: &Session<'_, B>) -> Vec<TaskRecord> {
    let task = |record: &Record| if let Record::Task(record) = record { Some(record.clone()) } else { None };
    session.records.iter().filter_map(task).collect()
}

/// `agrees 0.91`, or `FD 1.2`.
fn note(task: Task, record: &TaskRecord) -> String {
    let number = |name: &str| record.numbers.get(name).copied().unwrap_or(f64::NAN);
    if task == Task::Edit { format!("agrees {:.2}", number("agrees")) } else { format!("FD {:.2}", number("fd")) }
}
