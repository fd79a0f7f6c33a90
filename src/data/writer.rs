//! Writing a data set of latents in shards, so that a killed run loses at most the shard it was working on.
//!
//! A shard and then the manifest that lists it are each replaced atomically. A run started again with the same settings
//! finds the complete shards and goes on after them; with other settings it refuses and says what differs.

use std::fs::File;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::manifest::{DatasetSettings, LATENTS, MANIFEST, Manifest, PROMPT_INDEX, Part, SEEDS, ShardInfo, part_manifests, shard_number};
use super::sizes::Share;
use crate::format::{Data, Entry, LOCK, TEMPORARY, hex, lock, prepare_safetensors, write_atomically};
use crate::{Error, Result};

/// How often a process that begins asks for the lock: for five seconds.
const PATIENCE: usize = 100;

/// Writes a data set, see the module's description. One writer at a time per folder, or one per part of it.
#[derive(Debug)]
pub struct ShardWriter {
    folder: PathBuf,
    manifest: Manifest,
    shard_size: usize,
    /// Samples of this writer when it is done.
    total: usize,
    share: Share,
    pending: Pending,
    /// Released when the writer is dropped, or by the system when the process dies.
    _lock: File,
}

/// Samples that wait for their shard to be full.
#[derive(Debug, Default)]
struct Pending {
    shape: [usize; 3],
    latents: Vec<f32>,
    prompts: Vec<u32>,
    seeds: Vec<i64>,
}

impl ShardWriter {
    /// Starts a data set in `folder`, or goes on with the one begun there. A shard takes up to `shard_size` samples.
    /// Complete shards are checked by their checksums; from the first missing or damaged one on, all is drawn again.
    ///
    /// # Errors
    /// When the folder holds a data set of other settings, another process is writing it, or it cannot be written.
    pub fn open(folder: impl AsRef<Path>, settings: DatasetSettings, shard_size: usize) -> Result<Self> {
        let total = settings.total;
        Self::open_share(folder, settings, shard_size, Share::WHOLE, total)
    }

    /// As [`ShardWriter::open`] for one of several processes, each of which pushes its own `total` samples: process `i` of `n`
    /// writes the shards `i`, `i + n`, ... They never touch each other's files.
    ///
    /// # Errors
    /// As [`ShardWriter::open`]; when the data set was begun by another number of processes, or this part is being written.
    pub fn open_share(folder: impl AsRef<Path>, settings: DatasetSettings, shard_size: usize, share: Share, total: usize) -> Result<Self> {
        let folder = folder.as_ref().to_owned();
        settings.validate()?;
        if shard_size == 0 {
            return Err(Error::Config("latents: a shard must take at least 1 sample".into()));
        }
        std::fs::create_dir_all(&folder).map_err(|source| Error::io("create", &folder, source))?;
        // Where several processes write, it is held while one of them begins.
        let beginning = lock(&folder, LOCK, if share == Share::WHOLE { 1 } else { PATIENCE })?;
        let part = (share != Share::WHOLE).then_some(Part { index: share.index, of: share.of, total, shard_size });
        check_companions(&folder, &settings, part)?;
        let lock = match part {
            Some(part) => lock(&folder, &format!("{LOCK}-{}-of-{}", part.index + 1, part.of), 1)?,
            None => beginning.try_clone().map_err(|source| Error::io("lock", &folder, source))?,
        };
        remove_litter(&folder, share)?;
        let fresh = Manifest { part, ..Manifest::new(settings) };
        let path = folder.join(fresh.file_name());
        let (manifest, pending) =
            if path.exists() { resume(&folder, Manifest::read_file(&path)?, fresh, shard_size)? } else { (fresh, Pending::default()) };
        manifest.write(&folder)?;
        drop(beginning);
        Ok(Self { folder, manifest, shard_size, total, share, pending, _lock: lock })
    }

    /// Samples pushed so far, by this process or those before it: the number of the sample to go on with.
    pub fn written(&self) -> usize {
        self.manifest.count() + self.pending.prompts.len()
    }

