//! Temporary folders that neither a signal nor `kill -9` leaves behind.

use std::env;
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Once;

use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use snug_process::interrupt;

use super::is_at;

/// How the names of all of them begin; the rest is random.
const PREFIX: &str = "snug-scratch-";
/// What is in them is for nobody else, whatever the umask.
const MODE: u32 = 0o700;
/// Folders that are made before something else is wrong: a sweep of another run may take each for abandoned before it is locked.
const TRIES: usize = 100;

/// A temporary folder of this user alone, removed when this is dropped or a signal ends the tool, or by the next run where this
/// one is killed.
#[derive(Debug)]
pub struct Scratch {
    folder: tempfile::TempDir,
    _registered: interrupt::Registered,
    /// Held as long as the folder is used; `None` where its filesystem has no locks, and no run sweeps.
    _lock: Option<File>,
}

impl Scratch {
    /// Makes a folder in `TMPDIR`, or in /tmp. The first one of a run [sweeps](Self::sweep).
    pub fn new() -> io::Result<Self> {
        static SWEPT: Once = Once::new();
        SWEPT.call_once(Self::sweep);
        for _ in 0..TRIES {
            let folder = tempfile::Builder::new().prefix(PREFIX).permissions(Permissions::from_mode(MODE)).tempdir()?;
            let lock = File::open(folder.path())?;
            let lock = match lock.try_lock() {
                Ok(()) if is_at(&lock, folder.path())? => Some(lock),
                Ok(()) | Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(_)) => None,
            };
            let registered = interrupt::remove_on_interrupt(folder.path(), |folder| Ok(fs::remove_dir_all(folder)?));
            return Ok(Scratch { folder, _registered: registered, _lock: lock });
        }
        Err(io::Error::other("every temporary folder is removed at once"))
    }

    /// Returns the folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Removes the folders of killed runs of this user. What cannot be removed stays: others may have anything in /tmp.
    pub fn sweep() {
        for entry in fs::read_dir(env::temp_dir()).into_iter().flatten().flatten() {
            if !entry.file_name().as_bytes().starts_with(PREFIX.as_bytes()) {
                continue;
            }
            let path = entry.path();
            let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
            let Ok(folder) = OpenOptions::new().read(true).custom_flags(flags.bits()).open(&path) else { continue };
            let is_ours = folder.metadata().is_ok_and(|about| about.uid() == geteuid().as_raw());
            if is_ours && folder.try_lock().is_ok() && is_at(&folder, &path).unwrap_or(false) {
                let _ = fs::remove_dir_all(&path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_use_stays_and_one_that_was_left_goes() {
        let used = Scratch::new().unwrap();
        assert_eq!(fs::metadata(used.path()).unwrap().mode() & 0o7777, MODE);
        let left = tempfile::Builder::new().prefix(PREFIX).tempdir().unwrap().keep();
        fs::write(left.join("key"), "secret").unwrap();
        let link = env::temp_dir().join(format!("{PREFIX}link-{}", std::process::id()));
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), &link).unwrap();
        Scratch::sweep();
        assert!(used.path().is_dir() && !left.exists() && elsewhere.path().is_dir() && link.is_symlink());
        fs::remove_file(link).unwrap();
        let path = used.path().to_path_buf();
        drop(used);
        assert!(!path.exists());
    }
}
