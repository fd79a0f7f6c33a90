//! Every kernel of the CUDA backend at the shapes of SD3-medium and SD3.5-large.
//!
//!     cargo bench --bench kernels --features cuda [FILTER]                 criterion, a group per operation
//!     cargo bench --bench kernels --features cuda -- --json FILE           medians as JSON, and a table
//!     cargo bench --bench kernels -- --dry                                 each case once, tiny, on the emulated device
//!     cargo bench --bench kernels --features cuda -- --goals --json FILE   the cases of docs/performance-goals.md
//!     cargo bench --bench kernels --features cuda -- --variants            every variant of a kernel there are several of
//!     cargo bench --bench kernels -- --join OURS PYTORCH FILE              one report from both sides
//!
//! FILTER keeps operations whose name contains it; `--shape TEXT` keeps shapes. Rates are TFLOP/s (attention: forward
//! `4 B H S^2 D`, backward 2.5 times that) or GB/s (every value that must be read or written, once), also as a fraction
//! of what the same run measured: a large copy on the device, and a large matrix product by cuBLASLt in bf16. Without a
//! GPU it says so and ends. `scripts/bench-kernels` runs it beside PyTorch.
//!
//! `--variants` (with `--json FILE`, `--head-dim N`, `--dry` as above) prints for each shape the fastest variant and the one
//! that `src/device/cuda/policy.rs` chooses.

// Its sizes are for other benchmarks.
#[allow(dead_code)]
#[path = "../../tests/it/catalogue.rs"]
mod catalogue;
mod facts;
mod goals;
mod measure;
mod report;
mod shapes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use catalogue::{Entry, Maker, Run, Work, entries};
use clap::Parser;
use criterion::{Criterion, Throughput};
use ladd_fast::device::cuda::Cuda;
use ladd_fast::device::cuda::emulated::{Emulated, Schedule};
use ladd_fast::device::cuda::policy::{self, Choices};
use ladd_fast::device::{AttentionShape, Backend, Linear, Storage};
use measure::{Bench, Effort, median};
use report::four_digits;
use serde_json::{Value, json};
use shapes::Shape;

const RULES: &str = "median of 31 samples; a sample is at least 2 ms of runs queued back to back in a replayed CUDA graph between two \
                     waits, host clock, gaps between kernels included; operands rotated over at least 192 MiB (at most 64 copies); \
                     random operands; 1 s of rest before each case (--goals: a quarter)";

#[derive(Parser, Debug)]
struct Options {
    /// Keep operations whose name contains this.
    filter: Option<String>,
    /// Keep shapes whose name contains this.
    #[arg(long)]
    shape: Option<String>,
    /// Write medians to this file, without criterion.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The cases of docs/performance-goals.md instead, with shorter rests.
    #[arg(long)]
    goals: bool,
    /// Run each case once, tiny, on the emulated device.
    #[arg(long)]
    dry: bool,
    /// Time every variant of the operations that have several.
    #[arg(long)]
    variants: bool,
    /// Width of an attention head, for `--variants`; their number follows.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    head_dim: u16,
    /// Join two results into one report, and print its table.
    #[arg(long, num_args = 3, value_names = ["OURS", "PYTORCH", "FILE"])]
    join: Option<Vec<PathBuf>>,
    /// Ordinal of the GPU.
    #[arg(long, default_value_t = 0)]
    gpu: usize,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn wanted(&self, operation: &str, shape: &str) -> bool {
        let keeps = |filter: &Option<String>, name: &str| filter.as_ref().is_none_or(|filter| name.contains(filter));
        keeps(&self.filter, operation) && keeps(&self.shape, shape)
    }

    /// Every case that is wanted.
    fn cases<'a>(&self, devices: &'a Devices) -> Vec<Case<'a>> {
        let mut cases = self.cases_on(&devices.ordered);
        for Case { b, entry, shape } in devices.unordered.iter().flat_map(|b| self.cases_on(b)) {
            if entry.name == "attention_backward" {
                cases.push(Case { b, entry: Entry { name: "attention_backward_unordered", ..entry }, shape });
            }
        }
        cases
    }

    fn cases_on<'a>(&self, b: &'a Cuda) -> Vec<Case<'a>> {
        let of = |shape: Shape| {
            let entries = entries(b, shape.sizes).into_iter();
            entries.filter_map(move |entry| shape.name(entry.name).map(|shape| Case { b, entry, shape }))
        };
        let of_goal = |goal: goals::Goal| {
            let entries = entries(b, goal.sizes).into_iter();
            entries.filter_map(move |entry| goal.name(entry.name).map(|shape| Case { b, entry, shape }))
        };
        let cases: Vec<_> = match self.goals {
            true => goals::all(self.dry).into_iter().flat_map(of_goal).collect(),
            false => shapes::all(self.dry).into_iter().flat_map(of).collect(),
        };
        let cases = cases.into_iter();
        cases.filter(|case| self.wanted(case.entry.name, &case.shape)).collect()
    }

    fn open(&self) -> Result<Cuda, String> {
        if self.dry { Ok(Cuda::new(Arc::new(Emulated::new(Schedule::default())))) } else { gpu(self.gpu) }
    }
}

