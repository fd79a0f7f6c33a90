//! Replacing a file as a whole: a reader sees the old content or the new, whenever the process is killed.
//!
//! The content goes to a temporary file in the same folder, is flushed to the disk, and then takes the target's name.
//! Called by everything in the crate that writes a checkpoint, a shard or a manifest.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// Ending of the temporary files; whoever owns a folder may delete such files that a killed process left in it.
pub(crate) const TEMPORARY: &str = "tmp";

const BUFFER: usize = 1 << 20;

/// Writes `path` through `write`, atomically: on any error the old file, if there was one, is still there, intact.
///
/// # Errors
/// When the folder does not exist or cannot be written, the disk is full, or `write` itself fails.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let temporary = temporary_for(path)?;
    let outcome = fill(&temporary.0, write).and_then(|()| std::fs::rename(&temporary.0, path));
    outcome.map_err(|source| explain(path, source))?;
    sync_folder(path);
    Ok(())
}

/// Makes the folder `target` through `write`, which fills an empty folder beside it that then takes its place: on any error the
/// old one, if there was one, is still there, and nothing else is left.
pub(crate) fn replace_folder(target: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temporary = temporary_for(target)?;
    std::fs::create_dir_all(&temporary.0).map_err(|source| explain(target, source))?;
    write(&temporary.0)?;
    let old = temporary_for(target)?;
    match std::fs::rename(target, &old.0) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(explain(target, source)),
        _ => {}
    }
    std::fs::rename(&temporary.0, target).map_err(|source| {
        let _ = std::fs::rename(&old.0, target);
        explain(target, source)
    })?;
    sync_folder(target);
    Ok(())
}

/// Deletes its file or folder when it goes out of scope; after the rename there is nothing left to delete.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Nothing useful can be done about a temporary file that cannot be deleted.
        let _ = if self.0.is_dir() { std::fs::remove_dir_all(&self.0) } else { std::fs::remove_file(&self.0) };
    }
}

fn temporary_for(path: &Path) -> Result<Temporary> {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        return Err(Error::file(path, "is not the name of a file: name the file to write"));
    };
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let unique = format!(".{}.{}-{serial}.{TEMPORARY}", name.to_string_lossy(), std::process::id());
    Ok(Temporary(path.with_file_name(unique)))
}

fn fill(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(BUFFER, File::create(path)?);
    write(&mut out)?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

fn explain(path: &Path, source: io::Error) -> Error {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::file(
            path,
            format!("cannot be written, the disk is full ({source}): free some space and try again; what was there before is untouched"),
        ),
        io::ErrorKind::NotFound => {
            Error::file(path, format!("cannot be written: the folder {} does not exist, create it first", folder.display()))
        }
        _ => Error::io("write", path, source),
    }
}

/// Makes the rename itself durable. Not every file system can do this, and none needs it for atomicity.
fn sync_folder(path: &Path) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only_file(folder: &Path) -> Vec<String> {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_litter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write_atomically(&path, |out| out.write_all(b"old")).unwrap();
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let error = write_atomically(&path, |out| out.write_all(b"new").and(Err(full()))).unwrap_err().to_string();
        assert!(error.contains("a.bin") && error.contains("disk is full") && error.contains("untouched"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(only_file(folder.path()), ["a.bin"]);
    }

    #[test]
    fn a_panic_while_writing_leaves_the_old_file_and_no_litter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write_atomically(&path, |out| out.write_all(b"old")).unwrap();
        let panicked = std::panic::catch_unwind(|| write_atomically(&path, |_| panic!("killed")));
        assert!(panicked.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(only_file(folder.path()), ["a.bin"]);
    }

    #[test]
    fn a_folder_is_replaced_as_a_whole_or_not_at_all() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("transformer");
        for content in ["old", "new"] {
            replace_folder(&target, |folder| write_atomically(&folder.join(content), |out| out.write_all(b"x"))).unwrap();
            assert_eq!((only_file(&target), only_file(parent.path())), (vec![content.to_owned()], vec!["transformer".to_owned()]));
        }
        let fail = |folder: &Path| {
            std::fs::write(folder.join("half"), b"x").unwrap();
            Err(Error::Usage("no more room".into()))
        };
        assert!(replace_folder(&target, fail).unwrap_err().to_string().contains("no more room"));
        assert_eq!((only_file(&target), only_file(parent.path())), (vec!["new".to_owned()], vec!["transformer".to_owned()]));
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none").join("a.bin");
        let error = write_atomically(&path, |out| out.write_all(b"new")).unwrap_err().to_string();
        assert!(error.contains("none does not exist"), "{error}");
        assert!(write_atomically(Path::new("/"), |_| Ok(())).is_err());
    }
}
