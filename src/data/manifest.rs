//! `manifest.json`: what a folder of latents holds, how it was made, and the checksum of every shard.
//!
//! Written by [`super::ShardWriter`] after each shard, read by it to go on, and by [`super::LatentDataset`] to check. Where several
//! processes write one data set, each has a `manifest-I-of-N.json`, and readers put them together.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::edit::Task;
use crate::format::{Dtype, Pipeline, SafetensorsFile, hex, write_atomically};
use crate::{Error, Result};

/// Name of the manifest in its folder.
pub const MANIFEST: &str = "manifest.json";
/// Version of the layout.
const VERSION: u32 = 1;
/// Bytes hashed between two reports of progress.
const HASH_CHUNK: usize = 4 << 20;

/// Tensor of the latents in a shard, `[n, C, H, W]`, F32 or F16.
pub(crate) const LATENTS: &str = "latents";
/// Tensor of the prompts' places in the table, `[n]`, U32.
pub(crate) const PROMPT_INDEX: &str = "prompt_index";
/// Tensor of the seeds the latents were drawn with, or of the numbers of the pictures they were made from, `[n]`, I64.
pub(crate) const SEEDS: &str = "seeds";

/// Everything that decides what the latents are. The same settings give the same data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct DatasetSettings {
    /// What the latents were made from.
    pub origin: Origin,
    /// The settings of the network they are for.
    pub pipeline: Pipeline,
    /// Seed of the data set.
    pub seed: u64,
    /// How the latents are stored.
    pub dtype: Dtype,
    /// Number of samples when it is complete; pictures that turn out to be unusable count too, see [`Manifest::skipped`].
    pub total: usize,
    /// The different prompts; samples refer to them by place.
    pub prompts: Vec<String>,
}

/// What latents were made from.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// Drawn by a teacher.
    Synthesized(Synthesis),
    /// Encoded from pictures.
    Prepared(Preparation),
}

/// How a teacher drew latents.
#[derive(Clone, Debug, PartialEq)]
pub struct Synthesis {
    /// Fingerprint of the teacher, see [`crate::format::Checkpoint::fingerprint`].
    pub teacher: String,
    /// Guidance scale; 1 is unguided.
    pub guidance: f32,
    /// `euler` or another sampler.
    pub sampler: String,
    /// Sampling steps.
    pub sampler_steps: usize,
}

/// How pictures became latents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preparation {
    /// SHA-256 over the names and sizes of the pictures.
    pub pictures: String,
    /// Fingerprint of the autoencoder; empty where the codec is part of the network's settings.
    pub autoencoder: String,
    /// Most pixels of a picture.
    pub area: usize,
    /// Sides are multiples of it, in pixels.
    pub multiple: usize,
    /// Largest ratio of the sides.
    pub max_ratio: f64,
    /// Shortest side of a picture that is used.
    pub min_side: usize,
    /// `subject` or `center`.
    pub crop: String,
    /// What is behind transparent pixels, `#rrggbb`.
    pub background: String,
}

/// The settings as `manifest.json` holds them: a synthesis has its keys at the top level, as before there were others.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    teacher: Option<String>,
    pipeline: Pipeline,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    guidance: Option<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sampler: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sampler_steps: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prepared: Option<Preparation>,
    seed: u64,
    dtype: Dtype,
    total: usize,
    prompts: Vec<String>,
}

impl TryFrom<Stored> for DatasetSettings {
    type Error = &'static str;

    fn try_from(stored: Stored) -> Result<Self, Self::Error> {
        let Stored { teacher, pipeline, guidance, sampler, sampler_steps, prepared, seed, dtype, total, prompts } = stored;
        let origin = match (teacher, guidance, sampler, sampler_steps, prepared) {
            (Some(teacher), Some(guidance), Some(sampler), Some(sampler_steps), None) => {
                Origin::Synthesized(Synthesis { teacher, guidance, sampler, sampler_steps })
            }
            (None, None, None, None, Some(preparation)) => Origin::Prepared(preparation),
            _ => return Err("the settings must hold teacher, guidance, sampler and sampler_steps, or else prepared"),
        };
        Ok(Self { origin, pipeline, seed, dtype, total, prompts })
    }
}

impl From<DatasetSettings> for Stored {
    fn from(settings: DatasetSettings) -> Self {
        let DatasetSettings { origin, pipeline, seed, dtype, total, prompts } = settings;
        let (synthesis, prepared) = match origin {
            Origin::Synthesized(synthesis) => (Some(synthesis), None),
            Origin::Prepared(preparation) => (None, Some(preparation)),
        };
        let (guidance, sampler_steps) = (synthesis.as_ref().map(|s| s.guidance), synthesis.as_ref().map(|s| s.sampler_steps));
        let (teacher, sampler) = synthesis.map(|s| (s.teacher, s.sampler)).unzip();
        Self { teacher, pipeline, guidance, sampler, sampler_steps, prepared, seed, dtype, total, prompts }
    }
}

