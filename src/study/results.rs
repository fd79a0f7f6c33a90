//! What a study measured: `results.json`, and tables with the spread over seeds.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Study, Variation};
use crate::ladd::Method;
use crate::report::markdown_table;
use crate::train::QualityRecord;
use crate::train::run_folder::write_whole;
use crate::{Error, Result};

/// One finished run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StudyRun {
    /// Its variation.
    pub variation: String,
    /// Its name in it.
    pub run: String,
    /// Where it stands on the horizontal axis.
    pub value: Option<f64>,
    /// Its seed.
    pub seed: u64,
    /// Its folder below the study's.
    pub folder: String,
    /// What the student was trained by.
    pub method: Method,
    /// Weights of the student.
    pub student_parameters: usize,
    /// Weights of the judging teacher.
    pub teacher_parameters: usize,
    /// Latents it was trained on.
    pub latents: usize,
    /// Floating-point operations of a training step.
    pub flops_per_step: u64,
    /// Training steps.
    pub steps: u32,
    /// Seconds of training, without measuring.
    pub seconds: f64,
    /// The student's quality before the first step and on the way.
    pub quality: Vec<QualityRecord>,
}

impl StudyRun {
    /// Quality at a training step, drawn in `sampling` steps.
    pub fn at(&self, step: u32, sampling: usize) -> Option<&QualityRecord> {
        self.quality.iter().rev().find(|q| q.step == step && q.steps == sampling)
    }

    /// Quality at the end.
    pub fn last(&self, sampling: usize) -> Option<&QualityRecord> {
        self.at(self.steps, sampling)
    }
}

/// All of a study, as `results.json` holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StudyResults {
    /// Version of the program.
    pub version: String,
    /// Title of the study.
    pub title: String,
    /// Where it ran.
    pub device: String,
    /// Worker threads.
    pub threads: usize,
    /// Runs that were asked for; those that are not done yet are missing in `runs`.
    pub planned: usize,
    /// The runs.
    pub runs: Vec<StudyRun>,
}

/// Mean, smallest and largest of some seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
}

impl Spread {
    /// Of the values that are finite; nothing if none is.
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.filter(|v| v.is_finite()).collect();
        let extent = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(*v), high.max(*v)));
        let count = values.len() as f64;
        (count > 0.0).then(|| Self { mean: values.iter().sum::<f64>() / count, low: extent.0, high: extent.1 })
    }

    fn words(self, decimals: usize) -> String {
        if self.low == self.high {
            return format!("{:.decimals$}", self.mean);
        }
        format!("{:.decimals$} ({:.decimals$}-{:.decimals$})", self.mean, self.low, self.high)
    }
}

