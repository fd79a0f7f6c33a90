//! Reading a data set of latents: memory-mapped shards, or latents that are in memory anyway.
//!
//! Everything is checked when it is opened. A missing, short or changed file is an error that names it.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use super::manifest::{DatasetSettings, LATENTS, Manifest};
use crate::format::SafetensorsFile;
use crate::{Error, Result};

/// Latents with their prompts.
#[derive(Debug)]
pub struct LatentDataset {
    settings: Option<DatasetSettings>,
    prompts: Vec<String>,
    prompt_of: Vec<u32>, // [n]
    source: Source,
    buckets: Vec<Bucket>,
}

/// The samples of one latent shape: a batch never mixes shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Shape of the latents, `[C, H, W]`.
    pub shape: [usize; 3],
    /// Numbers of the samples, ascending.
    pub samples: Vec<u32>,
}

#[derive(Debug)]
enum Source {
    Memory { shape: [usize; 3], latents: Vec<f32> },
    Shards(Vec<Shard>),
}

#[derive(Debug)]
struct Shard {
    file: SafetensorsFile,
    /// Number of its first sample.
    first: usize,
    shape: [usize; 3],
}

impl LatentDataset {
    /// Opens a folder that [`super::ShardWriter`] has completed, and compares every shard's checksum, in parallel.
    /// `progress` hears how many bytes of how many are checked.
    ///
    /// # Errors
    /// When the data set is incomplete, or a file is missing, short, changed or inconsistent.
    pub fn open(folder: impl AsRef<Path>, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<Self> {
        let folder = folder.as_ref();
        let manifest = complete(folder)?;
        let dataset = Self::from_manifest(folder, &manifest)?;
        let Source::Shards(shards) = &dataset.source else { return Ok(dataset) };
        let (done, total) = (AtomicU64::new(0), manifest.shards.iter().map(|shard| shard.bytes).sum());
        let report = |bytes| progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total);
        manifest.shards.par_iter().zip(shards).try_for_each(|(info, shard)| info.verify(&shard.file, report))?;
        Ok(dataset)
    }

    /// Opens a folder without reading the latents: sizes, shapes and prompts are checked, checksums are not. For data
    /// sets that were opened with [`LatentDataset::open`] before.
    ///
    /// # Errors
    /// As [`LatentDataset::open`], except for a shard that was changed but kept its size.
    pub fn open_unverified(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        Self::from_manifest(folder, &complete(folder)?)
    }

    fn from_manifest(folder: &Path, manifest: &Manifest) -> Result<Self> {
        let settings = manifest.settings.clone();
        let opened: Vec<_> = manifest.shards.par_iter().map(|info| info.open(folder, settings.prompts.len())).collect::<Result<_>>()?;
        let mut shards = Vec::new();
        let mut prompt_of = Vec::with_capacity(settings.total);
        let mut buckets = Buckets::default();
        for (info, (file, indices)) in manifest.shards.iter().zip(opened) {
            check_shape(&settings, file.path(), info.shape)?;
            buckets.add(info.shape, prompt_of.len(), info.count);
            shards.push(Shard { file, first: prompt_of.len(), shape: info.shape });
            prompt_of.extend(indices);
        }
        Ok(Self {
            prompts: settings.prompts.clone(),
            settings: Some(settings),
            prompt_of,
            source: Source::Shards(shards),
            buckets: buckets.0,
        })
    }

    /// A data set of latents of one shape in memory, `[n, C, H, W]`; `prompt_of` `[n]` refers to `prompts`.
    ///
    /// # Errors
    /// When there are no samples, or the numbers of latents, prompts and shape do not match.
    pub fn from_memory(latents: Vec<f32>, shape: [usize; 3], prompt_of: Vec<u32>, prompts: Vec<String>) -> Result<Self> {
        let size: usize = shape.iter().product();
        if prompt_of.is_empty() || latents.len() != prompt_of.len() * size || size == 0 || u32::try_from(prompt_of.len()).is_err() {
            return Err(Error::Usage(format!("{} numbers are not {} latents of {shape:?}", latents.len(), prompt_of.len())));
        }
        if let Some(bad) = prompt_of.iter().find(|prompt| **prompt as usize >= prompts.len()) {
            return Err(Error::Usage(format!("a latent refers to prompt {bad} of {}", prompts.len())));
        }
        if let Some(bad) = latents.iter().position(|value| !value.is_finite()) {
            return Err(Error::Usage(format!("latent {} holds {}", bad / size, latents[bad])));
        }
        let mut buckets = Buckets::default();
        buckets.add(shape, 0, prompt_of.len());
        Ok(Self { settings: None, prompts, prompt_of, source: Source::Memory { shape, latents }, buckets: buckets.0 })
    }

    /// Number of samples; at least one.
    pub fn len(&self) -> usize {
        self.prompt_of.len()
    }

    /// Never true, since an empty data set cannot be opened.
    pub fn is_empty(&self) -> bool {
        self.prompt_of.is_empty()
    }