impl Origin {
    /// The first setting that is out of range, in words.
    fn problem(&self) -> Option<String> {
        match self {
            Self::Synthesized(synthesis) if !synthesis.guidance.is_finite() => {
                Some(format!("guidance = {} must be a finite number", synthesis.guidance))
            }
            Self::Synthesized(synthesis) if synthesis.sampler_steps == 0 => Some("sampler_steps must be at least 1".into()),
            Self::Prepared(preparation) if preparation.multiple == 0 || preparation.area < preparation.multiple => {
                Some(format!("pictures of {} pixels cannot have sides of {}", preparation.area, preparation.multiple))
            }
            _ => None,
        }
    }
}

impl DatasetSettings {
    /// Checks every number.
    ///
    /// # Errors
    /// Names the setting that is out of range.
    pub fn validate(&self) -> Result<()> {
        self.pipeline.validate()?;
        let problem = if let Some(problem) = self.origin.problem() {
            problem
        } else if self.total == 0 || self.total > u32::MAX as usize {
            format!("total = {} must be between 1 and {}", self.total, u32::MAX)
        } else if self.dtype == Dtype::BF16 {
            "dtype = bf16 is too coarse for latents: use f16 or f32".into()
        } else if self.prompts.is_empty() {
            "there are no prompts".into()
        } else {
            return Ok(());
        };
        Err(Error::Config(format!("latents: {problem}")))
    }

    /// Channels of a sample: those of a latent, and for editing of its source behind it.
    pub fn channels(&self) -> usize {
        if self.pairs() { 2 * self.pipeline.model.in_channels } else { self.pipeline.model.in_channels }
    }

    /// Whether a sample is an edit before its source: so it is where the network that it suits edits.
    pub fn pairs(&self) -> bool {
        Task::of(&self.pipeline.model) == Task::Edit
    }

    /// The settings in which two data sets differ, in words; empty if they would hold the same latents.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let json = |settings: &Self| {
            let mut settings = settings.clone();
            settings.pipeline.notes.clear(); // free text decides nothing
            serde_json::to_value(settings).unwrap_or(Value::Null)
        };
        let mut found = Vec::new();
        compare("", &json(self), &json(other), &mut found);
        found
    }
}

/// One shard of a data set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardInfo {
    /// Its file, in the manifest's folder.
    pub file: String,
    /// SHA-256 of the file in hexadecimal.
    pub sha256: String,
    /// Size of the file.
    pub bytes: u64,
    /// Samples in it.
    pub count: usize,
    /// Shape of each latent, `[C, H, W]`.
    pub shape: [usize; 3],
}

/// One of several processes that write a data set together, each with a manifest of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Which, from 0.
    pub index: usize,
    /// Of how many.
    pub of: usize,
    /// Samples of this part when it is complete.
    pub total: usize,
    /// Samples in a shard.
    pub shard_size: usize,
}

impl Part {
    /// Name of its manifest.
    pub(crate) fn manifest(self) -> String {
        format!("manifest-{}-of-{}.json", self.index + 1, self.of)
    }
}

