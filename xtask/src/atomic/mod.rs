//! Where results go: files that appear under their name complete or not at all, standard output, block devices. And
//! temporary folders.

mod block_device;
mod destination;
mod partial;
mod place;
mod scratch;
pub mod set;
mod sync_ahead;

use std::fs::{self, File, Permissions, TryLockError};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;

pub use destination::{Accepts, Destination, Identity};
pub use partial::{Partial, is_at};
pub use scratch::Scratch;

/// How long a folder's lock is waited for. It is held for renames alone, some milliseconds; but whoever may read a folder may
/// lock it (flock(2)), and nobody who cannot write to it keeps the runs that can from it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// Takes a folder, among the runs of this tool, for publishing several files that belong together: waits for the run that
/// has it, and holds it until the result is dropped. `None` where its filesystem has no locks, or somebody does not let go.
pub fn lock_folder(folder: &Path) -> Option<File> {
    let file = File::open(folder).ok()?;
    let since = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Some(file),
            Err(TryLockError::WouldBlock) if since.elapsed() < PATIENCE => thread::sleep(PAUSE),
            Err(_) => return None,
        }
    }
}

/// Opens the file of a lock, and makes it where it is missing. Its name is no link, and no other user can open the file: he could
/// hold the lock for ever.
pub fn open_lock(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).mode(LOCK_MODE).custom_flags(OFlag::O_NOFOLLOW.bits());
    let open = || options.open(path);
    let file = open().or_else(|error| match error.raw_os_error().map(Errno::from_raw) {
        // A link or a folder, by which nobody can be kept out.
        Some(Errno::ELOOP) => fs::remove_file(path).and_then(|()| open()),
        Some(Errno::EISDIR) => fs::remove_dir_all(path).and_then(|()| open()),
        _ => Err(error),
    });
    let file = file.with_context(|| format!("cannot make {}", path.display()))?;
    // As an earlier version of this tool made it. That of another user's file cannot be changed, and need not in a folder that
    // is closed to others.
    let _ = file.set_permissions(Permissions::from_mode(LOCK_MODE));
    Ok(file)
}

/// The mode of a lock's file.
const LOCK_MODE: u32 = 0o600;
