//! The table at the end of a run: the student against the teacher, against itself before the distillation, and against
//! the regression control; written as Markdown and JSON, and shown in the terminal.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::ladd::Method;
use crate::train::QualityRecord;
use crate::train::run_folder::write_whole;
use crate::{Error, Result};

/// What the distillation gained at one step count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gain {
    /// Sampling steps.
    pub steps: usize,
    /// Fréchet distance of the same network before the distillation.
    pub before: f64,
    /// Fréchet distance of the student.
    pub after: f64,
    /// `before / after`: how many times lower.
    pub ratio: f64,
}

/// The results of a run, as `results.json` holds them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Version of the program.
    pub version: String,
    /// Preset of the run.
    pub preset: String,
    /// What the student was trained by.
    #[serde(default)]
    pub method: Method,
    /// Seed of the run.
    pub seed: u64,
    /// Worker threads.
    pub threads: usize,
    /// Steps of the distillation.
    pub steps: u32,
    /// Wall-clock seconds of each part of the run.
    pub seconds: BTreeMap<String, f64>,
    /// Gains, one per step count that was measured before and after.
    pub gains: Vec<Gain>,
    /// Every measurement.
    pub quality: Vec<QualityRecord>,
}

impl Results {
    /// Collects the measurements of a run.
    pub fn new(preset: &str, seed: u64, threads: usize, seconds: BTreeMap<String, f64>, quality: Vec<QualityRecord>) -> Self {
        let students = || quality.iter().filter(|q| q.network == "student");
        let steps = students().map(|q| q.step).max().unwrap_or(0);
        let mut counts: Vec<_> = students().map(|q| q.steps).collect();
        counts.sort_unstable();
        counts.dedup();
        let gain = |n: usize| {
            let before = quality.iter().rev().find(|q| q.network == "before" && q.steps == n)?.fd;
            let after = students().rev().find(|q| q.step == steps && q.steps == n)?.fd;
            Some(Gain { steps: n, before, after, ratio: before / after })
        };
        let gains = counts.into_iter().filter_map(gain).collect();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { version, preset: preset.into(), method: Method::default(), seed, threads, steps, seconds, gains, quality }
    }

    /// The same of a student that was trained by `method`.
    pub fn of_method(self, method: Method) -> Self {
        Self { method, ..self }
    }