    /// How it was made; nothing for a data set in memory.
    pub fn settings(&self) -> Option<&DatasetSettings> {
        self.settings.as_ref()
    }

    /// The different prompts.
    pub fn prompts(&self) -> &[String] {
        &self.prompts
    }

    /// The samples by latent shape, in order of first appearance.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// Shape of one latent, `[C, H, W]`.
    ///
    /// # Errors
    /// When there is no such sample.
    pub fn shape(&self, index: usize) -> Result<[usize; 3]> {
        self.check_index(index)?;
        Ok(match &self.source {
            Source::Memory { shape, .. } => *shape,
            Source::Shards(shards) => shard_of(shards, index).shape,
        })
    }

    /// Reads one latent into `latent`, which must have its size, and returns its prompt.
    ///
    /// # Errors
    /// When there is no such sample or the size differs.
    pub fn sample(&self, index: usize, latent: &mut [f32]) -> Result<u32> {
        let size: usize = self.shape(index)?.iter().product();
        if latent.len() != size {
            return Err(Error::Usage(format!("latent {index} has {size} numbers, not {}", latent.len())));
        }
        match &self.source {
            Source::Memory { latents, .. } => latent.copy_from_slice(&latents[index * size..(index + 1) * size]),
            Source::Shards(shards) => {
                let shard = shard_of(shards, index);
                shard.file.f32_into(LATENTS, (index - shard.first) * size, latent)?;
            }
        }
        Ok(self.prompt_of[index])
    }

    fn check_index(&self, index: usize) -> Result<()> {
        if index < self.len() { Ok(()) } else { Err(Error::Usage(format!("there is no latent {index} among {}", self.len()))) }
    }
}

/// Compares the checksum of every shard in a folder, complete or not, and returns its manifest. `progress` hears how many bytes of how
/// many are checked.
///
/// # Errors
/// Names the first file that is missing, short, changed or inconsistent.
pub fn verify(folder: impl AsRef<Path>, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<Manifest> {
    let folder = folder.as_ref();
    let manifest = Manifest::read(folder)?;
    let (done, total) = (AtomicU64::new(0), manifest.shards.iter().map(|shard| shard.bytes).sum());
    let report = |bytes| progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total);
    let prompts = manifest.settings.prompts.len();
    manifest.shards.par_iter().try_for_each(|shard| shard.verify(&shard.open(folder, prompts)?.0, report))?;
    Ok(manifest)
}

/// The manifest of a data set to which nothing is missing.
fn complete(folder: &Path) -> Result<Manifest> {
    let manifest = Manifest::read(folder)?;
    let (count, total) = (manifest.count(), manifest.settings.total);
    if manifest.missing() == 0 && count > 0 {
        return Ok(manifest);
    }
    Err(Error::file(
        folder,
        format!("holds only {count} of {total} latents: start the command that makes them again, it goes on where it stopped"),
    ))
}

fn check_shape(settings: &DatasetSettings, path: &Path, [c, h, w]: [usize; 3]) -> Result<()> {
    let model = &settings.pipeline.model;
    if c != settings.channels() {
        return Err(Error::file(path, format!("holds latents of {c} channels for a network of {}", settings.channels())));
    }
    model.grid(h, w).map(|_| ()).map_err(|error| Error::file(path, error.to_string()))
}

/// The shard of a sample that exists.
fn shard_of(shards: &[Shard], index: usize) -> &Shard {
    &shards[shards.partition_point(|shard| shard.first <= index) - 1]
}

#[derive(Default)]
struct Buckets(Vec<Bucket>);

impl Buckets {
    fn add(&mut self, shape: [usize; 3], first: usize, count: usize) {
        let place = self.0.iter().position(|bucket| bucket.shape == shape).unwrap_or_else(|| {
            self.0.push(Bucket { shape, samples: Vec::new() });
            self.0.len() - 1
        });
        self.0[place].samples.extend((first..first + count).map(|index| index as u32));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::writer::tests::{push, sample, settings};
    use crate::data::{MANIFEST, ShardWriter};
    use crate::format::Dtype;
    use std::sync::Mutex;

    fn written(total: usize, wide: usize, dtype: Dtype) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::open(folder.path(), settings(total, dtype), 4).unwrap();
        push(&mut writer, total, wide);
        writer.finish().unwrap();
        folder
    }

