//! Removing a folder whatever is in it.
//!
//! A step can nest folders deeper than the stack of a recursion, than the descriptors of a process, and than the longest path. So
//! every folder that is found inside another is moved to the top of the tree that is being removed, and emptied there: two
//! descriptors are open at a time, names are never longer than one word, and no symlink is followed.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::NixPath;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// How a folder is opened.
const FOLDER: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Removes a folder with all that is in it, or a file. What is not there is no error.
pub(super) fn remove_all(path: &Path) -> io::Result<()> {
    let top = match open(AT_FDCWD, path) {
        Ok(top) => top,
        Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::ENOTDIR | Errno::ELOOP) => return fs::remove_file(path),
        Err(error) => return Err(error.into()),
    };
    Removal { top: &top, moved: 0 }.run()?;
    fs::remove_dir(path)
}

/// Opens a folder, for which its owner may need the permission.
fn open<P: ?Sized + NixPath>(at: impl AsFd + Copy, name: &P) -> nix::Result<OwnedFd> {
    let open = || openat(at, name, FOLDER, Mode::empty());
    match open() {
        Err(Errno::EACCES) => {
            permit(at, name)?;
            open()
        }
        result => result,
    }
}

/// Gives the owner of a folder all permissions.
fn permit<P: ?Sized + NixPath>(at: impl AsFd, name: &P) -> nix::Result<()> {
    fchmodat(at, name, Mode::S_IRWXU, FchmodatFlags::NoFollowSymlink)
}

struct Removal<'a> {
    top: &'a OwnedFd,
    /// Folders that were moved to the top.
    moved: u64,
}

impl Removal<'_> {
    fn run(&mut self) -> nix::Result<()> {
        let top = self.top;
        each(top, |name| match unlinkat(top, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR) => self.remove_folder(name),
            result => gone(result),
        })
    }

    /// Removes a folder of the top. The folders in it come to the top.
    fn remove_folder(&mut self, name: &CStr) -> nix::Result<()> {
        let folder = match open(self.top, name) {
            Err(Errno::ENOENT) => return Ok(()),
            folder => folder?,
        };
        each(&folder, |inside| match unlinkat(&folder, inside, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR) => match unlinkat(&folder, inside, UnlinkatFlags::RemoveDir) {
                Err(Errno::ENOTEMPTY | Errno::EEXIST) => self.move_to_top(&folder, inside),
                result => gone(result),
            },
            result => gone(result),
        })?;
        gone(unlinkat(self.top, name, UnlinkatFlags::RemoveDir))
    }

    fn move_to_top(&mut self, from: &OwnedFd, name: &CStr) -> nix::Result<()> {
        loop {
            let to = format!("~{}", self.moved);
            match renameat(from, name, self.top, to.as_str()) {
                // Something has the name.
                Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => self.moved += 1,
                // The entry `..` of a folder is changed by its owner (rename(2)).
                Err(Errno::EACCES) => {
                    permit(from, name)?;
                    renameat(from, name, self.top, to.as_str())?;
                    self.moved += 1;
                    return Ok(());
                }
                result => {
                    self.moved += 1;
                    return result;
                }
            }
        }
    }
}

/// Calls `remove` for each name in a folder, until there is none: a listing may miss what changes meanwhile.
fn each(folder: &OwnedFd, mut remove: impl FnMut(&CStr) -> nix::Result<()>) -> nix::Result<()> {
    loop {
        let mut is_empty = true;
        for entry in Dir::openat(folder, ".", FOLDER, Mode::empty())?.iter() {
            let entry = entry?;
            if ![c".", c".."].contains(&entry.file_name()) {
                is_empty = false;
                remove(entry.file_name())?;
            }
        }
        if is_empty {
            return Ok(());
        }
    }
}

/// What is gone already is as good as removed.
fn gone(result: nix::Result<()>) -> nix::Result<()> {
    match result {
        Err(Errno::ENOENT) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::sys::stat::mkdirat;

    use super::*;

    /// Deeper than a recursion, the descriptors of a process and the longest path allow.
    const DEPTH: usize = 30_000;

    fn nest(folder: &Path) {
        let mut at = open(AT_FDCWD, folder).unwrap();
        for _ in 0..DEPTH {
            mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
            at = open(&at, "d").unwrap();
        }
    }

    #[test]
    fn whatever_a_step_leaves_is_removed_and_no_link_followed() {
        // In memory where it can be: a disk takes a millisecond for each folder.
        let outside = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        fs::write(outside.path().join("file"), "").unwrap();
        let folder = outside.path().join("folder");
        fs::create_dir_all(folder.join("a/closed/b/c")).unwrap();
        nest(&folder);
        nest(&folder.join("a"));
        for name in ["link", "a/link", "a/closed/link", "a/closed/b/c/link"] {
            symlink(outside.path(), folder.join(name)).unwrap();
        }
        // Names that folders are moved to.
        fs::write(folder.join("~0"), "").unwrap();
        fs::create_dir_all(folder.join("~1/full")).unwrap();
        for (name, mode) in [("a/closed/b", 0), ("a/closed", 0o500), ("a", 0)] {
            fs::set_permissions(folder.join(name), Permissions::from_mode(mode)).unwrap();
        }
        for number in 0..3000 {
            fs::write(folder.join(format!("file {number}")), "").unwrap();
        }
        remove_all(&folder).unwrap();
        assert!(!folder.exists() && outside.path().join("file").exists());
        // What is not there, a file, a link.
        remove_all(&folder).unwrap();
        symlink(outside.path(), &folder).unwrap();
        remove_all(&folder).unwrap();
        assert!(folder.symlink_metadata().is_err() && outside.path().join("file").exists());
    }
}
