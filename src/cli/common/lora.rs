//! Adapters on the command line: `--lora PATH --lora-scale X`, any number of them, added to a network before it is used.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Loaded, output};
use crate::format::{Role, Tensors};
use crate::lora::{Lora, LoraFile, merge, targets};
use crate::{Error, Result};

/// Adapters to add to a network.
#[derive(Clone, Debug, Default, Args)]
pub struct Loras {
    /// Adapters (LoRA) to add to the network: a file or folder of diffusers, PEFT or sd-scripts, or a run; may be repeated.
    #[arg(id = "lora", long = "lora", value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// How strongly; given once, or once for each --lora [default: 1].
    #[arg(id = "lora_scale", long = "lora-scale", value_name = "X", requires = "lora", allow_negative_numbers = true)]
    pub scales: Vec<f32>,
}

impl Loras {
    /// Adds them to `loaded`, one after the other.
    pub fn apply(&self, loaded: &mut Loaded) -> Result<()> {
        for (path, strength) in strengths(&self.paths, &self.scales, "--lora-scale")? {
            add(loaded, path, strength)?;
        }
        Ok(())
    }
}

/// Every path with its scale.
pub fn strengths<'a>(paths: &'a [PathBuf], scales: &[f32], flag: &str) -> Result<Vec<(&'a Path, f32)>> {
    let scale = |i: usize| match scales {
        [] => Some(1.0),
        [one] => Some(*one),
        many => many.get(i).copied(),
    };
    if scales.len() > 1 && scales.len() != paths.len() {
        return Err(Error::Usage(format!(
            "{flag} is given {} times for {} LoRAs: give it once, or once for each",
            scales.len(),
            paths.len()
        )));
    }
    Ok(paths.iter().enumerate().filter_map(|(i, path)| Some((path.as_path(), scale(i)?))).collect())
}

/// Reads adapters for the network `loaded`, and says what of the file is not used.
pub fn read(loaded: &Loaded, path: &Path) -> Result<Lora> {
    let file = LoraFile::open(path)?;
    if let Some(first) = file.ignored().first() {
        let count = file.ignored().len();
        tracing::warn!(
            "{}: {count} tensors of text encoders, such as {first}, are not used: only the transformer is adapted",
            file.path().display()
        );
    }
    file.read(&loaded.pipeline().model)
}

/// Adds adapters to a network's weights. Only the matrices that they change come into memory.
pub fn merge_into(loaded: &mut Loaded, lora: &Lora, strength: f32) -> Result<()> {
    let changed = targets(&loaded.pipeline.model).into_iter().filter(|target| lora.adapters.contains_key(&target.module));
    let names: BTreeSet<String> = changed.map(|target| target.tensor).collect();
    let mut tensors = names.into_iter().map(|name| Ok((name.clone(), loaded.tensors.read(&name)?))).collect::<Result<Tensors>>()?;
    merge(&loaded.pipeline.model, &mut tensors, lora, strength)?;
    tensors.into_iter().for_each(|(name, tensor)| loaded.tensors.replace(name, tensor));
    Ok(())
}

/// Adds the adapters of `path` to a network, and to its notes.
pub fn add(loaded: &mut Loaded, path: &Path, strength: f32) -> Result<()> {
    let lora = read(loaded, path)?;
    merge_into(loaded, &lora, strength)?;
    let pipeline = &mut loaded.pipeline;
    if lora.role == Some(Role::Student) && strength > 0.0 {
        pipeline.role = Role::Student;
    }
    let line = format!("{} at {strength}", path.display());
    let note = pipeline.notes.entry("lora".into()).or_default();
    *note = if note.is_empty() { line.clone() } else { format!("{note}, {line}") };
    output::note(&format!("{} adapters of {line}", lora.adapters.len()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_scale_serves_all_and_many_must_match() {
        let paths = ["a", "b"].map(PathBuf::from);
        let of =
            |scales: &[f32]| strengths(&paths, scales, "--scale").map(|all| all.into_iter().map(|(_, scale)| scale).collect::<Vec<_>>());
        assert_eq!(of(&[]).unwrap(), [1.0, 1.0]);
        assert_eq!(of(&[0.5]).unwrap(), [0.5, 0.5]);
        assert_eq!(of(&[0.5, -1.0]).unwrap(), [0.5, -1.0]);
        assert!(of(&[1.0; 3]).unwrap_err().to_string().contains("--scale is given 3 times for 2 LoRAs"));
    }
}
