//! One writer at a time: a file in a folder, locked as long as a process writes there.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use crate::{Error, Result};

/// The file's usual name.
pub(crate) const LOCK: &str = ".lock";

/// How long a process waits between two questions for the lock.
const PAUSE: Duration = Duration::from_millis(50);

/// Takes the lock `name` of a folder, asking up to `times` times. It is released when the file is dropped, or by the system when
/// the process dies.
///
/// # Errors
/// When another process has it, or the folder cannot be written.
pub(crate) fn lock(folder: &Path, name: &str, times: usize) -> Result<File> {
    let path = folder.join(name);
    let file = File::create(&path).map_err(|source| Error::io("create", &path, source))?;
    for left in (0..times).rev() {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if left > 0 => std::thread::sleep(PAUSE),
            Err(TryLockError::WouldBlock) => {
                return Err(Error::file(folder, "is being written by another process: wait for it, or choose another folder"));
            }
            Err(TryLockError::Error(error)) => {
                tracing::warn!("{} cannot be locked ({error}): do not write to it twice at once", folder.display());
                break;
            }
        }
    }
    Ok(file)
}
