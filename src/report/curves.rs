//! Curves: panels of lines, over the training step or anything else, drawn with plotters at twice the size and scaled
//! down, so that lines are smooth. Values that are not finite are left out; a panel without values says so.

use std::collections::BTreeMap;
use std::ops::Range;

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;

use super::text::{Anchor, Ink};
use crate::train::{PretrainRecord, QualityRecord, StepRecord};
use crate::{Error, Result};

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stroke {
    /// The raw values, pale, and a moving average over them.
    Smoothed,
    /// The moving average only.
    Average,
    /// The moving average only, dashed.
    DashedAverage,
    /// Straight lines between marked points.
    Points,
    /// Straight dashed lines.
    Dashed,
    /// A thin line without marks, such as from the smallest to the largest of several values.
    Bar,
}

/// One line of a panel.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name in the legend; an empty name leaves it out there.
    pub name: String,
    /// Its colour.
    pub colour: Rgb<u8>,
    /// Its points (step or what else lies across, value).
    pub points: Vec<(f64, f64)>,
    /// How it is drawn.
    pub stroke: Stroke,
}

/// A dashed horizontal line to compare with, such as the teacher's quality.
#[derive(Clone, Debug)]
pub struct Reference {
    /// Written at its right end.
    pub name: String,
    /// Its height.
    pub value: f64,
    /// Its colour.
    pub colour: Rgb<u8>,
}

/// The horizontal axis of a panel.
#[derive(Clone, Debug)]
pub struct Across {
    /// What it counts.
    pub name: String,
    /// Whether it is logarithmic.
    pub log: bool,
    /// Where numbers are written; if empty, at round ones.
    pub ticks: Vec<f64>,
}

impl Default for Across {
    fn default() -> Self {
        Self { name: "step".into(), log: false, ticks: vec![] }
    }
}

/// One panel.
#[derive(Clone, Debug)]
pub struct Panel {
    /// Its title.
    pub title: String,
    /// Its horizontal axis.
    pub across: Across,
    /// A logarithmic vertical axis.
    pub log: bool,
    /// Values the vertical axis must include.
    pub include: Vec<f64>,
    /// Its lines.
    pub series: Vec<Series>,
    /// Its dashed lines.
    pub references: Vec<Reference>,
}

/// The eight colours of Okabe and Ito that people with any colour vision tell apart, without black and yellow.
pub const COLOURS: [Rgb<u8>; 6] =
    [Rgb([0, 114, 178]), Rgb([213, 94, 0]), Rgb([0, 158, 115]), Rgb([204, 121, 167]), Rgb([86, 180, 233]), Rgb([230, 159, 0])];
const DARK: Rgb<u8> = Rgb([28, 30, 36]);
const SOFT: Rgb<u8> = Rgb([110, 116, 128]);
const TITLE: Ink = Ink::bold(24.0, DARK);
const PANEL_TITLE: Ink = Ink::bold(18.0, DARK);
const LEGEND: Ink = Ink::regular(15.0, DARK);
const TICK: Ink = Ink::regular(14.5, SOFT);

/// Width of the picture.
const WIDTH: u32 = 1600;
/// Height of a row of panels.
const ROW: u32 = 470;
/// Height of the picture's title.
const TOP: u32 = 60;
/// Lines are drawn at this multiple and scaled down.
const SCALE: u32 = 2;