    /// Writes `results.json` and `results.md` into `folder`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join("results.json");
        let mut json = serde_json::to_vec_pretty(self).map_err(|e| Error::file(&path, e.to_string()))?;
        json.push(b'\n');
        write_whole(&path, &json)?;
        write_whole(&folder.join("results.md"), self.markdown().as_bytes())
    }

    /// The tables as Markdown, with aligned columns, so that they also read well in a terminal.
    pub fn markdown(&self) -> String {
        let mut text = match self.rows() {
            rows if rows.is_empty() => format!("{NOT_MEASURED}\n\n"),
            rows => format!("{}\n", table(&HEADER, &rows)),
        };
        if !self.gains.is_empty() {
            let header = ["steps", "FD before", "FD after", "times lower"];
            let rows: Vec<_> =
                self.gains.iter().map(|g| vec![g.steps.to_string(), number(g.before, 2), number(g.after, 2), number(g.ratio, 2)]).collect();
            text += &format!("The distillation against the same network before it:\n\n{}\n", table(&header, &rows));
        }
        for note in self.notes() {
            text += &format!("- {note}\n");
        }
        text
    }

    /// The rows of the main table: teacher, the network before, the control, the student.
    fn rows(&self) -> Vec<Vec<String>> {
        let pick = |network: &str, step: Option<u32>| {
            let mut rows: Vec<_> = self.quality.iter().filter(|q| q.network == network && step.is_none_or(|s| q.step == s)).collect();
            rows.sort_by(|a, b| (b.guidance.total_cmp(&a.guidance)).then(a.steps.cmp(&b.steps)));
            rows.dedup_by_key(|q| (q.guidance.to_bits(), q.steps));
            rows
        };
        let mut rows = Vec::new();
        let mut add = |name: &str, records: Vec<&QualityRecord>| rows.extend(records.into_iter().map(|q| row(name, q)));
        add("teacher", pick("teacher", None));
        let method = self.method.title();
        add(&format!("before {method}"), pick("before", None));
        add("regression control", pick("control", None));
        add(&format!("student ({method})"), pick("student", Some(self.steps)));
        add("student with LoRA", pick("reapplied", None));
        rows
    }

    /// What the numbers say, including where they do not flatter.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if !self.quality.is_empty() {
            notes.push(
                "FD: Fréchet distance to the test set in the features of the demo's classifier, lower is better; it compares only within one number of images. \
                 accuracy: share of images recognised as what the prompt asked for. diversity: spread of the images of one prompt, 1 is that of real images."
                    .to_owned(),
            );
        }
        let samples: Vec<_> = self.quality.iter().map(|q| q.samples).collect();
        if let (Some(least), Some(most)) = (samples.iter().min(), samples.iter().max()) {
            let count = if least == most { most.to_string() } else { format!("{least} to {most}") };
            notes.push(format!("{count} images a row, one seed ({}): differences of a few percent are noise.", self.seed));
        }
        let last =
            |network: &str, n: usize| self.quality.iter().rev().find(|q| q.network == network && q.steps == n && q.step == self.steps);
        for gain in &self.gains {
            let Some(student) = last("student", gain.steps) else { continue };
            let equal = self.quality.iter().filter(|q| q.network == "teacher" && q.evaluations == student.evaluations);
            if let Some(teacher) = equal.min_by(|a, b| a.fd.total_cmp(&b.fd)) {
                let verdict = if student.fd < teacher.fd { "better" } else { "not better" };
                notes.push(format!(
                    "At {} network evaluation{} an image the student is {verdict} than the teacher's best: FD {} against {} ({} step{}, {}).",
                    student.evaluations,
                    plural(student.evaluations),
                    number(student.fd, 2),
                    number(teacher.fd, 2),
                    teacher.steps,
                    plural(teacher.steps),
                    guidance(teacher.guidance),
                ));
            }
        }
        let control = self.quality.iter().rev().find(|q| q.network == "control" && q.steps == 1);
        if let (Some(control), Some(student)) = (control, last("student", 1)) {
            notes.push(format!(
                "At one step the regression control has diversity {} and the {} student {}: regression alone draws the mean of what the prompt allows.",
                number(control.diversity, 2),
                self.method.title(),
                number(student.diversity, 2)
            ));
        }
        if !self.seconds.is_empty() {
            let parts: Vec<_> = self.seconds.iter().map(|(part, seconds)| format!("{part} {seconds:.0} s")).collect();
            let threads = self.threads;
            notes.push(format!("Time on {threads} thread{}: {}.", plural(threads), parts.join(", ")));
        }
        notes
    }
}

/// Stands where the table would be.
pub(super) const NOT_MEASURED: &str = "Quality was not measured: what judges it knows the demo's kind of pictures only.";

const HEADER: [&str; 8] = ["network", "sampler", "steps", "guidance", "evaluations", "FD", "accuracy", "diversity"];

fn row(name: &str, q: &QualityRecord) -> Vec<String> {
    let scale = if q.guidance == 1.0 { "none".to_owned() } else { q.guidance.to_string() };
    let (fd, accuracy, diversity) = (number(q.fd, 2), number(q.accuracy, 3), number(q.diversity, 2));
    vec![name.into(), q.sampler.clone(), q.steps.to_string(), scale, q.evaluations.to_string(), fd, accuracy, diversity]
}

pub(super) fn number(value: f64, decimals: usize) -> String {
    if value.is_finite() { format!("{value:.decimals$}") } else { "not finite".to_owned() }
}

