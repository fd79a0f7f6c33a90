//! The pictures of a study, one a variation. Several seeds are drawn as their mean, with a bar from the smallest to the largest
//! value.

use image::RgbImage;

use super::results::{Spread, StudyResults, StudyRun};
use super::{Draw, Study, Variation};
use crate::Result;
use crate::report::{Across, COLOURS, Panel, Series, Stroke, draw_panels};
use crate::train::QualityRecord;

/// A measure of quality: title, values the axis must include, whether it is logarithmic, the number.
struct Measure {
    title: &'static str,
    include: &'static [f64],
    log: bool,
    of: fn(&QualityRecord) -> f64,
}

const FD: Measure = Measure { title: "Fréchet distance, lower is better", include: &[], log: true, of: |q| q.fd };
const MEASURES: [Measure; 3] = [
    FD,
    Measure { title: "Share recognised as the prompt", include: &[1.0], log: false, of: |q| q.accuracy },
    Measure { title: "Diversity, 1 is that of real images", include: &[0.0, 1.0], log: false, of: |q| q.diversity },
];

/// What a training costs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cost {
    Steps,
    Compute,
}

/// The picture of every variation that has a finished run, with the name of its file.
///
/// # Errors
/// When the drawing library refuses, which would be a bug.
pub fn pictures(study: &Study, results: &StudyResults) -> Result<Vec<(String, RgbImage)>> {
    let mut pictures = Vec::new();
    for variation in &study.variations {
        if !results.runs.iter().any(|r| r.variation == variation.name) {
            continue;
        }
        let panels = match variation.draw {
            Draw::Steps => [training(variation, results, Cost::Steps), training(variation, results, Cost::Compute)].concat(),
            Draw::Value => MEASURES.iter().map(|m| against_value(variation, results, m)).collect(),
            Draw::Sampling => {
                let sampling = MEASURES.iter().map(|m| against_sampling(variation, results, m)).collect::<Vec<_>>();
                [sampling, training(variation, results, Cost::Compute)].concat()
            }
        };
        let seeds = variation.runs.iter().map(|plan| results.seeds(&variation.name, &plan.name).count()).max().unwrap_or(0);
        let seeds = if seeds > 1 { format!(" ({seeds} seeds: mean, smallest and largest)") } else { " (one seed)".into() };
        pictures.push((format!("{}.png", variation.name), draw_panels(&(variation.title.clone() + &seeds), &panels)?));
    }
    Ok(pictures)
}

/// A line with a bar at every point where seeds differ.
fn line(name: String, colour: usize, points: Vec<(f64, Spread)>) -> Vec<Series> {
    let colour = COLOURS[colour % COLOURS.len()];
    let bar = |(x, s): &(f64, Spread)| Series { name: String::new(), colour, points: vec![(*x, s.low), (*x, s.high)], stroke: Stroke::Bar };
    let mut series: Vec<Series> = points.iter().filter(|(_, s)| s.low < s.high).map(bar).collect();
    series.push(Series { name, colour, points: points.iter().map(|(x, s)| (*x, s.mean)).collect(), stroke: Stroke::Points });
    series
}

fn panel(measure: &Measure, title: String, across: Across, series: Vec<Series>) -> Panel {
    Panel { title, across, log: measure.log, include: measure.include.to_vec(), series, references: vec![] }
}

fn steps_of(n: usize) -> String {
    format!("{n} sampling step{}", if n == 1 { "" } else { "s" })
}

/// Fréchet distance against what the training has cost so far: a panel for up to three numbers of sampling steps, a line a run.
fn training(variation: &Variation, results: &StudyResults, cost: Cost) -> Vec<Panel> {
    let across = match cost {
        Cost::Steps => Across { name: "training steps".into(), ..Across::default() },
        Cost::Compute => Across { name: "training TFLOP".into(), ..Across::default() },
    };
    let unit = |run: &StudyRun| match cost {
        Cost::Steps => 1.0,
        Cost::Compute => run.flops_per_step as f64 / 1e12,
    };
    let of = |n: usize| {
        let series = variation.runs.iter().enumerate().flat_map(|(i, plan)| {
            let runs: Vec<_> = results.seeds(&variation.name, &plan.name).collect();
            let mut steps: Vec<u32> = runs.iter().flat_map(|r| r.quality.iter().map(|q| q.step)).collect();
            steps.sort_unstable();
            steps.dedup();
            let at = |step: u32| Some((f64::from(step) * unit(runs.first()?), spread(&runs, |r| r.at(step, n), &FD)?));
            line(plan.name.clone(), i, steps.into_iter().filter_map(at).collect())
        });
        panel(&FD, format!("FD at {}, lower is better", steps_of(n)), across.clone(), series.collect())
    };
    results.sampling().into_iter().take(3).map(of).collect()
}

