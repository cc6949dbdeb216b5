//! The overhead of mke2fs's filesystems, measured by making an empty one: it takes a few milliseconds in a sparse file, and
//! is right for any version of mke2fs.

use std::cell::RefCell;
use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use snug_ext4::size::{BLOCK_SIZE, NoFilesystem, Overhead, OverheadModel, Structure, WHOLE_GROUP};
use snug_process::child;

use super::superblock::Superblock;
use super::{INODE_SIZE, OWN_DIRECTORY_BLOCKS, Settings};
use crate::atomic::Scratch;

/// mke2fs omits a last group with fewer blocks than this in addition to its metadata (libext2fs, `ext2fs_initialize`).
const LAST_GROUP_MIN: u64 = 50;
/// Blocks of the largest inode table: a bitmap block has bits for as many inodes as for blocks.
const MAX_INODE_TABLE: u64 = WHOLE_GROUP as u64 / (BLOCK_SIZE / INODE_SIZE);
/// An ordinary size: if mke2fs refuses it, it would refuse any other.
const ORDINARY_BLOCKS: u64 = 64 << 20 >> 12;
const ORDINARY_INODES: u64 = 1024;

/// The overhead of mke2fs's filesystems with the settings of one image.
pub(super) struct MeasuredOverhead<'a> {
    settings: &'a Settings,
    folder: Scratch,
    known: RefCell<HashMap<(u64, u64), Option<Superblock>>>,
}

impl<'a> MeasuredOverhead<'a> {
    pub(super) fn new(settings: &'a Settings) -> Result<Self> {
        let folder = Scratch::new().context("cannot make a temporary folder")?;
        let model = MeasuredOverhead { settings, folder, known: RefCell::default() };
        model.make(ORDINARY_BLOCKS, ORDINARY_INODES)?;
        Ok(model)
    }

    /// Returns the blocks in use of an empty filesystem, without those of its directories.
    pub(super) fn metadata_blocks(&self, blocks: u64, inodes: u64) -> Result<u64> {
        let empty = self.empty(blocks, inodes).context("mke2fs makes no empty filesystem of this size")?;
        Ok(empty.blocks - empty.free_blocks - OWN_DIRECTORY_BLOCKS)
    }

    fn empty(&self, blocks: u64, inodes: u64) -> Option<Superblock> {
        if last_group_is_too_small(blocks, inodes) {
            return None;
        }
        let known = self.known.borrow().get(&(blocks, inodes)).cloned();
        known.unwrap_or_else(|| {
            let made = self.make(blocks, inodes).ok();
            let fits = made.filter(|superblock| superblock.blocks == blocks && superblock.inodes >= inodes);
            self.known.borrow_mut().insert((blocks, inodes), fits.clone());
            fits
        })
    }

    fn make(&self, blocks: u64, inodes: u64) -> Result<Superblock> {
        let image = self.folder.path().join("empty");
        // mke2fs would keep the length of a longer file.
        let _ = std::fs::remove_file(&image);
        child::run(self.settings.mke2fs(blocks, inodes)?.arg(&image).arg(blocks.to_string()), &[])?;
        let superblock = Superblock::read(&image)?;
        ensure!(
            superblock.blocks - superblock.free_blocks >= OWN_DIRECTORY_BLOCKS,
            "an empty filesystem without a root directory"
        );
        Ok(superblock)
    }
}

/// Whether mke2fs would omit the last group. Saves the search one run of mke2fs for each such size; where the groups would be
/// smaller than whole ones, only that run can tell.
fn last_group_is_too_small(blocks: u64, inodes: u64) -> bool {
    let groups = blocks.div_ceil(u64::from(WHOLE_GROUP));
    let last = blocks - groups.saturating_sub(1) * u64::from(WHOLE_GROUP);
    let inode_table = inodes.div_ceil(groups.max(1)).div_ceil(BLOCK_SIZE / INODE_SIZE);
    groups > 1 && inode_table <= MAX_INODE_TABLE && last < inode_table + 2 + LAST_GROUP_MIN
}

impl OverheadModel for MeasuredOverhead<'_> {
    /// mke2fs makes the groups smaller by itself where whole ones could not have so many inodes.
    fn overhead(&self, blocks: u64, _blocks_per_group: u32, inodes: u64) -> Result<Overhead, NoFilesystem> {
        let inode_tables = inodes.div_ceil(BLOCK_SIZE / INODE_SIZE);
        if inode_tables >= blocks {
            // mke2fs refuses these. With a lower bound of the overhead the search skips them, instead of running mke2fs for
            // thousands of sizes.
            let structures = vec![Structure::new("inode tables", inode_tables + 1)];
            return Ok(Overhead { inodes, blocks_per_group: WHOLE_GROUP, structures });
        }
        let none = NoFilesystem { below: blocks + 1 };
        let empty = self.empty(blocks, inodes).ok_or(none)?;
        let metadata = empty.blocks - empty.free_blocks - OWN_DIRECTORY_BLOCKS;
        let inode_tables = empty.inodes * INODE_SIZE / BLOCK_SIZE;
        let bitmaps = 2 * empty.blocks.div_ceil(empty.blocks_per_group.into());
        let rest = metadata.checked_sub(empty.journal_blocks + inode_tables + bitmaps).ok_or(none)?;
        let structures = [
            ("superblocks and group descriptors", rest),
            ("bitmaps", bitmaps),
            ("inode tables", inode_tables),
            ("journal", empty.journal_blocks),
            ("reserved blocks", empty.reserved_blocks),
        ];
        let structures =
            structures.into_iter().filter(|(_, blocks)| *blocks > 0).map(|(name, blocks)| Structure::new(name, blocks));
        Ok(Overhead {
            inodes: empty.inodes,
            blocks_per_group: empty.blocks_per_group,
            structures: structures.collect(),
        })
    }
}
