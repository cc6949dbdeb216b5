//! The tool's own folder under `$XDG_CACHE_HOME`: base trees, image trees, downloads, and the work of running builds.
//!
//! Everything in it can be made again. Finished entries appear by rename and are complete; work in progress is locked
//! by the process that does it, so that the next run can tell what a killed one left behind.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use snug_process::interrupt;
use snug_sandbox;

use crate::atomic::Partial;
use crate::host::disk_space;
use crate::report::progress::human_bytes;

/// The folder and its rooms.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
    /// Held, shared, by every run that may use what is here: `clean` leaves downloads and programs alone meanwhile.
    in_use: Arc<File>,
}

/// A finished tree that no other run removes as long as this is held.
#[derive(Debug)]
pub struct Tree {
    path: PathBuf,
    /// None where the tree is a tar of the user's.
    _held: Option<File>,
}

impl Tree {
    /// A tar that is not the cache's.
    pub fn outside(path: &Path) -> Self {
        Tree { path: path.to_path_buf(), _held: None }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
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
        Self::at(caches.join("snug"))
    }

    fn at(root: PathBuf) -> Result<Self> {
        for room in [TREES, WORK, LOCKS].map(|room| root.join(room)) {
            fs::create_dir_all(&room).with_context(|| {
                format!("cannot make the cache folder {}\nhint: set XDG_CACHE_HOME", room.display())
            })?;
        }
        let in_use = open_lock(&root.join(LOCKS).join("in-use.lock"))?;
        if let Err(TryLockError::WouldBlock) = in_use.try_lock_shared() {
            eprintln!("another run cleans the cache; waiting");
        }
        in_use.lock_shared().context("cannot lock the cache")?;
        Ok(Cache { root, in_use: Arc::new(in_use) })
    }

    /// Is no other run using the cache? Where so, none can begin to until this one ends.
    pub fn take_alone(&self) -> bool {
        // flock(2): converting a lock gives the old one up first, and takes it again where that fails.
        self.in_use.try_lock().is_ok() || self.in_use.lock_shared().is_err()
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Finished root trees, one tar each.
    pub fn trees(&self) -> PathBuf {
        self.root.join(TREES)
    }

    /// The finished tree of `name` with all its inputs hashed to `fingerprint`.
    pub fn tree(&self, name: &str, fingerprint: &str) -> PathBuf {
        self.trees().join(format!("{name}-{}.tar", &fingerprint[..16.min(fingerprint.len())]))
    }

    /// The tree at `path` if it is there; others leave it alone as long as the answer is held.
    pub fn hold(&self, path: &Path) -> Result<Option<Tree>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot open {}", path.display())),
        };
        file.lock_shared().with_context(|| format!("cannot lock {}", path.display()))?;
        // Another run may have removed or replaced it before it was locked.
        if !is_at(&file, path) {
            return Ok(None);
        }
        Ok(Some(Tree { path: path.to_path_buf(), _held: Some(file) }))
    }

    /// Removes the trees of `name` but the one at `keep`: each is as large as the image it was made for. Those that
    /// another run holds stay until the next time.
    pub fn drop_older_trees(&self, name: &str, keep: &Path) -> Result<()> {
        for path in self.trees_of(name)? {
            if path != keep {
                remove_unless_held(&path)?;
            }
        }
        Ok(())
    }

    fn trees_of(&self, name: &str) -> Result<Vec<PathBuf>> {
        let mut trees = Vec::new();
        for entry in fs::read_dir(self.trees())? {
            let path = entry?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.rsplit_once('-'));
            if stem.is_some_and(|(owner, _)| owner == name) {
                trees.push(path);
            }
        }
        Ok(trees)
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
        self.root.join(WORK)
    }

    fn locks(&self) -> PathBuf {
        self.root.join(LOCKS)
    }

    /// Trees of failed steps that `--keep` left, one folder an image.
    pub fn kept(&self) -> PathBuf {
        self.root.join("kept")
    }

    /// Waits until no other run works on `subject`; `waiting` is called once if there is one.
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

    /// A new folder for a build in progress; it goes with the answer, or with the next run after a kill.
    pub fn work_folder(&self, purpose: &str) -> Result<WorkFolder> {
        // Between the folder and its lock, another run's sweep would take it for a killed one's.
        let _making = self.lock("work", || {})?;
        let folder = tempfile::Builder::new()
            .prefix(&format!("{purpose}."))
            .tempdir_in(self.work())
            .context("cannot make a work folder")?
            .keep();
        let registered = interrupt::remove_on_interrupt(&folder, remove_work);
        let lock = lock_file(&folder);
        let lock = File::create(&lock).with_context(|| format!("cannot make {}", lock.display()))?;
        lock.lock().context("cannot lock the work folder")?;
        Ok(WorkFolder { folder, registered, _lock: lock })
    }

    /// Is there a work folder of this name? Those of killed runs are gone after [`Self::sweep`].
    pub fn holds_work(&self, name: &str) -> bool {
        self.work().join(name).is_dir()
    }

    /// Removes what runs that were killed left: their work, and their trees in the making.
    pub fn sweep(&self) -> Result<()> {
        let _making = self.lock("work", || {})?;
        for entry in fs::read_dir(self.work())? {
            let path = entry?.path();
            // A lock whose folder an interrupt removed.
            if path.is_file() && !path.with_extension("").is_dir() && is_free(&path) {
                let _ = fs::remove_file(&path);
            }
            if path.is_dir() && is_free(&lock_file(&path)) {
                remove_work(&path)?;
            }
        }
        Partial::sweep(&self.trees(), "")
    }

    /// Every room that can be emptied, by its name, with its folder.
    pub fn rooms(&self) -> Result<Vec<(String, PathBuf)>> {
        let mut rooms = Vec::new();
        for entry in fs::read_dir(&self.root).context("cannot read the cache")? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() && ![WORK, LOCKS].contains(&name.as_str()) {
                rooms.push((name, entry.path()));
            }
        }
        rooms.sort();
        Ok(rooms)
    }

    /// What [`Self::sweep`] would remove.
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

    /// Adds to an error what a person needs to know where the disk of the cache is full: steps that run into it say it
    /// in words of their own, if at all.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let free = disk_space::free(&self.root);
        if !disk_space::is_used_up(&error) && free >= LITTLE_ROOM {
            return error;
        }
        error.context(format!(
            "the disk of the cache {} is full: {} are free, and a build lays out its tree there and stores it\n\
             hint: free some space (`cargo xtask clean` says what is there), or set XDG_CACHE_HOME to a folder with more",
            self.root.display(),
            human_bytes(free)
        ))
    }

    /// Leaves the folder for a person to look at, under the name of the image, until `clean` or the next one of the same
    /// image. Answers where it is.
    pub fn keep(&self, work: WorkFolder, name: &str) -> Result<PathBuf> {
        let place = self.kept().join(name);
        fs::create_dir_all(self.kept()).context("cannot make the folder of kept trees")?;
        snug_sandbox::remove_folder(&place)?;
        fs::rename(&work.folder, &place).with_context(|| format!("cannot keep {}", work.folder.display()))?;
        Ok(place)
    }
}

