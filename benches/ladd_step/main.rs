//! The LADD step, sampling and the model's passes, at any size and on any device.
//!
//!     cargo bench --bench ladd_step                          the demo's size on the CPU, with criterion
//!     cargo bench --bench ladd_step -- --out FILE ...        a list of cases as JSON, see --out FILE --help
//!     cargo bench --bench ladd_step -- --json [--threads N] [--iters N] [--only NAME]
//!
//! The last prints the demo's size on the CPU with the keys of its PyTorch twin, `reference/bench_step.py`;
//! `scripts/bench-step` runs the two in turns and makes the report (`--report FOLDER FACTS`). With `--out`, cases are every
//! combination of the models, modes, batches and resolutions that are named:
//!
//!     cargo bench --bench ladd_step --features cuda -- --out FILE --device cuda --model sd3-medium --batch 1,2,4
//!
//! `--branches on,off` and `--gemm-algorithms heuristic,measured` measure each of them both ways.

mod cases;
#[path = "../kernels/facts.rs"]
mod facts;
mod measure;
mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cases::{Case, Mode, Model, Variant};
use clap::{Parser, ValueEnum};
use criterion::{Criterion, Throughput};
use ladd_fast::Result;
use ladd_fast::config::GemmAlgorithms;
use ladd_fast::device::cpu::Cpu;
use ladd_fast::device::cuda::Cuda;
use ladd_fast::device::cuda::emulated::{Emulated, Schedule};
use measure::{Effort, measure};
use serde_json::{Map, Value, json};

const WARM_UP: usize = 5;

/// Where to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Device {
    /// This machine's processor.
    Cpu,
    /// This machine's first GPU.
    Cuda,
    /// The kernels on the CPU: for dry runs.
    Emulated,
}

/// [`Backend::parallel`](ladd_fast::device::Backend::parallel) on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Branches {
    /// Side by side.
    On,
    /// One after the other.
    Off,
}

/// [`GemmAlgorithms`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Algorithms {
    /// cuBLASLt's first proposal.
    Heuristic,
    /// The fastest of its first eight.
    Measured,
}

/// Measures every combination of models, modes, batches, resolutions and variants.
#[derive(Parser, Debug)]
struct Options {
    /// Write the report to this file, again after every case.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[arg(long, value_enum, default_value = "cpu")]
    device: Device,
    /// Presets: demo, sd3-medium, sd3.5-medium, sd3.5-large; or tiny, for dry runs.
    #[arg(long, value_delimiter = ',', default_value = "demo")]
    model: Vec<String>,
    #[arg(long, value_enum, value_delimiter = ',', default_value = "simultaneous")]
    mode: Vec<Mode>,
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Vec<u32>,
    /// Image sides in pixels, 8 a latent pixel; by default the model's.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(8..))]
    resolution: Vec<u32>,
    /// Text tokens; by default the model's.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    text: Option<u32>,
    /// Keep only the blocks' inputs for the backward.
    #[arg(long)]
    checkpointing: bool,
    /// With independent work side by side on a GPU, without, or both.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "on")]
    branches: Vec<Branches>,
    /// How cuBLASLt's algorithms are chosen on a GPU. Measured ones are kept beside --out.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "heuristic")]
    gemm_algorithms: Vec<Algorithms>,
    /// Runs that are counted; a case that takes longer than --case-seconds ends after three.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    iters: u32,
    /// Runs before them.
    #[arg(long, default_value_t = 3)]
    warmup: u32,
    #[arg(long, default_value_t = 15)]
    case_seconds: u64,
    /// Begin no case later than this; cases left out say so.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    budget: u64,
    /// Threads of the CPU; 0 means all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn cases(&self) -> Result<Vec<Case>> {
        let mut cases = Vec::new();
        for name in &self.model {
            let model = Model::named(name)?;
            let resolutions = if self.resolution.is_empty() { vec![model.resolution as u32] } else { self.resolution.clone() };
            for mode in &self.mode {
                for resolution in &resolutions {
                    for batch in &self.batch {
                        cases.extend(self.variants().map(|variant| Case {
                            model: model.clone(),
                            mode: *mode,
                            batch: *batch as usize,
                            resolution: *resolution as usize,
                            text: self.text.map_or(model.text, |text| text as usize),
                            checkpointing: self.checkpointing,
                            variant,
                        }));
                    }
                }
            }
        }
        Ok(cases)
    }

    fn variants(&self) -> impl Iterator<Item = Variant> + '_ {
        self.branches.iter().flat_map(|branches| {
            self.gemm_algorithms.iter().map(|algorithms| Variant {
                branches: *branches == Branches::On,
                algorithms: match algorithms {
                    Algorithms::Heuristic => GemmAlgorithms::Heuristic,
                    Algorithms::Measured => GemmAlgorithms::Measured,
                },
            })
        })
    }

    /// The device, set up as a case wants it.
    fn varied(&self, cuda: Cuda, variant: Variant) -> Result<Cuda> {
        if variant.algorithms == GemmAlgorithms::Measured {
            cuda.measure_algorithms(&self.kept_algorithms())?;
        }
        Ok(if variant.branches { cuda } else { cuda.without_branches() })
    }

    fn kept_algorithms(&self) -> PathBuf {
        self.out.with_extension("algorithms.json")
    }

    fn run(&self) -> Result<()> {
        threads(self.threads);
        let cases = self.cases()?;
        let dry = self.device == Device::Emulated;
        let effort = Effort {
            warm_up: self.warmup as usize,
            iters: self.iters as usize,
            case: Duration::from_secs(self.case_seconds),
            budget: Duration::from_secs(self.budget),
            matrix: match self.device {
                Device::Cpu => 1024,
                Device::Cuda => 8192,
                Device::Emulated => 16,
            },
        };
        // Those of an earlier run are not this run's measurements.
        let _ = std::fs::remove_file(self.kept_algorithms());
        let emulated = || Cuda::new(Arc::new(Emulated::new(Schedule::default())));
        match self.device {
            Device::Cpu => measure(&|_| Ok(Cpu::<f32>::new()), &cases, effort, dry, &self.out),
            Device::Cuda => measure(&|variant| self.varied(gpu()?, variant), &cases, effort, dry, &self.out),
            Device::Emulated => measure(&|variant| self.varied(emulated(), variant), &cases, effort, dry, &self.out),
        }?;
        Ok(())
    }
}

