//! The run folder: everything a run leaves behind, in one place, never overwritten by another run.
//!
//! ```text
//! runs/20250131-154502/
//!   config.toml          the configuration as resolved
//!   metrics.jsonl        one JSON object a line: steps, measurements of quality
//!   samples/             step_000200.png, ...
//!   curves.png           losses, accuracies, gradient norms, quality over time
//!   checkpoints/         step_000200/, ...: whatever a resumed run needs
//!   student/             the result
//! ```
//!
//! A killed run leaves no half file behind: checkpoints and pictures appear whole under their name or not at all, and
//! `metrics.jsonl` is only appended to; resuming drops what came after the checkpoint, and a torn last line.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{PretrainRecord, QualityRecord, StepRecord, TaskRecord};
use crate::config::{Config, Sources};
use crate::format::{LOCK, lock};
use crate::{Error, Result};

const CONFIG: &str = "config.toml";
const METRICS: &str = "metrics.jsonl";
const PARTIAL: &str = ".partial";
/// Folders that every run has from the beginning.
const PARTS: [&str; 2] = ["samples", "checkpoints"];

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// A step of the distillation.
    Step(StepRecord),
    /// A step of `pretrain`.
    Pretrain(PretrainRecord),
    /// A measurement of quality.
    Quality(QualityRecord),
    /// A measurement of editing or inpainting.
    Task(TaskRecord),
    /// The command that began the run.
    Begun {
        /// Which.
        command: Purpose,
    },
    /// A finished part of the run (`synthesis`, `distillation`, ...), or the part of it that one process did.
    Phase {
        /// Its name.
        name: String,
        /// Its wall-clock seconds.
        seconds: f64,
        /// The step of the distillation after which it was done.
        step: u32,
    },
}

impl Record {
    /// The step it belongs to.
    pub fn step(&self) -> u32 {
        match self {
            Self::Step(record) => record.step,
            Self::Pretrain(record) => record.step,
            Self::Quality(record) => record.step,
            Self::Task(record) => record.step,
            Self::Phase { step, .. } => *step,
            Self::Begun { .. } => 0,
        }
    }
}

/// What a run is for: the command that makes it, and goes on with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// A student, by `ladd-fast distill`.
    Distill,
    /// A teacher, by `ladd-fast pretrain`.
    Pretrain,
}

impl Purpose {
    /// The command that goes on with the run in `folder`.
    pub fn resumption(self, folder: &Path) -> String {
        let name = if self == Self::Distill { "distill" } else { "pretrain" };
        format!("ladd-fast {name} --run {} --resume", quoted(folder))
    }
}

/// A path as a shell takes it.
pub(crate) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// The folder of one run, open for writing by this process alone.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Held as long as the run is written to.
    _lock: Option<File>,
    /// Where records are appended to; nothing where the run is only read.
    metrics: Option<File>,
}

impl RunFolder {
    /// Creates the folder `path`, or `<run_dir>/<date>-<time>/` without one, and writes the resolved configuration there.
    ///
    /// # Errors
    /// When the folder exists already or cannot be created.
    pub fn create(path: Option<&Path>, config: &Config, purpose: Purpose) -> Result<Self> {
        let path = match path {
            Some(path) => create_named(path)?,
            None => create_dated(&config.run_dir)?,
        };
        let lock = Some(lock(&path, LOCK, 1)?);
        for part in PARTS {
            let folder = path.join(part);
            fs::create_dir(&folder).map_err(|e| Error::io("create", folder, e))?;
        }
        let text =
            format!("# ladd-fast {}: the configuration of this run, as resolved.\n{}", env!("CARGO_PKG_VERSION"), config.resolved()?);
        write_whole(&path.join(CONFIG), text.as_bytes())?;
        let metrics = Some(open_metrics(&path)?);
        let mut run = Self { path, _lock: lock, metrics };
        run.append(&Record::Begun { command: purpose })?;
        Ok(run)
    }

    /// Opens an existing run to continue it.
    ///
    /// # Errors
    /// When `path` is no run folder, one of another command, or one that another process writes.
    pub fn open(path: &Path, purpose: Purpose) -> Result<Self> {
        let run = Self::look_at(path)?;
        let lock = Some(lock(path, LOCK, 1)?);
        if let Some(other) = run.purpose()?.filter(|found| *found != purpose) {
            return Err(Error::file(path, format!("is a run of another command: go on with `{}`", other.resumption(path))));
        }
        mend_last_line(&path.join(METRICS))?;
        Ok(Self { _lock: lock, metrics: Some(open_metrics(path)?), ..run })
    }

