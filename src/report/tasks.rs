//! The table at the end of a run that edits or inpaints, as Markdown and JSON.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::table::{NOT_MEASURED, guidance, number, plural, table};
use crate::edit::Task;
use crate::train::TaskRecord;
use crate::train::run_folder::write_whole;
use crate::{Error, Result};

/// A measurement: its name in records, its column, decimals, and what it means.
struct Measure {
    name: &'static str,
    column: &'static str,
    decimals: usize,
    about: &'static str,
}

const EDIT: [Measure; 4] = [
    Measure {
        name: "agrees",
        column: "agrees",
        decimals: 3,
        about: "agrees: share of the instructions for another class after which the classifier sees that class.",
    },
    Measure {
        name: "overlap",
        column: "overlap",
        decimals: 2,
        about: "overlap: area that the silhouettes of result and source share over the area of either, for the same instructions.",
    },
    Measure {
        name: "fd",
        column: "FD",
        decimals: 2,
        about: "FD: Fréchet distance of the results for the same instructions to the test set, in the features of the demo's classifier; it compares only within this table.",
    },
    Measure {
        name: "psnr",
        column: "exact, dB",
        decimals: 1,
        about: "exact: peak signal-to-noise ratio against the one right answer, for mirroring, turning over and inverting.",
    },
];

const INPAINT: [Measure; 4] = [
    Measure {
        name: "kept",
        column: "kept, dB",
        decimals: 1,
        about: "kept: peak signal-to-noise ratio of what was not painted, against the picture, before it is pasted back.",
    },
    Measure {
        name: "filled",
        column: "filled, dB",
        decimals: 1,
        about: "filled: the same of what was painted. A hole has more than one good filling: this is a base line, not a goal.",
    },
    Measure {
        name: "fd",
        column: "FD",
        decimals: 2,
        about: "FD: Fréchet distance of the pasted pictures to the test set in the features of the demo's classifier; it compares only within one number of pictures.",
    },
    Measure {
        name: "agrees",
        column: "agrees",
        decimals: 3,
        about: "agrees: share of the pasted pictures in which the classifier sees the class that the prompt names.",
    },
];

fn measures(task: Task) -> &'static [Measure] {
    if task == Task::Inpaint { &INPAINT } else { &EDIT }
}

/// The results of such a run, as `results.json` holds them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskResults {
    /// Version of the program.
    pub version: String,
    /// The task.
    pub task: Task,
    /// Preset of the run.
    pub preset: String,
    /// Seed of the run.
    pub seed: u64,
    /// Worker threads.
    pub threads: usize,
    /// Wall-clock seconds of each part of the run.
    pub seconds: BTreeMap<String, f64>,
    /// Every measurement. Of editing: `agrees`, `overlap`, `fd`, `psnr`; of inpainting: `kept`, `filled`, `fd`, `agrees`.
    pub measured: Vec<TaskRecord>,
}

impl TaskResults {
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

    /// The table as Markdown: what to compare with, the teacher, the network before, the control, the student after its last step.
    pub fn markdown(&self) -> String {
        let measures = measures(self.task);
        let header: Vec<&str> =
            ["network", "sampler", "steps", "guidance", "evaluations"].into_iter().chain(measures.iter().map(|m| m.column)).collect();
        let rows: Vec<_> = self.last().map(|record| row(record, measures)).collect();
        let mut text = String::new();
        if rows.is_empty() {
            text += &format!("{NOT_MEASURED}\n\n");
        } else {
            text += &format!("{}\n", table(&header, &rows));
            measures.iter().for_each(|measure| text += &format!("- {}\n", measure.about));
        }
        if let Some(samples) = self.measured.iter().map(|record| record.samples).max() {
            text += &format!("- {samples} pictures a row, one seed ({}): differences of a few percent are noise.\n", self.seed);
        }
        if !self.seconds.is_empty() {
            let parts: Vec<_> = self.seconds.iter().map(|(part, seconds)| format!("{part} {seconds:.0} s")).collect();
            text += &format!("- Time on {} thread{}: {}.\n", self.threads, plural(self.threads), parts.join(", "));
        }
        text
    }

    /// The measurements of the table: of the student only those after its last step.
    fn last(&self) -> impl Iterator<Item = &TaskRecord> {
        let step = self.measured.iter().filter(|record| record.network == "student").map(|record| record.step).max();
        self.measured.iter().filter(move |record| record.network != "student" || Some(record.step) == step)
    }
}

fn row(record: &TaskRecord, measures: &[Measure]) -> Vec<String> {
    let drawn = record.steps > 0;
    let or_nothing = |text: String| if drawn { text } else { String::new() };
    let scales = match record.image_guidance {
        1.0 => guidance(record.guidance).replace("unguided", "none").replace("guidance ", ""),
        image => format!("{}, image {image}", record.guidance),
    };
    let name = match record.network.as_str() {
        "before" => "before LADD",
        "student" => "student (LADD)",
        "control" => "regression control",
        "reapplied" => "student, LoRA re-applied",
        other => other,
    };
    let fixed = [
        name.into(),
        record.sampler.clone(),
        or_nothing(record.steps.to_string()),
        or_nothing(scales),
        or_nothing(record.evaluations.to_string()),
    ];
    let numbers = measures.iter().map(|m| record.numbers.get(m.name).map_or_else(String::new, |value| number(*value, m.decimals)));
    fixed.into_iter().chain(numbers).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_the_last_student_and_what_to_compare_with() {
        let record = |network: &str, step: u32, steps: usize, agrees: f64| TaskRecord {
            network: network.into(),
            step,
            steps,
            guidance: 3.0,
            image_guidance: 1.5,
            evaluations: 3 * steps,
            samples: 200,
            numbers: [("agrees".to_owned(), agrees)].into(),
            ..TaskRecord::default()
        };
        let measured = vec![record("the source, unchanged", 0, 0, 0.125), record("student", 5, 1, 0.5), record("student", 9, 1, 0.75)];
        let seconds = [("pairs".to_owned(), 3.2)].into();
        let results =
            TaskResults { version: "1".into(), task: Task::Edit, preset: "demo-edit".into(), seed: 4, threads: 2, seconds, measured };
        let text = results.markdown();
        assert!(text.contains("| the source, unchanged |") && text.contains("0.125") && !text.contains("0.500"), "{text}");
        assert!(text.contains("3, image 1.5") && text.contains("0.750") && text.contains("200 pictures a row, one seed (4)"), "{text}");
        let folder = tempfile::tempdir().unwrap();
        results.write(folder.path()).unwrap();
        assert!(TaskResults { measured: vec![], ..results.clone() }.markdown().starts_with(NOT_MEASURED));
        let again: TaskResults = serde_json::from_slice(&std::fs::read(folder.path().join("results.json")).unwrap()).unwrap();
        assert_eq!(again, results);
    }
}
