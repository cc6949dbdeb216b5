//! Where the metadata of the block groups is in a filesystem of a given size, and which blocks are left for data (kernel
//! documentation, `blockgroup.rst`, "Flexible Block Groups"; `super.rst`).

use std::ops::Range;

use super::on_disk::{ADDRESSES_PER_BLOCK, BLOCK, BLOCKS_PER_GROUP, DESCRIPTORS_PER_BLOCK, INODES_PER_BLOCK};

/// log2 of the groups whose bitmaps and inode tables are kept together: mke2fs's 16.
pub(crate) const LOG_GROUPS_PER_FLEX: u8 = 4;
const GROUPS_PER_FLEX: u32 = 1 << LOG_GROUPS_PER_FLEX;
/// As many inodes as a bitmap block has bits.
pub(crate) const MAX_INODES_PER_GROUP: u32 = (BLOCK * 8) as u32;
/// Reserved descriptor blocks that the doubly indirect block of the resize inode can list.
const MAX_RESERVED: u32 = ADDRESSES_PER_BLOCK;
/// By default a filesystem can grow to 16 times its size, and at least to 64 GiB.
const DEFAULT_GROWTH_FACTOR: u64 = 16;
const DEFAULT_GROWTH: u64 = 64 << 30;
/// Bytes of a block group.
const GROUP_BYTES: u64 = BLOCKS_PER_GROUP as u64 * BLOCK as u64;
/// The largest size in bytes for which descriptors can be reserved.
pub(crate) const MAX_GROWTH: u64 = MAX_RESERVED as u64 * DESCRIPTORS_PER_BLOCK as u64 * GROUP_BYTES;

/// What the filesystems with the same number of groups have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub groups: u32,
    /// A multiple of the inodes in a block.
    pub inodes_per_group: u32,
    /// Blocks of the descriptor table, in each copy.
    pub descriptor_blocks: u32,
    /// Blocks reserved for descriptors of later groups, in each copy.
    pub reserved_descriptor_blocks: u32,
}

/// Block numbers of one group's bitmaps and of its inode table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GroupMap {
    pub block_bitmap: u64,
    pub inode_bitmap: u64,
    pub inode_table: u64,
}

/// The layout of one filesystem. Block numbers count from its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    pub geometry: Geometry,
    /// Blocks of the whole filesystem.
    pub blocks: u64,
    pub groups: Vec<GroupMap>,
    /// The resize inode's doubly indirect block, if descriptors are reserved.
    pub resize_block: Option<u64>,
    /// Everything above, and all copies of superblock and descriptors, as ascending ranges of blocks that do not touch.
    pub metadata: Vec<Range<u64>>,
}

impl Geometry {
    /// The geometry for at least `inodes` inodes that can grow to `growth` bytes ([`crate::Ext4Options::growth`]). `None` if a
    /// group would need more inodes than it can have.
    pub(crate) fn new(groups: u32, inodes: u64, growth: Option<u64>) -> Option<Self> {
        let per_group = inodes.div_ceil(u64::from(groups)).next_multiple_of(u64::from(INODES_PER_BLOCK));
        let inodes_per_group = u32::try_from(per_group).ok().filter(|&count| count <= MAX_INODES_PER_GROUP)?;
        let descriptor_blocks = groups.div_ceil(DESCRIPTORS_PER_BLOCK);
        let size = u64::from(groups) * GROUP_BYTES;
        let growth = growth.unwrap_or_else(|| DEFAULT_GROWTH.max(size.saturating_mul(DEFAULT_GROWTH_FACTOR)));
        let target = growth.min(MAX_GROWTH).div_ceil(GROUP_BYTES).div_ceil(u64::from(DESCRIPTORS_PER_BLOCK));
        let reserved = (target as u32).saturating_sub(descriptor_blocks).min(MAX_RESERVED);
        Some(Geometry { groups, inodes_per_group, descriptor_blocks, reserved_descriptor_blocks: reserved })
    }

    /// Returns the inodes of all groups.
    pub(crate) fn inodes(&self) -> u64 {
        u64::from(self.inodes_per_group) * u64::from(self.groups)
    }

