//! The journal: an empty log with a version 2 superblock and no features, which every kernel reads (kernel documentation,
//! `journal.rst`).

use super::on_disk::{BLOCK, BigEndian, Field, on_disk};

on_disk! {
    /// `journal.rst`: the superblock of the journal, in its first block; big-endian.
    JournalSuperblock, 1024, {
        magic: BigEndian,
        block_type: BigEndian,
        header_sequence: BigEndian,
        block_size: BigEndian,
        blocks: BigEndian,
        first_log_block: BigEndian,
        first_sequence: BigEndian,
        /// 0: nothing to replay.
        start: BigEndian,
        errno: BigEndian,
        compatible: BigEndian,
        incompatible: BigEndian,
        read_only_compatible: BigEndian,
        uuid: [u8; 16],
        users: BigEndian,
        dynamic_superblock: BigEndian,
        max_transaction: BigEndian,
        max_transaction_data: BigEndian,
        checksum_type: u8,
        padding: [u8; 3],
        fast_commit_blocks: BigEndian,
        head: BigEndian,
        reserved: [u32; 40],
        checksum: BigEndian,
        user_ids: [u8; 768],
    }
}

const MAGIC: u32 = 0xc03b_3998;
/// `h_blocktype`: superblock, version 2.
const SUPERBLOCK_V2: u32 = 4;

/// Returns the first block of the journal. All others may have any content, and are left as holes.
pub(crate) fn first_block(blocks: u64, uuid: [u8; 16]) -> Vec<u8> {
    let superblock = JournalSuperblock {
        magic: BigEndian(MAGIC),
        block_type: BigEndian(SUPERBLOCK_V2),
        block_size: BigEndian(BLOCK as u32),
        blocks: BigEndian(u32::try_from(blocks).expect("a journal has at most 2^18 blocks")),
        first_log_block: BigEndian(1),
        first_sequence: BigEndian(1),
        uuid,
        users: BigEndian(1),
        ..JournalSuperblock::ZERO
    };
    let mut block = vec![0; BLOCK];
    superblock.put(&mut block[..1024]);
    block
}
