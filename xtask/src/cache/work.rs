//! Folders of work in progress, and what killed runs left of theirs.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use snug_process::interrupt;

use super::Cache;
use super::locks::{is_free, lock_file, open_lock};
use crate::atomic::Partial;

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
        let lock = lock_file(&folder);
        let lock = File::create(&lock).with_context(|| format!("cannot make {}", lock.display()))?;
        lock.lock().context("cannot lock the work folder")?;
        Ok(WorkFolder { folder, registered, _lock: lock })
    }

    /// Whether there is a work folder of this name. Those of killed runs are gone after [`Self::sweep`].
    pub fn holds_work(&self, name: &str) -> bool {
        self.work().join(name).is_dir()
    }

    /// Removes what killed runs left: their work folders, and trees that they had begun.
    pub fn sweep(&self) -> Result<()> {
        let mut abandoned = Vec::new();
        let making = self.lock("work", || {})?;
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
        // A large folder takes seconds to remove, for which no other run need wait: it sees that somebody has the folder.
        drop(making);
        for (path, _held) in abandoned {
            remove_work(&path)?;
        }
        Partial::sweep(&self.trees(), "")
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
        paths.extend(Partial::abandoned(&self.trees(), "")?);
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
