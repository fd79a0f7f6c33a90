//! Weights of what stands around the transformer (text encoders, VAE), where candle asks for them by name.
//!
//! A [`Part`] is a folder of diffusers, its weights in one file or sharded, or the tensors below a prefix of an original
//! single file. Tensors stay on disk until candle asks for them, one by one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::diffusers::read_index;
use super::{SafetensorsFile, hex};
use crate::{Error, Result};

/// Names under which libraries save the weights of a part.
const FILES: [&str; 2] = ["model.safetensors", "diffusion_pytorch_model.safetensors"];
const CONFIG: &str = "config.json";
/// Elements at the beginning of a tensor that go into a fingerprint.
const FINGERPRINT: usize = 1024;

/// One part's tensors.
#[derive(Clone, Debug)]
pub struct Part {
    files: Vec<Arc<SafetensorsFile>>,
    /// The name that is asked for, and where it is: file and name there.
    places: BTreeMap<String, (usize, String)>,
    origin: PathBuf,
}

impl Part {
    /// Opens a part's folder, as diffusers and transformers write it.
    ///
    /// # Errors
    /// When there are no weights, or a file of them is missing or damaged.
    pub fn folder(folder: &Path) -> Result<Self> {
        let there = |name: &str| folder.join(name).is_file() || folder.join(format!("{name}.index.json")).is_file();
        let Some(name) = FILES.iter().find(|name| there(name)) else {
            return Err(Error::file(folder, format!("holds no weights: {} is looked for, or its .index.json", FILES.join(" or "))));
        };
        let single = folder.join(name);
        if single.is_file() {
            return Self::new(folder, vec![Arc::new(SafetensorsFile::open(single)?)], |name| Some(name.to_owned()));
        }
        let mut names: Vec<_> = read_index(&folder.join(format!("{name}.index.json")))?.into_values().collect();
        names.sort_unstable();
        names.dedup();
        let files = names.iter().map(|name| SafetensorsFile::open(folder.join(name)).map(Arc::new)).collect::<Result<_>>()?;
        Self::new(folder, files, |name| Some(name.to_owned()))
    }

    /// The tensors of a single file that `rename` gives a name to, asked for by that name.
    ///
    /// # Errors
    /// When two tensors get the same name.
    pub fn within(file: &Arc<SafetensorsFile>, rename: impl Fn(&str) -> Option<String>) -> Result<Self> {
        Self::new(file.path(), vec![file.clone()], rename)
    }

    fn new(origin: &Path, files: Vec<Arc<SafetensorsFile>>, rename: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let mut places = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            for name in file.names() {
                let Some(asked) = rename(name) else { continue };
                if places.insert(asked, (i, name.clone())).is_some() {
                    return Err(Error::file(origin, format!("holds `{name}` twice")));
                }
            }
        }
        Ok(Self { files, places, origin: origin.to_owned() })
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Where the tensors are, for messages.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        let (file, name) = self.places.get(name)?;
        self.files[*file].shape(name).ok()
    }

    /// The type the module's weights are kept in: 16 bits where the file has no more.
    pub fn kept_in(&self) -> DType {
        let stored = self.places.values().next().map_or("", |(file, name)| self.files[*file].type_name(name));
        match stored {
            "F32" | "F64" | "" => DType::F32,
            "BF16" => DType::BF16,
            _ => DType::F16,
        }
    }

    /// Builds a candle module from these weights, kept in `dtype`.
    ///
    /// # Errors
    /// Names the tensor that is missing or has another shape than the module needs.
    pub fn build<T>(&self, dtype: DType, module: impl FnOnce(VarBuilder<'_>) -> candle_core::Result<T>) -> Result<T> {
        let builder = VarBuilder::from_backend(Box::new(self.clone()), dtype, Device::Cpu);
        module(builder).map_err(|error| Error::file(&self.origin, first_line(&error)))
    }

    /// SHA-256 over names, shapes and the first values of each tensor (of integers only names and shapes): tells one set of
    /// weights from another without reading gigabytes.
    ///
    /// # Errors
    /// When a file lacks a tensor that it listed.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hash = Sha256::new();
        for (asked, (file, name)) in &self.places {
            let file = &self.files[*file];
            let shape = file.shape(name)?;
            hash.update(asked.as_bytes());
            shape.iter().for_each(|side| hash.update((*side as u64).to_le_bytes()));
            let mut values = vec![0.0; shape.iter().product::<usize>().min(FINGERPRINT)];
            if file.f32_into(name, 0, &mut values).is_ok() {
                hash.update(bytemuck::cast_slice::<f32, u8>(&values));
            }
        }
        Ok(hex(&hash.finalize()))
    }

    fn tensor(&self, name: &str, shape: Option<&Shape>, dtype: DType) -> Result<Tensor, String> {
        let (file, stored) = self.places.get(name).ok_or_else(|| format!("has no tensor `{name}`"))?;
        let file = &self.files[*file];
        let found = file.shape(stored).map_err(|error| error.to_string())?.to_vec();
        // Original files keep the projections of the VAE's attention as 1x1 convolutions.
        let trimmed = || found.iter().rev().skip_while(|side| **side == 1).count();
        let needed = shape.map_or(found.as_slice(), Shape::dims);
        if needed != found && needed != &found[..trimmed()] {
            return Err(format!("tensor `{stored}` has the shape {found:?} where {needed:?} is needed"));
        }
        let values = file.f32(stored).map_err(|error| error.to_string())?;
        Tensor::from_vec(values, needed, &Device::Cpu).and_then(|tensor| tensor.to_dtype(dtype)).map_err(|error| first_line(&error))
    }
}

impl SimpleBackend for Part {
    fn get(&self, shape: Shape, name: &str, _: candle_nn::Init, dtype: DType, _: &Device) -> candle_core::Result<Tensor> {
        self.tensor(name, Some(&shape), dtype).map_err(candle_core::Error::Msg)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, _: &Device) -> candle_core::Result<Tensor> {
        self.tensor(name, None, dtype).map_err(candle_core::Error::Msg)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }
}

/// Reads a part's `config.json`; keys that are not asked for are ignored, libraries write many.
///
/// # Errors
/// When it is missing, no JSON, or lacks a key.
pub fn read_config<T: DeserializeOwned>(folder: &Path) -> Result<T> {
    read_json(&folder.join(CONFIG))
}

/// Reads a JSON file.
///
/// # Errors
/// When it is missing, no JSON, or lacks a key.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::io("read", path, source))?;
    serde_json::from_str(&text).map_err(|error| Error::file(path, format!("is not what is expected there: {error}")))
}

/// A candle error as one line: it may carry a backtrace.
pub fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or("fails").to_owned()
}