    /// The command that began the run, as far as its records tell.
    ///
    /// # Errors
    /// As [`RunFolder::records`].
    pub fn purpose(&self) -> Result<Option<Purpose>> {
        Ok(self.records()?.iter().find_map(|record| match record {
            Record::Begun { command } => Some(*command),
            Record::Step(_) => Some(Purpose::Distill),
            Record::Pretrain(_) => Some(Purpose::Pretrain),
            _ => None,
        }))
    }

    /// Removes the folder if nothing was made in it: what failed at once should not be in the way of the next attempt.
    pub fn discard_untouched(self) {
        let made = |record: &Record| !matches!(record, Record::Begun { .. } | Record::Phase { .. });
        let empty = |folder: &Path| fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
        let trace = |entry: std::io::Result<fs::DirEntry>| {
            let Ok(path) = entry.map(|entry| entry.path()) else { return true };
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            !([CONFIG, METRICS, LOCK].contains(&name) || empty(&path))
        };
        let untouched = self.records().is_ok_and(|records| !records.iter().any(made))
            && fs::read_dir(&self.path).is_ok_and(|entries| !entries.into_iter().any(trace));
        if untouched {
            let _ = fs::remove_dir_all(&self.path); // what is left of it is empty
        }
    }

    /// Opens an existing run to read it, which may be in progress.
    ///
    /// # Errors
    /// When `path` is no run folder.
    pub fn look_at(path: &Path) -> Result<Self> {
        if !path.join(CONFIG).is_file() {
            return Err(Error::Usage(format!(
                "{} is no run folder (it has no {CONFIG}); name the folder that the run printed when it began",
                path.display()
            )));
        }
        Ok(Self { path: path.to_owned(), _lock: None, metrics: None })
    }

    /// The configuration the run was started with.
    ///
    /// # Errors
    /// When `config.toml` was damaged.
    pub fn config(&self) -> Result<Config> {
        Config::load(&Sources { file: Some(&self.path.join(CONFIG)), ..Sources::default() })
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file or folder in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Where the sample grid of `step` goes.
    pub fn sample_path(&self, step: u32) -> PathBuf {
        self.path.join("samples").join(format!("step_{step:06}.png"))
    }

    /// The folder called `name`, created if it does not exist (`student`, `latents`, ...).
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.path.join(name);
        fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
        Ok(folder)
    }

    /// Appends one record to `metrics.jsonl`.
    ///
    /// # Errors
    /// When the disk is full or the file went away.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        let path = self.path.join(METRICS);
        let mut line = serde_json::to_vec(record).map_err(|e| Error::file(&path, e.to_string()))?;
        line.push(b'\n');
        let Some(file) = &mut self.metrics else {
            return Err(Error::Usage(format!("{} was opened to be read only", self.path.display())));
        };
        file.write_all(&line).map_err(|e| Error::io("append to", path, e))
    }

    /// All records written so far.
    ///
    /// # Errors
    /// When the file cannot be read, or a line other than a torn last one is damaged.
    pub fn records(&self) -> Result<Vec<Record>> {
        read_records(&self.path.join(METRICS))
    }

    /// Drops the records after `step`, and a torn last line, before a resumed run appends its own.
    ///
    /// # Errors
    /// When the file cannot be read or replaced.
    pub fn truncate_after(&mut self, step: u32) -> Result<Vec<Record>> {
        let path = self.path.join(METRICS);
        let mut records = read_records(&path)?;
        records.retain(|r| r.step() <= step);
        let mut text = Vec::new();
        for record in &records {
            serde_json::to_writer(&mut text, record).map_err(|e| Error::file(&path, e.to_string()))?;
            text.push(b'\n');
        }
        write_whole(&path, &text)?;
        self.metrics = Some(open_metrics(&self.path)?);
        Ok(records)
    }

    /// Writes the checkpoint of `step` and then removes all but the newest `keep`. `save` gets a path that does not exist
    /// and must make it appear whole or not at all, as [`super::checkpoint::save`] does.
    ///
    /// # Errors
    /// Whatever `save` reports. The older checkpoints are still there then.
    pub fn write_checkpoint(&self, step: u32, keep: usize, save: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let target = self.folder("checkpoints")?.join(format!("step_{step:06}"));
        remove_folder(&target)?;
        save(&target)?;
        let all = self.checkpoints()?;
        for (_, old) in all.iter().take(all.len().saturating_sub(keep.max(1))) {
            remove_folder(old)?;
        }
        Ok(target)
    }

    /// The whole checkpoints, oldest first, each with its step.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn checkpoints(&self) -> Result<Vec<(u32, PathBuf)>> {
        let folder = self.path.join("checkpoints");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io("list", &folder, e)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(|e| Error::io("list", &folder, e))?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if let Some(step) = name.strip_prefix("step_").and_then(|digits| digits.parse().ok()) {
                found.push((step, path));
            }
        }
        found.sort();
        Ok(found)
    }

    /// The newest whole checkpoint.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn latest_checkpoint(&self) -> Result<Option<(u32, PathBuf)>> {
        Ok(self.checkpoints()?.pop())
    }
}

