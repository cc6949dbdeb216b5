//! The tool's own folder under `$XDG_CACHE_HOME`: base trees, image trees, downloads, and the work of running builds.
//!
//! Everything in it can be made again. Finished entries appear by rename and are complete; work in progress is locked
//! by the process that does it, so that the next run can tell what a killed one left behind.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::interrupt;
use crate::namespace;

/// The folder and its rooms.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$XDG_CACHE_HOME/snug`, or `~/.cache/snug` (XDG Base Directory Specification); made if it is not there.
    pub fn open() -> Result<Self> {
        let home = || std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let caches = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .or_else(|| home().map(|home| home.join(".cache")))
            .context("neither XDG_CACHE_HOME nor HOME is set\nhint: set HOME")?;
        let cache = Cache { root: caches.join("snug") };
        for room in [cache.trees(), cache.work(), cache.locks()] {
            fs::create_dir_all(&room).with_context(|| format!("cannot make the cache folder {}", room.display()))?;
        }
        Ok(cache)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Finished root trees, one tar each.
    pub fn trees(&self) -> PathBuf {
        self.root.join("trees")
    }

    /// The finished tree of `name` with all its inputs hashed to `fingerprint`.
    pub fn tree(&self, name: &str, fingerprint: &str) -> PathBuf {
        self.trees().join(format!("{name}-{}.tar", &fingerprint[..16.min(fingerprint.len())]))
    }

    /// Removes the trees of `name` but the one at `keep`: each is as large as the image it was made for.
    pub fn drop_older_trees(&self, name: &str, keep: &Path) -> Result<()> {
        for entry in fs::read_dir(self.trees())? {
            let path = entry?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.rsplit_once('-'));
            if path != keep && stem.is_some_and(|(owner, _)| owner == name) {
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// What package managers downloaded, one folder each; made if it is not there.
    pub fn downloads(&self, manager: &str) -> Result<PathBuf> {
        let folder = self.root.join("downloads").join(manager);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }

    /// Kernels to boot images with.
    pub fn kernels(&self) -> PathBuf {
        self.root.join("kernels")
    }

    /// Programs of other suites, unpacked and never installed.
    pub fn tools(&self) -> PathBuf {
        self.root.join("tools")
    }

    fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }

    /// Waits until no other run works on `subject`; `waiting` is called once if there is one.
    pub fn lock(&self, subject: &str, waiting: impl FnOnce()) -> Result<File> {
        let path = self.locks().join(format!("{subject}.lock"));
        let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
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

    /// A new folder for a build in progress; it goes with the answer, or with the next run after a kill.
    pub fn work_folder(&self, purpose: &str) -> Result<WorkFolder> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("{purpose}."))
            .tempdir_in(self.work())
            .context("cannot make a work folder")?
            .keep();
        let lock = lock_file(&folder);
        let lock = File::create(&lock).with_context(|| format!("cannot make {}", lock.display()))?;
        lock.lock().context("cannot lock the work folder")?;
        Ok(WorkFolder {
            registered: interrupt::remove_on_interrupt(&folder, remove_work),
            folder,
            _lock: lock,
            keep: false,
        })
    }

    /// Is there a work folder of this name? Those of killed runs are gone after [`Self::sweep`].
    pub fn holds_work(&self, name: &str) -> bool {
        self.work().join(name).is_dir()
    }

    /// Removes the work of runs that were killed.
    pub fn sweep(&self) -> Result<()> {
        for entry in fs::read_dir(self.work())? {
            let path = entry?.path();
            let free = |lock: &Path| File::open(lock).map_or(true, |file| file.try_lock().is_ok());
            let locked = !free(&lock_file(&path));
            // A lock whose folder an interrupt removed.
            if path.is_file() && !path.with_extension("").is_dir() && free(&path) {
                let _ = fs::remove_file(&path);
            }
            if path.is_dir() && !locked {
                remove_work(&path)?;
            }
        }
        Ok(())
    }
}

/// The lock stands beside the folder, which may belong to other ids.
fn lock_file(folder: &Path) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// Removes a work folder and the lock beside it.
fn remove_work(folder: &Path) -> Result<()> {
    namespace::remove_folder(folder)?;
    match fs::remove_file(lock_file(folder)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// A folder that goes when it is dropped.
#[derive(Debug)]
pub struct WorkFolder {
    folder: PathBuf,
    registered: interrupt::Registered,
    _lock: File,
    keep: bool,
}

impl WorkFolder {
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Leaves the folder where it is, for a person to look at, until the next run.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        if !self.keep {
            // What cannot be removed now is removed by the next run.
            let _ = remove_work(&self.folder);
        }
        self.registered.forget();
    }
}