    #[test]
    fn every_sample_comes_back() {
        for dtype in [Dtype::F32, Dtype::F16] {
            let folder = written(23, 10, dtype);
            let heard = Mutex::new(Vec::new());
            let dataset = LatentDataset::open(folder.path(), &|done, total| heard.lock().unwrap().push((done, total))).unwrap();
            let heard = heard.into_inner().unwrap();
            assert!(heard.iter().any(|(done, total)| done == total), "{heard:?}");
            assert_eq!((dataset.len(), dataset.prompts().len()), (23, 3));
            for i in [0, 9, 10, 13, 14, 22] {
                let (expected, shape, prompt) = sample(i, 10);
                assert_eq!(dataset.shape(i).unwrap(), shape);
                let mut latent = vec![0.0; expected.len()];
                assert_eq!(dataset.sample(i, &mut latent).unwrap(), prompt);
                assert_eq!(latent, expected);
            }
            let buckets = dataset.buckets();
            assert_eq!(buckets.len(), 2);
            assert_eq!((buckets[0].shape, buckets[0].samples.as_slice()), ([4, 2, 4], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9][..]));
            assert_eq!(buckets[1].samples.len(), 13);
            assert!(dataset.sample(23, &mut [0.0; 16]).unwrap_err().to_string().contains("no latent 23"));
            assert!(dataset.sample(0, &mut [0.0; 16]).unwrap_err().to_string().contains("has 32 numbers"));
            assert_eq!(dataset.settings().unwrap().seed, 7);
        }
    }

    #[test]
    fn all_damage_is_an_error_that_names_the_file() {
        let folder = written(12, 0, Dtype::F16);
        let shard = folder.path().join("shard-00002.safetensors");
        let manifest = folder.path().join(MANIFEST);
        let (good_shard, good_manifest) = (std::fs::read(&shard).unwrap(), std::fs::read_to_string(&manifest).unwrap());
        let says = |what: &str| {
            let error = LatentDataset::open(folder.path(), &|_, _| ()).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };

        let mut changed = good_shard.clone();
        let middle = changed.len() - 60;
        changed[middle] ^= 4;
        std::fs::write(&shard, changed).unwrap();
        says("shard-00002.safetensors: has changed");
        assert!(LatentDataset::open_unverified(folder.path()).is_ok());
        let short = good_shard.len() - 1;
        std::fs::write(&shard, &good_shard[..short]).unwrap();
        says(&format!("shard-00002.safetensors: has {short} bytes instead of {}", good_shard.len()));
        std::fs::remove_file(&shard).unwrap();
        says("shard-00002.safetensors: is missing");
        std::fs::write(&shard, &good_shard).unwrap();

        let edit = |from: &str, to: &str, what: &str| {
            assert!(good_manifest.contains(from), "{from}");
            std::fs::write(&manifest, good_manifest.replace(from, to)).unwrap();
            says(what);
        };
        edit("\"total\": 12", "\"total\": 13", "only 12 of 13");
        edit("\"total\": 12", "\"total\": 3", "lists 12 samples of 3");
        edit("\"version\": 1", "\"version\": 9", "version 9");
        edit("shard-00002.safetensors", "../shard-00002.safetensors", "not a file of its own folder");
    }

    #[test]
    fn a_manifest_that_contradicts_its_shards_is_refused() {
        let folder = written(12, 0, Dtype::F16);
        let path = folder.path().join(MANIFEST);
        let mut manifest = Manifest::read(folder.path()).unwrap();
        let says = |manifest: &Manifest, what: &str| {
            manifest.write(folder.path()).unwrap();
            let error = LatentDataset::open_unverified(folder.path()).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        let good = manifest.clone();
        manifest.settings.prompts.pop();
        says(&manifest, "refers to prompt 2");
        manifest = good.clone();
        manifest.shards[1].shape = [4, 4, 1];
        says(&manifest, "[4, 4, 2, 2] where [4, 4, 4, 1]");
        manifest = good.clone();
        manifest.settings.pipeline.model.pos_embed_max = 8;
        manifest.settings.pipeline.model.patch = 4;
        says(&manifest, "2x2 cannot be cut into 4x4");
        std::fs::write(&path, "{").unwrap();
        assert!(LatentDataset::open_unverified(folder.path()).unwrap_err().to_string().contains("is no manifest"));
        std::fs::remove_file(&path).unwrap();
        assert!(LatentDataset::open_unverified(folder.path()).unwrap_err().to_string().contains("manifest.json: is missing"));
    }

    #[test]
    fn latents_in_memory_are_a_data_set_too() {
        let prompts = vec!["bag".to_owned(), "coat".to_owned()];
        let dataset = LatentDataset::from_memory((0..12).map(|i| i as f32).collect(), [1, 2, 2], vec![1, 0, 1], prompts.clone()).unwrap();
        let mut latent = [0.0; 4];
        assert_eq!(dataset.sample(1, &mut latent).unwrap(), 0);
        assert_eq!((latent, dataset.settings()), ([4.0, 5.0, 6.0, 7.0], None));
        assert!(LatentDataset::from_memory(vec![0.0; 11], [1, 2, 2], vec![1, 0, 1], prompts.clone()).is_err());
        assert!(LatentDataset::from_memory(vec![0.0; 4], [1, 2, 2], vec![2], prompts.clone()).is_err());
        assert!(LatentDataset::from_memory(vec![f32::NAN; 4], [1, 2, 2], vec![0], prompts.clone()).is_err());
        assert!(LatentDataset::from_memory(vec![], [1, 2, 2], vec![], prompts).is_err());
    }
}
