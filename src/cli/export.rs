//! `ladd-fast export`: a network in the format of other programs: diffusers' folder, Stable Diffusion 3's single file, or this
//! project's own file. Tensors go from file to file a chunk at a time.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::common::{Globals, Loaded, Outcome, must_be_new, network, output};
use crate::format::{Dtype, diffusers, original, save};
use crate::{Error, Result};

/// Write a network in a format of other programs.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ladd-fast export runs/NAME --format diffusers --dtype bf16 --out student
  ladd-fast export runs/NAME --format original --dtype f16 --out student.safetensors
  ladd-fast export sd3.5_large.safetensors --format diffusers --shard-size 5GB --out sd3.5-large
  ladd-fast export builtin --format native --out teacher.safetensors

`diffusers` writes FOLDER/transformer for SD3Transformer2DModel.from_pretrained(FOLDER, subfolder=\"transformer\"). `original` writes the
single file that ComfyUI and others read, without text encoders and autoencoder.")]
pub struct Arguments {
    /// The network: a run folder, a checkpoint, a diffusers folder, or `builtin`.
    #[arg(value_name = "NETWORK")]
    network: String,
    /// The format.
    #[arg(long, value_enum)]
    format: Format,
    /// Type of the numbers.
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: Numbers,
    /// The folder (diffusers) or file to write; it must not exist yet.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Largest file of a diffusers folder, such as 5GB or 500MB [default: 10GB].
    #[arg(long, value_name = "SIZE")]
    shard_size: Option<String>,
}

/// A format, on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A folder of the diffusers library.
    Diffusers,
    /// Stable Diffusion 3's single file.
    Original,
    /// A file of this project, with its settings.
    Native,
}

/// A type of numbers, on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Numbers {
    Bf16,
    F16,
    F32,
    /// FP8 e4m3 for weights, bf16 for the rest.
    #[value(name = "f8")]
    F8,
}

impl From<Numbers> for Dtype {
    fn from(numbers: Numbers) -> Self {
        match numbers {
            Numbers::Bf16 => Self::BF16,
            Numbers::F16 => Self::F16,
            Numbers::F32 => Self::F32,
            Numbers::F8 => Self::F8E4M3,
        }
    }
}

pub(super) fn run(globals: &Globals, arguments: &Arguments) -> Outcome {
    globals.load(Vec::new())?;
    let out = arguments.out.as_path();
    let shard_bytes = match (&arguments.shard_size, arguments.format) {
        (None, _) => diffusers::SHARD_BYTES,
        (Some(size), Format::Diffusers) => bytes(size)?,
        (Some(_), _) => return Err(Error::Usage("--shard-size is for --format diffusers: the other formats are one file".into()).into()),
    };
    must_be_new(out)?;
    let loaded = network::load(&arguments.network)?;
    write(&loaded, arguments.format, arguments.dtype.into(), out, shard_bytes)?;
    output::result(&format!("{} in {}", arguments.network, out.display()));
    Ok(())
}

fn write(loaded: &Loaded, format: Format, dtype: Dtype, out: &Path, shard_bytes: usize) -> Result<()> {
    let (tensors, model) = (loaded.tensors.views(), &loaded.pipeline.model);
    match format {
        Format::Diffusers => {
            let there = out.is_dir();
            diffusers::export(model, &tensors, out, dtype, shard_bytes).inspect_err(|_| {
                if !there {
                    let _ = std::fs::remove_dir(out); // only if it is empty
                }
            })
        }
        Format::Original => original::export(model, &tensors, out, dtype),
        Format::Native => save(&loaded.pipeline, &tensors, out, dtype),
    }
}

/// `10GB`, `500MB`, `12345`: decimal units, as diffusers counts.
fn bytes(text: &str) -> Result<usize> {
    let upper = text.trim().to_ascii_uppercase();
    let (number, factor) = [("GB", 1e9), ("MB", 1e6), ("KB", 1e3), ("", 1.0)]
        .into_iter()
        .find_map(|(unit, factor)| Some((upper.strip_suffix(unit)?.trim().to_owned(), factor)))
        .unwrap_or_default();
    match number.parse::<f64>() {
        Ok(number) if number * factor >= 1.0 && number * factor < 1e18 => Ok((number * factor) as usize),
        _ => Err(Error::Usage(format!("--shard-size {text}: write it as 10GB or 500MB"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_decimal() {
        assert_eq!(["10GB", "1.5 mb", "500KB", "12"].map(|text| bytes(text).unwrap()), [10_000_000_000, 1_500_000, 500_000, 12]);
        for bad in ["", "GB", "0", "-1GB", "nanMB", "10XB"] {
            assert!(bytes(bad).unwrap_err().to_string().contains("--shard-size"), "{bad}");
        }
    }
}
