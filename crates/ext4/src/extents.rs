//! Extent trees (kernel documentation, `ifork.rst`, "Extent Tree"): up to four extents in the inode; more in leaf blocks of
//! 340, under as many index levels as needed.

use super::checksum::crc32c;
use super::on_disk::{BLOCK, Field, on_disk};

on_disk! {
    /// `ifork.rst`, "Extent Tree": the header of every node.
    ExtentHeader, 12, {
        magic: u16,
        entries: u16,
        max: u16,
        depth: u16,
        generation: u32,
    }
}

/// `eh_magic`
pub(crate) const EXTENT_MAGIC: u16 = 0xf30a;

on_disk! {
    /// `ifork.rst`: an entry of an inner node.
    ExtentIndex, 12, {
        logical: u32,
        child_lo: u32,
        child_hi: u16,
        unused: u16,
    }
}

on_disk! {
    /// `ifork.rst`: a run of blocks.
    ExtentLeaf, 12, {
        logical: u32,
        /// 1..=32768; more would mean unwritten blocks.
        length: u16,
        physical_hi: u16,
        physical_lo: u32,
    }
}

/// The longest extent in blocks; a larger length would mean unwritten blocks.
pub(crate) const MAX_RUN: u64 = 32768;
const HEADER: usize = <ExtentHeader as Field>::SIZE;
const ENTRY: usize = <ExtentLeaf as Field>::SIZE;
/// Entries in the inode's 60 bytes.
pub(crate) const INLINE: usize = 4;
/// Entries in a block, which ends with a checksum.
pub(crate) const PER_BLOCK: usize = (BLOCK - HEADER - 4) / ENTRY;

/// An extent: blocks that are adjacent in a file and on the disk. At most [`MAX_RUN`] long; all numbers are of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub logical: u32,
    pub length: u32,
    pub physical: u64,
}

/// Returns the number of blocks, outside the inode, of an extent tree with `runs` extents.
pub(crate) fn tree_blocks(runs: usize) -> u64 {
    let (mut entries, mut blocks) = (runs, 0);
    while entries > INLINE {
        entries = entries.div_ceil(PER_BLOCK);
        blocks += entries as u64;
    }
    blocks
}

/// Composes the extent tree of `runs` and returns its root for `i_block`. `places` yields the numbers of the [`tree_blocks`]
/// blocks of the tree, and `emit` is called for each of them, in that order, with its content. `seed` is the checksum seed of
/// the inode.
pub(crate) fn write_tree(
    runs: &[Run],
    mut places: impl Iterator<Item = u64>,
    seed: u32,
    mut emit: impl FnMut(u64, &[u8; BLOCK]),
) -> [u8; 60] {
    let mut root = [0; 60];
    if runs.len() <= INLINE {
        // Nearly every inode.
        node(&mut root, runs.iter().map(leaf), INLINE, 0);
        return root;
    }
    let mut entries: Vec<(u32, [u8; ENTRY])> = runs.iter().map(|run| (run.logical, leaf(run))).collect();
    let mut depth = 0;
    while entries.len() > INLINE {
        let parents = entries.chunks(PER_BLOCK).zip(places.by_ref()).map(|(children, place)| {
            let mut block = [0; BLOCK];
            node(&mut block[..BLOCK - 4], children.iter().map(|(_, child)| *child), PER_BLOCK, depth);
            let sum = crc32c(seed, &block[..BLOCK - 4]);
            sum.put(&mut block[BLOCK - 4..]);
            emit(place, &block);
            (children[0].0, index(children[0].0, place))
        });
        entries = parents.collect();
        depth += 1;
    }
    node(&mut root, entries.iter().map(|(_, entry)| *entry), INLINE, depth);
    root
}

fn leaf(run: &Run) -> [u8; ENTRY] {
    let leaf = ExtentLeaf {
        logical: run.logical,
        length: run.length as u16,
        physical_hi: (run.physical >> 32) as u16,
        physical_lo: run.physical as u32,
    };
    let mut bytes = [0; ENTRY];
    leaf.put(&mut bytes);
    bytes
}

fn index(logical: u32, child: u64) -> [u8; ENTRY] {
    let index = ExtentIndex { logical, child_lo: child as u32, child_hi: (child >> 32) as u16, unused: 0 };
    let mut bytes = [0; ENTRY];
    index.put(&mut bytes);
    bytes
}

fn node(out: &mut [u8], entries: impl ExactSizeIterator<Item = [u8; ENTRY]>, max: usize, depth: u16) {
    let header =
        ExtentHeader { magic: EXTENT_MAGIC, entries: entries.len() as u16, max: max as u16, depth, generation: 0 };
    header.put(&mut out[..HEADER]);
    for (entry, place) in entries.zip(out[HEADER..].chunks_exact_mut(ENTRY)) {
        place.copy_from_slice(&entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_grow_a_level_where_one_is_full() {
        assert_eq!(PER_BLOCK, 340);
        assert_eq!([0, 4, 5, 340, 341, 4 * 340].map(tree_blocks), [0, 0, 1, 1, 2, 4]);
        assert_eq!(tree_blocks(4 * 340 + 1), 5 + 1);
        assert_eq!(tree_blocks(4 * 340 * 340 + 1), 1361 + 5 + 1);
    }

    #[test]
    fn a_tree_uses_exactly_the_blocks_it_was_promised() {
        for count in [0_u32, 4, 5, 341, 1360, 1361, 10_000] {
            let runs: Vec<Run> =
                (0..count).map(|at| Run { logical: 2 * at, length: 1, physical: u64::from(at) + 7 }).collect();
            let (mut next, mut emitted) = (1000, Vec::new());
            let places = std::iter::from_fn(|| {
                next += 1;
                Some(next)
            });
            let root = write_tree(&runs, places, 1, |place, _| emitted.push(place));
            assert_eq!(emitted.len() as u64, tree_blocks(count as usize));
            assert_eq!(root[..2], EXTENT_MAGIC.to_le_bytes());
        }
    }
}
