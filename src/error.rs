//! The one error type that reaches a user. Every variant carries the offending value or path, and says what to do.

use std::fmt::{self, Display, Formatter, Write};
use std::path::{Path, PathBuf};

/// Result of everything that can fail because of the outside world.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in words for the person who has to mend it. The binary prints it on one line and exits with code 2.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}: {source}", OneLine(path.display()))]
    Io {
        /// What was attempted: `read`, `write`, `create`, ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A file was read but its content is not what it must be (truncated, wrong shape, wrong checksum, bad JSON).
    #[error("{}: {}", OneLine(path.display()), OneLine(cause))]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and how to mend it.
        cause: String,
    },
    /// The configuration is wrong: an unknown key, a value out of range, two settings that exclude each other.
    #[error("configuration: {}", OneLine(.0))]
    Config(String),
    /// The device failed or has not enough memory.
    #[error(transparent)]
    Device(#[from] crate::device::DeviceError),
    /// Anything else a user can mend.
    #[error("{}", OneLine(.0))]
    Usage(String),
}

impl Error {
    /// Wraps an I/O error with the path it happened at.
    pub fn io(action: &'static str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { action, path: path.as_ref().to_owned(), source }
    }

    /// A file whose content is wrong.
    pub fn file(path: impl AsRef<Path>, cause: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_owned(), cause: cause.into() }
    }
}

/// Shows control characters as Rust escapes them: names and texts from damaged files may hold line breaks, or what a terminal obeys.
struct OneLine<T>(T);

impl<T: Display> Display for OneLine<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

struct Escaping<'a, 'f>(&'a mut Formatter<'f>);

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| if c.is_control() { write!(self.0, "{}", c.escape_default()) } else { self.0.write_char(c) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_file_holds_an_error_is_one_line() {
        let error = Error::file("a\nb/manifest.json", "unknown field `tok\n\u{1b}[31ms`, expected `größe`");
        assert_eq!(error.to_string(), r"a\nb/manifest.json: unknown field `tok\n\u{1b}[31ms`, expected `größe`");
        assert_eq!(Error::Usage("a\r\nb".into()).to_string(), r"a\r\nb");
    }
}
