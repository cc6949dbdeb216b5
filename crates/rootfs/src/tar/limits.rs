//! Bounds on archives, and what has been used of them.

use super::error::{EntryName, TarError};
use crate::tree::{FollowError, Missing, RootTree, TreePath};

/// What a name costs in memory beside its own bytes, in bytes.
pub(super) const NAME_COST: u64 = 64;

/// Bounds on an archive, so that no input can exhaust memory or disk. Exceeding one is a typed error.
///
/// Names (255 bytes), paths (4096 bytes) and symlink targets (4095 bytes) are always bounded by what Linux can hold.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Entries, including directories that are only implied by the paths of others. Default 10 million.
    pub entries: usize,
    /// Bytes of file data stored in the archive. Default 16 TiB, the largest ext4 with 4 KiB blocks.
    pub data_bytes: u64,
    /// Bytes of one pax extended header, or of one GNU long name. Default 16 MiB: macOS puts whole resource forks into one.
    pub extended_header_bytes: u64,
    /// Data ranges of one sparse file. Default one million.
    pub sparse_ranges: usize,
    /// Bytes of memory for everything but fixed-size inodes: names, symlink targets, attributes, sparse maps, of the
    /// whole archive. Default 1 GiB.
    pub metadata_bytes: u64,
    /// Bytes of the paths that are looked up one name after the other where symlinks are above entries, of the whole archive:
    /// work, not memory. Default 16 GiB, some seconds: a million entries, ten names behind symlinks each, take one.
    pub followed_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            entries: 10_000_000,
            data_bytes: 16 << 40,
            extended_header_bytes: 16 << 20,
            sparse_ranges: 1_000_000,
            metadata_bytes: 1 << 30,
            followed_bytes: 16 << 30,
        }
    }
}

/// [`Limits`], and what an archive, or the layers of an image together, have used of them.
#[derive(Debug, Clone)]
pub struct Budget {
    limits: Limits,
    entries: u64,
    data_bytes: u64,
    metadata_bytes: u64,
    followed_bytes: u64,
}

impl Budget {
    /// Nothing used yet.
    pub fn new(limits: &Limits) -> Self {
        Budget { limits: limits.clone(), entries: 0, data_bytes: 0, metadata_bytes: 0, followed_bytes: 0 }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Charges an entry whose names have `bytes` bytes. `entry` is its name for the error, here and below.
    pub(crate) fn charge_entry(&mut self, bytes: usize, entry: &[u8]) -> Result<(), TarError> {
        self.charge_entries(1, entry)?;
        self.charge_metadata(NAME_COST + bytes as u64, entry)
    }

    /// Charges `count` directories that the path `entry` implied. Each has a path of no more than `bytes` bytes, which are those
    /// of the place where the entry went.
    pub(super) fn charge_implied(&mut self, count: usize, bytes: usize, entry: &[u8]) -> Result<(), TarError> {
        if count == 0 {
            return Ok(());
        }
        self.charge_entries(count as u64, entry)?;
        self.charge_metadata(count as u64 * (NAME_COST + bytes as u64), entry)
    }

    /// Follows the symlinks in `path` inside the tree, and charges what that takes.
    pub(crate) fn follow(
        &mut self,
        tree: &RootTree,
        path: &TreePath,
        missing: Missing,
    ) -> Result<Result<TreePath, FollowError>, TarError> {
        let mut work = 0;
        let followed = tree.follow(path, missing, &mut work);
        let max = self.limits.followed_bytes;
        charge(&mut self.followed_bytes, work, max, "bytes of paths through symlinks", path.as_bytes())?;
        Ok(followed)
    }

    fn charge_entries(&mut self, count: u64, entry: &[u8]) -> Result<(), TarError> {
        charge(&mut self.entries, count, self.limits.entries as u64, "entries", entry)
    }

    /// Charges file data stored in the archive.
    pub(super) fn charge_data(&mut self, bytes: u64, entry: &[u8]) -> Result<(), TarError> {
        charge(&mut self.data_bytes, bytes, self.limits.data_bytes, "bytes of data", entry)
    }

    /// Charges memory for names, attributes and sparse maps.
    pub(super) fn charge_metadata(&mut self, bytes: u64, entry: &[u8]) -> Result<(), TarError> {
        let max = self.limits.metadata_bytes;
        charge(&mut self.metadata_bytes, bytes, max, "bytes of names and attributes", entry)
    }
}

fn charge(used: &mut u64, more: u64, max: u64, what: &'static str, entry: &[u8]) -> Result<(), TarError> {
    match used.checked_add(more).filter(|&total| total <= max) {
        Some(total) => {
            *used = total;
            Ok(())
        }
        None => Err(TarError::TooMuch { entry: EntryName::new(entry), what, max }),
    }
}