#[cfg(feature = "cuda")]
fn gpu() -> Result<Cuda> {
    Ok(Cuda::open(0)?)
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> Result<Cuda> {
    Err(ladd_fast::Error::Usage("built without the feature `cuda`: cargo bench --bench ladd_step --features cuda".into()))
}

fn threads(count: usize) {
    rayon::ThreadPoolBuilder::new().num_threads(count).build_global().expect("the thread pool is built once");
}

/// The demo's step and passes at its micro-batch, under the names of the PyTorch twin.
fn demo() -> [(&'static str, Case); 4] {
    let modes = [
        ("simultaneous", Mode::Simultaneous),
        ("alternating", Mode::Alternating),
        ("model_forward", Mode::Forward),
        ("model_forward_backward", Mode::ForwardBackward),
    ];
    let model = Model::named("demo").expect("the demo is a preset");
    let (resolution, text) = (model.resolution, model.text);
    modes.map(|(name, mode)| {
        (name, Case { model: model.clone(), mode, batch: 64, resolution, text, checkpointing: false, variant: Variant::default() })
    })
}

/// Calls `measure` with the name and body of every benchmark whose name begins with `only`, one after the other, each with
/// buffers of its own.
fn benchmarks(only: &str, mut measure: impl FnMut(&str, &mut dyn FnMut())) {
    let b = Cpu::<f32>::new();
    for (name, case) in demo().into_iter().filter(|(name, _)| name.starts_with(only)) {
        let mut run = case.start(&b).expect("the demo's step can be planned");
        measure(name, &mut || run().expect("the CPU does not fail"));
    }
}

/// Median, smallest and largest time of `iters` runs after a warm-up, in milliseconds.
fn times(iters: usize, run: &mut dyn FnMut()) -> Value {
    (0..WARM_UP).for_each(|_| run());
    let mut times: Vec<f64> = (0..iters)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let rounded = |ms: f64| (ms * 1e3).round() / 1e3;
    json!({ "median_ms": rounded(measure::median(&times)), "min_ms": rounded(times[0]), "max_ms": rounded(times[iters - 1]) })
}

/// Largest resident set so far, where the system tells it.
fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some((kilobytes / 102.4).round() / 10.0)
}

fn print_json(arguments: &[String]) {
    let option = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1));
    let number = |name: &str, default: usize| option(name).map_or(default, |value| value.parse().expect("a whole number"));
    threads(number("--threads", 0));
    let (iters, only) = (number("--iters", 30), option("--only").map_or("", String::as_str));
    let mut result = Map::new();
    result.insert("ladd-fast".into(), env!("CARGO_PKG_VERSION").into());
    result.insert("threads".into(), rayon::current_num_threads().into());
    benchmarks(only, |name, run| _ = result.insert(name.into(), times(iters, run)));
    result.insert("peak_rss_mb".into(), peak_rss_mb().into());
    println!("{}", Value::Object(result));
}

fn with_criterion() {
    let slow = Criterion::default().sample_size(20).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(5));
    let mut criterion = slow.configure_from_args();
    let mut group = criterion.benchmark_group("ladd_step");
    group.throughput(Throughput::Elements(64));
    benchmarks("", |name, run| {
        group.bench_function(name, |bencher| bencher.iter(&mut *run));
    });
    group.finish();
    criterion.final_summary();
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let given = |name: &str| arguments.iter().position(|argument| argument == name);
    if given("--out").is_some() {
        if let Err(error) = Options::parse().run() {
            eprintln!("ladd_step: {error}");
            return ExitCode::from(2);
        }
    } else if given("--json").is_some() {
        print_json(&arguments);
    } else if let Some(at) = given("--report") {
        let report = report::report(Path::new(&arguments[at + 1]), &arguments[at + 2]);
        println!("{}", serde_json::to_string_pretty(&report).expect("a JSON object"));
    } else {
        with_criterion();
    }
    ExitCode::SUCCESS
}