pub(super) fn guidance(scale: f32) -> String {
    if scale == 1.0 { "unguided".to_owned() } else { format!("guidance {scale}") }
}

pub(super) fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// A Markdown table with aligned columns; the first two are text, the others numbers.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).chain([header[column].len(), 3]).max().unwrap_or(3);
    let text = |column: usize| header.len() > 4 && column < 2;
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().enumerate().map(|(c, cell)| match text(c) {
            true => format!("{cell:<w$}", w = width(c)),
            false => format!("{cell:>w$}", w = width(c)),
        });
        format!("| {} |\n", padded.collect::<Vec<_>>().join(" | "))
    };
    let rule: Vec<_> = (0..header.len()).map(|c| if text(c) { "-".repeat(width(c)) } else { "-".repeat(width(c) - 1) + ":" }).collect();
    let mut out = line(header.to_vec());
    out += &line(rule.iter().map(String::as_str).collect());
    for row in rows {
        out += &line(row.iter().map(String::as_str).collect());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(network: &str, step: u32, steps: usize, guidance: f32, fd: f64) -> QualityRecord {
        QualityRecord {
            step,
            network: network.into(),
            sampler: if network == "teacher" { "euler" } else { "renoise" }.into(),
            steps,
            guidance,
            evaluations: if guidance == 1.0 { steps } else { 2 * steps },
            fd,
            accuracy: 0.9,
            diversity: if network == "control" { 0.14 } else { 0.64 },
            samples: 1000,
        }
    }

    fn results() -> Results {
        let quality = vec![
            record("teacher", 0, 50, 3.0, 3.6),
            record("teacher", 0, 1, 3.0, 12.0),
            record("teacher", 0, 1, 1.0, 20.0),
            record("before", 0, 1, 1.0, 21.0),
            record("before", 0, 2, 1.0, 14.0),
            record("student", 400, 1, 1.0, 9.0),
            record("student", 800, 1, 1.0, 7.0),
            record("student", 800, 2, 1.0, 14.0),
            record("control", 800, 1, 1.0, 13.0),
        ];
        Results::new("demo", 0, 2, BTreeMap::from([("distillation".into(), 100.4)]), quality)
    }

    #[test]
    fn gains_compare_the_last_step_with_the_first() {
        let results = results();
        assert_eq!(results.gains.len(), 2);
        assert_eq!((results.gains[0].ratio, results.gains[1].ratio), (3.0, 1.0));
    }

    #[test]
    fn the_table_is_honest_and_aligned() {
        let text = results().markdown();
        assert!(
            text.contains("At 1 network evaluation an image the student is better than the teacher's best: FD 7.00 against 20.00"),
            "{text}"
        );
        assert!(text.contains("At 2 network evaluations an image the student is not better than the teacher's best: FD 14.00 against 12.00 (1 step, guidance 3)"), "{text}");
        assert!(text.contains("control has diversity 0.14 and the LADD student 0.64"), "{text}");
        assert!(!text.contains("9.00"), "measurements on the way stay out: {text}");
        let widths: std::collections::BTreeSet<_> = text.lines().take_while(|l| l.starts_with('|')).map(|l| l.chars().count()).collect();
        assert_eq!(widths.len(), 1, "{text}");
    }

    #[test]
    fn files_are_written_and_an_empty_run_has_no_table() {
        let folder = tempfile::tempdir().unwrap();
        let mut results = results();
        results.quality[0].fd = 11.311706683473279; // a number that a hasty parser rounds
        results.write(folder.path()).unwrap();
        let read: Results = serde_json::from_slice(&std::fs::read(folder.path().join("results.json")).unwrap()).unwrap();
        assert_eq!(read, results);
        let nothing = Results::new("sd3-medium", 0, 2, BTreeMap::from([("training".into(), 7.0)]), vec![]).markdown();
        assert_eq!(nothing, format!("{NOT_MEASURED}\n\n- Time on 2 threads: training 7 s.\n"));
    }
}
