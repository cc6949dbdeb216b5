//! Where the metadata of the block groups is in a filesystem of a given size, and which blocks are left for data (kernel
//! documentation, `blockgroup.rst`, "Flexible Block Groups"; `super.rst`).

use std::ops::Range;

use super::on_disk::{ADDRESSES_PER_BLOCK, BLOCK, DESCRIPTORS_PER_BLOCK, INODES_PER_BLOCK};
use crate::size::WHOLE_GROUP;

/// log2 of the groups whose bitmaps and inode tables are kept together: mke2fs's 16.
pub(crate) const LOG_GROUPS_PER_FLEX: u8 = 4;
const GROUPS_PER_FLEX: u32 = 1 << LOG_GROUPS_PER_FLEX;
/// Inode numbers have 32 bits.
const MAX_INODES: u64 = u32::MAX as u64;
/// As many inodes as a bitmap block has bits.
pub(crate) const MAX_INODES_PER_GROUP: u32 = (BLOCK * 8) as u32;
/// Reserved descriptor blocks that the doubly indirect block of the resize inode can list.
const MAX_RESERVED: u32 = ADDRESSES_PER_BLOCK;
/// By default a filesystem can grow to 16 times its size, and at least to 64 GiB.
const DEFAULT_GROWTH_FACTOR: u64 = 16;
const DEFAULT_GROWTH: u64 = 64 << 30;
/// The largest size in bytes for which descriptors can be reserved, with whole groups.
pub(crate) const MAX_GROWTH: u64 = MAX_RESERVED as u64 * DESCRIPTORS_PER_BLOCK as u64 * group_bytes(WHOLE_GROUP);

/// What the filesystems with the same number of groups of the same size have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Blocks of every group but the last, which may have fewer.
    pub blocks_per_group: u32,
    pub groups: u32,
    /// A multiple of the inodes in a block.
    pub inodes_per_group: u32,
    /// Blocks of the descriptor table, in each copy.
    pub descriptor_blocks: u32,
    /// Blocks reserved for descriptors of later groups, in each copy.
    pub reserved_descriptor_blocks: u32,
}

/// There is no geometry with so few groups of this size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooFewGroups {
    /// With fewer than these there is none; [`u64::MAX`] if there is none with any number.
    pub at_least: u64,
}

