//! Locks by which the runs that share a cache leave each other's files alone (flock(2)).

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Cache;

impl Cache {
    /// Locks `subject` until the result is dropped, waiting while another run has it; `waiting` is called once before a wait.
    pub fn lock(&self, subject: &str, waiting: impl FnOnce()) -> Result<File> {
        let path = self.locks().join(format!("{subject}.lock"));
        let file = open_lock(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting();
                file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        Ok(file)
    }
}

pub(super) fn open_lock(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot make {}", path.display()))
}

/// Whether `path` still names the open file.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    let identity = |about: fs::Metadata| (about.dev(), about.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => identity(open) == identity(named),
        _ => false,
    }
}

/// Removes a file unless somebody has locked it. Returns whether it was removed.
pub fn remove_unless_held(path: &Path) -> Result<bool> {
    let free = File::open(path).is_ok_and(|file| file.try_lock().is_ok());
    if free {
        fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(free)
}

/// Whether nobody holds this lock. A lock that is not there is free.
pub(super) fn is_free(lock: &Path) -> bool {
    File::open(lock).map_or(true, |file| file.try_lock().is_ok())
}

/// Returns the path of a folder's lock. It stands beside the folder, which may belong to other ids.
pub(super) fn lock_file(folder: &Path) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}