/// The device, and once more with sums over blocks in any order, where there are kernels to which that matters.
struct Devices {
    ordered: Cuda,
    unordered: Option<Cuda>,
}

impl Devices {
    fn open(options: &Options) -> Result<Self, String> {
        let ordered = options.open()?;
        let unordered = if ordered.properties().hopper() { Some(options.open()?.without_order()) } else { None };
        Ok(Self { ordered, unordered })
    }
}

/// An operation on a device at a shape, by its name.
struct Case<'a> {
    b: &'a Cuda,
    entry: Entry<'a, Cuda>,
    shape: String,
}

#[cfg(feature = "cuda")]
fn gpu(ordinal: usize) -> Result<Cuda, String> {
    Cuda::open(ordinal).map_err(|error| error.to_string())
}

#[cfg(not(feature = "cuda"))]
fn gpu(_: usize) -> Result<Cuda, String> {
    Err("built without the feature `cuda`: cargo bench --bench kernels --features cuda".to_owned())
}

/// Units per second, in the unit that the work is counted in.
fn rate(work: Work, seconds: f64) -> (f64, &'static str) {
    match work {
        Work::Flops(n) => (n as f64 / seconds / 1e12, "TFLOP/s"),
        Work::Traffic { .. } => (bytes(work) as f64 / seconds / 1e9, "GB/s"),
    }
}

fn bytes(work: Work) -> u64 {
    match work {
        Work::Flops(_) => 0,
        Work::Traffic { data, stat } => (2 * data + 4 * stat) as u64,
    }
}

/// What the machine reaches in the same run: GB/s of a copy, TFLOP/s of a matrix product.
struct Machine {
    copy: f64,
    matrix: f64,
}

impl Machine {
    fn measure(b: &Cuda, effort: Effort, dry: bool) -> Self {
        let (len, side) = if dry { (1 << 10, 64) } else { (256 << 20, 8192) };
        let copy = move |_: &mut Maker<'_, Cuda>| -> Run<'_> {
            let (from, mut to) = (b.alloc_data(len).unwrap(), b.alloc_data(len).unwrap());
            Box::new(move |_| {
                b.copy_data(from.all(), to.all_mut());
                Vec::new()
            })
        };
        let layer = Linear { weight: 0, bias: side * side, inputs: side, outputs: side };
        let matrix = move |_: &mut Maker<'_, Cuda>| -> Run<'_> {
            let made = |len: usize| {
                let (mut normals, mut data) = (b.alloc_stat(len).unwrap(), b.alloc_data(len).unwrap());
                b.normal(&b.alloc_step().unwrap(), 1, len, normals.all_mut());
                b.cast(normals.all(), data.all_mut());
                data
            };
            let (params, x, mut y) = (made((side + 1) * side), made(side * side), made(side * side));
            Box::new(move |_| {
                b.linear(&params, &layer, side, x.all(), y.all_mut(), false);
                Vec::new()
            })
        };
        let copy = Entry { name: "copy", work: Work::Traffic { data: 2 * len, stat: 0 }, make: Box::new(copy) };
        let matrix = Entry { name: "matrix", work: Work::Flops(2 * side * side * side), make: Box::new(matrix) };
        let [copy, matrix] = [copy, matrix].map(|entry| {
            // One set of operands is larger than any cache.
            let effort = Effort { copies: 1, ..effort };
            rate(entry.work, median(&Bench::new(b, &entry, effort).samples(effort))).0
        });
        Self { copy, matrix }
    }

    fn of(&self, work: Work) -> f64 {
        match work {
            Work::Flops(_) => self.matrix,
            Work::Traffic { .. } => self.copy,
        }
    }
}

/// Measures one case.
fn measured(machine: &Machine, effort: Effort, Case { b, entry, shape }: &Case<'_>, check: bool) -> Value {
    let mut bench = Bench::new(b, entry, effort);
    let samples = bench.samples(effort);
    let seconds = median(&samples);
    let (rate, unit) = rate(entry.work, seconds);
    if check {
        let wrong = bench.results().iter().filter(|v| !v.is_finite()).count();
        assert!(wrong == 0, "{} at {shape}: {wrong} values are not finite", entry.name);
    }
    let us = |seconds: f64| four_digits(seconds * 1e6);
    json!({
        "operation": entry.name,
        "shape": shape,
        "median_us": us(seconds),
        "min_us": us(samples.iter().copied().fold(f64::INFINITY, f64::min)),
        "max_us": us(samples.iter().copied().fold(0.0, f64::max)),
        "samples": samples.len(),
        "runs_per_sample": bench.runs,
        "copies": bench.copies(),
        "rate": four_digits(rate),
        "unit": unit,
        "fraction": four_digits(rate / machine.of(entry.work)),
    })
}