const NO_NUMBER_OF_GROUPS: TooFewGroups = TooFewGroups { at_least: u64::MAX };

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
    /// The geometry for at least `inodes` inodes that can grow to `growth` bytes ([`crate::Ext4Options::growth`]).
    ///
    /// Every group has space for its own metadata and a copy of superblock and descriptors. ext4 could put them elsewhere,
    /// but mke2fs makes no such groups, and those that are added when the filesystem grows would have nothing to give.
    pub(crate) fn new(
        blocks_per_group: u32,
        groups: u32,
        inodes: u64,
        growth: Option<u64>,
    ) -> Result<Self, TooFewGroups> {
        if inodes > MAX_INODES {
            return Err(NO_NUMBER_OF_GROUPS);
        }
        let group_bytes = group_bytes(blocks_per_group);
        let descriptor_blocks = groups.div_ceil(DESCRIPTORS_PER_BLOCK);
        let descriptors_for = |bytes: u64| bytes.div_ceil(group_bytes).div_ceil(u64::from(DESCRIPTORS_PER_BLOCK));
        let mut target = descriptors_for(growth.unwrap_or(DEFAULT_GROWTH).min(MAX_GROWTH));
        if target > u64::from(MAX_RESERVED) {
            return Err(NO_NUMBER_OF_GROUPS);
        }
        if growth.is_none() {
            let size = u64::from(groups) * group_bytes;
            let multiple = descriptors_for(size.saturating_mul(DEFAULT_GROWTH_FACTOR));
            target = target.max(multiple.min(u64::from(MAX_RESERVED)));
        }
        let reserved = (target as u32).saturating_sub(descriptor_blocks);
        // The copy, and two bitmaps.
        let other = 1 + descriptor_blocks + reserved + 2;
        let max_inodes = blocks_per_group.saturating_sub(other).saturating_mul(INODES_PER_BLOCK);
        let max_inodes = u64::from(max_inodes.min(MAX_INODES_PER_GROUP));
        let inodes_per_group = inodes.div_ceil(u64::from(groups)).next_multiple_of(u64::from(INODES_PER_BLOCK));
        // With more groups, descriptors take no less.
        if max_inodes == 0 || inodes_per_group * u64::from(groups) > MAX_INODES {
            return Err(NO_NUMBER_OF_GROUPS);
        }
        if inodes_per_group > max_inodes {
            return Err(TooFewGroups { at_least: inodes.div_ceil(max_inodes).max(u64::from(groups) + 1) });
        }
        Ok(Geometry {
            blocks_per_group,
            groups,
            inodes_per_group: inodes_per_group as u32,
            descriptor_blocks,
            reserved_descriptor_blocks: reserved,
        })
    }

    /// Returns the inodes of all groups.
    pub(crate) fn inodes(&self) -> u64 {
        u64::from(self.inodes_per_group) * u64::from(self.groups)
    }

    /// Returns the blocks of one group's inode table.
    pub(crate) fn table_blocks(&self) -> u64 {
        u64::from(self.inodes_per_group / INODES_PER_BLOCK)
    }

    /// Returns the first block of a group.
    pub(crate) fn group_start(&self, group: u32) -> u64 {
        u64::from(group) * u64::from(self.blocks_per_group)
    }

    /// Returns the blocks of superblock, descriptors and reserved descriptors, in each copy of them.
    fn copy_blocks(&self) -> u64 {
        1 + u64::from(self.descriptor_blocks) + u64::from(self.reserved_descriptor_blocks)
    }

    /// Returns the groups with a copy of the superblock, at their start: 0, 1 and the powers of 3, 5 and 7 (sparse_super).
    pub(crate) fn copies(&self) -> Vec<u32> {
        let powers = |base: u32| std::iter::successors(Some(base), move |power| power.checked_mul(base));
        let mut copies = vec![0, 1];
        for base in [3, 5, 7] {
            copies.extend(powers(base).take_while(|&group| group < self.groups));
        }
        copies.truncate(copies.len().min(self.groups as usize));
        copies.sort_unstable();
        copies
    }

    /// Returns the blocks of all copies, ascending.
    fn copy_ranges(&self) -> Vec<Range<u64>> {
        let range = |group| self.group_start(group)..self.group_start(group) + self.copy_blocks();
        self.copies().into_iter().map(range).collect()
    }

    /// Returns the blocks of all group metadata.
    pub(crate) fn metadata_blocks(&self) -> u64 {
        self.copies().len() as u64 * self.copy_blocks() + self.blocks_between_copies()
    }

    /// Returns the blocks of bitmaps, inode tables and the resize inode's map.
    fn blocks_between_copies(&self) -> u64 {
        u64::from(self.groups) * (2 + self.table_blocks()) + u64::from(self.reserved_descriptor_blocks > 0)
    }

    /// Returns the sizes, in blocks, of filesystems with this many groups whose last group has space for its superblock copy.
    pub(crate) fn sizes(&self) -> std::ops::RangeInclusive<u64> {
        let last = self.groups - 1;
        let least = if has_superblock(last) { self.copy_blocks() } else { 1 };
        self.group_start(last) + least..=self.group_start(last) + u64::from(self.blocks_per_group)
    }

    /// Returns the first of the [`Self::sizes`] from `blocks` on at which the inode tables fit between the copies, each in one
    /// piece, or the size behind the last one.
    pub(crate) fn tables_fit_from(&self, blocks: u64) -> u64 {
        let tables = |range: &Range<u64>| (range.end - range.start) / self.table_blocks();
        let gaps = gaps(&self.copy_ranges(), blocks);
        let fit: u64 = gaps.iter().map(tables).sum();
        let missing = u64::from(self.groups).saturating_sub(fit);
        let Some(last) = gaps.last().filter(|_| missing > 0) else { return blocks };
        let needed = last.start + (tables(last) + missing) * self.table_blocks();
        needed.min(self.sizes().end() + 1)
    }
}

/// Returns the bytes of a group.
const fn group_bytes(blocks_per_group: u32) -> u64 {
    blocks_per_group as u64 * BLOCK as u64
}

/// Returns the ranges before `end` that are in none of `taken`, which are ascending and begin at zero. The last one may be
/// empty.
fn gaps(taken: &[Range<u64>], end: u64) -> Vec<Range<u64>> {
    let ends = taken.iter().skip(1).map(|range| range.start).chain(std::iter::once(end));
    taken.iter().zip(ends).map(|(range, end)| range.end..end).collect()
}