/// The panels of a distillation: losses, accuracy of the heads, gradient norms, and quality where it was measured.
pub fn distillation_panels(steps: &[StepRecord], quality: &[QualityRecord], chance: Option<f64>) -> Vec<Panel> {
    let line = |name: &str, colour: usize, value: &dyn Fn(&StepRecord) -> f32| Series {
        name: name.into(),
        colour: COLOURS[colour],
        points: steps.iter().map(|r| (f64::from(r.step), f64::from(value(r)))).collect(),
        stroke: Stroke::Smoothed,
    };
    let mut panels = vec![
        Panel {
            title: "Losses".into(),
            across: Across::default(),
            log: false,
            include: vec![],
            series: vec![line("discriminator", 0, &|r| r.loss_d), line("student", 1, &|r| r.loss_g)],
            references: chance.map(|value| Reference { name: "heads at chance".into(), value, colour: SOFT }).into_iter().collect(),
        },
        head_panel(steps),
        Panel {
            title: "Gradient norms, before clipping".into(),
            across: Across::default(),
            log: true,
            include: vec![],
            series: vec![line("student", 1, &|r| r.grad_norm_student), line("heads", 0, &|r| r.grad_norm_heads)],
            references: vec![],
        },
    ];
    if !quality.is_empty() {
        panels.push(quality_panel("Student: Fréchet distance, lower is better", quality, vec![0.0], |q| q.fd));
        panels.push(quality_panel("Student: share recognised as the prompt", quality, vec![1.0], |q| q.accuracy));
        panels.push(quality_panel("Student: diversity, 1 is that of real images", quality, vec![0.0, 1.0], |q| q.diversity));
    }
    panels
}

/// The panels of `pretrain`: loss and gradient norm.
pub fn pretrain_panels(steps: &[PretrainRecord]) -> Vec<Panel> {
    let panel = |title: &str, colour: usize, value: &dyn Fn(&PretrainRecord) -> f32| Panel {
        title: title.into(),
        across: Across::default(),
        log: true,
        include: vec![],
        series: vec![Series {
            name: String::new(),
            colour: COLOURS[colour],
            points: steps.iter().map(|r| (f64::from(r.step), f64::from(value(r)))).collect(),
            stroke: Stroke::Smoothed,
        }],
        references: vec![],
    };
    vec![panel("Velocity loss", 0, &|r| r.loss), panel("Gradient norm, before clipping", 1, &|r| r.grad_norm)]
}

/// Accuracy of every head on real (solid) and fake (dashed). Of many heads only some get a name.
fn head_panel(steps: &[StepRecord]) -> Panel {
    let count = steps.iter().map(|r| r.heads.len()).max().unwrap_or(0);
    let named = |i: usize| count <= 6 || i == 0 || i == count / 2 || i + 1 == count;
    let mut series = Vec::new();
    for index in 0..count {
        let colour = if count <= COLOURS.len() { COLOURS[index] } else { ramp(index as f64 / (count - 1) as f64) };
        let block = steps.iter().find_map(|r| r.heads.get(index)).map_or(index, |h| h.block);
        for (real, stroke) in [(true, Stroke::Average), (false, Stroke::DashedAverage)] {
            let points = steps.iter().filter_map(|r| {
                let head = r.heads.get(index)?;
                Some((f64::from(r.step), f64::from(if real { head.accuracy_real } else { head.accuracy_fake })))
            });
            let name = if real && named(index) { format!("block {block}") } else { String::new() };
            series.push(Series { name, colour, points: points.collect(), stroke });
        }
    }
    Panel {
        title: "Accuracy of the heads: real solid, fake dashed".into(),
        across: Across::default(),
        log: false,
        include: vec![0.0, 1.0],
        series,
        references: vec![Reference { name: "chance".into(), value: 0.5, colour: SOFT }],
    }
}

