//! Where words go: results to standard output, everything else to standard error, around the progress bar.

use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, OnceLock};

use indicatif::MultiProgress;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::{Error, Result};

/// The bars of this process; lines are written above them.
pub static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);
static QUIET: AtomicBool = AtomicBool::new(false);
/// Why the first line of a result that was lost could not be written.
static LOST: OnceLock<std::io::Error> = OnceLock::new();

/// Sets up logging: warnings and errors; `-v` adds information, `-vv` details; `RUST_LOG` overrides.
pub fn start(quiet: bool, verbose: u8) {
    QUIET.store(quiet, Ordering::Relaxed);
    let level = match (quiet, verbose) {
        (true, _) => "error",
        (_, 0) => "warn",
        (_, 1) => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(format!("ladd_fast={level}")));
    let ansi = std::io::stderr().is_terminal();
    // A second call, as in tests, keeps the first logger.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(AboveBars)
        .with_target(false)
        .without_time()
        .with_ansi(ansi)
        .try_init();
}

/// Whether only results and errors are wanted.
pub fn quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Whether a bar can be drawn.
pub fn terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// A line of a result, on standard output. One that cannot be written is told by [`check`].
pub fn result(line: &str) {
    BARS.suspend(|| {
        let mut out = std::io::stdout().lock();
        written(writeln!(out, "{line}").and_then(|()| out.flush()));
    });
}

/// Keeps why standard output could not be written. A reader that went away, as `| head` does, is no error.
pub fn written(outcome: std::io::Result<()>) {
    if let Some(error) = outcome.err().filter(|error| error.kind() != ErrorKind::BrokenPipe) {
        let _ = LOST.set(error); // the first says it
    }
}

/// Whether all results were written, at the end of a command.
///
/// # Errors
/// When a line was lost.
pub fn check() -> Result<()> {
    match LOST.get() {
        None => Ok(()),
        Some(error) => Err(Error::Usage(format!(
            "standard output cannot be written, so that results are missing there ({error}): make room, or name another file"
        ))),
    }
}

/// A count with its noun: `1 picture`, `2 pictures`.
pub fn many(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// A line about what is going on, on standard error.
pub fn note(line: &str) {
    if !quiet() {
        BARS.suspend(|| {
            let _ = writeln!(std::io::stderr(), "{line}");
        });
    }
}

/// The one line of an error.
pub fn error(message: &str) {
    let line = message.split('\n').map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
    BARS.suspend(|| {
        let _ = writeln!(std::io::stderr(), "error: {line}");
    });
}

/// Writes log lines above the bars.
struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        BARS.suspend(|| std::io::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for AboveBars {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        AboveBars
    }
}
