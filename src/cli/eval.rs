//! `ladd-fast eval`: Fréchet distance, accuracy and diversity of a network against the demo's test set.

mod pairs;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;

use super::common::device::on_device;
use super::common::measure::{Bench, student_settings, teacher_settings};
use super::common::output::many;
use super::common::{Device, Encoders, Globals, Loaded, Loras, Outcome, Painter, Progress, flag, network, number, output};
use super::tasks;
use crate::Error;
use crate::config::Config;
use crate::device::Backend;
use crate::edit::Task;
use crate::flow::SampleSettings;
use crate::format::Role;
use crate::report::Results;
use crate::train::QualityRecord;

/// Measure a network against the demo's test set.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ladd-fast eval --network runs/NAME
  ladd-fast eval --network builtin --steps 8,25 --guidance 2
  ladd-fast eval --network runs/NAME --samples 5000 --out results
  ladd-fast eval --network runs/emoji --pairs data/emoji-small --out results

A student is measured unguided with the renoise sampler, a teacher guided and unguided with Euler. Fréchet distance and accuracy
are for networks of the demo alone: the classifier knows nothing but its images. For the emoji, --pairs compares with the true
pictures of pairs of style and object, trained on and held out (docs/emoji.md).")]
pub struct Arguments {
    /// The network: a run folder, a checkpoint, or `builtin`.
    #[arg(long, value_name = "PATH", default_value = "builtin")]
    network: String,
    #[command(flatten)]
    loras: Loras,
    /// Step counts.
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    steps: Vec<u64>,
    /// Guidance scale of the guided teacher.
    #[arg(long, value_name = "X")]
    guidance: Option<f64>,
    /// Images per setting.
    #[arg(long, value_name = "N")]
    samples: Option<u64>,
    /// Seed.
    #[arg(long, value_name = "N", value_parser = super::common::seed)]
    seed: Option<u64>,
    /// Folder of emoji from `prepare`: measures pairs of style and object.
    #[arg(long, value_name = "FOLDER", conflicts_with = "samples")]
    pairs: Option<PathBuf>,
    /// Folder for results.json and results.md, or pairs.json, pairs.md and pairs.png.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

pub(super) fn run(globals: &Globals, arguments: &Arguments) -> Outcome {
    let steps = || -> Option<toml::Value> {
        let list = arguments.steps.iter().map(|n| toml::Value::Integer(i64::try_from(*n).unwrap_or(i64::MAX)));
        (!arguments.steps.is_empty()).then(|| toml::Value::Array(list.collect()))
    };
    let config = globals.load(vec![
        flag("eval.student_steps", "--steps", steps()),
        flag("eval.teacher_steps", "--steps", steps()),
        flag("eval.guidance", "--guidance", arguments.guidance),
        number("eval.samples", "--samples", arguments.samples),
        number("seed", "--seed", arguments.seed),
    ])?;
    let mut loaded = tasks::load(&arguments.network, Task::Generate)?;
    arguments.loras.apply(&mut loaded)?;
    let pipeline = loaded.pipeline();
    if let Some(folder) = &arguments.pairs {
        let settings = match pipeline.role {
            Role::Student => student_settings(&config.eval),
            Role::Teacher => teacher_settings(&config.eval, pipeline),
        };
        settings.iter().try_for_each(|s| s.times().map(drop))?;
        let device = Device::open(&config.device, config.deterministic)?;
        return on_device!(device, |b| pairs::run(b, &config, &loaded, &settings, folder, arguments.out.as_deref()));
    }
    let encoders = Encoders::new(&config.encoders, pipeline, &loaded.name);
    let bench = Bench::new(&encoders, &config.eval, config.seed, &[])?.filter(Bench::measures);
    let bench = bench.ok_or_else(|| {
        Error::Usage(format!("{}: quality can be measured only for networks that draw the demo's images, 32x32 and grey", loaded.name))
    })?;
    let (name, settings): (&str, Vec<SampleSettings>) = match pipeline.role {
        Role::Student => ("student", student_settings(&config.eval)),
        Role::Teacher => ("teacher", teacher_settings(&config.eval, pipeline)),
    };
    settings.iter().try_for_each(|s| s.times().map(drop))?;

    let started = Instant::now();
    let device = Device::open(&config.device, config.deterministic)?;
    let quality = on_device!(device, |b| measure(b, &config, &loaded, &bench, name, &settings))?;
    let seconds = BTreeMap::from([("evaluation".to_owned(), started.elapsed().as_secs_f64())]);
    let results = Results::new(&config.preset, config.seed, rayon::current_num_threads(), seconds, quality);
    output::result(&results.markdown());
    if let Some(folder) = &arguments.out {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        results.write(folder)?;
        output::result(&format!("results.json and results.md in {}", folder.display()));
    }
    Ok(())
}

/// The quality at each setting of the sampler.
fn measure<B: Backend>(
    b: &B,
    config: &Config,
    loaded: &Loaded,
    bench: &Bench,
    name: &str,
    settings: &[SampleSettings],
) -> Outcome<Vec<QualityRecord>> {
    let pipeline = loaded.pipeline();
    let model = loaded.model(b)?;
    let params = loaded.params(b)?;
    let shape = network::latent_shape(pipeline, 0, 0)?;
    let encoders = Encoders::new(&config.encoders, pipeline, &loaded.name);
    let mut painter = Painter::new(b, model, &encoders, shape, config.eval.batch, "")?;
    let mut progress = Progress::new("measuring", bench.cost(settings), 0);
    let mut quality = Vec::new();
    for settings in settings {
        quality.extend(bench.measure(&mut painter, &params, settings, (name, 0), &mut progress)?.map(|(record, _)| record));
    }
    progress.finish(&format!("{}, {} each", many(settings.len(), "setting"), many(config.eval.samples, "image")));
    Ok(quality)
}
