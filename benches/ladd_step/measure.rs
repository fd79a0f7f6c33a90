//! Measures a list of cases, each on a freshly opened device, so that one that runs out of memory takes nothing along.
//! The report is written again after every case: a run that is cut short leaves what it has.

use std::path::Path;
use std::time::{Duration, Instant};

use ladd_fast::device::cpu::Cpu;
use ladd_fast::device::cuda::Cuda;
use ladd_fast::device::{Backend, DeviceError, Linear, StepValues, Storage};
use ladd_fast::{Error, Result};
use serde_json::{Value, json};

use super::cases::{Case, Mode, Variant};
use super::facts::{facts, four_digits};

const RULES: &str = "median of the runs after the warm-up, each from its queueing until the device is done, host clock; a LADD step is one \
                     optimiser step on one micro-batch with its uploads, replayed as a CUDA graph on a GPU; sampling is four renoise steps \
                     with the uploads of the text and the download of the latents, transformer only. flops: 2mnk a matrix product, \
                     attention 4BHSSD forward and 2.5 times that backward, nothing else, recomputation not counted; mfu: flops over time \
                     over the rate of a large bf16 matrix product (f32 on a CPU) in the same run. peak_memory_gb: buffers and scratch on \
                     the device, 1e9 bytes. branches: whether independent work ran side by side on a GPU; gemm_algorithms: cuBLASLt's first \
                     proposal, or the fastest of its first eight in the same run";

/// How to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Runs that are not counted; a GPU records in the second.
    pub warm_up: usize,
    /// Runs that are.
    pub iters: usize,
    /// A case that takes longer ends after its third run.
    pub case: Duration,
    /// No case begins later than this.
    pub budget: Duration,
    /// Side of the matrix product whose rate is the machine's.
    pub matrix: usize,
}

/// A device that can be measured.
pub trait Measured: Backend {
    /// Most bytes of device memory in use so far, where the device knows.
    fn peak(&self) -> Option<u64>;
}

impl Measured for Cpu<f32> {
    fn peak(&self) -> Option<u64> {
        None
    }
}

impl Measured for Cuda {
    fn peak(&self) -> Option<u64> {
        Some(self.peak_memory())
    }
}

/// The values' median.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}

/// TFLOP/s of a `side` x `side` x `side` matrix product over random values.
fn matrix_rate<B: Backend>(b: &B, side: usize) -> Result<f64> {
    let mut step = b.alloc_step()?;
    b.upload_step(&StepValues::default(), &mut step);
    let made = |len: usize| -> Result<B::Data> {
        let (mut normals, mut data) = (b.alloc_stat(len)?, b.alloc_data(len)?);
        b.normal(&step, 1, len, normals.all_mut());
        b.cast(normals.all(), data.all_mut());
        Ok(data)
    };
    let layer = Linear { weight: 0, bias: side * side, inputs: side, outputs: side };
    let (params, x, mut y) = (made((side + 1) * side)?, made(side * side)?, made(side * side)?);
    let products = 4;
    let mut recording = B::Recording::default();
    let mut seconds = Vec::new();
    for run in 0..12 {
        let start = Instant::now();
        b.replay(&mut recording, || (0..products).for_each(|_| b.linear(&params, &layer, side, x.all(), y.all_mut(), false)));
        b.synchronize()?;
        if run >= 3 {
            seconds.push(start.elapsed().as_secs_f64() / f64::from(products));
        }
    }
    Ok(2.0 * (side as f64).powi(3) / median(&seconds) / 1e12)
}

