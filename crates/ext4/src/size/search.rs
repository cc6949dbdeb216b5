//! The smallest filesystem that has so many blocks apart from its overhead, and so many inodes.

use super::Structure;

/// Blocks of a block group, unless smaller ones make a smaller filesystem: as many as a bitmap block has bits.
pub const WHOLE_GROUP: u32 = 8 * super::BLOCK_SIZE as u32;

/// Where the search ends: ext4's own limit, the 48-bit block numbers of extents.
const BLOCKS_MAX: u64 = 1 << 48;

/// What a filesystem of a given size consists of apart from content and free space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overhead {
    /// Inodes of the filesystem: at least as many as were asked for, rounded up in every group.
    pub inodes: u64,
    /// Blocks of every group but the last.
    pub blocks_per_group: u32,
    /// Blocks by structure (`journal`, `inode tables`, …), reserved blocks among them.
    pub structures: Vec<Structure>,
}

impl Overhead {
    /// Returns the blocks of all structures together.
    pub fn blocks(&self) -> u64 {
        self.structures.iter().fold(0, |sum, structure| sum.saturating_add(structure.blocks))
    }
}

/// There is no filesystem of a size, because its last group would be too small for its metadata, for example.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoFilesystem {
    /// Blocks below which there is none either: [`u64::MAX`] if there is none of any size.
    pub below: u64,
}

/// The overhead of a type of filesystem as a function of its size.
pub trait OverheadModel {
    /// Returns the overhead of a filesystem of exactly `blocks` blocks with at least `inodes` inodes, in groups of
    /// `blocks_per_group` or, if these cannot have so many inodes and the writer decides for itself, smaller ones.
    ///
    /// # Errors
    ///
    /// [`NoFilesystem`], if there is no such filesystem.
    fn overhead(&self, blocks: u64, blocks_per_group: u32, inodes: u64) -> Result<Overhead, NoFilesystem>;

    /// Returns the largest size in blocks, at least `blocks`, up to which the overhead does not decrease. Since inodes are
    /// rounded up in every group, one group more can need fewer blocks: it is the end of the last group.
    fn monotonic_until(&self, blocks: u64, blocks_per_group: u32) -> u64 {
        blocks.checked_next_multiple_of(blocks_per_group.into()).unwrap_or(blocks)
    }

    /// Returns the blocks of the largest group that there can be, of which ordinary filesystems consist.
    fn whole_group(&self) -> u32 {
        WHOLE_GROUP
    }

    /// Returns the sizes of groups to try, in descending order, where whole ones leave blocks that have no purpose.
    fn smaller_groups(&self) -> Vec<u32> {
        Vec::new()
    }
}

/// The answer of a search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub blocks: u64,
    pub overhead: Overhead,
}

/// Finds the smallest filesystem of at least `from` blocks that has `wanted` blocks apart from its overhead, and `inodes`
/// inodes.
///
/// Whole groups are the fewest and spend the least, so that a filesystem of them in which every block has a purpose is the
/// answer. It has blocks without one where the inodes, of which a group can only have so many, need more groups than the
/// blocks do: then smaller groups are tried, and of those that give the same size the largest are chosen.
pub(super) fn smallest(from: u64, wanted: u64, inodes: u64, model: &dyn OverheadModel) -> Option<Found> {
    let in_groups_of =
        |blocks_per_group, limit| Search { wanted, inodes, model, blocks_per_group }.smallest(from, limit);
    let mut best = in_groups_of(model.whole_group(), BLOCKS_MAX);
    if best.as_ref().is_some_and(|found| found.blocks == from.max(wanted.saturating_add(found.overhead.blocks()))) {
        return best;
    }
    for blocks_per_group in model.smaller_groups() {
        let limit = best.as_ref().map_or(BLOCKS_MAX, |found| found.blocks - 1);
        best = in_groups_of(blocks_per_group, limit).or(best);
    }
    best
}

/// A search among filesystems whose groups have the same size.
struct Search<'model> {
    wanted: u64,
    inodes: u64,
    model: &'model dyn OverheadModel,
    blocks_per_group: u32,
}

impl Search<'_> {
    fn smallest(&self, from: u64, limit: u64) -> Option<Found> {
        let mut blocks = from.max(1);
        while blocks <= limit {
            let overhead = match self.model.overhead(blocks, self.blocks_per_group, self.inodes) {
                Ok(overhead) => overhead,
                Err(NoFilesystem { below }) => {
                    blocks = below.max(blocks + 1);
                    continue;
                }
            };
            let needed = self.wanted.checked_add(overhead.blocks())?;
            if needed <= blocks {
                return Some(Found { blocks, overhead });
            }
            // As long as the overhead does not decrease, no size below `needed` suffices.
            let monotonic = self.model.monotonic_until(blocks, self.blocks_per_group);
            blocks = needed.min(monotonic.saturating_add(1).max(blocks + 1));
        }
        None
    }
}