/// One line per step count of the student, and the teacher's best and the control's as dashed lines.
fn quality_panel(title: &str, quality: &[QualityRecord], include: Vec<f64>, value: impl Fn(&QualityRecord) -> f64) -> Panel {
    let mut by_steps: BTreeMap<usize, Vec<(f64, f64)>> = BTreeMap::new();
    for record in quality.iter().filter(|q| q.network == "student" || q.network == "before") {
        by_steps.entry(record.steps).or_default().push((f64::from(record.step), value(record)));
    }
    let series = by_steps.into_iter().enumerate().map(|(index, (steps, points))| Series {
        name: format!("{steps} step{}", if steps == 1 { "" } else { "s" }),
        colour: COLOURS[index % COLOURS.len()],
        points,
        stroke: Stroke::Points,
    });
    let teacher = quality.iter().filter(|q| q.network == "teacher" && q.guidance != 1.0).max_by_key(|q| q.steps);
    let reference = teacher.map(|q| Reference {
        name: format!("teacher, {} step{}, guided", q.steps, if q.steps == 1 { "" } else { "s" }),
        value: value(q),
        colour: DARK,
    });
    Panel {
        title: title.into(),
        across: Across::default(),
        log: false,
        include,
        series: series.collect(),
        references: reference.into_iter().collect(),
    }
}

/// Blue to orange, for many heads.
fn ramp(position: f64) -> Rgb<u8> {
    let (from, to) = (COLOURS[0].0, COLOURS[1].0);
    let mix = |i: usize| (f64::from(from[i]) + (f64::from(to[i]) - f64::from(from[i])) * position).round() as u8;
    Rgb([mix(0), mix(1), mix(2)])
}

/// Draws the panels, two or three in a row, under a title.
///
/// # Errors
/// When the drawing library refuses, which would be a bug.
pub fn draw_panels(title: &str, panels: &[Panel]) -> Result<RgbImage> {
    let columns = match panels.len() {
        0 | 1 => 1,
        2 | 4 => 2,
        _ => 3,
    };
    let rows = (panels.len() as u32).div_ceil(columns).max(1);
    let (width, height) = (WIDTH, TOP + rows * ROW);
    let frames: Vec<Frame> = panels
        .iter()
        .enumerate()
        .map(|(index, panel)| {
            let (column, row) = (index as u32 % columns, index as u32 / columns);
            Frame::new(panel, column * (width / columns), TOP + row * ROW, width / columns, ROW)
        })
        .collect();

    let mut buffer = vec![255; (width * height * SCALE * SCALE * 3) as usize];
    {
        let root = BitMapBackend::with_buffer(&mut buffer, (width * SCALE, height * SCALE)).into_drawing_area();
        for frame in &frames {
            frame.draw_lines(&root).map_err(|e| Error::Usage(format!("the curves cannot be drawn: {e}")))?;
        }
    }
    let large = RgbImage::from_raw(width * SCALE, height * SCALE, buffer).unwrap_or_default();
    let mut picture = imageops::resize(&large, width, height, FilterType::Triangle);
    TITLE.draw(&mut picture, 24.0, 32.0, Anchor::Left, &TITLE.fit(title, width as f32 - 48.0));
    for frame in &frames {
        frame.draw_text(&mut picture);
    }
    Ok(picture)
}

/// A panel at its place: where the lines go, and the axes.
struct Frame<'p> {
    panel: &'p Panel,
    x: u32,
    y: u32,
    width: u32,
    /// The plotting area: left, top, width, height.
    plot: (u32, u32, u32, u32),
    horizontal: Axis,
    vertical: Axis,
    empty: bool,
}

impl<'p> Frame<'p> {
    fn new(panel: &'p Panel, x: u32, y: u32, width: u32, height: u32) -> Self {
        let usable = |v: f64| v.is_finite() && (!panel.log || v > 0.0);
        let points = || panel.series.iter().flat_map(|s| &s.points).filter(|p| usable(p.1) && (!panel.across.log || p.0 > 0.0));
        let empty = points().next().is_none();
        let (from, to) = extent(points().map(|p| p.0));
        let mut values: Vec<f64> = panel.series.iter().flat_map(|s| shown_values(s, usable)).collect();
        values.extend(panel.include.iter().chain(panel.references.iter().map(|r| &r.value)).filter(|v| usable(**v)));
        let (low, high) = extent(values.into_iter());
        let plot = (x + 64, y + 66, width - 64 - 26, height - 66 - 46);
        let Across { log, ticks, .. } = &panel.across;
        let mut horizontal = Axis::new(from, to, *log, if *log { 0.04 } else { 0.0 }, plot.2 / 90);
        if !ticks.is_empty() {
            horizontal.ticks.clone_from(ticks);
        }
        Self { panel, x, y, width, plot, horizontal, vertical: Axis::new(low, high, panel.log, 0.04, plot.3 / 52), empty }
    }

