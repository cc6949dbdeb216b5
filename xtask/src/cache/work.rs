//! Folders of work in progress, and what killed runs left of theirs.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use snug_process::interrupt;

use super::Cache;
use super::locks::{is_free, lock_file};
use crate::atomic::{Partial, Scratch, open_lock};
use crate::report::{progress, shell};

impl Cache {
    /// Makes a folder for work in progress. It is removed with the result, or by the next run where this one is killed.
    pub fn work_folder(&self, purpose: &str) -> Result<WorkFolder> {
        // A sweep of another run would remove the folder before it is locked.
        let _making = self.lock("work", || {})?;
        let folder = tempfile::Builder::new()
            .prefix(&format!("{purpose}."))
            // In it are programs of strangers, some of them setuid, also when `--keep` leaves it.
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(self.work())
            .context("cannot make a work folder")?
            .keep();
        let registered = interrupt::remove_on_interrupt(&folder, remove_work);
        let lock = open_lock(&lock_file(&folder))?;
        lock.lock().context("cannot lock the work folder")?;
        Ok(WorkFolder { folder, registered, _lock: lock })
    }

    /// Whether there is a work folder of this name. Those of killed runs are gone after [`Self::sweep`].
    pub fn holds_work(&self, name: &str) -> bool {
        self.work().join(name).is_dir()
    }

    /// Removes what killed runs left: their work folders, and trees that they had begun. What cannot be removed is said once, and
    /// is in nobody's way. Returns whether all is gone.
    pub fn sweep(&self) -> Result<bool> {
        Scratch::sweep();
        let abandoned = self.take_over()?;
        // A large folder takes seconds to remove, for which no other run need wait: it sees that somebody has the folder.
        let swept = abandoned.iter().map(|(path, _held)| remove_work(path));
        let unfinished = [self.trees(), self.layers()].map(|folder| Partial::sweep(&folder, ""));
        let mut failed = swept.chain(unfinished).filter_map(Result::err);
        let Some(first) = failed.next() else { return Ok(true) };
        let more = match failed.count() {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            progress::warn(&format!(
                "warning: what a killed run left cannot be removed: {first:#}{more}\n\
                 hint: it only takes space; remove it as root: rm -rf {}",
                shell::path(&self.work())
            ));
        });
        Ok(false)
    }

    /// Locks the work folders that nobody has, and returns them.
    fn take_over(&self) -> Result<Vec<(PathBuf, File)>> {
        let mut abandoned = Vec::new();
        let _making = self.lock("work", || {})?;
        for entry in fs::read_dir(self.work())? {
            let path = entry?.path();
            // A lock whose folder was removed when a signal came.
            if path.is_file() && !path.with_extension("").is_dir() && is_free(&path) {
                let _ = fs::remove_file(&path);
            }
            if path.is_dir() {
                let lock = open_lock(&lock_file(&path))?;
                if lock.try_lock().is_ok() {
                    abandoned.push((path, lock));
                }
            }
        }
        Ok(abandoned)
    }

    /// Returns what [`Self::sweep`] would remove.
    pub fn abandoned(&self) -> Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(self.work())? {
            let path = entry?.path();
            if path.is_dir() && is_free(&lock_file(&path)) {
                paths.push(path);
            }
        }
        for folder in [self.trees(), self.layers()] {
            paths.extend(Partial::abandoned(&folder, "")?);
        }
        Ok(paths)
    }

    /// Keeps a work folder for a person to look at, under the image's name, until `clean`, or until another is kept for
    /// the same image. Returns its place.
    pub fn keep(&self, work: WorkFolder, name: &str) -> Result<PathBuf> {
        let place = self.kept().join(name);
        fs::create_dir_all(self.kept()).context("cannot make the folder of kept trees")?;
        snug_sandbox::remove_folder(&place)?;
        fs::rename(&work.folder, &place).with_context(|| format!("cannot keep {}", work.folder.display()))?;
        Ok(place)
    }
}

/// Removes a work folder and the lock beside it.
fn remove_work(folder: &Path) -> Result<()> {
    snug_sandbox::remove_folder(folder)?;
    match fs::remove_file(lock_file(folder)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Work folders that are being removed while other work goes on.
#[derive(Debug, Default)]
pub(super) struct Removals(Mutex<Vec<JoinHandle<()>>>);

impl Removals {
    fn finish(&self) {
        let under_way = std::mem::take(&mut *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        for removal in under_way {
            // One that failed is for the next run.
            let _ = removal.join();
        }
    }
}

impl Drop for Removals {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Cache {
    /// Removes a work folder while other work goes on: thousands of folders take seconds. [`Self::finish_removals`] waits for it,
    /// and so does the drop of the last clone of this value.
    pub fn remove_meanwhile(&self, work: WorkFolder) {
        // Where no thread can be had, the folder is removed here: the closure is dropped with it.
        if let Ok(removal) = thread::Builder::new().name("removal".to_owned()).spawn(move || drop(work)) {
            self.removals.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(removal);
        }
    }

    /// Waits until all work folders that are no longer needed are removed.
    pub fn finish_removals(&self) {
        self.removals.finish();
    }
}

/// A folder for work in progress, removed when this is dropped.
#[derive(Debug)]
pub struct WorkFolder {
    folder: PathBuf,
    registered: interrupt::Registered,
    _lock: File,
}

impl WorkFolder {
    /// Returns the folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next run.
        let _ = remove_work(&self.folder);
        self.registered.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_works_on_is_swept_and_what_is_kept_stays() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("snug")).unwrap();
        let running = cache.work_folder("running").unwrap();
        let failed = cache.work_folder("failed").unwrap();
        fs::write(failed.path().join("marker"), "").unwrap();
        let killed = cache.work().join("killed.x1");
        fs::create_dir(&killed).unwrap();
        fs::write(lock_file(&killed), "").unwrap();
        fs::write(cache.trees().join(".a-1.tar.77.partial"), "half").unwrap();
        let kept = cache.keep(failed, "failed").unwrap();
        assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o7777, 0o700);
        assert_eq!(cache.abandoned().unwrap().len(), 2);
        cache.sweep().unwrap();
        assert!(running.path().exists() && !killed.exists() && kept.join("marker").exists());
        assert_eq!(fs::read_dir(cache.trees()).unwrap().count(), 0);
        drop(running);
        assert_eq!(fs::read_dir(cache.work()).unwrap().count(), 0);
    }
}
