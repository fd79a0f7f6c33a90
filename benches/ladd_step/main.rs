//! The whole LADD step of the demo on the CPU, simultaneous and alternating, and the model's passes at the same size.
//!
//! `cargo bench --bench ladd_step` measures with criterion. `cargo bench --bench ladd_step -- --json [--threads N]
//! [--iters N] [--only NAME]` prints one JSON object instead, with the keys of its PyTorch twin,
//! `reference/bench_step.py`; `scripts/bench-step` runs the two in turns and makes the report (`--report FOLDER FACTS`).

mod report;

use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use ladd_fast::device::Storage;
use ladd_fast::device::cpu::{Buffer, Cpu};
use ladd_fast::flow::TimestepDistribution;
use ladd_fast::flow::philox::fill_normals;
use ladd_fast::ladd::{HostBatch, LaddConfig, Update};
use ladd_fast::model::mmdit::sinusoidal_grid;
use ladd_fast::model::{Activations, Backward, Gradients, Inputs, Keep, Mmdit, ModelConfig, Plan, Shape};
use ladd_fast::train::{Checkpointing, DistillSettings, Distiller, MicroBatch, OptimConfig};
use serde_json::{Map, Value, json};

/// The demo's micro-batch.
const SHAPE: Shape = Shape { batch: 64, height: 8, width: 8, text: 4 };
const HEAD_WIDTH: usize = 64;
const WARM_UP: usize = 5;

fn config() -> ModelConfig {
    ModelConfig {
        depth: 4,
        heads: 2,
        head_dim: 64,
        in_channels: 16,
        patch: 2,
        context_dim: 64,
        pooled_dim: 64,
        pos_embed_max: 4,
        qk_norm: true,
        dual_attention_blocks: 0,
    }
}

fn normals(stream: u32, len: usize, scale: f32) -> Vec<f32> {
    let mut values = vec![0.0; len];
    fill_normals(1, 0, stream, 0, &mut values);
    values.iter_mut().for_each(|v| *v *= scale);
    values
}

fn network(b: &Cpu<f32>) -> (Mmdit<Cpu<f32>>, Vec<f32>) {
    let network = Mmdit::new(b, config(), &sinusoidal_grid(&config())).unwrap();
    let weights = normals(9, network.layout().arena.len(), 0.05);
    (network, weights)
}

/// Latents and text of one micro-batch.
struct Batch {
    x0: Vec<f32>,
    context: Vec<f32>,
    pooled: Vec<f32>,
}

impl Batch {
    fn new() -> Self {
        let (config, Shape { batch, height, width, text }) = (config(), SHAPE);
        Self {
            x0: normals(1, batch * config.in_channels * height * width, 1.0),
            context: normals(2, batch * text * config.context_dim, 1.0),
            pooled: normals(3, batch * config.pooled_dim, 1.0),
        }
    }
}

/// A distillation that steps on the same batch again and again.
struct Step<'a> {
    b: &'a Cpu<f32>,
    batch: &'a Batch,
    distiller: Distiller<Cpu<f32>>,
}

impl<'a> Step<'a> {
    fn new(b: &'a Cpu<f32>, batch: &'a Batch, update: Update) -> Self {
        let student_t = TimestepDistribution::Discrete {
            values: vec![1.0, 0.75, 0.5, 0.25],
            probs: vec![0.7, 0.1, 0.1, 0.1],
            warmup_probs: Vec::new(),
            warmup_steps: 0,
        };
        let ladd = LaddConfig { update, student_t, head_width: HEAD_WIDTH, ..LaddConfig::default() };
        let optim = |lr: f64| OptimConfig { lr, beta1: 0.9, beta2: 0.999, weight_decay: 0.01, ..OptimConfig::default() };
        let settings = DistillSettings {
            ladd,
            student: optim(1e-5),
            heads: optim(2e-5),
            total_steps: u32::MAX,
            ema_decay: 0.99,
            seed: 0,
            activation_checkpointing: Checkpointing::Off,
        };
        let ((teacher, weights), (student, _)) = (network(b), network(b));
        let distiller = Distiller::new(b, settings, (teacher, &weights), (student, &weights)).unwrap();
        Self { b, batch, distiller }
    }

    fn run(&mut self) {
        let Batch { x0, context, pooled } = self.batch;
        let values = HostBatch { x0, context, pooled, mismatch: None };
        self.distiller.step(self.b, &[MicroBatch { shape: SHAPE, values }]).unwrap();
    }
}

