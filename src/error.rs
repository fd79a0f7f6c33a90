//! The one error type that reaches a user. Every variant carries the offending value or path, and says what to do.

use std::path::{Path, PathBuf};

/// Result of everything that can fail because of the outside world.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in words for the person who has to mend it. The binary prints it on one line and exits with code 2.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted: `read`, `write`, `create`, ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A file was read but its content is not what it must be (truncated, wrong shape, wrong checksum, bad JSON).
    #[error("{}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and how to mend it.
        cause: String,
    },
    /// The configuration is wrong: an unknown key, a value out of range, two settings that exclude each other.
    #[error("configuration: {0}")]
    Config(String),
    /// The device failed or has not enough memory.
    #[error(transparent)]
    Device(#[from] crate::device::DeviceError),
    /// Anything else a user can mend.
    #[error("{0}")]
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
