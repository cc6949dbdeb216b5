//! Filesystems of the host: how much is free, whether an error says that there is none left, whether programs can be run.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};

/// Returns the bytes that are free for this user on the filesystem of `folder`, or of the nearest folder above it that
/// exists; 0 where statvfs(3) fails.
pub fn free(folder: &Path) -> u64 {
    let existing = folder.ancestors().find(|folder| folder.exists()).unwrap_or(folder);
    statvfs(existing).map(|about| about.blocks_available() * about.fragment_size()).unwrap_or(0)
}

/// Whether the filesystem of `folder` is mounted so that its programs cannot be run (mount(8), `noexec`).
pub fn forbids_programs(folder: &Path) -> bool {
    statvfs(folder).is_ok_and(|about| about.flags().contains(FsFlags::ST_NOEXEC))
}

/// Returns the folder that the filesystem of `folder` is mounted on.
pub fn mount_point(folder: &Path) -> PathBuf {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    let device = |path: &Path| std::fs::metadata(path).map(|about| about.dev()).ok();
    let own = device(&folder);
    folder.ancestors().take_while(|path| device(path) == own).last().unwrap_or(&folder).to_path_buf()
}

/// Returns whether the error comes from a full disk or quota.
pub fn is_used_up(error: &anyhow::Error) -> bool {
    let used_up = |error: &io::Error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(used_up))
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_errors() {
        let write = || {
            let full = std::fs::OpenOptions::new().write(true).open("/dev/full")?;
            io::Write::write_all(&mut &full, b"x")
        };
        assert!(is_used_up(&write().context("cannot write").unwrap_err()));
        let missing = std::fs::File::open("/no/such/file").context("cannot open").unwrap_err();
        assert!(!is_used_up(&missing));
        // Not compared with each other: something else may write to the disk between two calls.
        assert!(free(Path::new("/")) > 0 && free(Path::new("/no/such/folder")) > 0);
    }
}
