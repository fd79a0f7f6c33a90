//! Draws how time grows with batch, resolution and model, from results of `scripts/bench-gpu` or of
//! `cargo bench --bench ladd_step -- --out FILE`:
//!
//! ```sh
//! cargo run --release --example plot_scaling -- benches/results/goals_nvidia_h100.json scaling.png
//! ```
//!
//! Both axes are logarithmic. The dashed line begins at the first point and grows with the floating-point operations:
//! points on it cost what their operations cost, points above it more.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use image::Rgb;
use ladd_fast::report::{Across, Panel, Series, Stroke, draw_panels, save_png};
use ladd_fast::{Error, Result};
use serde_json::Value;

const COLOURS: [Rgb<u8>; 6] =
    [Rgb([0, 114, 178]), Rgb([213, 94, 0]), Rgb([0, 158, 115]), Rgb([204, 121, 167]), Rgb([86, 180, 233]), Rgb([230, 159, 0])];

/// One measured case.
#[derive(Clone, Debug)]
struct Point {
    model: String,
    mode: String,
    batch: u64,
    resolution: u64,
    text: u64,
    ms: f64,
    flops: f64,
}

impl Point {
    fn case(&self) -> (&str, &str, [u64; 3]) {
        (&self.model, &self.mode, [self.batch, self.resolution, self.text])
    }
}

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(Into::into).collect();
    let Some((picture, files)) = arguments.split_last().filter(|(_, files)| !files.is_empty()) else {
        eprintln!("usage: plot_scaling RESULTS.json... PICTURE.png");
        return ExitCode::from(2);
    };
    match plot(files, picture) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn plot(files: &[PathBuf], picture: &Path) -> Result<()> {
    let mut points = Vec::new();
    let mut devices = BTreeSet::new();
    for path in files {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        let report: Value = serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string()))?;
        let parts = ["steps", "sampling", "scaling_resolution", "scaling_batch", "scaling_model"];
        for part in parts.map(|part| &report[part]).into_iter().chain([&report]) {
            for point in part["results"].as_array().into_iter().flatten().filter_map(point) {
                let device = part["device"].as_str().unwrap_or("unknown device");
                devices.insert(format!("{device}, {}", part["date"].as_str().unwrap_or("no date")));
                // What was measured twice is drawn once.
                if !points.iter().any(|known: &Point| known.case() == point.case()) {
                    points.push(point);
                }
            }
        }
    }
    if points.is_empty() {
        return Err(Error::Usage("these files hold no measured step: scripts/bench-gpu makes such files".into()));
    }
    let mut panels = vec![
        panel("Time against batch", "batch", &points, |p| (format!("{} {} {}px", p.model, p.mode, p.resolution), p.batch as f64)),
        panel("Time against resolution", "pixels a side", &points, |p| {
            (format!("{} {} B={}", p.model, p.mode, p.batch), p.resolution as f64)
        }),
        panel("Time of different models", "TFLOP", &points, |p| (format!("{} B={} {}px", p.mode, p.batch, p.resolution), p.flops / 1e12)),
    ];
    panels.retain(|panel| !panel.series.is_empty());
    let title = devices.into_iter().collect::<Vec<_>>().join("; ");
    save_png(&draw_panels(&title, &panels)?, picture)?;
    println!("{}", picture.display());
    Ok(())
}

/// A case with a time; those that ran out of memory have none.
fn point(entry: &Value) -> Option<Point> {
    let (text, whole) = (|key: &str| entry[key].as_str().map(str::to_owned), |key: &str| entry[key].as_u64());
    Some(Point {
        model: text("model")?,
        mode: text("mode")?,
        batch: whole("batch")?,
        resolution: whole("resolution")?,
        text: whole("text_tokens")?,
        ms: entry["median_ms"].as_f64()?,
        flops: entry["flops"]["total"].as_f64()?,
    })
}

/// What lies across, milliseconds, operations.
type Line = Vec<(f64, f64, f64)>;

/// Milliseconds of the cases that differ in what lies across alone: a line for each group of two or more.
fn panel(title: &str, across: &str, points: &[Point], group: impl Fn(&Point) -> (String, f64)) -> Panel {
    let mut groups: Vec<(String, Line)> = Vec::new();
    for point in points {
        let (name, x) = group(point);
        let at = groups.iter().position(|(known, _)| *known == name).unwrap_or(groups.len());
        if at == groups.len() {
            groups.push((name, Vec::new()));
        }
        groups[at].1.push((x, point.ms, point.flops));
    }
    groups.retain(|(_, line)| line.iter().any(|point| point.0 != line[0].0));
    let mut series = Vec::new();
    for (i, (name, mut line)) in groups.into_iter().enumerate() {
        line.sort_by(|a, b| a.0.total_cmp(&b.0));
        let colour = COLOURS[i % COLOURS.len()];
        let (_, first_ms, first_flops) = line[0];
        let linear = line.iter().map(|(x, _, flops)| (*x, first_ms * flops / first_flops)).collect();
        let measured = line.iter().map(|(x, ms, _)| (*x, *ms)).collect();
        let name_of_line = if i == 0 { "as the operations" } else { "" };
        series.push(Series { name: name_of_line.into(), colour, points: linear, stroke: Stroke::Dashed });
        series.push(Series { name, colour, points: measured, stroke: Stroke::Points });
    }
    let mut ticks: Vec<f64> = series.iter().flat_map(|line| line.points.iter().map(|point| point.0)).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    if ticks.len() > 8 {
        ticks.clear();
    }
    let across = Across { name: across.into(), log: true, ticks };
    Panel { title: format!("{title}, ms"), across, log: true, include: vec![], series, references: vec![] }
}