/// The content of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the layout.
    pub version: u32,
    /// Program that wrote it.
    pub created_by: String,
    /// How the latents were made.
    pub settings: DatasetSettings,
    /// The complete shards, in order.
    pub shards: Vec<ShardInfo>,
    /// Whose shards these are, where several processes write; `None` where one does, and for all of them together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
    /// Samples of a shard that is not full yet, kept by an interrupted process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<ShardInfo>,
    /// Pictures that could not be used, known when all were looked at.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: usize,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Manifest {
    pub(crate) fn new(settings: DatasetSettings) -> Self {
        let created_by = format!("ladd-fast {}", env!("CARGO_PKG_VERSION"));
        Self { version: VERSION, created_by, settings, shards: Vec::new(), part: None, pending: None, skipped: 0 }
    }

    /// Samples still missing.
    pub fn missing(&self) -> usize {
        self.settings.total.saturating_sub(self.count().saturating_add(self.skipped))
    }

    /// Samples in the complete shards.
    pub fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.count).fold(0, usize::saturating_add)
    }

    /// Whether a folder holds a data set, finished or not.
    pub fn is_there(folder: &Path) -> bool {
        folder.join(MANIFEST).is_file() || part_manifests(folder).is_ok_and(|parts| !parts.is_empty())
    }

    /// Reads and checks the manifest of a folder; where several processes wrote, theirs together.
    ///
    /// # Errors
    /// When it is missing or damaged, its content contradicts itself, or parts do not belong together.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        let parts = if folder.is_dir() { part_manifests(folder)? } else { Vec::new() };
        match (path.exists(), parts.is_empty()) {
            (_, true) => Self::read_file(&path),
            (false, false) => merged(folder, parts.iter().map(|name| Self::read_file(&folder.join(name))).collect::<Result<_>>()?),
            (true, false) => Err(Error::file(path, format!("stands beside {}: these are two data sets, keep one", parts.join(", ")))),
        }
    }

    pub(crate) fn read_file(path: &Path) -> Result<Self> {
        let json = std::fs::read(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::file(path, "is missing: name a folder of latents that ladd-fast has made, or make one"),
            _ => Error::io("read", path, source),
        })?;
        let bad = |cause| Error::file(path, format!("{cause}: it was changed by hand or by another version, make the latents again"));
        Self::parse(&json).map_err(bad)
    }

    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// When it is no manifest, or its content contradicts itself.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_slice(json).map_err(|error| format!("is no manifest ({error})"))?;
        if version != VERSION {
            return Err(format!("has version {version}, this program reads {VERSION}"));
        }
        let manifest: Self = serde_json::from_slice(json).map_err(|error| format!("is no manifest ({error})"))?;
        manifest.settings.validate().map_err(|error| error.to_string())?;
        let outside = |shard: &&ShardInfo| Path::new(&shard.file).file_name().is_none_or(|name| name != shard.file.as_str());
        if let Some(shard) = manifest.shards.iter().chain(&manifest.pending).find(outside) {
            return Err(format!("names the shard `{}`, which is not a file of its own folder", shard.file));
        }
        if manifest.count().saturating_add(manifest.skipped) > manifest.settings.total {
            return Err(format!("lists {} samples of {}", manifest.count(), manifest.settings.total));
        }
        if let Some(part) = manifest.part.filter(|part| part.index >= part.of || part.shard_size == 0) {
            return Err(format!("is part {} of {} in shards of {}", part.index + 1, part.of, part.shard_size));
        }
        Ok(manifest)
    }

    /// Name of its file.
    pub(crate) fn file_name(&self) -> String {
        self.part.map_or_else(|| MANIFEST.to_owned(), Part::manifest)
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(self.file_name());
        let json = serde_json::to_string_pretty(self).map_err(|error| Error::file(&path, format!("cannot be written: {error}")))?;
        write_atomically(&path, |out| out.write_all(json.as_bytes()))
    }
}

/// Names of the manifests of a data set that several processes write, sorted.
pub(crate) fn part_manifests(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).map_err(|source| Error::io("read", folder, source))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|name| is_part_manifest(name)).collect();
    names.sort_unstable();
    Ok(names)
}

/// Whether a file is called as [`Part::manifest`] calls them.
fn is_part_manifest(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let numbers = name.strip_prefix("manifest-").and_then(|rest| rest.strip_suffix(".json")?.split_once("-of-"));
    numbers.is_some_and(|(which, of)| number(which) && number(of))
}

/// Number of a shard's file.
pub(crate) fn shard_number(file: &str) -> Option<usize> {
    file.strip_prefix("shard-")?.strip_suffix(".safetensors")?.parse().ok()
}

/// The parts of a data set together: their shards in the order of their numbers.
fn merged(folder: &Path, mut parts: Vec<Manifest>) -> Result<Manifest> {
    let Some(first) = parts.first().cloned() else { return Manifest::read_file(&folder.join(MANIFEST)) };
    let plan = |manifest: &Manifest| manifest.part.map(|part| (part.of, part.shard_size));
    let same = |other: &Manifest| other.settings == first.settings || other.settings.differences(&first.settings).is_empty();
    if let Some(other) = parts.iter().find(|other| plan(other).is_none() || plan(other) != plan(&first) || !same(other)) {
        let cause = format!("does not belong to {}: use the same settings and number of processes for all", first.file_name());
        return Err(Error::file(folder.join(other.file_name()), cause));
    }
    let mut shards: Vec<ShardInfo> = parts.iter_mut().flat_map(|part| std::mem::take(&mut part.shards)).collect();
    shards.sort_by_key(|shard| shard_number(&shard.file));
    if let Some(twice) = shards.windows(2).find(|pair| pair[0].file == pair[1].file) {
        return Err(Error::file(folder.join(&twice[0].file), "is listed by two manifests: delete one of them"));
    }
    Ok(Manifest { shards, part: None, pending: None, ..first })
}

