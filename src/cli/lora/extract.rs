//! `lora extract` and `lora convert`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use rayon::prelude::*;

use super::ToAdapters;
use crate::cli::common::{Outcome, Progress, interrupt, lora, output};
use crate::lora::{Extracted, Lora, Share, difference, select};
use crate::model::mmdit::POS_EMBED;
use crate::{Error, Result};

/// Find the adapters nearest to the difference of two networks, such as a student and its teacher.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ladd-fast lora extract builtin runs/NAME --rank 16 --out student-lora
  ladd-fast lora extract SD3 runs/sd3 --rank 64 --targets attention,mlp --layout peft --out adapter")]
pub struct Extract {
    /// The network that the adapters are for.
    from: PathBuf,
    /// The network that they shall lead to.
    to: PathBuf,
    /// Rank of each adapter.
    #[arg(long, value_name = "N", default_value_t = 64)]
    rank: usize,
    /// Which matrices: attention, attention2, mlp, adaln, embedders, all, or ends of diffusers' module names.
    #[arg(long, value_name = "NAME,NAME,...", value_delimiter = ',', default_value = "all")]
    targets: Vec<String>,
    #[command(flatten)]
    pub target: ToAdapters,
}

/// Rewrite adapters as diffusers or PEFT have them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ladd-fast lora convert kohya.safetensors --network SD3 --out adapter
  ladd-fast lora convert adapter --network SD3 --layout peft --dtype bf16 --out for-peft")]
pub struct Convert {
    /// The adapters.
    lora: PathBuf,
    /// The network that they are for.
    #[arg(long, value_name = "PATH", default_value = "builtin")]
    network: PathBuf,
    #[command(flatten)]
    pub target: ToAdapters,
}

pub fn convert(arguments: &Convert) -> Outcome {
    let lora = lora::read(&super::load(&arguments.network)?, &arguments.lora)?;
    Ok(super::write_lora(&lora, &arguments.target)?)
}

pub fn extract(arguments: &Extract) -> Outcome {
    if arguments.rank == 0 {
        return Err(Error::Usage("--rank 0 must be at least 1".into()).into());
    }
    let (from, to) = (super::load(&arguments.from)?, super::load(&arguments.to)?);
    let model = &from.pipeline().model;
    if *model != to.pipeline().model {
        return Err(Error::Usage(format!("{} and {} are networks of different shapes", from.name, to.name)).into());
    }
    let targets = select(model, &arguments.targets)?;
    let mut progress = Progress::new("extraction", targets.len() as u64, 0);
    let (mut adapters, mut share) = (BTreeMap::new(), Share::default());
    let (before, after) = (&from.tensors.load()?, &to.tensors.load()?);
    for some in targets.chunks(rayon::current_num_threads()) {
        interrupt::check()?;
        let found = some.par_iter().map(|target| Extracted::new(target, &difference(target, before, after)?, arguments.rank));
        for (target, extracted) in some.iter().zip(found.collect::<Result<Vec<_>>>()?) {
            share += extracted.share;
            adapters.extend(extracted.adapter.map(|adapter| (target.module.clone(), adapter)));
        }
        progress.set(progress.done() + some.len() as u64, String::new);
    }
    progress.finish(&format!("{} matrices", targets.len()));
    if adapters.is_empty() {
        return Err(Error::Usage(format!("{} and {} do not differ in these matrices", from.name, to.name)).into());
    }
    let whole: f64 = before
        .iter()
        .filter(|(name, _)| *name != POS_EMBED)
        .filter_map(|(name, a)| Some(a.data.iter().zip(&after.get(name)?.data)))
        .flat_map(|pairs| pairs.map(|(a, b)| f64::from(b - a).powi(2)))
        .sum();
    output::result(&format!(
        "rank {} keeps {:.2} % of these matrices' difference (in squares), {:.2} % of the whole network's",
        arguments.rank,
        100.0 * share.value(),
        100.0 * Share { kept: share.kept, whole }.value()
    ));
    let notes = BTreeMap::from([("made_by".to_owned(), format!("ladd-fast {} lora extract", env!("CARGO_PKG_VERSION")))]);
    let lora = Lora { adapters, role: Some(to.pipeline().role), notes };
    Ok(super::write_lora(&lora, &arguments.target)?)
}
