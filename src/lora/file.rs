//! A file of adapters: where it is, and its tensors by module, before it is known which network they are for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::names::{FLAT_PREFIX, Part, parse};
use super::peft::{CONFIG, METADATA, PeftConfig};
use crate::format::{Role, SafetensorsFile};
use crate::{Error, Result};

/// File names of diffusers, of PEFT, and of a run.
const FILES: [&str; 3] = ["pytorch_lora_weights.safetensors", "adapter_model.safetensors", "student/pytorch_lora_weights.safetensors"];
/// Prefix of PEFT's tensors, whose scale stands in a file of its own.
const PEFT_PREFIX: &str = "base_model.model.";
/// Metadata key under which this program says what the adapters are.
pub(super) const ABOUT: &str = "ladd_fast_lora";

/// A file of adapters, opened.
#[derive(Debug)]
pub struct LoraFile {
    pub(super) file: SafetensorsFile,
    pub(super) config: Option<PeftConfig>,
    /// Tensor names by module.
    pub(super) modules: BTreeMap<String, BTreeMap<Part, String>>,
    pub(super) about: About,
    /// Tensors of text encoders, which are not read.
    ignored: Vec<String>,
}

/// What this program notes in the files that it writes.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub(super) struct About {
    pub role: Option<Role>,
    pub notes: BTreeMap<String, String>,
}

/// The file that `path` means: itself, or the one in the folder (of diffusers, of PEFT, of a run).
///
/// # Errors
/// When the folder holds none.
pub fn find(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let found = FILES.iter().map(|name| path.join(name)).find(|file| file.is_file());
    found.ok_or_else(|| Error::file(path, format!("holds no adapters: {} is looked for", FILES.join(" or "))))
}

