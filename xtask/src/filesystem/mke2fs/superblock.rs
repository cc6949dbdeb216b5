//! The counts in an ext4 superblock.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use snug_ext4::size::BLOCK_SIZE;

/// Offset and length of the superblock in bytes.
const OFFSET: u64 = 1024;
const LENGTH: usize = 1024;
const MAGIC: u16 = 0xef53;

/// A part of `struct ext4_super_block` (kernel documentation, `filesystems/ext4/super.rst`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Superblock {
    pub inodes: u64,
    pub free_inodes: u32,
    pub blocks: u64,
    /// Free blocks, including the reserved ones.
    pub free_blocks: u64,
    /// Blocks reserved for root.
    pub reserved_blocks: u64,
    pub blocks_per_group: u32,
    /// Blocks of the journal, from the copy of its inode in `s_jnl_blocks`; 0 without a journal.
    pub journal_blocks: u64,
}

impl Superblock {
    pub(super) fn read(image: &Path) -> Result<Self> {
        let mut bytes = [0; LENGTH];
        File::open(image)
            .and_then(|file| file.read_exact_at(&mut bytes, OFFSET))
            .with_context(|| format!("cannot read the superblock of {}", image.display()))?;
        Self::parse(&bytes).with_context(|| format!("{} is not a valid ext4 image", image.display()))
    }

    fn parse(bytes: &[u8; LENGTH]) -> Result<Self> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let wide = |low: usize, high: usize| u64::from(word(low)) | u64::from(word(high)) << 32;
        ensure!(bytes[0x38..0x3a] == MAGIC.to_le_bytes(), "no ext4 magic");
        ensure!(word(0x18) == BLOCK_SIZE.trailing_zeros() - 10, "blocks are not {BLOCK_SIZE} bytes");
        let superblock = Superblock {
            inodes: word(0x0).into(),
            free_inodes: word(0x10),
            blocks: wide(0x4, 0x150),
            reserved_blocks: wide(0x8, 0x154),
            free_blocks: wide(0xc, 0x158),
            blocks_per_group: word(0x20),
            // s_jnl_blocks[16] is the lower half of i_size, [15] the upper half.
            journal_blocks: wide(0x14c, 0x148) / BLOCK_SIZE,
        };
        ensure!(superblock.free_blocks <= superblock.blocks, "more blocks are free than there are");
        ensure!(superblock.blocks_per_group > 0, "block groups are empty");
        Ok(superblock)
    }
}