    /// Everything but text, at `SCALE` times the size.
    fn draw_lines<B: DrawingBackend>(
        &self,
        root: &DrawingArea<B, plotters::coord::Shift>,
    ) -> std::result::Result<(), DrawingAreaErrorKind<B::ErrorType>> {
        let (left, top, width, height) = self.plot;
        let area = root.clone().shrink((left * SCALE, top * SCALE), (width * SCALE, height * SCALE));
        let mut chart = ChartBuilder::on(&area).build_cartesian_2d(self.horizontal.clone(), self.vertical.clone())?;
        chart
            .configure_mesh()
            .disable_axes()
            .x_labels(0)
            .y_labels(0)
            .bold_line_style(RGBColor(226, 228, 233).stroke_width(SCALE))
            .light_line_style(TRANSPARENT)
            .draw()?;
        let (from, to) = (self.horizontal.low, self.horizontal.high);
        for reference in self.panel.references.iter().filter(|r| r.value.is_finite()) {
            let style = colour(reference.colour).mix(0.75).stroke_width(SCALE * 3 / 2);
            let ends = [(from, reference.value), (to, reference.value)];
            chart.draw_series(DashedLineSeries::new(ends, 14, 10, style))?;
        }
        let inside = |p: &(f64, f64)| (p.0, p.1.clamp(self.vertical.low, self.vertical.high));
        let positive = |log: bool, value: f64| !log || value > 0.0;
        let usable = |p: &&(f64, f64)| p.1.is_finite() && positive(self.panel.log, p.1) && positive(self.panel.across.log, p.0);
        for series in &self.panel.series {
            let raw: Vec<_> = series.points.iter().filter(usable).copied().collect();
            let average: Vec<_> = moving_average(&raw, self.panel.log).iter().map(inside).collect();
            let ink = colour(series.colour);
            let thick = ink.stroke_width(SCALE * 2);
            match series.stroke {
                Stroke::Smoothed => {
                    chart.draw_series(LineSeries::new(raw.iter().map(inside), ink.mix(0.4).stroke_width(1)))?;
                    chart.draw_series(LineSeries::new(average, thick))?;
                }
                Stroke::Average => _ = chart.draw_series(LineSeries::new(average, thick))?,
                Stroke::DashedAverage => _ = chart.draw_series(DashedLineSeries::new(average, 12, 8, thick))?,
                Stroke::Bar => _ = chart.draw_series(LineSeries::new(raw.iter().map(inside), ink.stroke_width(SCALE)))?,
                Stroke::Dashed => _ = chart.draw_series(DashedLineSeries::new(raw.iter().map(inside), 12, 10, ink.stroke_width(SCALE)))?,
                // One piece at a time: sharp corners of thick lines would stick out.
                Stroke::Points => {
                    _ = chart.draw_series(raw.windows(2).map(|p| PathElement::new(p.iter().map(inside).collect::<Vec<_>>(), thick)))?
                }
            }
            if series.stroke == Stroke::Points || raw.len() == 1 {
                chart.draw_series(raw.iter().map(|p| Circle::new(inside(p), SCALE * 4, ink.filled())))?;
            }
        }
        Ok(())
    }