impl LoraFile {
    /// Opens a file or folder of adapters.
    ///
    /// # Errors
    /// When there is none, it is damaged, it holds tensors that are no part of an adapter, or an adapter lacks a part.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = find(path.as_ref())?;
        let file = SafetensorsFile::open(&path)?;
        let mut modules = BTreeMap::<String, BTreeMap<Part, String>>::new();
        let (mut unknown, mut ignored) = (Vec::new(), Vec::new());
        for name in file.names() {
            if name.starts_with("text_encoder") || name.starts_with("lora_te") {
                ignored.push(name.clone());
                continue;
            }
            let Some((module, part)) = parse(name) else {
                unknown.push(name.clone());
                continue;
            };
            if let Some(other) = modules.entry(module).or_default().insert(part, name.clone()) {
                return Err(Error::file(&path, format!("holds `{name}` and `{other}`, which are the same part of one adapter")));
            }
        }
        refuse_unknown(&path, &unknown)?;
        let config = config(&file)?;
        let about = match file.metadata().get(ABOUT) {
            Some(text) => serde_json::from_str(text).map_err(|e| Error::file(&path, format!("has damaged `{ABOUT}` metadata ({e})")))?,
            None => About::default(),
        };
        let opened = Self { file, config, modules, about, ignored };
        opened.check_parts()?;
        Ok(opened)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Tensors that belong to text encoders, which this program does not adapt.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// Names of the modules, as the file spells them.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.modules.keys().map(String::as_str)
    }

    /// Type of the weights, such as `F16`.
    pub fn type_name(&self) -> &'static str {
        self.modules.values().next().and_then(|parts| parts.get(&Part::A)).map_or("", |name| self.file.type_name(name))
    }

    /// Which program's names the file has.
    pub fn layout(&self) -> &'static str {
        let names = self.file.names();
        match () {
            () if names.iter().any(|name| name.starts_with(FLAT_PREFIX)) => "sd-scripts",
            () if names.iter().any(|name| name.starts_with(PEFT_PREFIX)) => "PEFT",
            () if names.iter().any(|name| name.contains("lora_A")) => "diffusers",
            () => "diffusers before PEFT",
        }
    }

    /// What the network is with the adapters, where the file says so.
    pub fn role(&self) -> Option<Role> {
        self.about.role
    }

    /// Notes for people.
    pub fn notes(&self) -> &BTreeMap<String, String> {
        &self.about.notes
    }

    /// Rank of a module's adapter.
    ///
    /// # Errors
    /// When its tensors are not of the shapes that an adapter has.
    pub fn rank(&self, module: &str) -> Result<usize> {
        let [(_, a), (name, b)] = [self.shape(module, Part::A)?, self.shape(module, Part::B)?];
        match (a.first(), b.get(1)) {
            (Some(rank), Some(other)) if rank == other && *rank > 0 => Ok(*rank),
            _ => Err(Error::file(self.path(), format!("`{name}` has the shape {b:?}, which does not fit its A of {a:?}"))),
        }
    }

    /// The scale of a module's adapter, `alpha / rank`: its own alpha, or the settings', else 1 as in diffusers.
    ///
    /// # Errors
    /// When the settings announce another rank, or alpha is no finite number.
    pub fn scale(&self, module: &str, rank: usize) -> Result<f32> {
        let Some(name) = self.modules.get(module).and_then(|parts| parts.get(&Part::Alpha)) else {
            return self.config.as_ref().map_or(Ok(1.0), |config| config.scale(self.path(), module, rank));
        };
        let values = self.file.f32(name)?;
        match values.as_slice() {
            [alpha] if alpha.is_finite() => Ok(alpha / rank as f32),
            _ => Err(Error::file(self.path(), format!("`{name}` is {values:?}, not one finite number"))),
        }
    }

    pub(super) fn shape(&self, module: &str, part: Part) -> Result<(&str, &[usize])> {
        let name = self.modules.get(module).and_then(|parts| parts.get(&part));
        let name = name.ok_or_else(|| Error::file(self.path(), format!("holds no adapter of `{module}`")))?;
        Ok((name, self.file.shape(name)?))
    }

    /// Every adapter has both matrices.
    fn check_parts(&self) -> Result<()> {
        let lacking = |(module, parts): (&String, &BTreeMap<Part, String>)| {
            let missing = [(Part::A, "A (down)"), (Part::B, "B (up)")].into_iter().find(|(part, _)| !parts.contains_key(part))?;
            let there = parts.values().next().cloned().unwrap_or_default();
            Some(format!("holds `{there}` without the {} of `{module}`", missing.1))
        };
        match self.modules.iter().find_map(lacking) {
            Some(cause) => Err(Error::file(self.path(), format!("{cause}: it is incomplete"))),
            None if self.modules.is_empty() => Err(Error::file(self.path(), "holds no adapters of a transformer")),
            None => Ok(()),
        }
    }
}

fn refuse_unknown(path: &Path, unknown: &[String]) -> Result<()> {
    let Some(first) = unknown.first() else { return Ok(()) };
    let more = if unknown.len() > 1 { format!(" and {} more", unknown.len() - 1) } else { String::new() };
    let kind = |part: &str| unknown.iter().any(|name| name.contains(part));
    let advice = match () {
        () if kind("dora_scale") || kind("magnitude") => "DoRA cannot be read, only LoRA",
        () if kind("lokr") || kind("hada") => "LoKr and LoHa cannot be read, only LoRA",
        () if kind("bias") => "adapters of biases cannot be read",
        () => "is this a file of adapters, and not a whole network?",
    };
    Err(Error::file(path, format!("holds `{first}`{more}, which is no part of a LoRA: {advice}")))
}

fn config(file: &SafetensorsFile) -> Result<Option<PeftConfig>> {
    if let Some(text) = file.metadata().get(METADATA) {
        return PeftConfig::of_metadata(file.path(), text);
    }
    if !file.names().iter().any(|name| name.starts_with(PEFT_PREFIX)) {
        return Ok(None);
    }
    PeftConfig::read(&file.path().with_file_name(CONFIG)).map(Some)
}
