//! Where words go: results to standard output, everything else to standard error, around the progress bar.

use std::io::{IsTerminal, Write};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::MultiProgress;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The bars of this process; lines are written above them.
pub static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);
static QUIET: AtomicBool = AtomicBool::new(false);

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

/// A line of a result, on standard output. A reader that went away is no error.
pub fn result(line: &str) {
    BARS.suspend(|| {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    });
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