/// Medians of every case, as JSON.
fn medians(devices: &Devices, options: &Options, effort: Effort) -> Value {
    let b = &devices.ordered;
    let machine = Machine::measure(b, effort, options.dry);
    let rules = if options.dry { "dry run of tiny shapes on the emulated device: no number here is a measurement" } else { RULES };
    let mut report = report::facts(&b.name(), rules);
    report["copy_gb_s"] = json!(four_digits(machine.copy));
    report["matrix_tflop_s"] = json!(four_digits(machine.matrix));
    let cases = options.cases(devices);
    report["results"] = json!([]);
    for (i, one) in cases.iter().enumerate() {
        eprintln!("kernels: {} of {}, {} at {}", i + 1, cases.len(), one.entry.name, one.shape);
        let result = measured(&machine, effort, one, options.dry);
        report["results"].as_array_mut().into_iter().for_each(|results| results.push(result.clone()));
        // A run that is cut short leaves what it has.
        options.json.iter().for_each(|path| write(path, &report));
    }
    report
}

/// Medians of every variant at every shape of the operations that have several, as JSON.
fn variants(b: &Cuda, options: &Options, effort: Effort) -> Value {
    let machine = Machine::measure(b, effort, options.dry);
    let rules = if options.dry { "dry run on the emulated device: no number here is a measurement" } else { RULES };
    let mut report = report::facts(&b.name(), rules);
    report["rest_s"] = json!(effort.rest.as_secs_f64());
    let mut results = Vec::new();
    for shape in shapes::all(options.dry) {
        let head_dim = usize::from(options.head_dim);
        let heads = (shape.sizes.heads * shape.sizes.head_dim / head_dim).max(1);
        let sizes = catalogue::Sizes { heads, head_dim, ..shape.sizes };
        for Entry { name, .. } in entries(b, sizes) {
            let (Some(of), names) = (shape.name(name), policy::variants(name, head_dim)) else { continue };
            if names.is_empty() || !options.wanted(name, &of) {
                continue;
            }
            let asked = AttentionShape { batch: sizes.batch, heads, head_dim, image: sizes.image(), text: sizes.text, text_queries: true };
            let chosen = policy::chosen(name, &asked, b.properties().multiprocessors);
            eprintln!("kernels: {} variants of {name} at {of}", names.len());
            for variant in names {
                let choosing = b.choosing(Choices::of(name, &variant));
                let Some(entry) = entries(&choosing, sizes).into_iter().find(|entry| entry.name == name) else { continue };
                let one = Case { b: &choosing, entry, shape: of.clone() };
                let mut result = measured(&machine, effort, &one, options.dry);
                result["chosen"] = json!(chosen.as_ref() == Some(&variant));
                result["variant"] = json!(variant);
                results.push(result);
            }
        }
    }
    report["results"] = json!(results);
    report
}

/// One criterion group per operation.
fn with_criterion(devices: &Devices, options: &Options) {
    let mut criterion = Criterion::default().sample_size(30).warm_up_time(Duration::from_millis(200));
    criterion = criterion.measurement_time(Duration::from_secs(1)).without_plots();
    for Case { b, entry, shape } in options.cases(devices) {
        let mut group = criterion.benchmark_group(entry.name);
        group.throughput(match entry.work {
            Work::Flops(n) => Throughput::Elements(n as u64),
            Work::Traffic { .. } => Throughput::Bytes(bytes(entry.work)),
        });
        let mut bench = Bench::new(b, &entry, Effort::FULL);
        std::thread::sleep(Effort::FULL.rest);
        group.bench_function(shape, |bencher| {
            bencher.iter_custom(|iterations| {
                let replays = iterations.div_ceil(bench.runs as u64);
                let time: Duration = (0..replays).map(|_| bench.replay()).sum();
                time.mul_f64(iterations as f64 / (replays * bench.runs as u64) as f64)
            });
        });
        group.finish();
    }
    criterion.final_summary();
}

fn write(path: &PathBuf, report: &Value) {
    let text = serde_json::to_string_pretty(report).expect("a report is plain values") + "\n";
    std::fs::write(path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}

fn main() {
    let options = Options::parse();
    if let Some([ours, pytorch, file]) = options.join.as_deref() {
        let report = report::join(ours, pytorch);
        write(file, &report);
        println!("{}", report::table(&report));
        return;
    }
    let devices = match Devices::open(&options) {
        Ok(devices) => devices,
        Err(cause) => {
            println!("kernels: nothing was measured, there is no GPU: {cause}");
            // Without a file to write, as in a plain `cargo bench`, that is no mistake.
            std::process::exit(if options.json.is_some() { 2 } else { 0 });
        }
    };
    if options.variants {
        // Many short runs: the order of variants matters more than the last percent.
        let effort = Effort { rest: Duration::from_millis(200), ..Effort::FULL };
        let report = variants(&devices.ordered, &options, if options.dry { Effort::DRY } else { effort });
        options.json.iter().for_each(|path| write(path, &report));
        println!("{}", report::variants_table(&report));
    } else if options.dry || options.json.is_some() {
        let full = if options.goals { Effort::BRIEF } else { Effort::FULL };
        let report = medians(&devices, &options, if options.dry { Effort::DRY } else { full });
        options.json.iter().for_each(|path| write(path, &report));
        println!("{}", report::table(&report));
    } else {
        with_criterion(&devices, &options);
    }
}