impl ShardInfo {
    /// Opens the shard and checks all that can be checked without reading the latents: its size and its tensors' shapes.
    pub(crate) fn open(&self, folder: &Path, prompts: usize) -> Result<(SafetensorsFile, Vec<u32>)> {
        let path = folder.join(&self.file);
        let bytes = match std::fs::metadata(&path) {
            Ok(about) => about.len(),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Err(Error::file(path, format!("is missing: {REMEDY}"))),
            Err(source) => return Err(Error::io("read", path, source)),
        };
        if bytes != self.bytes {
            return Err(Error::file(path, format!("has {bytes} bytes instead of {}: it was cut short or changed, {REMEDY}", self.bytes)));
        }
        let file = SafetensorsFile::open(&path)?;
        let [c, h, w] = self.shape;
        file.expect_shape(LATENTS, &[self.count, c, h, w])?;
        file.expect_shape(PROMPT_INDEX, &[self.count])?;
        file.expect_shape(SEEDS, &[self.count])?;
        file.f32_into(LATENTS, 0, &mut [])?; // floats, not something else of that shape
        let known = |index: &i64| usize::try_from(*index).is_ok_and(|index| index < prompts);
        let indices = file.i64(PROMPT_INDEX)?;
        if let Some(bad) = indices.iter().find(|index| !known(index)) {
            return Err(Error::file(path, format!("refers to prompt {bad}, but {MANIFEST} lists only {prompts}: {REMEDY}")));
        }
        Ok((file, indices.into_iter().map(|index| index as u32).collect()))
    }

    /// Compares the file's checksum; `progress` hears of every few megabytes.
    pub(crate) fn verify(&self, file: &SafetensorsFile, progress: impl Fn(u64)) -> Result<()> {
        let mut hash = Sha256::new();
        for chunk in file.file_bytes().chunks(HASH_CHUNK) {
            hash.update(chunk);
            progress(chunk.len() as u64);
        }
        if hex(&hash.finalize()) != self.sha256 {
            return Err(Error::file(
                file.path(),
                format!("has changed since it was written (its SHA-256 does not match {MANIFEST}): {REMEDY}"),
            ));
        }
        Ok(())
    }
}

/// What to do about a bad shard.
const REMEDY: &str = "restore it, or make the latents again with the same settings, which draws only what is missing";

/// Collects the leaves in which two JSON values differ.
fn compare(key: &str, a: &Value, b: &Value, found: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(left), Value::Object(right)) => {
            let keys: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
            for name in keys {
                let path = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                compare(&path, left.get(name).unwrap_or(&Value::Null), right.get(name).unwrap_or(&Value::Null), found);
            }
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            if let Some(place) = (0..left.len()).find(|i| left[*i] != right[*i]) {
                compare(&format!("{key}[{place}]"), &left[place], &right[place], found);
            }
        }
        (Value::Array(left), Value::Array(right)) => found.push(format!("{key}: {} entries, now {}", left.len(), right.len())),
        _ if a != b => found.push(format!("{key}: {a}, now {b}")),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::writer::tests::settings;

    #[test]
    fn a_synthesis_is_stored_as_it_always_was() {
        let settings = settings(8, Dtype::F16);
        let json = serde_json::to_string(&settings).unwrap();
        assert!(json.starts_with(r#"{"teacher":"f00d","pipeline":"#), "{json}");
        assert!(json.contains(r#""guidance":2.0,"sampler":"euler","sampler_steps":20,"seed":7,"#) && !json.contains("prepared"), "{json}");
        assert_eq!(serde_json::from_str::<DatasetSettings>(&json).unwrap(), settings);
    }

    #[test]
    fn a_preparation_survives_and_contradictions_do_not() {
        let preparation = Preparation {
            pictures: "ab".into(),
            autoencoder: String::new(),
            area: 1024,
            multiple: 8,
            max_ratio: 2.0,
            min_side: 16,
            crop: "subject".into(),
            background: "#ffffff".into(),
        };
        let prepared = DatasetSettings { origin: Origin::Prepared(preparation.clone()), ..settings(8, Dtype::F16) };
        let json = serde_json::to_string(&prepared).unwrap();
        assert_eq!(serde_json::from_str::<DatasetSettings>(&json).unwrap(), prepared);
        let both = json.replacen('{', r#"{"teacher":"f00d","#, 1);
        assert!(serde_json::from_str::<DatasetSettings>(&both).unwrap_err().to_string().contains("or else prepared"));
        let empty = Origin::Prepared(Preparation { multiple: 0, ..preparation });
        assert!(DatasetSettings { origin: empty, ..prepared }.validate().is_err());
    }

    #[test]
    fn parts_are_known_by_their_names() {
        assert!(is_part_manifest(&Part { index: 9, of: 12, total: 1, shard_size: 1 }.manifest()));
        for other in
            ["manifest.json", "manifest-old.json", "manifest-1-of-.json", "manifest-1-of-x.json", "manifest--of-2.json", "x-1-of-2.json"]
        {
            assert!(!is_part_manifest(other), "{other}");
        }
        assert_eq!(["shard-00042.safetensors", "shard-x.safetensors", "shard-1.json"].map(shard_number), [Some(42), None, None]);
    }
}