/// Milliseconds of every counted run, and the peak of device memory.
fn times<B: Measured>(b: &B, case: &Case, effort: Effort) -> Result<(Vec<f64>, Option<u64>)> {
    let mut run = case.start(b)?;
    for _ in 0..effort.warm_up {
        run()?;
    }
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < effort.iters && (times.len() < 3 || start.elapsed() < effort.case) {
        let begin = Instant::now();
        run()?;
        times.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    Ok((times, b.peak()))
}

/// What a case is, without its results.
fn named(case: &Case) -> Value {
    let mode = match case.mode {
        Mode::Simultaneous => "simultaneous",
        Mode::Alternating => "alternating",
        Mode::Sampling => "sampling",
        Mode::Forward => "forward",
        Mode::ForwardBackward => "forward_backward",
    };
    json!({
        "model": case.model.name,
        "mode": mode,
        "batch": case.batch,
        "resolution": case.resolution,
        "image_tokens": case.image_tokens(),
        "text_tokens": case.text,
        "checkpointing": case.checkpointing,
        "branches": case.variant.branches,
        "gemm_algorithms": case.variant.algorithms,
    })
}

/// Measures one case; what keeps it from running is part of the result.
fn one<B: Measured>(open: &dyn Fn(Variant) -> Result<B>, case: &Case, effort: Effort, matrix: f64) -> Result<Value> {
    let mut entry = named(case);
    let flops = case.flops()?;
    entry["flops"] = json!({
        "linear": flops.linear,
        "attention": flops.attention,
        "convolution": flops.convolution,
        "total": flops.total(),
    });
    match open(case.variant).and_then(|b| times(&b, case, effort)) {
        Ok((times, peak)) => {
            let ms = median(&times);
            let rate = flops.total() as f64 / (ms * 1e9);
            let bound = |pick: fn(f64, f64) -> f64| times.iter().copied().reduce(pick).map(four_digits);
            entry["median_ms"] = json!(four_digits(ms));
            entry["min_ms"] = json!(bound(f64::min));
            entry["max_ms"] = json!(bound(f64::max));
            entry["iters"] = json!(times.len());
            entry["tflop_s"] = json!(four_digits(rate));
            entry["mfu"] = json!(four_digits(rate / matrix));
            entry["peak_memory_gb"] = json!(peak.map(|bytes| four_digits(bytes as f64 / 1e9)));
        }
        Err(Error::Device(DeviceError::OutOfMemory { .. })) => entry["out_of_memory"] = json!(true),
        Err(error @ Error::Device(_)) => entry["failed"] = json!(error.to_string()),
        Err(error) => return Err(error),
    }
    Ok(entry)
}

/// Measures all cases and keeps the report in `file`.
///
/// # Errors
/// When the device cannot be opened, sizes do not fit each other, or the file cannot be written.
pub fn measure<B: Measured>(open: &dyn Fn(Variant) -> Result<B>, cases: &[Case], effort: Effort, dry: bool, file: &Path) -> Result<Value> {
    let begun = Instant::now();
    let rules = if dry { "dry run on the emulated device: no number here is a measurement" } else { RULES };
    let matrix;
    let mut report;
    {
        let b = open(Variant::default())?;
        matrix = matrix_rate(&b, effort.matrix)?;
        report = facts(&b.name(), rules);
    }
    report["threads"] = json!(rayon::current_num_threads());
    report["matrix_tflop_s"] = json!(four_digits(matrix));
    report["results"] = json!([]);
    for (i, case) in cases.iter().enumerate() {
        let entry = if begun.elapsed() > effort.budget {
            let mut entry = named(case);
            entry["skipped"] = json!(format!("the budget of {} s was used up", effort.budget.as_secs()));
            entry
        } else {
            one(open, case, effort, matrix)?
        };
        eprintln!("ladd_step: {} of {}: {}", i + 1, cases.len(), line(&entry));
        report["results"].as_array_mut().into_iter().for_each(|results| results.push(entry.clone()));
        let text = serde_json::to_string_pretty(&report).unwrap_or_default() + "\n";
        std::fs::write(file, text).map_err(|error| Error::io("write", file, error))?;
    }
    Ok(report)
}

/// A result on one line.
fn line(entry: &Value) -> String {
    let what = ["model", "mode"].map(|key| entry[key].as_str().unwrap_or_default()).join(" ");
    let sizes = format!("B={} {}px {} text tokens", entry["batch"], entry["resolution"], entry["text_tokens"]);
    let result = match entry["median_ms"].as_f64() {
        Some(ms) => {
            let peak = entry["peak_memory_gb"].as_f64().map_or_else(String::new, |gb| format!(", peak {gb} GB"));
            format!("{ms} ms, {} TFLOP/s, MFU {}{peak}", entry["tflop_s"], entry["mfu"])
        }
        None if entry["out_of_memory"] == true => "out of memory".to_owned(),
        None => ["failed", "skipped"].iter().filter_map(|key| entry[*key].as_str()).collect(),
    };
    let algorithms = entry["gemm_algorithms"].as_str().unwrap_or_default();
    let variant = if entry["branches"] == false { ", without branches" } else { "" };
    format!("{what} {sizes}, {algorithms} algorithms{variant}: {result}")
}