    /// Samples still to be pushed.
    pub fn remaining(&self) -> usize {
        self.total.saturating_sub(self.written().saturating_add(self.manifest.skipped))
    }

    /// Shape and seeds of each complete shard, in order.
    ///
    /// # Errors
    /// When a shard cannot be read.
    pub fn shards(&self) -> Result<Vec<([usize; 3], Vec<i64>)>> {
        let prompts = self.manifest.settings.prompts.len();
        let seeds = |shard: &ShardInfo| Ok((shard.shape, shard.open(&self.folder, prompts)?.0.i64(SEEDS)?));
        self.manifest.shards.iter().map(seeds).collect()
    }

    /// Adds the next sample: its latent of `shape` `[C, H, W]`, the place of its prompt in the table, its seed. Samples of
    /// one shape should follow each other: a change of shape begins a new shard.
    ///
    /// # Errors
    /// When the sample does not fit the settings, is not finite, or a full shard cannot be written.
    pub fn push(&mut self, latent: &[f32], shape: [usize; 3], prompt: u32, seed: u64) -> Result<()> {
        self.check(latent, shape, prompt)?;
        let seed =
            i64::try_from(seed).map_err(|_| Error::Usage(format!("the seed {seed} is too large to be stored: choose one below 2^63")))?;
        if shape != self.pending.shape {
            self.flush()?;
            self.pending.shape = shape;
        }
        self.pending.latents.extend_from_slice(latent);
        self.pending.prompts.push(prompt);
        self.pending.seeds.push(seed);
        if self.pending.prompts.len() >= self.shard_size { self.flush() } else { Ok(()) }
    }

    /// Writes the samples that wait as a shard, even if it is not full, and lists it in the manifest.
    ///
    /// # Errors
    /// When the shard or the manifest cannot be written; the samples are then still waiting.
    pub fn flush(&mut self) -> Result<()> {
        let count = self.pending.prompts.len();
        if count == 0 {
            return Ok(());
        }
        let file = format!("shard-{:05}.safetensors", self.manifest.shards.len() * self.share.of + self.share.index);
        let (sha256, bytes) = self.pending.write(&self.folder.join(&file), &self.manifest.settings)?;
        self.manifest.shards.push(ShardInfo { file, sha256, bytes, count, shape: self.pending.shape });
        let kept = self.manifest.pending.take();
        if let Err(error) = self.manifest.write(&self.folder) {
            self.manifest.shards.pop();
            self.manifest.pending = kept;
            return Err(error);
        }
        self.pending.clear();
        if let Some(kept) = kept {
            let _ = std::fs::remove_file(self.folder.join(kept.file)); // nobody reads it any more
        }
        Ok(())
    }

    /// Keeps the samples that wait for their shard to be full, for the process that goes on: what it writes is then what this
    /// one would have written.
    ///
    /// # Errors
    /// When they cannot be written; the complete shards are not touched.
    pub fn suspend(&mut self) -> Result<()> {
        let count = self.pending.prompts.len();
        if count == 0 {
            return Ok(());
        }
        let file = pending_name(self.share);
        let (sha256, bytes) = self.pending.write(&self.folder.join(&file), &self.manifest.settings)?;
        self.manifest.pending = Some(ShardInfo { file, sha256, bytes, count, shape: self.pending.shape });
        self.manifest.write(&self.folder)
    }

    /// Writes the last shard.
    ///
    /// # Errors
    /// When it cannot be written, or fewer samples were pushed than the settings announce.
    pub fn finish(self) -> Result<Manifest> {
        self.finish_without(0)
    }

    /// As [`ShardWriter::finish`], where `skipped` pictures could not be used.
    ///
    /// # Errors
    /// As [`ShardWriter::finish`].
    pub fn finish_without(mut self, skipped: usize) -> Result<Manifest> {
        self.flush()?;
        if skipped > 0 && self.manifest.skipped == 0 {
            self.manifest.skipped = skipped;
            self.manifest.write(&self.folder)?;
        }
        match self.remaining() {
            0 => Ok(self.manifest),
            missing => Err(Error::file(&self.folder, format!("lacks {missing} of {} latents", self.total))),
        }
    }