    fn draw_text(&self, picture: &mut RgbImage) {
        let (left, top, width, height) = self.plot;
        let title = PANEL_TITLE.fit(&self.panel.title, self.width as f32 - 36.0);
        PANEL_TITLE.draw(picture, self.x as f32 + 24.0, self.y as f32 + 16.0, Anchor::Left, &title);
        self.draw_legend(picture);
        for tick in &self.vertical.ticks {
            let y = top as f32 + (1.0 - self.vertical.position(*tick)) as f32 * height as f32;
            TICK.draw(picture, left as f32 - 8.0, y, Anchor::Right, &self.vertical.label(*tick));
        }
        for tick in &self.horizontal.ticks {
            let x = left as f32 + self.horizontal.position(*tick) as f32 * width as f32;
            TICK.draw(picture, x, (top + height) as f32 + 15.0, Anchor::Centre, &self.horizontal.label(*tick));
        }
        TICK.draw(picture, (left + width) as f32, (top + height) as f32 + 33.0, Anchor::Right, &self.panel.across.name);
        if self.empty {
            let middle = (left as f32 + width as f32 / 2.0, top as f32 + height as f32 / 2.0);
            LEGEND.draw(picture, middle.0, middle.1, Anchor::Centre, "nothing measured yet");
        }
    }

    /// Colour samples and names in one line below the title.
    fn draw_legend(&self, picture: &mut RgbImage) {
        let (mut x, y) = (self.x as f32 + 24.0, self.y as f32 + 43.0);
        let series = self.panel.series.iter().filter(|s| !s.name.is_empty());
        let series = series.map(|s| (&s.name, s.colour, s.stroke == Stroke::Dashed));
        let references = self.panel.references.iter().map(|r| (&r.name, r.colour, true));
        let end = (self.x + self.width) as f32 - 8.0;
        for (name, colour, dashed) in series.chain(references) {
            let text = LEGEND.fit(name, end - x - 26.0);
            if text.is_empty() {
                break;
            }
            for dx in (0..20).filter(|dx| !dashed || dx % 8 < 5) {
                for dy in 0..3 {
                    if let Some(pixel) = picture.get_pixel_mut_checked(x as u32 + dx, y as u32 - 1 + dy) {
                        *pixel = colour;
                    }
                }
            }
            LEGEND.draw(picture, x + 26.0, y, Anchor::Left, &text);
            x += 26.0 + LEGEND.width(&text) + 18.0;
        }
    }
}

/// The values of a series that its axis must hold: of raw training curves all but the outermost hundredth.
fn shown_values(series: &Series, usable: impl Fn(f64) -> bool) -> Vec<f64> {
    let mut values: Vec<f64> = series.points.iter().map(|p| p.1).filter(|v| usable(*v)).collect();
    values.sort_by(f64::total_cmp);
    let cut = if matches!(series.stroke, Stroke::Points | Stroke::Dashed | Stroke::Bar) { 0 } else { values.len() / 100 };
    values[cut..values.len() - cut].to_vec()
}

fn extent(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
}

fn colour(Rgb([r, g, b]): Rgb<u8>) -> RGBColor {
    RGBColor(r, g, b)
}

/// Centred mean over about a twentieth of the points, over fewer at the ends; geometric on a logarithmic axis.
fn moving_average(points: &[(f64, f64)], log: bool) -> Vec<(f64, f64)> {
    let half = points.len() / 40;
    let value = |p: &(f64, f64)| if log { p.1.ln() } else { p.1 };
    let sums: Vec<f64> = std::iter::once(0.0)
        .chain(points.iter().map(value).scan(0.0, |sum, v| {
            *sum += v;
            Some(*sum)
        }))
        .collect();
    (0..points.len())
        .map(|i| {
            let (from, to) = (i.saturating_sub(half), (i + half + 1).min(points.len()));
            let mean = (sums[to] - sums[from]) / (to - from) as f64;
            (points[i].0, if log { mean.exp() } else { mean })
        })
        .collect()
}

/// A linear or logarithmic axis with ticks at round numbers.
#[derive(Clone, Debug)]
struct Axis {
    low: f64,
    high: f64,
    log: bool,
    ticks: Vec<f64>,
}

