//! Locks by which the runs that share a cache leave each other's files alone (flock(2)).

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Cache;
use crate::atomic::open_lock;

impl Cache {
    /// Returns the file of the lock of `subject`.
    pub(super) fn lock_of(&self, subject: &str) -> PathBuf {
        self.locks().join(format!("{subject}.lock"))
    }

    /// Locks `subject` until the result is dropped, waiting while another run has it; `waiting` is called once before a wait.
    pub fn lock(&self, subject: &str, waiting: impl FnOnce()) -> Result<File> {
        let path = self.lock_of(subject);
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

/// Removes a file, or a folder with all that is in it, but no file that somebody has locked. Returns whether all is gone.
pub fn remove_unless_held(path: &Path) -> Result<bool> {
    let cannot = || format!("cannot remove {}", path.display());
    let about = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        about => about.with_context(cannot)?,
    };
    if about.is_dir() {
        let mut all_gone = true;
        for entry in fs::read_dir(path).with_context(cannot)? {
            all_gone &= remove_unless_held(&entry.with_context(cannot)?.path())?;
        }
        return match fs::remove_dir(path) {
            // Another run has begun something in it.
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(false),
            result => result.with_context(cannot).map(|()| all_gone),
        };
    }
    // Only files are locked, and opening a pipe waits for its other end.
    let held = about.is_file() && File::open(path).is_ok_and(|file| file.try_lock().is_err());
    if !held {
        fs::remove_file(path).with_context(cannot)?;
    }
    Ok(!held)
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
