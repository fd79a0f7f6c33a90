//! `lora inspect`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;

use crate::Result;
use crate::cli::common::{Loaded, Outcome, output};
use crate::cli::info::entry;
use crate::lora::{LoraFile, targets};

/// Modules whose change is listed.
const SHOWN: usize = 8;

/// Describe a file of adapters.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ladd-fast lora inspect dpo.safetensors
  ladd-fast lora inspect runs/NAME --network builtin       also: does it fit, how much does it change")]
pub struct Arguments {
    /// The adapters.
    lora: PathBuf,
    /// The network that they are for.
    #[arg(long, value_name = "PATH")]
    network: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Outcome {
    let file = LoraFile::open(&arguments.lora)?;
    let mut lines = described(&file)?;
    if let Some(network) = &arguments.network {
        lines.extend(changes(&file, &super::load(network)?)?);
    }
    lines.iter().for_each(|line| output::result(line));
    Ok(())
}

fn described(file: &LoraFile) -> Result<Vec<String>> {
    let (mut ranks, mut scales) = (BTreeMap::<usize, usize>::new(), BTreeMap::<String, usize>::new());
    for module in file.modules() {
        let rank = file.rank(module)?;
        *ranks.entry(rank).or_default() += 1;
        *scales.entry(file.scale(module, rank)?.to_string()).or_default() += 1;
    }
    let counted = |counts: Vec<(String, usize)>| match counts.as_slice() {
        [(value, _)] => value.clone(),
        many => many.iter().map(|(value, count)| format!("{value} ({count} modules)")).collect::<Vec<_>>().join(", "),
    };
    let mut lines = vec![
        entry("adapters", file.path().display()),
        entry("layout", format!("{}, {}", file.layout(), file.type_name())),
        entry("modules", format!("{}, such as {}", file.modules().count(), file.modules().next().unwrap_or_default())),
        entry("rank", counted(ranks.into_iter().map(|(rank, count)| (rank.to_string(), count)).collect())),
        entry("scale", counted(scales.into_iter().collect())),
    ];
    lines.extend(file.role().map(|role| entry("makes", format!("a {role:?}").to_lowercase())));
    lines.extend((!file.ignored().is_empty()).then(|| entry("not used", format!("{} tensors of text encoders", file.ignored().len()))));
    lines.extend(file.notes().iter().map(|(key, value)| entry(key, value)));
    Ok(lines)
}

/// How large the change of each matrix is, the largest first.
fn changes(file: &LoraFile, loaded: &Loaded) -> Result<Vec<String>> {
    let lora = file.read(&loaded.pipeline().model)?;
    let norm = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    let mut changes = Vec::new();
    for target in targets(&loaded.pipeline().model) {
        let Some(adapter) = lora.adapters.get(&target.module) else { continue };
        let tensor = loaded.tensors.read(&target.tensor)?;
        let weight = tensor.data.get(target.range());
        changes.push((norm(&adapter.change(1.0)) / weight.map_or(0.0, norm).max(f64::MIN_POSITIVE), target.module));
    }
    changes.sort_by(|a, b| b.0.total_cmp(&a.0));
    let middle = changes.get(changes.len() / 2).map_or(0.0, |(change, _)| *change);
    let mut lines = vec![
        entry("network", &loaded.name),
        entry("change", format!("{:.2} % of a matrix's norm in the middle, at scale 1; the largest:", 100.0 * middle)),
    ];
    lines.extend(changes.iter().take(SHOWN).map(|(change, module)| format!("  {:>8.2} %  {module}", 100.0 * change)));
    Ok(lines)
}