    /// Returns the blocks of one group's inode table.
    pub(crate) fn table_blocks(&self) -> u64 {
        u64::from(self.inodes_per_group / INODES_PER_BLOCK)
    }

    /// Returns the blocks at the start of `group` for superblock, descriptors and reserved descriptors: 0 if it has no copy of
    /// them (sparse_super).
    pub(crate) fn copy_blocks(&self, group: u32) -> u64 {
        if has_superblock(group) {
            1 + u64::from(self.descriptor_blocks) + u64::from(self.reserved_descriptor_blocks)
        } else {
            0
        }
    }

    /// Returns the groups with a copy of the superblock.
    pub(crate) fn copies(&self) -> impl Iterator<Item = u32> + use<> {
        (0..self.groups).filter(|&group| has_superblock(group))
    }

    /// Returns the blocks of all group metadata.
    pub(crate) fn metadata_blocks(&self) -> u64 {
        let copies: u64 = self.copies().map(|group| self.copy_blocks(group)).sum();
        copies + u64::from(self.groups) * (2 + self.table_blocks()) + u64::from(self.reserved_descriptor_blocks > 0)
    }

    /// Returns the sizes, in blocks, of filesystems with this many groups whose last group has space for its superblock copy.
    pub(crate) fn sizes(&self) -> std::ops::RangeInclusive<u64> {
        let before = u64::from(self.groups - 1) * u64::from(BLOCKS_PER_GROUP);
        let last = self.copy_blocks(self.groups - 1).max(1);
        before + last..=before + u64::from(BLOCKS_PER_GROUP)
    }
}

/// Whether `group` has a copy of the superblock: 0, 1 and the powers of 3, 5 and 7 (sparse_super).
pub(crate) fn has_superblock(group: u32) -> bool {
    let power_of = |base: u32| {
        let mut power = base;
        while power < group {
            power = power.saturating_mul(base);
        }
        power == group
    };
    group <= 1 || [3, 5, 7].into_iter().any(power_of)
}

/// Returns the first block of a group.
pub(crate) fn group_start(group: u32) -> u64 {
    u64::from(group) * u64::from(BLOCKS_PER_GROUP)
}

impl Layout {
    /// The layout of a filesystem of `blocks` blocks, one of the geometry's [`Geometry::sizes`]. `None` if the metadata does
    /// not fit.
    pub(crate) fn new(geometry: Geometry, blocks: u64) -> Option<Self> {
        debug_assert!(geometry.sizes().contains(&blocks));
        let copies: Vec<Range<u64>> = geometry
            .copies()
            .map(|group| group_start(group)..group_start(group) + geometry.copy_blocks(group))
            .collect();
        let mut metadata = copies.clone();
        let mut groups = Vec::with_capacity(geometry.groups as usize);
        let mut place = Place { copies: &copies, next: copies[0].end, end: blocks };
        let mut resize_block = None;
        if geometry.reserved_descriptor_blocks > 0 {
            let start = place.claim(1)?;
            metadata.push(start..start + 1);
            resize_block = Some(start);
        }
        for first in (0..geometry.groups).step_by(GROUPS_PER_FLEX as usize) {
            let count = GROUPS_PER_FLEX.min(geometry.groups - first);
            let mut own = Place { copies: &copies, next: group_start(first).max(place.next), end: blocks };
            let claimed = match own.claim_groups(count, geometry.table_blocks()) {
                Some(claimed) => claimed,
                // The last groups have too few blocks for their own metadata, which goes behind that of the groups before.
                None => {
                    own = place;
                    own.claim_groups(count, geometry.table_blocks())?
                }
            };
            place = own;
            for map in claimed {
                metadata.push(map.block_bitmap..map.block_bitmap + 1);
                metadata.push(map.inode_bitmap..map.inode_bitmap + 1);
                metadata.push(map.inode_table..map.inode_table + geometry.table_blocks());
                groups.push(map);
            }
        }
        metadata.sort_unstable_by_key(|range| range.start);
        metadata.dedup_by(|next, joined| {
            let touches = joined.end == next.start;
            if touches {
                joined.end = next.end;
            }
            touches
        });
        Some(Layout { geometry, blocks, groups, resize_block, metadata })
    }