/// Writes a file under another name, flushes it to the disk and renames it: readers see the old or the new file, never half of one.
///
/// # Errors
/// When the file cannot be written; the message names it.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(PARTIAL);
    let partial = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&partial);
        Error::io("write", path, e)
    })
}

/// Reads `metrics.jsonl`. A last line without its end is being written, or was torn by a crash, and is left out.
///
/// # Errors
/// When the file cannot be read or another line is damaged; the message names the line.
pub fn read_records(path: &Path) -> Result<Vec<Record>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("read", path, e)),
    };
    let text = String::from_utf8_lossy(&bytes);
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let mut records = Vec::new();
    for (index, line) in whole.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let record = serde_json::from_str(line)
            .map_err(|e| Error::file(path, format!("line {} is damaged ({e}); remove that line to go on", index + 1)))?;
        records.push(record);
    }
    Ok(records)
}

/// Cuts off a last line that was torn by a crash, so that the next record begins a line of its own.
fn mend_last_line(path: &Path) -> Result<()> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("read", path, e)),
    };
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
    if whole == bytes.len() {
        return Ok(());
    }
    tracing::warn!("{}: the last line was torn and is left out", path.display());
    let file = OpenOptions::new().write(true).open(path).map_err(|e| Error::io("open", path, e))?;
    file.set_len(whole as u64).map_err(|e| Error::io("mend", path, e))
}

fn create_named(path: &Path) -> Result<PathBuf> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
    }
    fs::create_dir(path).map_err(|e| match e.kind() {
        ErrorKind::AlreadyExists => Error::Usage(format!(
            "the run {} exists already: choose another folder, or continue it with --run {} --resume",
            path.display(),
            quoted(path)
        )),
        _ => Error::io("create", path, e),
    })?;
    Ok(path.to_owned())
}

fn create_dated(base: &Path) -> Result<PathBuf> {
    fs::create_dir_all(base).map_err(|e| Error::io("create the folder of runs", base, e))?;
    let stamp = timestamp(SystemTime::now());
    for attempt in 1..=1000 {
        let path = base.join(if attempt == 1 { stamp.clone() } else { format!("{stamp}-{attempt}") });
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::io("create", path, e)),
        }
    }
    Err(Error::Usage(format!("{} is full of runs named {stamp}: name the run's folder with --run", base.display())))
}