impl Axis {
    /// Spans `low` to `high` with `margin` of the span on both sides and about `count` ticks.
    fn new(low: f64, high: f64, log: bool, margin: f64, count: u32) -> Self {
        let (low, high) = if low.is_finite() && high.is_finite() { (low, high) } else { (if log { 0.1 } else { 0.0 }, 1.0) };
        let (mut from, mut to) = if log { (low.log10(), high.log10()) } else { (low, high) };
        if to - from <= 1e-9 * from.abs().max(to.abs()) {
            let pad = if log { 0.5 } else { from.abs().max(1.0) * 0.5 };
            (from, to) = (from - pad, to + pad);
        }
        let pad = (to - from) * margin;
        (from, to) = (from - pad, to + pad);
        let ticks = if log { log_ticks(from, to, count) } else { linear_ticks(from, to, count) };
        let back = |v: f64| if log { 10f64.powf(v) } else { v };
        Self { low: back(from), high: back(to), log, ticks }
    }

    /// Where a value lies, 0 to 1.
    fn position(&self, value: f64) -> f64 {
        if self.log { (value / self.low).ln() / (self.high / self.low).ln() } else { (value - self.low) / (self.high - self.low) }
    }

    fn label(&self, value: f64) -> String {
        let digits = |unit: f64| (-unit.abs().max(1e-9).log10().floor()).clamp(0.0, 8.0) as usize;
        let decimals = if self.log {
            let mantissa = value / 10f64.powf(value.log10().floor());
            let whole = (mantissa - mantissa.round()).abs() < 1e-6; // 0.2, but 0.15
            digits(value) + usize::from(!whole && value < 10.0)
        } else {
            let whole = |scaled: f64| (scaled - scaled.round()).abs() < 1e-6;
            (0..8).find(|decimals| self.ticks.iter().all(|tick| whole(tick * 10f64.powi(*decimals)))).unwrap_or(8) as usize
        };
        if value.abs() >= 1e5 || (self.log && value < 1e-4) { format!("{value:.0e}") } else { format!("{value:.decimals$}") }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let position = self.position(*value).clamp(-10.0, 10.0);
        (f64::from(limit.0) + position * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        self.label(*value)
    }
}

/// Multiples of 1, 2 or 5 times a power of ten, about `count` of them between `from` and `to`.
fn linear_ticks(from: f64, to: f64, count: u32) -> Vec<f64> {
    let rough = (to - from) / f64::from(count.max(2));
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough).unwrap_or(10.0 * power);
    let first = (from / step).ceil() as i64;
    let last = (to / step).floor() as i64;
    (first..=last.min(first + 50)).map(|i| i as f64 * step).collect()
}

