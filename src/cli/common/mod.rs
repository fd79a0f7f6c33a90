//! What the commands share: global arguments, output, progress, interruption, networks, drawing and measuring.

pub mod device;
pub mod draw;
pub mod encoders;
pub mod interrupt;
pub mod latents;
pub mod lora;
pub mod measure;
pub mod network;
pub mod output;
pub mod progress;
pub mod resume;

use std::path::{Path, PathBuf};

use clap::Args;

use crate::config::{Config, Flag, Sources};
use crate::device::DeviceError;
use crate::{Error, Result};

pub use device::Device;
pub use draw::Painter;
pub use encoders::Encoders;
pub use lora::Loras;
pub use network::Loaded;
pub use progress::Progress;

/// Why a command ended early.
#[derive(Debug)]
pub enum Stop {
    /// Something the user can mend.
    Error(Error),
    /// Ctrl-C; everything needed to continue is on the disk.
    Interrupted,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<DeviceError> for Stop {
    fn from(error: DeviceError) -> Self {
        Self::Error(error.into())
    }
}

/// What is said when a training is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The tables, and the files to open.
    Told,
    /// Nothing: the tables are in the run's folder.
    Silent,
}

/// What a command returns.
pub type Outcome<T = ()> = std::result::Result<T, Stop>;

/// Arguments of every command.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Settings")]
pub struct Globals {
    /// Read settings from a TOML file (see docs/configuration.md).
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Begin from a named preset: demo, demo-quick, demo-edit, demo-inpaint, emoji, emoji-small, sd3-medium, sd3.5-medium, sd3.5-large [default: demo].
    #[arg(long, global = true, value_name = "NAME")]
    pub preset: Option<String>,
    /// Set one key, as in --set optim.student.lr=5e-5; may be repeated.
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Worker threads; 0 means all cores.
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<usize>,
    /// Where to compute: auto (the first usable GPU, else the processor), cpu, cuda, cuda:N [default: auto].
    #[arg(long, global = true, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Say more; twice for even more.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Print results and errors only.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
}

impl Globals {
    /// Sets up output and Ctrl-C.
    pub fn prepare(&self) -> Result<()> {
        output::start(self.quiet, self.verbose);
        interrupt::install()
    }

    /// The configuration of this call: presets, file, `flags`, `--set`.
    pub fn load(&self, flags: Vec<Option<Flag>>) -> Result<Config> {
        let mut flags: Vec<_> = flags.into_iter().flatten().collect();
        flags.extend(self.threads.map(|n| Flag { key: "threads", flag: "--threads", value: toml::Value::Integer(n as i64) }));
        flags.extend(flag("device", "--device", self.device.as_deref()));
        let sources = Sources { preset: self.preset.as_deref(), file: self.config.as_deref(), flags: &flags, sets: &self.sets };
        let config = Config::load(&sources)?;
        start_threads(config.threads)?;
        Ok(config)
    }

    /// For a resumed run, whose settings are those it began with: refuses arguments that would change them.
    pub fn refuse_settings(&self, flags: &[Option<Flag>]) -> Result<()> {
        let given = [
            self.config.is_some().then_some("--config"),
            self.preset.is_some().then_some("--preset"),
            (!self.sets.is_empty()).then_some("--set"),
        ];
        match given.into_iter().flatten().chain(flags.iter().flatten().map(|f| f.flag)).next() {
            Some(flag) => Err(Error::Usage(format!(
                "{flag} cannot be combined with --resume: a run continues with the settings it began with (its config.toml)"
            ))),
            None => Ok(()),
        }
    }
}

/// Starts the worker threads; 0 means all cores.
pub fn start_threads(threads: usize) -> Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|e| Error::Usage(format!("cannot start {threads} worker threads: {e}; choose fewer with --threads")))
}

/// A seed on the command line, which a configuration file can hold too.
pub fn seed(text: &str) -> Result<u64, String> {
    let seed = text.parse().ok().filter(|seed| i64::try_from(*seed).is_ok());
    seed.ok_or_else(|| format!("a seed is a whole number from 0 to {}", i64::MAX))
}

/// Refuses to write over what is there: `out` must not exist, or be an empty folder.
///
/// # Errors
/// When it exists.
pub fn must_be_new(out: &Path) -> Result<()> {
    let empty = out.is_dir() && std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none());
    match std::fs::symlink_metadata(out) {
        Ok(_) if !empty => Err(Error::file(out, "exists already: name another with --out, or delete it")),
        _ => Ok(()),
    }
}

/// A flag for the configuration, if it was given.
pub fn flag(key: &'static str, flag: &'static str, value: Option<impl Into<toml::Value>>) -> Option<Flag> {
    value.map(|value| Flag { key, flag, value: value.into() })
}

/// A flag with a whole number.
pub fn number(key: &'static str, name: &'static str, value: Option<u64>) -> Option<Flag> {
    flag(key, name, value.map(|n| i64::try_from(n).unwrap_or(i64::MAX)))
}

/// A flag with a path.
pub fn path(key: &'static str, name: &'static str, value: Option<&PathBuf>) -> Option<Flag> {
    flag(key, name, value.map(|p| p.to_string_lossy().into_owned()))
}