impl StudyResults {
    /// The runs of one plan, one a seed.
    pub(super) fn seeds<'a>(&'a self, variation: &'a str, run: &'a str) -> impl Iterator<Item = &'a StudyRun> {
        self.runs.iter().filter(move |r| r.variation == variation && r.run == run)
    }

    /// The numbers of sampling steps that were measured.
    pub(super) fn sampling(&self) -> Vec<usize> {
        let mut steps: Vec<usize> = self.runs.iter().flat_map(|r| r.quality.iter().map(|q| q.steps)).collect();
        steps.sort_unstable();
        steps.dedup();
        steps
    }

    /// Writes `results.json` and `results.md` into `folder`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, study: &Study, folder: &Path) -> Result<()> {
        let path = folder.join("results.json");
        let mut json = serde_json::to_vec_pretty(self).map_err(|e| Error::file(&path, e.to_string()))?;
        json.push(b'\n');
        write_whole(&path, &json)?;
        write_whole(&folder.join("results.md"), self.markdown(study).as_bytes())
    }

    /// One table a variation.
    pub fn markdown(&self, study: &Study) -> String {
        let mut text = String::new();
        for variation in study.variations.iter().filter(|v| self.runs.iter().any(|r| r.variation == v.name)) {
            text += &format!("{}:\n\n{}\n", variation.title, self.table(variation));
        }
        if self.runs.len() < self.planned {
            text += &format!("{} of {} runs are done.\n", self.runs.len(), self.planned);
        }
        text
    }

    fn table(&self, variation: &Variation) -> String {
        let sampling = self.sampling();
        let first = sampling.first().copied().unwrap_or(1);
        let mut header: Vec<String> = ["run", "seeds"].map(String::from).to_vec();
        header.extend(sampling.iter().map(|n| format!("FD at {n}")));
        header.extend([format!("accuracy at {first}"), format!("diversity at {first}")]);
        header.extend(["student, M", "teacher, M", "latents", "training TFLOP"].map(String::from));
        let mut rows = Vec::new();
        for plan in &variation.runs {
            let runs: Vec<_> = self.seeds(&variation.name, &plan.name).collect();
            let Some(one) = runs.first() else { continue };
            let words = |value: &dyn Fn(&QualityRecord) -> f64, n: usize, decimals: usize| {
                Spread::of(runs.iter().filter_map(|r| r.last(n)).map(value)).map_or("not finite".into(), |s| s.words(decimals))
            };
            let mut row = vec![plan.name.clone(), runs.len().to_string()];
            row.extend(sampling.iter().map(|n| words(&|q| q.fd, *n, 2)));
            row.extend([words(&|q| q.accuracy, first, 3), words(&|q| q.diversity, first, 2)]);
            let millions = |n: usize| format!("{:.2}", n as f64 / 1e6);
            row.extend([millions(one.student_parameters), millions(one.teacher_parameters), one.latents.to_string()]);
            row.push(format!("{:.2}", one.flops_per_step as f64 * f64::from(one.steps) / 1e12));
            rows.push(row);
        }
        markdown_table(&header.iter().map(String::as_str).collect::<Vec<_>>(), &rows)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A made-up run.
    pub fn run(variation: &str, name: &str, seed: u64, fd: f64) -> StudyRun {
        let record = |step, steps| QualityRecord {
            step,
            network: "student".into(),
            steps,
            fd: fd * f64::from(120 - step) / 100.0 / steps as f64,
            accuracy: 0.9,
            diversity: 0.6,
            ..QualityRecord::default()
        };
        StudyRun {
            variation: variation.into(),
            run: name.into(),
            value: None,
            seed,
            folder: String::new(),
            method: Method::Ladd,
            student_parameters: 2_300_000,
            teacher_parameters: 2_300_000,
            latents: 64,
            flops_per_step: 1 << 36,
            steps: 100,
            seconds: 10.0,
            quality: [0, 50, 100].into_iter().flat_map(|step| [1, 2, 4].map(|steps| record(step, steps))).collect(),
        }
    }

    /// Results of every run of the built-in study.
    pub fn everything(seeds: u64) -> (Study, StudyResults) {
        let study = Study::demo().unwrap();
        let mut runs = Vec::new();
        for variation in &study.variations {
            for (i, plan) in variation.runs.iter().enumerate() {
                for seed in 0..seeds {
                    let fd = 8.0 - i as f64 + 0.4 * seed as f64;
                    runs.push(StudyRun { value: plan.value, ..run(&variation.name, &plan.name, seed, fd) });
                }
            }
        }
        let planned = runs.len();
        (study, StudyResults { version: "0".into(), title: "t".into(), device: "cpu".into(), threads: 2, planned, runs })
    }

    #[test]
    fn tables_show_the_spread_and_what_is_missing() {
        let (study, mut results) = everything(2);
        let text = results.markdown(&study);
        assert!(text.contains("LADD and the baselines:") && !text.contains("runs are done"), "{text}");
        // The end is at 20/100 of fd: 1.6 and 1.68 in one step.
        assert!(text.contains("1.64 (1.60-1.68)"), "{text}");
        results.planned += 1;
        assert!(results.markdown(&study).contains(&format!("{} of {} runs are done", results.runs.len(), results.planned)));
    }

    #[test]
    fn files_are_written_and_read() {
        let (study, results) = everything(1);
        let folder = tempfile::tempdir().unwrap();
        results.write(&study, folder.path()).unwrap();
        let read: StudyResults = serde_json::from_slice(&std::fs::read(folder.path().join("results.json")).unwrap()).unwrap();
        assert_eq!(read, results);
    }
}