/// Whether `group` has a copy of the superblock ([`Geometry::copies`]).
fn has_superblock(group: u32) -> bool {
    let power_of = |base: u32| {
        let mut power = base;
        while power < group {
            power = power.saturating_mul(base);
        }
        power == group
    };
    group <= 1 || [3, 5, 7].into_iter().any(power_of)
}

impl Layout {
    /// The layout of a filesystem of `blocks` blocks, one of the geometry's [`Geometry::sizes`]. `None` if the metadata does
    /// not fit.
    pub(crate) fn new(geometry: Geometry, blocks: u64) -> Option<Self> {
        debug_assert!(geometry.sizes().contains(&blocks));
        let copies = geometry.copy_ranges();
        let (resize_block, groups) =
            side_by_side(&geometry, &copies, blocks).or_else(|| packed(&geometry, &copies, blocks))?;
        let single = |block: u64| block..block + 1;
        let mut metadata = copies;
        metadata.extend(resize_block.map(single));
        for map in &groups {
            metadata.extend([single(map.block_bitmap), single(map.inode_bitmap)]);
            metadata.push(map.inode_table..map.inode_table + geometry.table_blocks());
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
        let start = self.geometry.group_start(group);
        (self.blocks - start).min(u64::from(self.geometry.blocks_per_group)) as u32
    }
}

/// The resize inode's block and the maps of all groups.
type Placed = (Option<u64>, Vec<GroupMap>);

/// Keeps bitmaps and inode tables of [`GROUPS_PER_FLEX`] groups together, as mke2fs does, which leaves the gaps that are too
/// short for a table. `None` if there is not enough space for that.
fn side_by_side(geometry: &Geometry, copies: &[Range<u64>], blocks: u64) -> Option<Placed> {
    let mut groups = Vec::with_capacity(geometry.groups as usize);
    let mut place = Place { copies, next: copies[0].end, end: blocks };
    let mut resize_block = None;
    if geometry.reserved_descriptor_blocks > 0 {
        resize_block = Some(place.claim(1)?);
    }
    for first in (0..geometry.groups).step_by(GROUPS_PER_FLEX as usize) {
        let count = GROUPS_PER_FLEX.min(geometry.groups - first);
        let mut own = Place { next: geometry.group_start(first).max(place.next), ..place };
        let claimed = match own.claim_groups(count, geometry.table_blocks()) {
            Some(claimed) => claimed,
            // The last groups have too few blocks for their own metadata, which goes behind that of the groups before.
            None => {
                own = place;
                own.claim_groups(count, geometry.table_blocks())?
            }
        };
        place = own;
        groups.extend(claimed);
    }
    Some((resize_block, groups))
}

/// Packs the inode tables of all groups between the copies of superblock and descriptors, and fills what they leave with
/// everything that takes one block: succeeds wherever [`Geometry::tables_fit_from`] says so and the blocks suffice.
fn packed(geometry: &Geometry, copies: &[Range<u64>], blocks: u64) -> Option<Placed> {
    let (mut tables, mut singles) = (Vec::new(), Vec::new());
    for mut gap in gaps(copies, blocks) {
        while tables.len() < geometry.groups as usize && gap.end - gap.start >= geometry.table_blocks() {
            tables.push(gap.start);
            gap.start += geometry.table_blocks();
        }
        singles.push(gap);
    }
    let mut singles = singles.into_iter().flatten();
    let resize_block = if geometry.reserved_descriptor_blocks > 0 { Some(singles.next()?) } else { None };
    let groups: Vec<GroupMap> = tables
        .into_iter()
        .map_while(|inode_table| {
            Some(GroupMap { block_bitmap: singles.next()?, inode_bitmap: singles.next()?, inode_table })
        })
        .collect();
    (groups.len() == geometry.groups as usize).then_some((resize_block, groups))
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
        let geometry = Geometry::new(WHOLE_GROUP, 130, 16, None).unwrap();
        assert_eq!(geometry.copies(), [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
        for groups in 1..130 {
            let geometry = Geometry { groups, ..geometry };
            assert!(geometry.copies().into_iter().eq((0..groups).filter(|&group| has_superblock(group))));
        }
    }

    /// Checks the layout of every size that is tried, and that the smallest one with one exists.
    fn is_sound(geometry: Geometry) {
        let sizes = geometry.sizes();
        let fits = geometry.metadata_blocks().clamp(*sizes.start(), *sizes.end());
        let fits = geometry.tables_fit_from(fits).min(*sizes.end());
        for blocks in [*sizes.start(), sizes.start() + 1, fits - 1, fits, fits + 1, sizes.end() - 1, *sizes.end()] {
            if !sizes.contains(&blocks) {
                continue;
            }
            let possible = geometry.metadata_blocks() <= blocks && geometry.tables_fit_from(blocks) <= blocks;
            let layout = Layout::new(geometry, blocks);
            assert_eq!(layout.is_some(), possible, "{geometry:?} {blocks}");
            let Some(layout) = layout else { continue };
            assert!(layout.metadata.iter().is_sorted_by(|a, b| a.end < b.start), "{layout:?}");
            assert!(layout.metadata.last().unwrap().end <= blocks);
            let metadata: u64 = layout.metadata.iter().map(|range| range.end - range.start).sum();
            let data: u64 = layout.data().iter().map(|range| range.end - range.start).sum();
            assert_eq!(metadata, geometry.metadata_blocks());
            assert_eq!(metadata + data, blocks);
        }
    }

    #[test]
    fn nothing_overlaps_and_nothing_is_lost() {
        for blocks_per_group in [256, 264, 520, 1024, 2100, 2184, 4096, 20_000, WHOLE_GROUP] {
            for groups in [1, 2, 3, 15, 16, 17, 18, 33, 64, 65, 129] {
                let densest = u64::from(MAX_INODES_PER_GROUP.min(blocks_per_group * 16)) * u64::from(groups);
                for inodes in [16, 5_000, 57_000, densest / 2, densest - 300 * u64::from(groups), densest] {
                    for growth in [None, Some(0)] {
                        if let Ok(geometry) = Geometry::new(blocks_per_group, groups, inodes, growth) {
                            is_sound(geometry);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn growth_reserves_descriptors() {
        let reserved =
            |groups, growth| Geometry::new(WHOLE_GROUP, groups, 16, growth).unwrap().reserved_descriptor_blocks;
        assert_eq!(reserved(9, None), 7);
        assert_eq!(reserved(9, Some(1 << 40)), 127);
        assert_eq!(reserved(9, Some(0)), 0);
        assert_eq!(reserved(160, None), 37);
        assert_eq!(reserved(1, Some(MAX_GROWTH)), 1023);
        // Smaller groups need more descriptors for as many bytes.
        let small = |blocks, growth| Geometry::new(blocks, 9, 16, growth).map(|it| it.reserved_descriptor_blocks);
        assert_eq!(small(4096, None), Ok(63));
        assert_eq!(small(4096, Some(1 << 40)), Ok(1023));
        assert_eq!(small(4096, Some((1 << 40) + 1)), Err(NO_NUMBER_OF_GROUPS));
        // Sixteen times the size is for as long as descriptors can be reserved.
        let reserved = |blocks| Geometry::new(blocks, 10_000, 16, None).unwrap().reserved_descriptor_blocks;
        assert_eq!([reserved(4096), reserved(WHOLE_GROUP)], [1024 - 157; 2]);
    }

    #[test]
    fn groups_hold_their_own_metadata() {
        // 3 blocks, one of descriptors, and none reserved; then a table of 252 blocks fills a group of 256.
        let groups = |inodes| Geometry::new(256, 4, inodes, Some(0)).map(|geometry| geometry.table_blocks());
        assert_eq!(groups(4 * 252 * 16), Ok(252));
        assert_eq!(groups(4 * 252 * 16 + 1), Err(TooFewGroups { at_least: 5 }));
        assert_eq!(groups(40 * 252 * 16), Err(TooFewGroups { at_least: 40 }));
        // Descriptors for 64 GiB do not fit such groups.
        assert_eq!(Geometry::new(256, 4, 16, None), Err(NO_NUMBER_OF_GROUPS));
        let whole = Geometry::new(WHOLE_GROUP, 2, 2 * 32768 + 1, None);
        assert_eq!(whole, Err(TooFewGroups { at_least: 3 }));
    }
}
