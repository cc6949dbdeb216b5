//! Folders of the entered root's own files, in which strangers may have put anything.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use snug_rootfs::regular_file::{self, RegularFileError};

/// An open folder of the entered root. What is done in it follows no symlink and waits for nobody.
pub(super) struct OwnFolder(OwnedFd);

impl OwnFolder {
    /// Opens a folder, if there is one. Symlinks on the way are followed inside the root, but into no mount: a link to /dev or
    /// to a cache leads to what is not the root's own. (Kernels before 5.6 cannot tell, and follow them.)
    pub(super) fn open(path: &str) -> Option<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let resolve = ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let folder = match openat2(AT_FDCWD, path, OpenHow::new().flags(flags).resolve(resolve)) {
            // EPERM is how an outer container's filter answers to a call that it does not know.
            Err(Errno::ENOSYS | Errno::EPERM) => openat(AT_FDCWD, path, flags, Mode::empty()),
            opened => opened,
        };
        folder.ok().map(OwnFolder)
    }

    /// Whether there is something of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        openat(&self.0, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()).is_ok()
    }

    /// Makes a file that must not exist.
    pub(super) fn create(&self, name: &str, text: &str, mode: u32) -> io::Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&self.0, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        file.write_all(text.as_bytes())?;
        file.set_permissions(PermissionsExt::from_mode(mode))
    }

    /// Reads a regular file of at most `max` bytes.
    pub(super) fn read(&self, name: &str, max: u64) -> Result<Vec<u8>, RegularFileError> {
        regular_file::read_at(&self.0, Path::new(name), max)
    }

    /// Removes whatever has this name, except a directory.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.0, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_is_written_through_a_link_or_into_a_mount() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let open = |path: &Path| OwnFolder::open(path.to_str().unwrap());
        fs::create_dir(at("etc")).unwrap();
        fs::write(at("victim"), "untouched").unwrap();
        symlink("../victim", at("etc/link")).unwrap();
        symlink("/proc/self", at("proc")).unwrap();
        let own = open(&at("etc")).unwrap();
        assert!(own.has("link") && !own.has("absent"));
        assert!(own.create("link", "harm", 0o644).is_err() && own.read("link", 99).is_err());
        own.remove("link").unwrap();
        own.remove("link").unwrap();
        own.create("link", "text", 0o755).unwrap();
        assert_eq!(own.read("link", 99).unwrap(), b"text");
        assert_eq!(fs::metadata(at("etc/link")).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_to_string(at("victim")).unwrap(), "untouched");
        assert!(open(&at("absent")).is_none() && open(&at("victim")).is_none() && open(&at("proc")).is_none());
    }
}
