//! Two distillations drawn over each other, such as the same one on two devices:
//!
//! ```sh
//! cargo run --release --example compare_runs -- runs/cpu runs/cuda comparison.png
//! ```
//!
//! Draws the losses and gradient norms of both and prints how far apart they are over the steps both have.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use image::Rgb;
use ladd_fast::Result;
use ladd_fast::report::{Across, Panel, Series, Stroke, draw_panels, save_png};
use ladd_fast::train::{Record, RunFolder, StepRecord};

type Value = fn(&StepRecord) -> f32;

const VALUES: [(&str, bool, Value); 4] = [
    ("Discriminator loss", false, |r| r.loss_d),
    ("Student loss", false, |r| r.loss_g),
    ("Gradient norm of the student", true, |r| r.grad_norm_student),
    ("Gradient norm of the heads", true, |r| r.grad_norm_heads),
];
const COLOURS: [Rgb<u8>; 2] = [Rgb([0, 114, 178]), Rgb([213, 94, 0])];

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(Into::into).collect();
    let [first, second, picture] = &arguments[..] else {
        eprintln!("usage: compare_runs RUN RUN PICTURE.png");
        return ExitCode::from(2);
    };
    match compare([first, second], picture) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn compare(runs: [&Path; 2], picture: &Path) -> Result<()> {
    let mut steps = Vec::new();
    for run in runs {
        let records = RunFolder::look_at(run)?.records()?;
        steps.push(records.into_iter().filter_map(|r| if let Record::Step(step) = r { Some(step) } else { None }).collect::<Vec<_>>());
    }
    let common = steps[0].len().min(steps[1].len());
    let names = runs.map(|run| run.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()));
    let mut panels = Vec::new();
    for (title, log, value) in VALUES {
        let series = (0..2).map(|i| Series {
            name: names[i].clone(),
            colour: COLOURS[i],
            points: steps[i][..common].iter().map(|r| (f64::from(r.step), f64::from(value(r)))).collect(),
            stroke: Stroke::Smoothed,
        });
        panels.push(Panel {
            title: title.into(),
            across: Across::default(),
            log,
            include: vec![],
            series: series.collect(),
            references: vec![],
        });
        let pairs = steps[0][..common].iter().zip(&steps[1]).map(|(a, b)| (f64::from(value(a)), f64::from(value(b))));
        // Losses cross zero: compare with their usual size.
        let size = steps[0][..common].iter().map(|r| f64::from(value(r)).abs()).sum::<f64>() / common.max(1) as f64;
        let relative: Vec<f64> = pairs.map(|(a, b)| (a - b).abs() / size.max(1e-12)).collect();
        let mean = relative.iter().sum::<f64>() / relative.len().max(1) as f64;
        let worst = relative.iter().fold(0.0_f64, |worst, r| worst.max(*r));
        println!(
            "{title}: over {common} steps they differ by {:.1} % of its mean size on average, {:.1} % at most",
            100.0 * mean,
            100.0 * worst
        );
    }
    save_png(&draw_panels(&format!("{} and {}", names[0], names[1]), &panels)?, picture)?;
    println!("{}", picture.display());
    Ok(())
}
