//! Private copies of the programs that run in the sandbox from outside of the root directory: this program, and an emulator.
//!
//! `/proc/self/exe` of a process leads to the very file that it was started from, past every mount namespace. A command of
//! the entered root can have such a process: its `/bin/sh` may begin with `#!/proc/self/exe`, and the loader that the program
//! names (PT_INTERP, elf(5)) is then the root's own. Whatever it does to that file must not reach the host's, as runc found
//! (CVE-2019-5736).

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statvfs::{FsFlags, statvfs};

/// The mode of a copy: to be read and run, with no set-id bits.
const MODE: u32 = 0o555;

/// Neither content nor size can change.
const SEALS: SealFlag =
    SealFlag::F_SEAL_SEAL.union(SealFlag::F_SEAL_SHRINK).union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_WRITE);

/// A program's copy that shares no inode with any file. It lasts as long as this is open or the program runs.
#[derive(Debug)]
pub(super) struct SealedProgram(File);

impl SealedProgram {
    /// Copies the program at `path`.
    pub(super) fn copy(path: &Path) -> Result<Self> {
        let copied = || -> io::Result<File> {
            let mut source = File::open(path)?;
            match in_memory() {
                Ok(mut copy) => {
                    io::copy(&mut source, &mut copy)?;
                    seal(&copy)?;
                    for_reading(&copy)
                }
                // Where the kernel has no executable memory files (vm.memfd_noexec=2).
                Err(_) => {
                    let mut copy = without_name(path)?;
                    io::copy(&mut source, &mut copy)?;
                    copy.set_permissions(fs::Permissions::from_mode(MODE))?;
                    for_reading(&copy)
                }
            }
        };
        copied().map(SealedProgram).with_context(|| format!("cannot make a private copy of {}", path.display()))
    }

    /// Returns the copy of the program that this process runs, made once.
    pub(super) fn own() -> Result<&'static Self> {
        static OWN: OnceLock<SealedProgram> = OnceLock::new();
        match OWN.get() {
            Some(own) => Ok(own),
            // Of two that are made at once, one is dropped.
            None => Self::copy(Path::new("/proc/self/exe")).map(|made| OWN.get_or_init(|| made)),
        }
    }

    /// Returns the path by which this process, and one that it forks, starts the copy.
    pub(super) fn path(&self) -> PathBuf {
        descriptor(&self.0)
    }
}

fn in_memory() -> nix::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let executable = flags | MFdFlags::from_bits_retain(libc::MFD_EXEC);
    match memfd_create(c"snug", executable) {
        // Linux before 6.3 does not know the flag, and makes every memory file executable.
        Err(Errno::EINVAL) => memfd_create(c"snug", flags),
        made => made,
    }
    .map(File::from)
}

fn seal(copy: &File) -> io::Result<()> {
    copy.set_permissions(fs::Permissions::from_mode(MODE))?;
    // Nor the executable bits, since Linux 6.3.
    let _ = fcntl(copy, FcntlArg::F_ADD_SEALS(SealFlag::from_bits_retain(libc::F_SEAL_EXEC)));
    fcntl(copy, FcntlArg::F_ADD_SEALS(SEALS))?;
    Ok(())
}

/// Returns a file that no folder has, for temporary files or beside the program, whichever lets programs run.
fn without_name(program: &Path) -> io::Result<File> {
    let beside = fs::canonicalize(program)?.parent().map(Path::to_path_buf);
    let runs = |folder: &PathBuf| statvfs(folder).is_ok_and(|at| !at.flags().contains(FsFlags::ST_NOEXEC));
    let folders = [std::env::temp_dir()].into_iter().chain(beside).filter(runs);
    let made = folders.map(tempfile::tempfile_in).reduce(|first, next| first.or(next));
    made.unwrap_or_else(|| {
        Err(io::Error::other("programs run neither from memory nor from the folder of temporary files"))
    })
}

/// Opens the copy for reading alone: a program that is open for writing cannot be started.
fn for_reading(copy: &File) -> io::Result<File> {
    File::open(descriptor(copy))
}

fn descriptor(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_copy_runs_and_cannot_be_written() {
        let program = std::env::current_exe().unwrap();
        let copy = SealedProgram::copy(&program).unwrap();
        let (there, here) = (fs::metadata(&program).unwrap(), copy.0.metadata().unwrap());
        assert_eq!((here.len(), here.mode() & 0o7777), (there.len(), MODE));
        assert_ne!((here.dev(), here.ino()), (there.dev(), there.ino()));
        let listed = std::process::Command::new(copy.path()).arg("--list").output().unwrap();
        assert!(String::from_utf8_lossy(&listed.stdout).contains("a_copy_runs_and_cannot_be_written"), "{listed:?}");
        if nix::unistd::Uid::effective().is_root() {
            // Root may open what it may not write: the seal is what forbids it.
            let mut again = File::options().write(true).open(copy.path()).unwrap();
            assert_eq!(io::Write::write(&mut again, b"x").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
        let file = without_name(&program).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0);
    }
}
