//! What FP8 costs the judging teacher: features of every block and logits of the heads, with the blocks' products in e4m3,
//! against fp32; and, as a yardstick, what bf16 costs by itself.
//!
//! ```sh
//! cargo run --release --features emulator --example fp8_error -- docs/fp8
//! ```
//!
//! The demo's teacher sees real images, noised to times drawn as the method draws them (logit-normal with mean 1, deviation
//! 1). The heads are trained beforehand, by steps of the distillation on the processor. bf16 is that of the emulated GPU.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use image::Rgb;
use ladd_fast::data::fashion_mnist::CLASS_NAMES;
use ladd_fast::device::cpu::Cpu;
use ladd_fast::device::cuda::Cuda;
use ladd_fast::device::cuda::emulated::{Emulated, Schedule};
use ladd_fast::device::{Backend, StepValues, Storage};
use ladd_fast::flow::TimestepDistribution;
use ladd_fast::flow::philox::stream;
use ladd_fast::format::{Checkpoint, SafetensorsFile};
use ladd_fast::ladd::{HostBatch, LaddConfig, TeacherPrecision};
use ladd_fast::model::mmdit::POS_EMBED;
use ladd_fast::model::{Heads, HeadsShape, Image, Inputs, Keep, Mmdit, Plan, Shape};
use ladd_fast::report::{Across, Panel, Series, Stroke, draw_panels, save_png};
use ladd_fast::train::{Checkpointing, DistillSettings, Distiller, MicroBatch, OptimConfig};
use ladd_fast::{Error, Result};

static TEACHER: &[u8] = include_bytes!("../src/data/demo/teacher.safetensors");
static IMAGES: &[u8] = include_bytes!("../src/data/demo/test_images.safetensors");