/// Powers of ten, with 2 and 5 between them where there is room. `from` and `to` are logarithms.
fn log_ticks(from: f64, to: f64, count: u32) -> Vec<f64> {
    let ticks = |mantissas: &[f64], every: i32| -> Vec<f64> {
        (from.floor() as i32..=to.ceil() as i32)
            .filter(|e| e.rem_euclid(every) == 0)
            .flat_map(|e| mantissas.iter().map(move |m| m * 10f64.powi(e)).collect::<Vec<_>>())
            .filter(|v| (from..=to).contains(&v.log10()))
            .collect()
    };
    let every = (((to - from) / f64::from(count.max(2))).ceil() as i32).max(1);
    let choices = [(&[1.0, 1.5, 2.0, 3.0, 5.0, 7.0][..], 1), (&[1.0, 2.0, 5.0][..], 1), (&[1.0, 3.0][..], 1), (&[1.0][..], every)];
    let (mantissas, every) = choices.into_iter().find(|(m, e)| ticks(m, *e).len() <= count.max(2) as usize + 2).unwrap_or((&[1.0], every));
    ticks(mantissas, every)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::HeadStats;

    fn steps(count: u32, heads: usize) -> Vec<StepRecord> {
        let wave = |n: u32, phase: f32| (n as f32 * 1.7 + phase).sin() * 0.1;
        (1..=count)
            .map(|n| StepRecord {
                step: n,
                loss_d: if n % 50 == 7 { f32::NAN } else { 1.9 + wave(n, 0.0) },
                loss_g: 0.2 + wave(n, 1.0),
                grad_norm_student: (wave(n, 2.0) * 8.0).exp(),
                grad_norm_heads: 10.0 * (wave(n, 3.0) * 8.0).exp(),
                heads: (0..heads)
                    .map(|block| HeadStats {
                        block,
                        accuracy_real: 0.6 + 0.03 * block as f32 / heads as f32 + wave(n, block as f32),
                        accuracy_fake: 0.7,
                        ..HeadStats::default()
                    })
                    .collect(),
                ..StepRecord::default()
            })
            .collect()
    }

    fn quality(network: &str, step: u32, steps: usize, fd: f64) -> QualityRecord {
        let guidance = if network == "teacher" { 3.0 } else { 1.0 };
        QualityRecord { step, network: network.into(), steps, guidance, fd, accuracy: 0.9, diversity: 0.6, ..QualityRecord::default() }
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(linear_ticks(0.0, 1.0, 5), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(log_ticks(-1.0, 2.0, 4), [0.1, 1.0, 10.0, 100.0]);
        let axis = Axis::new(0.0, 0.013, false, 0.0, 6);
        assert_eq!(axis.label(axis.ticks[1]), "0.005");
        let axis = Axis::new(0.1, 20.0, true, 0.0, 4);
        assert_eq!([0.15, 0.2, 1.5, 2.0, 15.0, 20.0].map(|v| axis.label(v)), ["0.15", "0.2", "1.5", "2", "15", "20"]);
        let axis = Axis { ticks: vec![0.25, 0.5, 1.0, 2.0], ..Axis::new(0.25, 2.0, false, 0.0, 4) };
        assert_eq!([0.25, 2.0].map(|v| axis.label(v)), ["0.25", "2.00"]);
    }

    #[test]
    fn the_average_keeps_a_constant_and_its_ends() {
        let points: Vec<_> = (0..200).map(|i| (f64::from(i), 3.0)).collect();
        for log in [false, true] {
            assert!(moving_average(&points, log).iter().all(|p| (p.1 - 3.0).abs() < 1e-9));
        }
    }

    #[test]
    fn odd_input_draws_something() {
        let nan = StepRecord { step: 1, loss_d: f32::NAN, grad_norm_student: f32::INFINITY, ..StepRecord::default() };
        for steps in [vec![], vec![nan], steps(1, 1), steps(3, 38)] {
            let picture = draw_panels("title", &distillation_panels(&steps, &[], Some(2.0))).unwrap();
            assert_eq!(picture.width(), 1600);
        }
        draw_panels("", &[]).unwrap();
        draw_panels("", &pretrain_panels(&[])).unwrap();
        let same = vec![quality("student", 0, 1, 3.0), quality("student", 0, 1, f64::NAN)];
        draw_panels("", &distillation_panels(&[], &same, None)).unwrap();
    }

    #[test]
    fn a_whole_run_draws_six_panels() {
        let mut measured = vec![quality("teacher", 0, 50, 3.6)];
        for step in [0, 200, 400, 600, 800] {
            for (n, base) in [(1, 21.7), (2, 14.7), (4, 11.9)] {
                measured.push(quality("student", step, n, base / (1.0 + f64::from(step) / 400.0)));
            }
        }
        let panels = distillation_panels(&steps(800, 4), &measured, Some(2.0));
        assert_eq!(panels.len(), 6);
        let picture = draw_panels("curves", &panels).unwrap();
        assert_eq!(picture.dimensions(), (1600, 1000));
        if let Some(folder) = std::env::var_os("KEEP_PICTURES") {
            picture.save(std::path::Path::new(&folder).join("curves.png")).unwrap();
        }
    }
}
