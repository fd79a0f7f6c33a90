//! Writing adapters: one file as diffusers' `save_lora_weights` leaves it, or PEFT's two. Scales go into `B`, so that every reader
//! has the same network, whether it knows of alpha or not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::file::{ABOUT, About};
use super::peft::{self, CONFIG, METADATA};
use super::{Adapter, Lora};
use crate::format::{Dtype, Entry, prepare_safetensors, write_atomically};
use crate::{Error, Result};

/// Whose files are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// `pytorch_lora_weights.safetensors`, for diffusers' `load_lora_weights`.
    #[default]
    Diffusers,
    /// `adapter_model.safetensors` and `adapter_config.json`, for PEFT.
    Peft,
}

impl Layout {
    fn prefix(self) -> &'static str {
        match self {
            Self::Diffusers => "transformer.",
            Self::Peft => "base_model.model.",
        }
    }

    fn file(self) -> &'static str {
        match self {
            Self::Diffusers => "pytorch_lora_weights.safetensors",
            Self::Peft => "adapter_model.safetensors",
        }
    }
}

impl Lora {
    /// Writes the adapters: to the file `path` where it ends in `.safetensors`, else to the folder `path` under the usual name.
    /// Returns the file.
    ///
    /// # Errors
    /// When a value does not fit `dtype`, or the file cannot be written (an old one then stays).
    pub fn save(&self, path: &Path, layout: Layout, dtype: Dtype) -> Result<PathBuf> {
        let is_file = path.extension().is_some_and(|ending| ending == "safetensors");
        let (folder, file) = match path.parent() {
            Some(parent) if is_file => (parent.to_owned(), path.to_owned()),
            _ => (path.to_owned(), path.join(layout.file())),
        };
        if !folder.as_os_str().is_empty() {
            std::fs::create_dir_all(&folder).map_err(|source| Error::io("create", &folder, source))?;
        }
        let adapters: BTreeMap<&String, Adapter> = self.adapters.iter().map(|(module, adapter)| (module, adapter.unscaled())).collect();
        let entries = adapters.iter().flat_map(|(module, adapter)| {
            let name = |part: &str| format!("{}{module}.lora_{part}.weight", layout.prefix());
            let Adapter { rank, inputs, outputs, a, b, .. } = adapter;
            [Entry::floats(name("A"), &[*rank, *inputs], vec![a], dtype), Entry::floats(name("B"), &[*outputs, *rank], vec![b], dtype)]
        });
        let metadata = self.metadata(layout).map_err(|error| Error::file(&file, error.to_string()))?;
        let prepared = prepare_safetensors(&metadata, entries.collect()).map_err(|e| Error::file(&file, format!("is not written: {e}")))?;
        write_atomically(&file, |out| prepared.write(out))?;
        if layout == Layout::Peft {
            let config = format!("{:#}\n", Value::Object(peft::settings(self)));
            write_atomically(&file.with_file_name(CONFIG), |out| out.write_all(config.as_bytes()))?;
        }
        Ok(file)
    }

    fn metadata(&self, layout: Layout) -> serde_json::Result<BTreeMap<String, String>> {
        let about = serde_json::to_string(&About { role: self.role, notes: self.notes.clone() })?;
        let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned()), (ABOUT.to_owned(), about)]);
        if layout == Layout::Diffusers {
            metadata.insert(METADATA.to_owned(), peft::metadata(self));
        }
        Ok(metadata)
    }
}