/// With less than this many bytes left, a disk is what made a build fail, whatever it says.
const LITTLE_ROOM: u64 = 8 << 20;

const TREES: &str = "trees";
const WORK: &str = "work";
const LOCKS: &str = "locks";

fn open_lock(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot make {}", path.display()))
}

/// Does `path` still name the open file?
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |about: fs::Metadata| (about.dev(), about.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => identity(open) == identity(named),
        _ => false,
    }
}

/// Removes a file that nobody has locked. Answers whether it did.
pub fn remove_unless_held(path: &Path) -> Result<bool> {
    let free = File::open(path).is_ok_and(|file| file.try_lock().is_ok());
    if free {
        fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(free)
}

/// Does nobody hold this lock? One that is not there is held by nobody.
fn is_free(lock: &Path) -> bool {
    File::open(lock).map_or(true, |file| file.try_lock().is_ok())
}

/// The lock stands beside the folder, which may belong to other ids.
fn lock_file(folder: &Path) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// Removes a work folder and the lock beside it.
fn remove_work(folder: &Path) -> Result<()> {
    snug_sandbox::remove_folder(folder)?;
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
}

impl WorkFolder {
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
    fn a_tree_goes_with_a_newer_one_but_not_while_it_is_held() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("snug")).unwrap();
        let [old, new, other] = ["a-b-1", "a-b-2", "a-3"].map(|name| cache.trees().join(format!("{name}.tar")));
        for path in [&old, &new, &other] {
            fs::write(path, "tree").unwrap();
        }
        let held = cache.hold(&old).unwrap().expect("it is there");
        cache.drop_older_trees("a-b", &new).unwrap();
        assert!(old.exists());
        drop(held);
        cache.drop_older_trees("a-b", &new).unwrap();
        assert!(!old.exists() && new.exists() && other.exists());
        assert!(cache.hold(&old).unwrap().is_none());
    }

    #[test]
    fn only_a_run_without_others_has_the_cache_alone() {
        let folder = tempfile::tempdir().unwrap();
        let ours = Cache::at(folder.path().join("snug")).unwrap();
        let theirs = Cache::at(folder.path().join("snug")).unwrap();
        assert!(!ours.take_alone());
        drop(theirs);
        assert!(ours.take_alone());
    }

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
        assert_eq!(cache.abandoned().unwrap().len(), 2);
        cache.sweep().unwrap();
        assert!(running.path().exists() && !killed.exists() && kept.join("marker").exists());
        assert_eq!(fs::read_dir(cache.trees()).unwrap().count(), 0);
        drop(running);
        assert_eq!(fs::read_dir(cache.work()).unwrap().count(), 0);
    }
}