/// Steps of the distillation that train the heads, and samples of each.
const STEPS: u32 = 60;
const BATCH: usize = 64;
const HEAD_WIDTH: usize = 64;
const RENOISE: TimestepDistribution = TimestepDistribution::LogitNormal { mean: 1.0, std: 1.0 };
const COLOURS: [Rgb<u8>; 3] = [Rgb([0, 158, 115]), Rgb([0, 114, 178]), Rgb([213, 94, 0])];

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1) else {
        eprintln!("usage: fp8_error FOLDER");
        return ExitCode::from(2);
    };
    match run(Path::new(&folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// The teacher and what it judges.
struct Scene {
    checkpoint: Checkpoint,
    weights: Vec<f32>,
    shape: Shape,
    x0: Vec<f32>,
    context: Vec<f32>,
    pooled: Vec<f32>,
    t_hat: Vec<f32>,
    /// The latents noised to those times.
    x_t: Vec<f32>,
}

impl Scene {
    fn new() -> Result<Self> {
        let checkpoint = Checkpoint::from_bytes("teacher.safetensors", TEACHER)?;
        let file = SafetensorsFile::from_bytes("test_images.safetensors", IMAGES)?;
        let labels = file.u8("labels")?;
        let pipeline = &checkpoint.pipeline;
        let x0 = pipeline.codec.encode(&padded(file.u8("images")?), [1, 32, 32])?;
        let [_, height, width] = pipeline.codec.latent_shape([1, 32, 32])?;
        let prompts = pipeline.text.encode(&CLASS_NAMES)?;
        let of = |label: &u8| &prompts[usize::from(*label)];
        let context = labels.iter().flat_map(|label| of(label).context.clone()).collect();
        let pooled = labels.iter().flat_map(|label| of(label).pooled.clone()).collect();
        let shape = Shape { batch: labels.len(), height, width, text: pipeline.text.tokens()? };
        let b = Cpu::<f32>::new();
        let weights = {
            let model = model(&b, &checkpoint)?;
            let find = |name: &str| checkpoint.tensors.get(name).map(|t| (t.shape.as_slice(), t.data.as_slice()));
            model.layout().arena.gather(find).map_err(|e| Error::Usage(e.to_string()))?
        };
        let mut step = b.alloc_step()?;
        b.upload_step(&StepValues::default(), &mut step);
        let (latents, mut t_hat, mut x_t) = (stat(&b, &x0)?, b.alloc_stat(shape.batch)?, b.alloc_stat(x0.len())?);
        b.timesteps(&step, stream::RENOISE_T, &RENOISE, t_hat.all_mut());
        b.flow_noise(&step, stream::RENOISE_REAL, None, latents.all(), t_hat.all(), x_t.all_mut(), None);
        let (t_hat, x_t) = (b.download_stat(t_hat.all())?, b.download_stat(x_t.all())?);
        Ok(Self { checkpoint, weights, shape, x0, context, pooled, t_hat, x_t })
    }

    fn heads(&self) -> Heads {
        let model = &self.checkpoint.pipeline.model;
        Heads::new(HeadsShape { count: model.depth, hidden: model.hidden(), width: HEAD_WIDTH, pooled: model.pooled_dim })
    }
}

fn model<B: Backend>(b: &B, checkpoint: &Checkpoint) -> Result<Mmdit<B>> {
    Mmdit::new(b, checkpoint.pipeline.model.clone(), &checkpoint.tensors[POS_EMBED].data)
}

fn stat<B: Backend>(b: &B, values: &[f32]) -> Result<B::Stat> {
    let mut buffer = b.alloc_stat(values.len())?;
    b.upload_stat(values, buffer.all_mut());
    Ok(buffer)
}

fn data<B: Backend>(b: &B, values: &[f32]) -> Result<B::Data> {
    let mut buffer = b.alloc_data(values.len())?;
    b.upload_data(values, buffer.all_mut());
    Ok(buffer)
}

/// Images of 28 x 28 bytes as the codec takes them: framed by two black pixels, in [-1, 1].
fn padded(bytes: &[u8]) -> Vec<f32> {
    let mut images = vec![-1.0; bytes.len() / (28 * 28) * 32 * 32];
    for (image, bytes) in images.chunks_exact_mut(32 * 32).zip(bytes.chunks_exact(28 * 28)) {
        for (row, bytes) in image.chunks_exact_mut(32).skip(2).zip(bytes.chunks_exact(28)) {
            row[2..30].iter_mut().zip(bytes).for_each(|(pixel, byte)| *pixel = f32::from(*byte) / 127.5 - 1.0);
        }
    }
    images
}

/// The heads' weights after some steps of the distillation.
fn trained_heads(scene: &Scene) -> Result<Vec<f32>> {
    let b = Cpu::<f32>::new();
    let optim = OptimConfig { lr: 1e-4, beta1: 0.0, beta2: 0.99, ..OptimConfig::default() };
    let settings = DistillSettings {
        ladd: LaddConfig { head_width: HEAD_WIDTH, teacher_precision: TeacherPrecision::Bf16, ..LaddConfig::default() },
        heads: OptimConfig { lr: 3e-3, ..optim.clone() },
        student: optim,
        total_steps: STEPS,
        ema_decay: 0.0,
        seed: 0,
        activation_checkpointing: Checkpointing::Off,
    };
    let [teacher, student] = [model(&b, &scene.checkpoint)?, model(&b, &scene.checkpoint)?];
    let mut distiller = Distiller::new(&b, settings, (teacher, &scene.weights), (student, &scene.weights))?;
    let all = scene.shape.batch;
    for step in 0..STEPS as usize {
        let first = step * BATCH % (all - BATCH + 1);
        let part = |values: &[f32]| first * (values.len() / all)..(first + BATCH) * (values.len() / all);
        let values = HostBatch {
            conditioning: None,
            x0: &scene.x0[part(&scene.x0)],
            context: &scene.context[part(&scene.context)],
            pooled: &scene.pooled[part(&scene.pooled)],
            mismatch: None,
        };
        distiller.step(&b, &[MicroBatch { shape: Shape { batch: BATCH, ..scene.shape }, values }])?;
    }
    Ok(b.download_stat(distiller.heads.master.all())?)
}

/// Features of every block `[B, N h]` and logits of every head `[B, N]`.
struct Seen {
    features: Vec<Vec<f32>>,
    logits: Vec<Vec<f32>>,
}

fn judge<B: Backend>(b: &B, scene: &Scene, heads_weights: &[f32], fp8: bool) -> Result<Seen> {
    let (model, heads, shape) = (model(b, &scene.checkpoint)?, scene.heads(), scene.shape);
    let (params, heads_params) = (data(b, &scene.weights)?, data(b, heads_weights)?);
    let blocks = model.config().depth;
    let plan = Plan { shape, blocks, velocity: false, keep: Keep::Frozen, checkpointed: 0 };
    let mut acts = match fp8 {
        true => model.activations_fp8(b, plan, &Arc::new(model.quantize(b, &params, blocks)?))?,
        false => model.activations(b, plan)?,
    };
    let (latent, t) = (stat(b, &scene.x_t)?, stat(b, &scene.t_hat)?);
    let (context, pooled) = (data(b, &scene.context)?, data(b, &scene.pooled)?);
    let inputs = Inputs {
        batch: shape.batch,
        image: Image::Latent(latent.all()),
        conditioning: None,
        t: t.all(),
        context: context.all(),
        pooled: pooled.all(),
    };
    model.forward(b, &params, &inputs, &mut acts, None);
    let features: Vec<&B::Data> = (0..blocks).map(|block| acts.feature(block)).collect();
    let (rows, columns) = acts.grid();
    let mut room = heads.activations(b, shape.batch, (rows, columns))?;
    let mut logits = b.alloc_stat(blocks * shape.batch * rows * columns)?;
    heads.forward(b, &heads_params, shape.batch, &features, inputs.t, inputs.pooled, &mut room, &mut logits);
    let logits = b.download_stat(logits.all())?;
    Ok(Seen {
        features: features.into_iter().map(|feature| b.download_data(feature.all())).collect::<std::result::Result<_, _>>()?,
        logits: logits.chunks_exact(logits.len() / blocks).map(<[f32]>::to_vec).collect(),
    })
}

/// Relative L2 error.
fn error(got: &[f32], exact: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let difference = square(&mut got.iter().zip(exact).map(|(g, e)| f64::from(*g) - f64::from(*e)));
    (difference / square(&mut exact.iter().map(|e| f64::from(*e)))).sqrt()
}

/// Share of logits on the other side of zero.
fn flipped(got: &[f32], exact: &[f32]) -> f64 {
    got.iter().zip(exact).filter(|(g, e)| (**g > 0.0) != (**e > 0.0)).count() as f64 / exact.len() as f64
}

fn run(folder: &Path) -> Result<()> {
    let scene = Scene::new()?;
    let heads = trained_heads(&scene)?;
    let (cpu, cuda) = (Cpu::<f32>::new(), Cuda::new(Arc::new(Emulated::new(Schedule::default()))));
    let exact = judge(&cpu, &scene, &heads, false)?;
    let ways = [
        ("FP8, all else fp32", judge(&cpu, &scene, &heads, true)?),
        ("bf16", judge(&cuda, &scene, &heads, false)?),
        ("FP8, all else bf16", judge(&cuda, &scene, &heads, true)?),
    ];
    std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    let table = table(&scene, &exact, &ways);
    print!("{table}");
    let path = folder.join("error.md");
    std::fs::write(&path, &table).map_err(|e| Error::io("write", &path, e))?;
    let path = folder.join("error.png");
    save_png(&draw_panels("The demo's teacher in FP8, against fp32", &panels(&scene, &exact, &ways))?, &path)?;
    println!("{}", path.display());
    Ok(())
}

fn table(scene: &Scene, exact: &Seen, ways: &[(&str, Seen)]) -> String {
    let mut table = format!(
        "Against fp32: {} real images, t̂ from {:.2} to {:.2}; heads after {STEPS} steps. Relative L2 error of features and logits, and share \
         of logits whose sign changes.\n\n| block |",
        scene.shape.batch,
        scene.t_hat.iter().copied().fold(1.0, f32::min),
        scene.t_hat.iter().copied().fold(0.0, f32::max),
    );
    for what in ["features", "logits", "signs"] {
        for (name, _) in ways {
            let _ = write!(table, " {what}: {name} |");
        }
    }
    table.push_str("\n|--:|");
    table.push_str(&"--:|".repeat(3 * ways.len()));
    for block in 0..exact.features.len() {
        let _ = write!(table, "\n| {block} |");
        for (_, seen) in ways {
            let _ = write!(table, " {:.4} |", error(&seen.features[block], &exact.features[block]));
        }
        for (_, seen) in ways {
            let _ = write!(table, " {:.4} |", error(&seen.logits[block], &exact.logits[block]));
        }
        for (_, seen) in ways {
            let _ = write!(table, " {:.2} % |", 100.0 * flipped(&seen.logits[block], &exact.logits[block]));
        }
    }
    table.push('\n');
    table
}

fn panels(scene: &Scene, exact: &Seen, ways: &[(&str, Seen)]) -> Vec<Panel> {
    let blocks = exact.features.len();
    let series = |points: &dyn Fn(&Seen) -> Vec<(f64, f64)>, stroke: Stroke| -> Vec<Series> {
        let each = ways.iter().zip(COLOURS);
        each.map(|((name, seen), colour)| Series { name: (*name).into(), colour, points: points(seen), stroke }).collect()
    };
    let by_block = |value: &dyn Fn(&Seen, usize) -> f64| {
        series(&|seen| (0..blocks).map(|block| (block as f64, value(seen, block))).collect(), Stroke::Points)
    };
    let by_time = |part: &dyn Fn(&Seen) -> &Vec<f32>| {
        let all = scene.shape.batch;
        let of = |seen: &Seen| {
            let size = part(seen).len() / all;
            let one = |i: usize| error(&part(seen)[i * size..(i + 1) * size], &part(exact)[i * size..(i + 1) * size]);
            let mut points: Vec<_> = (0..all).map(|i| (f64::from(scene.t_hat[i]), one(i))).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            points
        };
        series(&of, Stroke::Smoothed)
    };
    let across = |name: &str, ticks: Vec<f64>| Across { name: name.into(), log: false, ticks };
    let of_blocks = || across("block", (0..blocks).map(|block| block as f64).collect());
    let panel = |title: &str, across: Across, log: bool, series: Vec<Series>| Panel {
        title: title.into(),
        across,
        log,
        include: if log { vec![] } else { vec![0.0] },
        series,
        references: vec![],
    };
    vec![
        panel("Features: relative error", of_blocks(), false, by_block(&|seen, i| error(&seen.features[i], &exact.features[i]))),
        panel(
            "Features of the last block, a sample",
            across("time of renoising", vec![]),
            true,
            by_time(&|seen| &seen.features[blocks - 1]),
        ),
        panel("Logits: relative error", of_blocks(), false, by_block(&|seen, i| error(&seen.logits[i], &exact.logits[i]))),
        panel("Logits: share of changed signs", of_blocks(), false, by_block(&|seen, i| flipped(&seen.logits[i], &exact.logits[i]))),
    ]
}
