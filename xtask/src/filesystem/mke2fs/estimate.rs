//! A lower bound of the blocks that mke2fs needs for a tree.

use anyhow::{Context, Result};
use snug_ext4::size::BLOCK_SIZE;
use snug_rootfs::tree::{Body, Kind, RootTree};

use super::OWN_DIRECTORY_BLOCKS;

/// Symlink targets shorter than this are stored in the inode (`i_block` with a NUL).
const FAST_SYMLINK: usize = 60;
/// Bytes for entries in a directory block: 12 are its tail with the checksum (`struct ext4_dir_entry_tail`).
const DIRECTORY_BLOCK: u64 = BLOCK_SIZE - 12;
/// Bytes of the entries `.` and `..`.
const DOT_ENTRIES: u64 = 24;
/// Bytes of a file that are read at a time.
const BUFFER: usize = 1 << 20;

/// Counts the blocks of files except those of zeros, which mke2fs turns into holes, of long symlinks, and of directories as if
/// they were full to the last byte. Blocks of extent trees and xattrs are not counted.
pub(super) fn data_blocks(tree: &RootTree) -> Result<u64> {
    let mut blocks = OWN_DIRECTORY_BLOCKS - 1;
    let mut names = vec![DOT_ENTRIES; tree.inode_slots()];
    let mut buffer = vec![0; BUFFER];
    for entry in tree.entries() {
        if let Some(parent) = entry.path.parent().and_then(|parent| tree.id(&parent)) {
            // inode, rec_len, name_len, file_type; then the name, padded to four bytes.
            names[RootTree::slot(parent)] += (8 + entry.path.name().len() as u64).next_multiple_of(4);
        }
        if entry.hard_link_to.is_some() {
            continue;
        }
        blocks += match &entry.inode.kind {
            Kind::File(body) => blocks_with_data(body, tree, &mut buffer)
                .with_context(|| format!("cannot read the content of {}", entry.path))?,
            Kind::Symlink(target) if target.len() >= FAST_SYMLINK => 1,
            _ => 0,
        };
    }
    let directories = tree.entries().filter(|entry| entry.inode.is_directory());
    Ok(blocks + directories.map(|entry| names[RootTree::slot(entry.id)].div_ceil(DIRECTORY_BLOCK)).sum::<u64>())
}

/// Returns the blocks to add for what [`data_blocks`] does not count.
pub(super) fn margin(data_blocks: u64) -> u64 {
    data_blocks / 128 + 64
}

fn blocks_with_data(body: &Body, tree: &RootTree, buffer: &mut [u8]) -> Result<u64> {
    let (mut count, mut last) = (0, None);
    for range in body.extents.as_slice() {
        let mut done = 0;
        while done < range.length {
            // A read ends at a block border of the file.
            let offset = range.offset + done;
            let length = (buffer.len() as u64 - offset % BLOCK_SIZE).min(range.length - done);
            let bytes = &mut buffer[..length as usize];
            tree.bodies().read_exact_at(bytes, range.source + done)?;
            let (head, rest) = bytes.split_at(((BLOCK_SIZE - offset % BLOCK_SIZE) % BLOCK_SIZE).min(length) as usize);
            let first = offset.div_ceil(BLOCK_SIZE);
            let rest = rest.chunks(BLOCK_SIZE as usize).zip(first..).map(|(bytes, block)| (block, bytes));
            for (block, bytes) in std::iter::once((offset / BLOCK_SIZE, head)).chain(rest) {
                if last != Some(block) && bytes.iter().any(|&byte| byte != 0) {
                    count += 1;
                    last = Some(block);
                }
            }
            done += length;
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use snug_rootfs::tree::{BodySource, DataRange};

    #[test]
    fn blocks_of_zeros_are_no_blocks() {
        let mut bytes = vec![0; 20_000];
        for at in [0, 4095, 4096, 12_288] {
            bytes[at] = 1;
        }
        let tree = RootTree::new(BodySource::new(bytes));
        let blocks = |body: Body| blocks_with_data(&body, &tree, &mut [0; 8192]).unwrap();
        assert_eq!(blocks(Body::contiguous(20_000, 0)), 3);
        assert_eq!(blocks(Body::contiguous(4096, 1)), 1);
        assert_eq!(blocks(Body::default()), 0);
        // Two ranges in one block, and a range across a border of blocks.
        let ranges = [(10, 5, 0), (20, 5, 4095), (8190, 4, 4094)];
        let ranges = ranges.map(|(offset, length, source)| DataRange { offset, length, source });
        assert_eq!(blocks(Body { size: 9000, extents: ranges.into_iter().collect() }), 3);
    }
}