/// `YYYYMMDD-HHMMSS` in UTC (the civil calendar from days since 1970, Howard Hinnant's algorithm).
fn timestamp(now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}-{:02}{:02}{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

fn open_metrics(folder: &Path) -> Result<File> {
    let path = folder.join(METRICS);
    OpenOptions::new().create(true).append(true).open(&path).map_err(|e| Error::io("open", path, e))
}

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn run(name: &str) -> (tempfile::TempDir, RunFolder) {
        let base = tempfile::tempdir().unwrap();
        let run = RunFolder::create(Some(&base.path().join("runs").join(name)), &Config::default(), Purpose::Distill).unwrap();
        (base, run)
    }

    fn step(step: u32) -> Record {
        Record::Step(StepRecord { step, ..StepRecord::default() })
    }

    #[test]
    fn timestamps_are_civil_dates() {
        let at = |seconds| timestamp(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "19700101-000000");
        assert_eq!(at(951_827_696), "20000229-123456");
        assert_eq!(at(1_767_225_599), "20251231-235959");
    }

    #[test]
    fn a_run_is_never_overwritten() {
        let (base, run) = run("mine");
        let error = RunFolder::create(Some(run.path()), &Config::default(), Purpose::Distill).unwrap_err().to_string();
        assert!(error.contains("exists already") && error.contains("--resume"), "{error}");
        assert_eq!(run.config().unwrap(), Config::default());
        let config = Config { run_dir: base.path().to_owned(), ..Config::default() };
        let dated: Vec<_> = (0..3).map(|_| RunFolder::create(None, &config, Purpose::Distill).unwrap().path().to_owned()).collect();
        assert!(dated[0] != dated[1] && dated[1] != dated[2]);
    }

    #[test]
    fn a_folder_without_a_configuration_is_no_run() {
        let folder = tempfile::tempdir().unwrap();
        let error = RunFolder::open(folder.path(), Purpose::Distill).unwrap_err().to_string();
        assert!(error.contains("is no run folder"), "{error}");
    }

    #[test]
    fn resuming_drops_what_came_after_and_mends_a_torn_line() {
        let (_base, mut run) = run("mine");
        for n in 1..=5 {
            run.append(&step(n)).unwrap();
        }
        fs::OpenOptions::new().append(true).open(run.join(METRICS)).unwrap().write_all(b"{\"kind\":\"st").unwrap();
        let path = run.path().to_owned();
        drop(run);
        let mut again = RunFolder::open(&path, Purpose::Distill).unwrap();
        let steps = |run: &RunFolder| run.records().unwrap().iter().map(Record::step).collect::<Vec<_>>();
        assert_eq!(steps(&again), [0, 1, 2, 3, 4, 5]);
        assert_eq!(again.truncate_after(3).unwrap().len(), 4);
        again.append(&step(4)).unwrap();
        assert_eq!(steps(&again), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_run_is_written_by_one_process_and_gone_on_with_by_its_own_command() {
        let (_base, mut run) = run("my run");
        let path = run.path().to_owned();
        let open = |purpose| RunFolder::open(&path, purpose).map(drop).map_err(|error| error.to_string());
        assert!(open(Purpose::Distill).unwrap_err().contains("another process"));
        assert_eq!(RunFolder::look_at(&path).unwrap().purpose().unwrap(), Some(Purpose::Distill));
        // A version that did not note the command is known by its steps.
        fs::write(path.join(METRICS), "").unwrap();
        assert_eq!(run.purpose().unwrap(), None);
        run.append(&Record::Pretrain(PretrainRecord::default())).unwrap();
        drop(run);
        let error = open(Purpose::Distill).unwrap_err();
        assert!(error.contains("ladd-fast pretrain --run '") && error.ends_with("my run' --resume`"), "{error}");
        open(Purpose::Pretrain).unwrap();
    }

    #[test]
    fn what_failed_at_once_leaves_nothing() {
        let phase = || Record::Phase { name: "synthesis".into(), seconds: 0.1, step: 0 };
        let (_base, mut untouched) = run("untouched");
        untouched.append(&phase()).unwrap();
        let path = untouched.path().to_owned();
        untouched.discard_untouched();
        assert!(!path.exists());
        let (_base, mut trained) = run("trained");
        trained.append(&step(1)).unwrap();
        let path = trained.path().to_owned();
        trained.discard_untouched();
        assert!(path.exists());
        let (_base, drawn) = run("drawn");
        fs::write(drawn.folder("latents").unwrap().join("manifest.json"), "{}").unwrap();
        let path = drawn.path().to_owned();
        drawn.discard_untouched();
        assert!(path.exists());
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_an_error() {
        let (_base, mut run) = run("mine");
        fs::write(run.join(METRICS), "{\"kind\":\"step\"\n").unwrap();
        run.append(&step(1)).unwrap();
        let error = run.records().unwrap_err().to_string();
        assert!(error.contains("line 1 is damaged"), "{error}");
    }

    #[test]
    fn numbers_that_are_not_finite_survive() {
        let (_base, mut run) = run("mine");
        run.append(&Record::Step(StepRecord { step: 1, loss_d: f32::NAN, ..StepRecord::default() })).unwrap();
        match &run.records().unwrap()[1] {
            Record::Step(record) => assert!(record.loss_d.is_nan() && record.loss_g == 0.0),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn checkpoints_rotate_and_half_ones_are_ignored() {
        let (_base, run) = run("mine");
        let save = |folder: &Path| {
            fs::create_dir(folder).unwrap();
            write_whole(&folder.join("state"), b"state")
        };
        for n in [100, 200, 300] {
            run.write_checkpoint(n, 2, save).unwrap();
        }
        let steps: Vec<_> = run.checkpoints().unwrap().into_iter().map(|(s, _)| s).collect();
        assert_eq!(steps, [200, 300]);
        let failed = run.write_checkpoint(400, 2, |folder| {
            save(&folder.with_extension("partial"))?;
            Err(Error::Usage("disk full".into()))
        });
        assert!(failed.is_err());
        assert_eq!(run.latest_checkpoint().unwrap().unwrap().0, 300);
        assert!(run.latest_checkpoint().unwrap().unwrap().1.join("state").is_file());
        run.write_checkpoint(400, 2, save).unwrap();
        assert_eq!(run.latest_checkpoint().unwrap().unwrap().0, 400);
    }
}
