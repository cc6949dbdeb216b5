//! The tool's folder under `$XDG_CACHE_HOME`: base trees, image trees, downloads, and the work of running builds.
//!
//! Everything in it can be made again. Finished entries appear by rename and are complete. Work in progress is locked by the
//! process that does it, so that the next run can tell what a killed one left behind.

pub mod layers;
mod locks;
mod private;
mod store;
mod work;

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use snug_rootfs::regular_file;
use snug_rootfs::stamp::Stamp;

use crate::atomic::{is_at, open_lock};
use crate::host::disk_space;
use crate::report::progress::{self, human_bytes};

pub use locks::remove_unless_held;
pub use store::{Algorithm, Store};
use work::Removals;
pub use work::WorkFolder;

/// The cache folder, in use by this run.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
    /// Locked, shared, by every run: `clean` removes no downloads and programs while another run has it.
    in_use: Arc<File>,
    removals: Arc<Removals>,
}

/// A finished tree, which no other run removes while this is held.
#[derive(Debug)]
pub struct Tree {
    path: PathBuf,
    file: File,
    /// Of a file of the user's whose digest is known. In the cache only this tool writes, and it replaces trees whole.
    stamp: Option<Stamp>,
}

impl Tree {
    /// Opens a tar outside the cache as a tree. `stamp` is that of the file whose digest is known.
    pub fn outside(path: &Path, stamp: Stamp) -> Result<Self> {
        let file = regular_file::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let tree = Tree { path: path.to_path_buf(), file, stamp: Some(stamp) };
        tree.check()?;
        Ok(tree)
    }

    /// Whether the tool has written the tar.
    pub fn is_own(&self) -> bool {
        self.stamp.is_none()
    }

    /// Returns the path of the tree's tar, for messages and for whoever compares what he opens with the [stamp](Self::stamp).
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the tar as it was opened once. All that are returned have one position.
    pub fn file(&self) -> Result<File> {
        self.file.try_clone().with_context(|| format!("cannot open {} again", self.path.display()))
    }

    /// Returns the stamp that the tar must have; `None` for one of the cache.
    pub fn stamp(&self) -> Option<Stamp> {
        self.stamp
    }

    /// Fails where the tar was changed since its digest was checked: what was read of it so far is not what was checked.
    pub fn check(&self) -> Result<()> {
        let Some(stamp) = self.stamp else { return Ok(()) };
        ensure!(
            Stamp::of(&self.file)? == stamp,
            "{} was changed after it was checked\nhint: build again, once nothing writes to it",
            self.path.display()
        );
        Ok(())
    }
}

impl Cache {
    /// Opens `$XDG_CACHE_HOME/snug`, or `~/.cache/snug` (XDG Base Directory Specification), and makes it where it is missing.
    /// Waits while `clean` has the cache to itself.
    pub fn open() -> Result<Self> {
        let home = || std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let caches = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .or_else(|| home().map(|home| home.join(".cache")))
            .context("neither XDG_CACHE_HOME nor HOME is set\nhint: set HOME")?;
        Self::at(caches.join("snug"))
    }

    pub(crate) fn at(root: PathBuf) -> Result<Self> {
        private::make(&root)?;
        for folder in [TREES, WORK, LOCKS].map(|name| root.join(name)) {
            private::folder(&folder)?;
        }
        let in_use = open_lock(&root.join(LOCKS).join("in-use.lock"))?;
        if let Err(TryLockError::WouldBlock) = in_use.try_lock_shared() {
            progress::note("another run cleans the cache: waiting for it");
        }
        in_use.lock_shared().context("cannot lock the cache")?;
        Ok(Cache { root, in_use: Arc::new(in_use), removals: Arc::default() })
    }

    /// Takes the cache for this run alone, until it ends. Returns `false` where another run uses it.
    pub fn take_alone(&self) -> bool {
        // flock(2): converting a lock gives the old one up first, and takes it again where that fails.
        self.in_use.try_lock().is_ok() || self.in_use.lock_shared().is_err()
    }

    /// Fails where programs in the cache cannot be run: trees are made there, and their own programs run in them.
    pub fn require_exec(&self) -> Result<()> {
        if disk_space::forbids_programs(&self.root) {
            bail!(
                "no program can be run in the cache {}: its filesystem is mounted noexec\n\
                 hint: set XDG_CACHE_HOME to a folder on another filesystem, or allow it: \
                 mount -o remount,exec {}",
                self.root.display(),
                disk_space::mount_point(&self.root).display()
            );
        }
        Ok(())
    }

    /// Returns the cache's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the folder of finished root trees, one tar each.
    pub fn trees(&self) -> PathBuf {
        self.root.join(TREES)
    }

    /// Returns where the finished tree of `name` stands whose inputs hash to `fingerprint`.
    pub fn tree(&self, name: &str, fingerprint: &str) -> PathBuf {
        self.trees().join(format!("{name}-{}.tar", &fingerprint[..16.min(fingerprint.len())]))
    }

