//! Paths on a disk that are longer than a system call takes: a tree may have the longest path that there is, and the folder that
//! it is laid out in adds to it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;

use crate::tree::TreePath;

/// Bytes of the longest path of a system call: `PATH_MAX` of Linux counts the NUL at its end (path_resolution(7)).
const SYSTEM_PATH_MAX: usize = 4095;
/// Bytes of a path that are passed at once on the way to what is too far.
const STRIDE: usize = 2048;

/// A path of a tree below a folder of the disk, as system calls take it.
pub(super) struct Reached {
    path: PathBuf,
    /// The folder on the way that the path begins with.
    _on_the_way: Option<OwnedFd>,
}

impl Reached {
    /// Finds a path for `path` below `root`. Where that is too long, the folders on the way are opened, and the path leads
    /// through /proc.
    pub(super) fn new(root: &Path, path: &TreePath) -> io::Result<Self> {
        let plain = root.join(OsStr::from_bytes(path.as_bytes()));
        if plain.as_os_str().len() <= SYSTEM_PATH_MAX {
            return Ok(Reached { path: plain, _on_the_way: None });
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut folder = openat(AT_FDCWD, root, flags, Mode::empty())?;
        let mut rest = path.as_bytes();
        while rest.len() > STRIDE {
            // No name is as long as a stride.
            let Some(slash) = memchr::memrchr(b'/', &rest[..STRIDE]) else { break };
            folder = openat(&folder, OsStr::from_bytes(&rest[..slash]), flags, Mode::empty())?;
            rest = &rest[slash + 1..];
        }
        let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(OsStr::from_bytes(rest));
        Ok(Reached { path, _on_the_way: Some(folder) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}