/// The student's network alone.
struct Model<'a> {
    b: &'a Cpu<f32>,
    network: Mmdit<Cpu<f32>>,
    params: Buffer<f32>,
    inputs: [Buffer<f32>; 4],
    acts: Activations<Cpu<f32>>,
    room: Gradients<Cpu<f32>>,
    velocity: Buffer<f32>,
    d_velocity: Buffer<f32>,
    grads: Buffer<f32>,
}

impl<'a> Model<'a> {
    fn new(b: &'a Cpu<f32>, batch: &Batch) -> Self {
        use ladd_fast::device::Backend;
        let (network, weights) = network(b);
        let buffer = |values: &[f32]| {
            let mut buffer = b.alloc_data(values.len()).unwrap();
            b.upload_data(values, buffer.all_mut());
            buffer
        };
        let t: Vec<f32> = normals(4, SHAPE.batch, 1.0).iter().map(|n| 1.0 / (1.0 + n.exp())).collect();
        let plan = Plan { shape: SHAPE, blocks: config().depth, velocity: true, keep: Keep::Everything, checkpointed: 0 };
        Self {
            params: buffer(&weights),
            inputs: [&batch.x0, &t, &batch.context, &batch.pooled].map(|values| buffer(values)),
            acts: network.activations(b, plan).unwrap(),
            room: network.gradients(b, &plan).unwrap(),
            velocity: buffer(&batch.x0),
            d_velocity: buffer(&batch.x0),
            grads: buffer(&vec![0.0; weights.len()]),
            network,
            b,
        }
    }

    fn run(&mut self, backward: bool) {
        let [latent, t, context, pooled] = self.inputs.each_ref().map(Storage::all);
        let inputs = Inputs { batch: SHAPE.batch, latent, t, context, pooled };
        self.network.forward(self.b, &self.params, &inputs, &mut self.acts, Some(self.velocity.all_mut()));
        if backward {
            let (d_velocity, grads) = (Some(self.d_velocity.all()), Some(&mut self.grads));
            let pass = Backward { batch: SHAPE.batch, d_velocity, d_features: &[], grads, d_latent: None };
            self.network.backward(self.b, &self.params, &inputs, &mut self.acts, &mut self.room, pass);
        }
    }
}

/// Calls `measure` with every benchmark's name and body, one after the other, each with buffers of its own.
fn benchmarks(mut measure: impl FnMut(&str, &mut dyn FnMut())) {
    let (b, batch) = (Cpu::<f32>::new(), Batch::new());
    for (name, update) in [("simultaneous", Update::Simultaneous), ("alternating", Update::Alternating)] {
        let mut step = Step::new(&b, &batch, update);
        measure(name, &mut || step.run());
    }
    for (name, backward) in [("model_forward", false), ("model_forward_backward", true)] {
        let mut model = Model::new(&b, &batch);
        measure(name, &mut || model.run(backward));
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
    let median = (times[(iters - 1) / 2] + times[iters / 2]) / 2.0;
    let rounded = |ms: f64| (ms * 1e3).round() / 1e3;
    json!({ "median_ms": rounded(median), "min_ms": rounded(times[0]), "max_ms": rounded(times[iters - 1]) })
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
    let threads = number("--threads", 0);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("the thread pool is built once");
    let (iters, only) = (number("--iters", 30), option("--only"));
    let mut result = Map::new();
    result.insert("ladd-fast".into(), env!("CARGO_PKG_VERSION").into());
    result.insert("threads".into(), rayon::current_num_threads().into());
    benchmarks(|name, run| {
        if only.is_none_or(|only| name.starts_with(&**only)) {
            result.insert(name.into(), times(iters, run));
        }
    });
    result.insert("peak_rss_mb".into(), peak_rss_mb().into());
    println!("{}", Value::Object(result));
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.iter().any(|argument| argument == "--json") {
        return print_json(&arguments);
    }
    if let Some(at) = arguments.iter().position(|argument| argument == "--report") {
        let report = report::report(Path::new(&arguments[at + 1]), &arguments[at + 2]);
        return println!("{}", serde_json::to_string_pretty(&report).expect("a JSON object"));
    }
    let slow = Criterion::default().sample_size(20).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(5));
    let mut criterion = slow.configure_from_args();
    let mut group = criterion.benchmark_group("ladd_step");
    group.throughput(Throughput::Elements(SHAPE.batch as u64));
    benchmarks(|name, run| {
        group.bench_function(name, |bencher| bencher.iter(&mut *run));
    });
    group.finish();
    criterion.final_summary();
}