    /// Returns the tree at `path`, if there is one. No other run removes it while the result is held. What is no file is removed.
    pub fn hold(&self, path: &Path) -> Result<Option<Tree>> {
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = match File::options().read(true).custom_flags(flags.bits()).open(path) {
            Ok(file) if file.metadata()?.is_file() => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() != Some(Errno::ELOOP as i32) => {
                return Err(error).with_context(|| format!("cannot open {}", path.display()));
            }
            _ => {
                snug_sandbox::remove_folder(path)?;
                return Ok(None);
            }
        };
        file.lock_shared().with_context(|| format!("cannot lock {}", path.display()))?;
        // Another run may have removed or replaced it before it was locked.
        if !is_at(&file, path).unwrap_or(false) {
            return Ok(None);
        }
        Ok(Some(Tree { path: path.to_path_buf(), file, stamp: None }))
    }

    /// Removes the trees of `name` except the one at `keep`: each is as large as the image it was made for. Trees that another
    /// run holds are left for the next call.
    pub fn drop_older_trees(&self, name: &str, keep: &Path) -> Result<()> {
        for path in self.trees_of(name)? {
            if path != keep {
                remove_unless_held(&path)?;
            }
        }
        Ok(())
    }

    /// Removes all trees but those that another run holds or is about to. Returns whether all are gone.
    pub fn drop_trees(&self) -> Result<bool> {
        let mut all_gone = true;
        for entry in fs::read_dir(self.trees())? {
            let path = entry?.path();
            // Who makes a tree has this lock until he holds the finished one: between the two, only the lock tells.
            let lock = owner(&path).map(|name| open_lock(&self.lock_of(name))).transpose()?;
            let is_free = lock.as_ref().is_none_or(|lock| lock.try_lock().is_ok());
            all_gone &= is_free && remove_unless_held(&path)?;
        }
        Ok(all_gone)
    }

    fn trees_of(&self, name: &str) -> Result<Vec<PathBuf>> {
        let mut trees = Vec::new();
        for entry in fs::read_dir(self.trees())? {
            let path = entry?.path();
            if owner(&path).is_some_and(|owner| owner == name) {
                trees.push(path);
            }
        }
        Ok(trees)
    }

    /// Returns the folder of one kind of downloads, and makes it where it is missing.
    pub fn downloads(&self, kind: &str) -> Result<PathBuf> {
        let folder = self.root.join("downloads").join(kind);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }

    /// Returns the folder of kernels to boot images with.
    pub fn kernels(&self) -> PathBuf {
        self.root.join("kernels")
    }

    /// Returns the folder of programs of other suites, which are unpacked and never installed.
    pub fn tools(&self) -> PathBuf {
        self.root.join("tools")
    }

    /// Returns the folder of work in progress.
    fn work(&self) -> PathBuf {
        self.root.join(WORK)
    }

    /// Returns the folder of lock files.
    fn locks(&self) -> PathBuf {
        self.root.join(LOCKS)
    }

    /// Returns the folder of trees of failed steps that `--keep` left, one folder an image.
    pub fn kept(&self) -> PathBuf {
        self.root.join("kept")
    }

    /// Returns the caches that can be emptied, by name, each with its folder: `trees`, `downloads`, `kernels` and so on.
    pub fn categories(&self) -> Result<Vec<(String, PathBuf)>> {
        let mut categories = Vec::new();
        for entry in fs::read_dir(&self.root).context("cannot read the cache")? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() && ![WORK, LOCKS].contains(&name.as_str()) {
                categories.push((name, entry.path()));
            }
        }
        categories.sort();
        Ok(categories)
    }

    /// Adds to an error that the disk of the cache is full, where it is: steps that fail for it may not say so.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let free = disk_space::free(&self.root);
        if !disk_space::is_used_up(&error) && free >= LITTLE_SPACE {
            return error;
        }
        error.context(format!(
            "the disk of the cache {} is full: {} are free, and a build unpacks its tree there and stores it\n\
             hint: free some space (`cargo xtask clean` lists what is there), or set XDG_CACHE_HOME to a folder with more",
            self.root.display(),
            human_bytes(free)
        ))
    }
}

/// Returns the name that a tree is of: `NAME-FINGERPRINT.tar`.
fn owner(tree: &Path) -> Option<&str> {
    let (owner, _) = tree.file_stem()?.to_str()?.rsplit_once('-')?;
    (!owner.starts_with('.')).then_some(owner)
}

/// With fewer bytes free than this, the full disk is taken for the cause of a failure, whatever the error says.
const LITTLE_SPACE: u64 = 8 << 20;

const TREES: &str = "trees";
const WORK: &str = "work";
const LOCKS: &str = "locks";

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
        // What is no file is none.
        let odd = cache.trees().join("odd-1.tar");
        let makes: [fn(&Path); 3] = [
            |path: &Path| fs::create_dir_all(path.join("full")).unwrap(),
            |path: &Path| std::os::unix::fs::symlink("/dev/zero", path).unwrap(),
            |path: &Path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        ];
        for make in makes {
            make(&odd);
            assert!(cache.hold(&odd).unwrap().is_none() && odd.symlink_metadata().is_err());
        }
        drop(held);
        cache.drop_older_trees("a-b", &new).unwrap();
        assert!(!old.exists() && new.exists() && other.exists());
        assert!(cache.hold(&old).unwrap().is_none());
        // What is being made is nobody else's to remove.
        let making = cache.lock("a-b", || {}).unwrap();
        assert!(!cache.drop_trees().unwrap() && new.exists() && !other.exists());
        drop(making);
        assert!(cache.drop_trees().unwrap() && !new.exists());
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
}
