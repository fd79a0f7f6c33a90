//! Students with all weights trained against LoRA students, from finished runs:
//!
//! ```sh
//! cargo run --release --example lora_study -- docs/lora.md docs/lora runs/full runs/rank4 runs/rank16
//! ```
//!
//! Writes `results.json` and `fd.png` to the folder, and the table between the markers of the page. The runs must have the same
//! steps, batch and seed, and the first is the one with all weights.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use image::Rgb;
use ladd_fast::format::{Checkpoint, write_atomically};
use ladd_fast::lora::LoraFile;
use ladd_fast::report::{Across, Panel, Reference, Series, Stroke, draw_panels, save_png};
use ladd_fast::train::{QualityRecord, Record, RunFolder};
use ladd_fast::{Error, Result};
use serde::Serialize;

type Value = fn(&QualityRecord) -> f64;

const COLOURS: [Rgb<u8>; 4] = [Rgb([0, 114, 178]), Rgb([213, 94, 0]), Rgb([0, 158, 115]), Rgb([110, 116, 128])];
const MARKERS: [&str; 2] = ["<!-- results begin -->", "<!-- results end -->"];

/// One run.
#[derive(Debug, Serialize)]
struct Row {
    rank: usize,
    targets: Vec<String>,
    lr: f64,
    steps: u32,
    batch: usize,
    seed: u64,
    /// Values that were trained.
    trained: usize,
    /// Wall-clock seconds of the distillation.
    seconds: f64,
    quality: Vec<QualityRecord>,
}

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(Into::into).collect();
    let [page, folder, runs @ ..] = &arguments[..] else {
        eprintln!("usage: lora_study PAGE.md FOLDER RUN...");
        return ExitCode::from(2);
    };
    match study(page, folder, runs) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn study(page: &Path, folder: &Path, runs: &[PathBuf]) -> Result<()> {
    let rows = runs.iter().map(|run| row(run)).collect::<Result<Vec<_>>>()?;
    let Some(first) = rows.first() else { return Err(Error::Usage("name at least one run".into())) };
    if let Some(other) = rows.iter().find(|r| (r.steps, r.batch, r.seed) != (first.steps, first.batch, first.seed)) {
        return Err(Error::Usage(format!(
            "runs of {} and {} steps, or of other batches or seeds, do not compare",
            first.steps, other.steps
        )));
    }
    std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    let json = serde_json::to_string_pretty(&rows).map_err(|e| Error::file(folder, e.to_string()))? + "\n";
    write_atomically(&folder.join("results.json"), |out| out.write_all(json.as_bytes()))?;
    let title = format!("Full and LoRA students, {} steps of {}, seed {}", first.steps, first.batch, first.seed);
    save_png(&draw_panels(&title, &panels(&rows))?, &folder.join("fd.png"))?;
    let text = std::fs::read_to_string(page).map_err(|e| Error::io("read", page, e))?;
    let [begin, end] = MARKERS.map(|marker| text.find(marker));
    let (Some(begin), Some(end)) = (begin, end) else {
        return Err(Error::file(page, format!("has no lines `{}` and `{}`", MARKERS[0], MARKERS[1])));
    };
    let text = format!("{}{}\n\n{}\n{}", &text[..begin], MARKERS[0], table(&rows), &text[end..]);
    write_atomically(page, |out| out.write_all(text.as_bytes()))
}

fn row(run: &Path) -> Result<Row> {
    let folder = RunFolder::look_at(run)?;
    let (config, records) = (folder.config()?, folder.records()?);
    let student = Checkpoint::load(folder.join("student/student.safetensors"))?;
    let trained = match config.lora.rank {
        0 => student.tensors.iter().filter(|(name, _)| *name != "pos_embed").map(|(_, tensor)| tensor.data.len()).sum(),
        _ => LoraFile::open(run)?.read(&student.pipeline.model)?.parameters(),
    };
    let last = config.distill.steps;
    let quality = records.iter().filter_map(|r| if let Record::Quality(q) = r { Some(q.clone()) } else { None });
    let seconds = records.iter().filter_map(|r| match r {
        Record::Phase { name, seconds, .. } if name == "distillation" => Some(*seconds),
        _ => None,
    });
    Ok(Row {
        rank: config.lora.rank,
        targets: if config.lora.rank == 0 { Vec::new() } else { config.lora.targets.clone() },
        lr: config.optim.student.lr,
        steps: last,
        batch: config.distill.batch,
        seed: config.seed,
        trained,
        seconds: seconds.sum(),
        quality: quality.filter(|q| q.network == "before" || (q.network == "student" && q.step == last)).collect(),
    })
}