    /// Returns the ranges of blocks that are left for data, ascending.
    pub(crate) fn data(&self) -> Vec<Range<u64>> {
        let starts = std::iter::once(0).chain(self.metadata.iter().map(|range| range.end));
        let ends = self.metadata.iter().map(|range| range.start).chain(std::iter::once(self.blocks));
        starts.zip(ends).filter(|(start, end)| start < end).map(|(start, end)| start..end).collect()
    }

    /// Returns the blocks of `group`; the last one may have fewer than the others.
    pub(crate) fn group_blocks(&self, group: u32) -> u32 {
        let end = group_start(group + 1).min(self.blocks);
        (end - group_start(group)) as u32
    }
}

/// Allocates metadata blocks in ascending order, around the copies of superblock and descriptors.
#[derive(Clone, Copy)]
struct Place<'copies> {
    copies: &'copies [Range<u64>],
    next: u64,
    end: u64,
}

impl Place<'_> {
    /// Allocates `length` adjacent blocks and returns the first.
    fn claim(&mut self, length: u64) -> Option<u64> {
        let mut start = self.next;
        let behind = self.copies.partition_point(|copy| copy.end <= start);
        for copy in &self.copies[behind..] {
            if start + length <= copy.start {
                break;
            }
            start = start.max(copy.end);
        }
        self.next = start + length;
        (self.next <= self.end).then_some(start)
    }

    /// Allocates the bitmaps of `count` groups, then their inode tables.
    fn claim_groups(&mut self, count: u32, table_blocks: u64) -> Option<Vec<GroupMap>> {
        let mut claim_each = |length| (0..count).map(|_| self.claim(length)).collect::<Option<Vec<u64>>>();
        let (blocks, inodes, tables) = (claim_each(1)?, claim_each(1)?, claim_each(table_blocks)?);
        let maps = blocks.into_iter().zip(inodes).zip(tables);
        Some(
            maps.map(|((block_bitmap, inode_bitmap), inode_table)| GroupMap {
                block_bitmap,
                inode_bitmap,
                inode_table,
            })
            .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_the_superblock_are_in_powers_of_three_five_and_seven() {
        let groups: Vec<u32> = (0..130).filter(|&group| has_superblock(group)).collect();
        assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    #[test]
    fn nothing_overlaps_and_nothing_is_lost() {
        for groups in [1, 2, 3, 15, 16, 17, 18, 33, 64, 65, 129] {
            for inodes in [16, 5_000, 57_000, u64::from(MAX_INODES_PER_GROUP) * u64::from(groups)] {
                let Some(geometry) = Geometry::new(groups, inodes, None) else {
                    continue;
                };
                let sizes = geometry.sizes();
                for blocks in [*sizes.start(), sizes.start() + 1, sizes.end() - 1, *sizes.end()] {
                    let Some(layout) = Layout::new(geometry, blocks) else {
                        assert!(geometry.metadata_blocks() * 4 > blocks, "{geometry:?} {blocks}");
                        continue;
                    };
                    assert!(layout.metadata.iter().is_sorted_by(|a, b| a.end < b.start), "{layout:?}");
                    assert!(layout.metadata.last().unwrap().end <= blocks);
                    let metadata: u64 = layout.metadata.iter().map(|range| range.end - range.start).sum();
                    let data: u64 = layout.data().iter().map(|range| range.end - range.start).sum();
                    assert_eq!(metadata, geometry.metadata_blocks());
                    assert_eq!(metadata + data, blocks);
                }
            }
        }
    }

    #[test]
    fn growth_reserves_descriptors() {
        let reserved = |groups, growth| Geometry::new(groups, 16, growth).unwrap().reserved_descriptor_blocks;
        assert_eq!(reserved(9, None), 7);
        assert_eq!(reserved(9, Some(1 << 40)), 127);
        assert_eq!(reserved(9, Some(0)), 0);
        assert_eq!(reserved(160, None), 37);
        assert_eq!(reserved(1, Some(MAX_GROWTH)), 1023);
    }
}