    fn check(&self, latent: &[f32], shape: [usize; 3], prompt: u32) -> Result<()> {
        let settings = &self.manifest.settings;
        let number = self.total - self.remaining();
        let fail = |cause: String| Err(Error::Usage(format!("latent {number}: {cause}")));
        if self.remaining() == 0 {
            return fail(format!("the data set is complete with {} latents", self.total));
        }
        if latent.len() != shape.iter().product::<usize>() || shape[0] != settings.channels() {
            return fail(format!("{} numbers of shape {shape:?} are no latent of {} channels", latent.len(), settings.channels()));
        }
        settings.pipeline.model.grid(shape[1], shape[2])?;
        if prompt as usize >= settings.prompts.len() {
            return fail(format!("prompt {prompt} is not among the {} of the data set", settings.prompts.len()));
        }
        match latent.iter().find(|value| !value.is_finite()) {
            Some(bad) => fail(format!("holds {bad}: the network that made it has diverged, check its checkpoint and the guidance")),
            None => Ok(()),
        }
    }
}

impl Pending {
    /// Returns the checksum and the size of the file.
    fn write(&self, path: &Path, settings: &DatasetSettings) -> Result<(String, u64)> {
        let (n, [c, h, w]) = (self.prompts.len(), self.shape);
        let entries = vec![
            Entry::floats(LATENTS, &[n, c, h, w], vec![&self.latents], settings.dtype),
            Entry { name: PROMPT_INDEX.into(), shape: vec![n], data: Data::U32(&self.prompts) },
            Entry { name: SEEDS.into(), shape: vec![n], data: Data::I64(&self.seeds) },
        ];
        let prepared =
            prepare_safetensors(&Default::default(), entries).map_err(|error| Error::file(path, format!("is not written: {error}")))?;
        let mut hash = Sha256::new();
        let mut bytes = 0;
        write_atomically(path, |out| {
            let mut out = Hashing { out, hash: &mut hash, bytes: &mut bytes };
            prepared.write(&mut out)
        })?;
        Ok((hex(&hash.finalize()), bytes))
    }

    /// Reads what a process kept before it was interrupted.
    fn restore(folder: &Path, kept: &ShardInfo, prompts: usize) -> Result<Self> {
        let (file, prompts) = kept.open(folder, prompts)?;
        kept.verify(&file, |_| ())?;
        Ok(Self { shape: kept.shape, latents: file.f32(LATENTS)?, prompts, seeds: file.i64(SEEDS)? })
    }

    fn clear(&mut self) {
        self.latents.clear();
        self.prompts.clear();
        self.seeds.clear();
    }
}

/// Hashes and counts what passes through.
struct Hashing<'a> {
    out: &'a mut dyn std::io::Write,
    hash: &'a mut Sha256,
    bytes: &'a mut u64,
}

impl std::io::Write for Hashing<'_> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(buffer)?;
        self.hash.update(&buffer[..written]);
        *self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// Refuses a folder that was begun with other settings or by another number of processes.
fn check_companions(folder: &Path, settings: &DatasetSettings, part: Option<Part>) -> Result<()> {
    let companions = part_manifests(folder)?;
    if part.is_some() && folder.join(MANIFEST).exists() {
        return Err(Error::file(folder, "was begun by one process: go on without --shard, or choose another folder"));
    }
    for name in &companions {
        let other = Manifest::read_file(&folder.join(name))?;
        let Some(theirs) = other.part else { return Err(Error::file(folder.join(name), "is no part of a data set: delete it")) };
        if part.is_none_or(|part| part.of != theirs.of) {
            let cause =
                format!("was begun by {} processes: go on with --shard 1/{} and so on, or choose another folder", theirs.of, theirs.of);
            return Err(Error::file(folder, cause));
        }
        if part.is_some_and(|part| part.shard_size != theirs.shard_size) {
            return Err(Error::file(folder, format!("was begun in shards of {}: use the same synthesize.shard_size", theirs.shard_size)));
        }
        refuse_differences(folder, &other.settings, settings)?;
    }
    Ok(())
}