/// Quality at the end against the runs' value: a line for each number of sampling steps.
fn against_value(variation: &Variation, results: &StudyResults, measure: &Measure) -> Panel {
    let series = results.sampling().into_iter().enumerate().flat_map(|(i, n)| {
        let mut points: Vec<_> = variation
            .runs
            .iter()
            .filter_map(|plan| {
                let runs: Vec<_> = results.seeds(&variation.name, &plan.name).collect();
                Some((plan.value?, spread(&runs, |r| r.last(n), measure)?))
            })
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        line(format!("{n} step{}", if n == 1 { "" } else { "s" }), i, points)
    });
    let mut ticks: Vec<f64> = variation.runs.iter().filter_map(|r| r.value).collect();
    ticks.sort_by(f64::total_cmp);
    let across = Across { name: variation.across.clone(), log: false, ticks };
    panel(measure, measure.title.into(), across, series.collect())
}

/// Quality at the end against sampling steps: a line a run.
fn against_sampling(variation: &Variation, results: &StudyResults, measure: &Measure) -> Panel {
    let sampling = results.sampling();
    let series = variation.runs.iter().enumerate().flat_map(|(i, plan)| {
        let runs: Vec<_> = results.seeds(&variation.name, &plan.name).collect();
        let points = sampling.iter().filter_map(|n| Some((*n as f64, spread(&runs, |r| r.last(*n), measure)?)));
        line(plan.name.clone(), i, points.collect())
    });
    let across = Across { name: "sampling steps".into(), log: true, ticks: sampling.iter().map(|n| *n as f64).collect() };
    panel(measure, measure.title.into(), across, series.collect())
}

fn spread<'a>(runs: &[&'a StudyRun], pick: impl Fn(&'a StudyRun) -> Option<&'a QualityRecord>, measure: &Measure) -> Option<Spread> {
    Spread::of(runs.iter().filter_map(|run| pick(run)).map(measure.of))
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::everything;
    use super::*;

    #[test]
    fn every_variation_is_drawn() {
        let (study, results) = everything(3);
        let drawn = pictures(&study, &results).unwrap();
        assert_eq!(drawn.len(), study.variations.len());
        if let Some(folder) = std::env::var_os("KEEP_PICTURES") {
            drawn.iter().for_each(|(name, picture)| picture.save(std::path::Path::new(&folder).join(name)).unwrap());
        }
    }

    #[test]
    fn an_unfinished_study_draws_what_there_is() {
        let (study, mut results) = everything(1);
        results.runs.truncate(1);
        results.runs[0].quality.iter_mut().for_each(|q| q.fd = f64::NAN);
        assert_eq!(pictures(&study, &results).unwrap().len(), 1);
        results.runs.clear();
        assert!(pictures(&study, &results).unwrap().is_empty());
    }

    #[test]
    fn panels_hold_the_numbers() {
        let (study, results) = everything(2);
        let noise = &study.select(&["noise".into()]).unwrap()[0];
        let panel = against_value(noise, &results, &FD);
        let line = panel.series.iter().find(|s| s.name == "1 step").unwrap();
        // The end is at 20/100 of 8, 7, ... with the second seed 0.4 above the first.
        assert!((line.points[0].1 - 0.2 * 8.2).abs() < 1e-9 && line.points[0].0 == -2.0, "{line:?}");
        let compute = &training(noise, &results, Cost::Compute)[0];
        assert!(
            (compute.series.last().unwrap().points.last().unwrap().0 - 100.0 * f64::from(1 << 16) * f64::from(1 << 20) / 1e12).abs() < 1e-9
        );
    }
}