fn of(row: &Row, network: &str, steps: usize) -> Option<QualityRecord> {
    row.quality.iter().find(|q| q.network == network && q.steps == steps).cloned()
}

fn steps(rows: &[Row]) -> Vec<usize> {
    let mut steps: Vec<usize> = rows.iter().flat_map(|row| &row.quality).map(|q| q.steps).collect();
    steps.sort_unstable();
    steps.dedup();
    steps
}

fn table(rows: &[Row]) -> String {
    let counts = steps(rows);
    let columns = |name: &str| counts.iter().map(|n| format!(" {name}, {n} step{} |", if *n == 1 { "" } else { "s" })).collect::<String>();
    let mut text = format!(
        "| student | targets | values trained | learning rate |{}{}\n|---|---|---:|---:|{}\n",
        columns("FD"),
        columns("diversity"),
        "---:|".repeat(2 * counts.len())
    );
    let mut add = |name: String, row: &Row, network: &str, trained: String, lr: String| {
        let cells = |value: Value| -> String {
            counts.iter().map(|n| of(row, network, *n).map_or(" |".into(), |q| format!(" {:.2} |", value(&q)))).collect()
        };
        let targets = if network == "before" { String::new() } else { row.targets.join(", ") };
        text += &format!("| {name} | {targets} | {trained} | {lr} |{}{}\n", cells(|q| q.fd), cells(|q| q.diversity));
    };
    if let Some(first) = rows.first() {
        add("before LADD".into(), first, "before", String::new(), String::new());
    }
    for row in rows {
        let name = if row.rank == 0 { "all weights".to_owned() } else { format!("LoRA, rank {}", row.rank) };
        let share = |values: usize| format!("{values}");
        add(name, row, "student", share(row.trained), format!("{}", row.lr));
    }
    let samples = rows.iter().flat_map(|row| &row.quality).map(|q| q.samples).max().unwrap_or(0);
    let first = &rows[0];
    text + &format!(
        "\nPreset `demo` at {} steps of {}, seed {}; {samples} images a value, one seed each: differences of a few percent are noise.\n",
        first.steps, first.batch, first.seed
    )
}

fn panels(rows: &[Row]) -> Vec<Panel> {
    let values: [(&str, Value); 2] =
        [("Fréchet distance, lower is better", |q| q.fd), ("Diversity, 1 is that of real images", |q| q.diversity)];
    let each = |(title, value): (&str, Value)| steps(rows).into_iter().map(|n| panel(rows, title, value, n)).collect::<Vec<_>>();
    values.into_iter().flat_map(each).collect()
}

/// A line for each choice of targets, at the first LoRA student's learning rate.
fn panel(rows: &[Row], title: &str, value: Value, steps: usize) -> Panel {
    let lr = rows.iter().find(|row| row.rank > 0).map(|row| row.lr);
    let students: Vec<&Row> = rows.iter().filter(|row| row.rank > 0 && Some(row.lr) == lr).collect();
    let mut targets: Vec<String> = students.iter().map(|row| row.targets.join(", ")).collect();
    targets.dedup();
    let series = targets.iter().zip(COLOURS).map(|(targets, colour)| {
        let these = students.iter().filter(|row| row.targets.join(", ") == *targets);
        let points = these.filter_map(|row| Some((row.rank as f64, value(&of(row, "student", steps)?)))).collect();
        Series {
            name: format!("adapters of {}", if targets == "all" { "all matrices" } else { targets }),
            colour,
            points,
            stroke: Stroke::Points,
        }
    });
    let reference = |name: &str, network: &str, colour| {
        let row = rows.iter().find(|row| row.rank == 0).and_then(|row| of(row, network, steps));
        row.map(|q| Reference { name: name.into(), value: value(&q), colour })
    };
    let mut ticks: Vec<f64> = students.iter().map(|row| row.rank as f64).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    let references = [reference("all weights trained", "student", COLOURS[2]), reference("before LADD", "before", COLOURS[3])];
    Panel {
        title: format!("{title}, {steps} step{}", if steps == 1 { "" } else { "s" }),
        across: Across { name: "rank of the adapters".into(), log: true, ticks },
        log: false,
        include: vec![0.0],
        series: series.collect(),
        references: references.into_iter().flatten().collect(),
    }
}