fn refuse_differences(folder: &Path, begun: &DatasetSettings, settings: &DatasetSettings) -> Result<()> {
    let differences = begun.differences(settings);
    if differences.is_empty() {
        return Ok(());
    }
    let cause = "use the same settings, another folder, or delete this one";
    Err(Error::file(folder, format!("holds latents of other settings ({}): {cause}", differences.join("; "))))
}

/// Name of the file of samples that wait for their shard to be full.
fn pending_name(share: Share) -> String {
    if share == Share::WHOLE {
        "pending.safetensors".to_owned()
    } else {
        format!("pending-{}-of-{}.safetensors", share.index + 1, share.of)
    }
}

/// Deletes the temporary files of a killed run; where several processes write, those of this one.
fn remove_litter(folder: &Path, share: Share) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(|source| Error::io("read", folder, source))?;
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.file_name().is_some_and(|name| is_litter(&name.to_string_lossy(), share)) {
            std::fs::remove_file(&path).map_err(|source| Error::io("delete", &path, source))?;
        }
    }
    Ok(())
}

/// Temporary files are called `.TARGET.PROCESS-SERIAL.tmp`.
fn is_litter(name: &str, share: Share) -> bool {
    let Some(name) = name.strip_suffix(TEMPORARY).and_then(|name| name.strip_suffix('.')) else { return false };
    let target = name.strip_prefix('.').and_then(|name| Some(name.rsplit_once('.')?.0)).unwrap_or_default();
    let part = Part { index: share.index, of: share.of, total: 0, shard_size: 0 };
    let own_shard = shard_number(target).is_some_and(|number| number % share.of == share.index);
    share == Share::WHOLE || own_shard || target == part.manifest() || target == pending_name(share)
}

/// The data set begun in a folder, cut before its first bad shard, and the samples that wait for theirs to be full.
fn resume(folder: &Path, mut manifest: Manifest, fresh: Manifest, shard_size: usize) -> Result<(Manifest, Pending)> {
    refuse_differences(folder, &manifest.settings, &fresh.settings)?;
    if manifest.part != fresh.part {
        return Err(Error::file(folder.join(fresh.file_name()), "was begun with another plan: use the same settings, or another folder"));
    }
    let prompts = fresh.settings.prompts.len();
    let check = |shard: &ShardInfo| shard.open(folder, prompts).and_then(|(file, _)| shard.verify(&file, |_| ()));
    let bad = manifest.shards.par_iter().map(check).enumerate().find_first(|(_, outcome)| outcome.is_err());
    if let Some((number, Err(error))) = bad {
        tracing::warn!("{error}; making all again from this shard on");
        manifest.shards.truncate(number);
        manifest.pending = None;
        manifest.skipped = 0;
    }
    let mut pending = Pending::default();
    if let Some(kept) = &manifest.pending {
        match Pending::restore(folder, kept, prompts) {
            Ok(restored) if restored.prompts.len() < shard_size => pending = restored,
            Ok(_) => manifest.pending = None,
            Err(error) => {
                tracing::warn!("{error}; making again what it held");
                manifest.pending = None;
            }
        }
    }
    Ok((Manifest { settings: fresh.settings, ..manifest }, pending))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::data::{LatentDataset, Origin, Synthesis};
    use crate::format::{Dtype, Pipeline, Role};
    use crate::model::ModelConfig;
    use crate::text::TextConfig;
    use crate::vae::CodecConfig;

    pub fn settings(total: usize, dtype: Dtype) -> DatasetSettings {
        let model = ModelConfig {
            depth: 1,
            heads: 1,
            head_dim: 64,
            in_channels: 4,
            patch: 2,
            context_dim: 8,
            pooled_dim: 8,
            pos_embed_max: 8,
            qk_norm: false,
            dual_attention_blocks: 0,
            conditioning_channels: 0,
        };
        DatasetSettings {
            origin: Origin::Synthesized(Synthesis { teacher: "f00d".into(), guidance: 2.0, sampler: "euler".into(), sampler_steps: 20 }),
            pipeline: Pipeline {
                model,
                codec: CodecConfig::External { channels: 4, downscale: 8 },
                text: TextConfig::Words { dim: 8, tokens: 2 },
                shift: 1.0,
                spacing: Default::default(),
                role: Role::Teacher,
                notes: Default::default(),
            },
            seed: 7,
            dtype,
            total,
            prompts: ["bag", "coat", "shirt"].map(String::from).to_vec(),
        }
    }

    /// Sample `i`: the first `wide` of them are 2 x 4, the rest 2 x 2; values that f16 holds exactly.
    pub fn sample(i: usize, wide: usize) -> (Vec<f32>, [usize; 3], u32) {
        let shape = if i < wide { [4, 2, 4] } else { [4, 2, 2] };
        let latent = (0..shape.iter().product()).map(|e| i as f32 + e as f32 / 64.0).collect();
        (latent, shape, (i % 3) as u32)
    }

    /// Pushes samples from where the writer stands up to `end`.
    pub fn push(writer: &mut ShardWriter, end: usize, wide: usize) {
        for i in writer.written()..end {
            let (latent, shape, prompt) = sample(i, wide);
            writer.push(&latent, shape, prompt, i as u64).unwrap();
        }
    }

    fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
            .collect();
        files.sort();
        files
    }

    #[test]
    fn a_run_killed_anywhere_and_started_again_gives_the_same_files() {
        let whole = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::open(whole.path(), settings(23, Dtype::F16), 4).unwrap();
        push(&mut writer, 23, 10);
        writer.finish().unwrap();

        for killed_at in [0, 1, 4, 7, 9, 10, 11, 22, 23] {
            let folder = tempfile::tempdir().unwrap();
            let mut writer = ShardWriter::open(folder.path(), settings(23, Dtype::F16), 4).unwrap();
            push(&mut writer, killed_at, 10);
            drop(writer); // without finish: as if killed
            std::fs::write(folder.path().join(".shard-00001.safetensors.1-1.tmp"), b"half").unwrap();
            let mut writer = ShardWriter::open(folder.path(), settings(23, Dtype::F16), 4).unwrap();
            let complete = if killed_at < 10 { killed_at / 4 * 4 } else { 10 + (killed_at - 10) / 4 * 4 };
            // the shard of the wide samples that is cut short by the change of shape is complete only after it
            let complete = if killed_at == 10 { 8 } else { complete };
            assert_eq!(writer.written(), complete, "killed at {killed_at}");
            push(&mut writer, 23, 10);
            writer.finish().unwrap();
            assert!(contents(folder.path()) == contents(whole.path()), "killed at {killed_at}");
        }
    }

    #[test]
    fn a_bad_shard_is_drawn_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::open(folder.path(), settings(12, Dtype::F32), 4).unwrap();
        push(&mut writer, 12, 0);
        writer.finish().unwrap();
        let before = contents(folder.path());
        let victim = folder.path().join("shard-00001.safetensors");
        let mut bytes = std::fs::read(&victim).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        for damage in [&bytes[..], &bytes[..100], &[]] {
            std::fs::write(&victim, damage).unwrap();
            let mut writer = ShardWriter::open(folder.path(), settings(12, Dtype::F32), 4).unwrap();
            assert_eq!((writer.written(), writer.remaining()), (4, 8));
            push(&mut writer, 12, 0);
            writer.finish().unwrap();
            assert!(contents(folder.path()) == before);
        }
    }

    #[test]
    fn other_settings_are_refused_and_named() {
        let folder = tempfile::tempdir().unwrap();
        drop(ShardWriter::open(folder.path(), settings(8, Dtype::F32), 4).unwrap());
        let mut other = settings(8, Dtype::F32);
        let Origin::Synthesized(synthesis) = &mut other.origin else { unreachable!() };
        synthesis.guidance = 3.0;
        other.pipeline.model.depth = 5;
        other.pipeline.notes.insert("irrelevant".into(), "text".into());
        other.prompts[1] = "dress".into();
        let error = ShardWriter::open(folder.path(), other, 4).unwrap_err().to_string();
        for part in ["guidance: 2.0, now 3.0", "pipeline.model.depth: 1, now 5", "prompts[1]: \"coat\", now \"dress\""] {
            assert!(error.contains(part), "{error}");
        }
        assert!(!error.contains("irrelevant") && !error.contains("seed"), "{error}");
        let mut longer = settings(8, Dtype::F32);
        longer.prompts.push("dress".into());
        assert!(ShardWriter::open(folder.path(), longer, 4).unwrap_err().to_string().contains("prompts: 3 entries, now 4"));
    }

    #[test]
    fn two_writers_do_not_share_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = ShardWriter::open(folder.path(), settings(8, Dtype::F32), 4).unwrap();
        let error = ShardWriter::open(folder.path(), settings(8, Dtype::F32), 4).unwrap_err().to_string();
        assert!(error.contains("another process"), "{error}");
        drop(first);
        ShardWriter::open(folder.path(), settings(8, Dtype::F32), 4).unwrap();
    }

    #[test]
    fn samples_that_do_not_fit_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::open(folder.path(), settings(2, Dtype::F16), 4).unwrap();
        let mut says = |latent: &[f32], shape: [usize; 3], prompt: u32, seed: u64, what: &str| {
            let error = writer.push(latent, shape, prompt, seed).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        says(&[0.0; 16], [4, 2, 3], 0, 0, "no latent of 4 channels");
        says(&[0.0; 16], [1, 4, 4], 0, 0, "no latent of 4 channels");
        says(&[0.0; 12], [4, 1, 3], 0, 0, "1x3");
        says(&[0.0; 16], [4, 2, 2], 3, 0, "prompt 3");
        says(&[f32::INFINITY; 16], [4, 2, 2], 0, 0, "latent 0: holds inf");
        says(&[0.0; 16], [4, 2, 2], 0, u64::MAX, "seed");
        push(&mut writer, 1, 0);
        assert!(writer.finish().unwrap_err().to_string().contains("lacks 1 of 2"));
        let mut writer = ShardWriter::open(folder.path(), settings(2, Dtype::F16), 4).unwrap();
        push(&mut writer, 2, 0);
        assert!(writer.push(&[0.0; 16], [4, 2, 2], 0, 0).unwrap_err().to_string().contains("complete"));
        writer.finish().unwrap();
        assert_eq!(LatentDataset::open(folder.path(), &|_, _| ()).unwrap().len(), 2);
        assert!(ShardWriter::open(folder.path(), settings(2, Dtype::BF16), 4).is_err());
        assert!(ShardWriter::open(folder.path(), settings(0, Dtype::F16), 4).is_err());
        assert!(ShardWriter::open(folder.path(), settings(2, Dtype::F16), 0).is_err());
    }

    #[test]
    fn a_suspended_writer_goes_on_within_its_shard() {
        let whole = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::open(whole.path(), settings(23, Dtype::F16), 8).unwrap();
        push(&mut writer, 23, 10);
        writer.finish().unwrap();
        for stops in [vec![3, 5, 22], vec![8, 9, 10, 11], vec![0, 23]] {
            let folder = tempfile::tempdir().unwrap();
            for stop in &stops {
                let mut writer = ShardWriter::open(folder.path(), settings(23, Dtype::F16), 8).unwrap();
                push(&mut writer, *stop, 10);
                writer.suspend().unwrap();
                assert_eq!(writer.written(), *stop);
            }
            let mut writer = ShardWriter::open(folder.path(), settings(23, Dtype::F16), 8).unwrap();
            assert_eq!(writer.written(), stops[stops.len() - 1]);
            push(&mut writer, 23, 10);
            writer.finish().unwrap();
            assert!(contents(folder.path()) == contents(whole.path()), "{stops:?}");
        }
        // What was kept is damaged: it is made again.
        let folder = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::open(folder.path(), settings(23, Dtype::F16), 8).unwrap();
        push(&mut writer, 11, 0);
        writer.suspend().unwrap();
        drop(writer);
        std::fs::write(folder.path().join("pending.safetensors"), b"half").unwrap();
        assert_eq!(ShardWriter::open(folder.path(), settings(23, Dtype::F16), 8).unwrap().written(), 8);
    }

    /// The samples of 23 that process `index` of 3 writes in shards of 4, ten of them wide: 4, 4, 2 and 4, 4, 4, 1.
    fn own(index: usize) -> Vec<usize> {
        let shards = [0..4, 4..8, 8..10, 10..14, 14..18, 18..22, 22..23];
        shards.into_iter().skip(index).step_by(3).flatten().collect()
    }

    fn open_part(folder: &Path, index: usize) -> Result<ShardWriter> {
        ShardWriter::open_share(folder, settings(23, Dtype::F16), 4, Share { index, of: 3 }, own(index).len())
    }

    fn push_own(writer: &mut ShardWriter, index: usize, end: usize) {
        for i in own(index).into_iter().take(end).skip(writer.written()) {
            let (latent, shape, prompt) = sample(i, 10);
            writer.push(&latent, shape, prompt, i as u64).unwrap();
        }
    }

    #[test]
    fn several_processes_write_what_one_would() {
        let one = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::open(one.path(), settings(23, Dtype::F16), 4).unwrap();
        push(&mut writer, 23, 10);
        writer.finish().unwrap();

        let folder = tempfile::tempdir().unwrap();
        let mut writers: Vec<_> = (0..3).map(|index| open_part(folder.path(), index).unwrap()).collect();
        assert!(open_part(folder.path(), 1).unwrap_err().to_string().contains("another process"));
        for (index, writer) in writers.iter_mut().enumerate() {
            push_own(writer, index, 5 - index);
        }
        drop(writers); // killed, each in the middle of a shard
        assert!(LatentDataset::open(folder.path(), &|_, _| ()).unwrap_err().to_string().contains("of 23 latents"));
        for index in [2, 0, 1] {
            let mut writer = open_part(folder.path(), index).unwrap();
            push_own(&mut writer, index, 23);
            writer.finish().unwrap();
        }
        let shards = |folder: &Path| contents(folder).into_iter().filter(|(name, _)| name.starts_with("shard")).collect::<Vec<_>>();
        assert!(shards(folder.path()) == shards(one.path()));
        let (together, alone) = [folder.path(), one.path()].map(|folder| Manifest::read(folder).unwrap()).into();
        assert_eq!(together, alone);
        assert_eq!(LatentDataset::open(folder.path(), &|_, _| ()).unwrap().len(), 23);
    }

    #[test]
    fn processes_leave_each_other_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = open_part(folder.path(), 0).unwrap();
        push_own(&mut first, 0, 4);
        let litter = |name: &str| folder.path().join(name);
        let theirs = [".shard-00001.safetensors.7-1.tmp", ".manifest-2-of-3.json.7-2.tmp", ".pending-2-of-3.safetensors.7-3.tmp"];
        let ours = [".shard-00003.safetensors.7-1.tmp", ".manifest-1-of-3.json.7-2.tmp", ".pending-1-of-3.safetensors.7-3.tmp"];
        theirs.iter().chain(&ours).for_each(|name| std::fs::write(litter(name), b"half").unwrap());
        drop(first);
        drop(open_part(folder.path(), 0).unwrap());
        assert!(theirs.iter().all(|name| litter(name).exists()) && ours.iter().all(|name| !litter(name).exists()));

        let says = |result: Result<ShardWriter>, what: &str| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        says(ShardWriter::open(folder.path(), settings(23, Dtype::F16), 4), "was begun by 3 processes");
        let of = |n, shard_size, settings| ShardWriter::open_share(folder.path(), settings, shard_size, Share { index: 1, of: n }, 8);
        says(of(2, 4, settings(23, Dtype::F16)), "was begun by 3 processes");
        says(of(3, 5, settings(23, Dtype::F16)), "in shards of 4");
        says(of(3, 4, settings(23, Dtype::F32)), "dtype: \"f16\", now \"f32\"");
        let other = tempfile::tempdir().unwrap();
        drop(ShardWriter::open(other.path(), settings(23, Dtype::F16), 4).unwrap());
        says(open_part(other.path(), 0), "was begun by one process");
    }
}
