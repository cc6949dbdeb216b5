//! What the filesystems that this crate writes spend on themselves, as a function of their size.

use super::extents::MAX_RUN;
use super::layout::{Geometry, TooFewGroups};
use crate::Ext4Options;
use crate::size::{NoFilesystem, Overhead, OverheadModel, Structure, WHOLE_GROUP};

/// Journal blocks by the size of the filesystem, as (blocks of the filesystem from which on, journal blocks): mke2fs's table
/// (`lib/ext2fs/mkjournal.c`), except that the smallest filesystems get the smallest journal that the kernel accepts.
const JOURNALS: [(u64, u64); 8] = [
    (1 << 25, 262_144),
    (1 << 24, 131_072),
    (1 << 23, 65_536),
    (1 << 22, 32_768),
    (1 << 19, 16_384),
    (1 << 18, 8_192),
    (1 << 15, 4_096),
    (0, 1_024),
];

/// The smallest block groups that `mke2fs -g` makes, and what it wants them to be a multiple of.
const SMALLEST_GROUP: u32 = 256;
const GROUP_STEP: usize = 8;

/// Names of the overheads in a [`crate::size::SizeDecision`].
pub(crate) mod structure {
    pub(crate) const SUPERBLOCKS: &str = "superblocks and group descriptors";
    pub(crate) const RESERVED_DESCRIPTORS: &str = "descriptors reserved for growth";
    pub(crate) const BITMAPS: &str = "bitmaps";
    pub(crate) const INODE_TABLES: &str = "inode tables";
    pub(crate) const JOURNAL: &str = "journal";
    pub(crate) const RESERVED: &str = "reserved for root";
}

/// The overhead of the filesystems that this crate writes.
pub(crate) struct Ext4Overhead<'options> {
    options: &'options Ext4Options,
    /// Blocks of the journal's extent tree that an allocation needed.
    pub journal_tree: u64,
}

impl<'options> Ext4Overhead<'options> {
    pub(crate) fn new(options: &'options Ext4Options) -> Self {
        Ext4Overhead { options, journal_tree: 0 }
    }

    /// Returns the geometry of a filesystem of exactly so many blocks, whose metadata may not fit nevertheless.
    pub(crate) fn geometry(&self, blocks: u64, blocks_per_group: u32, inodes: u64) -> Result<Geometry, NoFilesystem> {
        let group = u64::from(blocks_per_group);
        let too_large = NoFilesystem { below: u64::MAX };
        let groups = u32::try_from(blocks.div_ceil(group)).map_err(|_| too_large)?;
        let geometry = Geometry::new(blocks_per_group, groups, inodes, self.options.growth);
        let geometry = geometry.map_err(|TooFewGroups { at_least }| NoFilesystem {
            below: (at_least - 1).saturating_mul(group).saturating_add(1),
        })?;
        let least = *geometry.sizes().start();
        if blocks < least { Err(NoFilesystem { below: least }) } else { Ok(geometry) }
    }

    /// Returns the blocks of the journal, without those of its extent tree.
    pub(crate) fn journal_blocks(&self, blocks: u64) -> u64 {
        let by_size = JOURNALS.iter().find(|(from, _)| blocks >= *from).map_or(0, |(_, journal)| *journal);
        if self.options.journal { by_size } else { 0 }
    }

    /// Returns the blocks of the extent tree of a journal of so many blocks: it may be split into more extents than its inode
    /// holds.
    pub(crate) fn journal_tree_blocks(&self, journal: u64) -> u64 {
        self.journal_tree.max(u64::from(journal > 2 * MAX_RUN))
    }

    /// Returns the blocks reserved for root.
    pub(crate) fn reserved_blocks(&self, blocks: u64) -> u64 {
        blocks * u64::from(self.options.reserved_percent) / 100
    }
}

impl OverheadModel for Ext4Overhead<'_> {
    fn overhead(&self, blocks: u64, blocks_per_group: u32, inodes: u64) -> Result<Overhead, NoFilesystem> {
        let geometry = self.geometry(blocks, blocks_per_group, inodes)?;
        if geometry.metadata_blocks() <= blocks {
            let below = geometry.tables_fit_from(blocks);
            if below > blocks {
                return Err(NoFilesystem { below });
            }
        }
        let copies = geometry.copies().len() as u64;
        let reserved = u64::from(geometry.reserved_descriptor_blocks);
        let groups = u64::from(geometry.groups);
        let journal = self.journal_blocks(blocks);
        Ok(Overhead {
            inodes: geometry.inodes(),
            blocks_per_group,
            structures: vec![
                Structure::new(structure::SUPERBLOCKS, copies * (1 + u64::from(geometry.descriptor_blocks))),
                Structure::new(structure::RESERVED_DESCRIPTORS, copies * reserved + u64::from(reserved > 0)),
                Structure::new(structure::BITMAPS, 2 * groups),
                Structure::new(structure::INODE_TABLES, groups * geometry.table_blocks()),
                Structure::new(structure::JOURNAL, journal + self.journal_tree_blocks(journal)),
                Structure::new(structure::RESERVED, self.reserved_blocks(blocks)),
            ],
        })
    }

    fn smaller_groups(&self) -> Vec<u32> {
        (SMALLEST_GROUP..WHOLE_GROUP).step_by(GROUP_STEP).rev().collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layout::Layout;
    use crate::size::{Demand, Headroom, Rule, SizeDecision, SizeError, SizePolicy, decide};

    /// Returns the blocks without a purpose in a filesystem of this size; `None` if it does not hold what is decided.
    fn left_over(model: &Ext4Overhead, blocks: u64, group: u32, decision: &SizeDecision) -> Option<u64> {
        let inodes = decision.inodes + decision.free_inodes;
        let overhead = model.overhead(blocks, group, inodes).ok()?;
        let used = decision.data_blocks + decision.free_blocks + overhead.blocks();
        let geometry = model.geometry(blocks, group, inodes).unwrap();
        let left = blocks.checked_sub(used).filter(|_| overhead.inodes >= inodes)?;
        assert!(Layout::new(geometry, blocks).is_some(), "{geometry:?} has no layout in {blocks} blocks");
        Some(left)
    }

    /// Checks a decision against all filesystems that have up to `depth` blocks fewer.
    fn is_smallest(options: &Ext4Options, demand: Demand, policy: &SizePolicy, depth: u64) {
        let model = Ext4Overhead::new(options);
        let decision = decide(demand, policy, &model).unwrap();
        let (total, own) = (decision.total_blocks, decision.blocks_per_group);
        let left = left_over(&model, total, own, &decision).unwrap();
        let floor = policy.min_size.div_ceil(4096);
        assert!(total == floor || decision.rule == Rule::Content, "{decision:?}");
        if own == WHOLE_GROUP && (left == 0 || total == floor) {
            return;
        }
        // One group that is larger than the filesystem is like any other.
        let groups = (SMALLEST_GROUP..=WHOLE_GROUP).step_by(GROUP_STEP);
        for group in groups.filter(|&group| u64::from(group) < total + GROUP_STEP as u64 || group == WHOLE_GROUP) {
            for blocks in floor.max(total.saturating_sub(depth)).max(1)..total {
                let left = left_over(&model, blocks, group, &decision);
                assert_eq!(left, None, "{blocks} blocks in groups of {group} suffice, not {decision:?}");
            }
            let as_good = group > own && left_over(&model, total, group, &decision).is_some();
            assert!(!as_good, "groups of {group} blocks are larger than those of {decision:?}");
        }
    }

    #[test]
    fn no_groups_of_any_size_make_a_smaller_filesystem() {
        let none = SizePolicy { headroom: Headroom::NONE, ..SizePolicy::default() };
        for (journal, growth) in [(false, Some(0)), (false, None), (true, None)] {
            let options = Ext4Options { journal, growth, ..Ext4Options::default() };
            for (data_blocks, inodes) in [(5, 32_769), (5, 66_000), (300, 40_000)] {
                is_smallest(&options, Demand { data_blocks, inodes }, &none, u64::MAX);
            }
        }
    }

    #[test]
    fn more_inodes_than_have_numbers_are_in_no_filesystem() {
        let (options, demand) = (Ext4Options::default(), Demand { data_blocks: 5, inodes: 11 });
        for free_inodes in [1 << 32, u64::MAX / 2, u64::MAX - 26, u64::MAX - 11, u64::MAX] {
            let policy = SizePolicy { free_inodes: Some(free_inodes), ..SizePolicy::default() };
            let decided = decide(demand, &policy, &Ext4Overhead::new(&options));
            assert_eq!(decided, Err(SizeError::Unrepresentable { data_blocks: 5, inodes: 11 }), "{free_inodes}");
        }
    }

    #[test]
    fn content_that_ends_just_behind_a_group_leaves_no_block_either() {
        let options = Ext4Options { journal: false, ..Ext4Options::default() };
        let none = SizePolicy { headroom: Headroom::NONE, ..SizePolicy::default() };
        let model = Ext4Overhead::new(&options);
        for data_blocks in 32_750..32_770 {
            let decision = decide(Demand { data_blocks, inodes: 12 }, &none, &model).unwrap();
            let left = left_over(&model, decision.total_blocks, decision.blocks_per_group, &decision);
            assert_eq!(left, Some(0), "{decision:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_numbers_overflow(
            data_blocks in any_size(), inodes in any_size(), millionths: u32, min_size in any_size(),
            free_inodes in prop::option::of(any_size()), growth in prop::option::of(any_size()), journal: bool,
        ) {
            let policy = SizePolicy { min_size, max_size: None, headroom: Headroom { millionths }, free_inodes };
            let options = Ext4Options { journal, growth, ..Ext4Options::default() };
            // Every filesystem has the eleven inodes that are reserved.
            let demand = Demand { data_blocks, inodes: inodes.max(11) };
            let _ = decide(demand, &policy, &Ext4Overhead::new(&options));
        }
    }

    /// All powers of two, and their neighbours: most numbers of 64 bits are simply too large.
    fn any_size() -> impl Strategy<Value = u64> {
        (0..=u64::BITS, 0..40_u64, any::<bool>()).prop_map(|(bits, near, above)| {
            let power = 1_u64.checked_shl(bits).unwrap_or(u64::MAX);
            if above { power.saturating_add(near) } else { power.saturating_sub(near) }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

        /// Trees with far more inodes than blocks; and what the inodes need is all that is spent on them.
        #[test]
        fn many_inodes_take_no_more_blocks_than_they_need(
            data_blocks in 5..6000_u64, inodes in 20_000..600_000_u64, millionths in 1_000_000..1_600_000_u32,
            journal: bool, reserved_percent in 0..10_u8, min_size in prop_oneof![Just(0), 0..200_000_000_u64],
            growth in prop_oneof![Just(None), Just(Some(0)), Just(Some(100 << 30))],
        ) {
            let options = Ext4Options { journal, reserved_percent, growth, ..Ext4Options::default() };
            let policy = SizePolicy { headroom: Headroom { millionths }, min_size, ..SizePolicy::default() };
            // A directory entry has at least 12 bytes.
            let data_blocks = data_blocks + inodes * 12 / 4096;
            is_smallest(&options, Demand { data_blocks, inodes }, &policy, 24);
            let model = Ext4Overhead::new(&options);
            let decision = decide(Demand { data_blocks, inodes }, &policy, &model).unwrap();
            let tables = decision.overhead.iter().find(|structure| structure.name == structure::INODE_TABLES);
            let (tables, groups) = (tables.unwrap().blocks, decision.total_blocks.div_ceil(decision.blocks_per_group.into()));
            prop_assert!(tables < (decision.inodes + decision.free_inodes).div_ceil(16) + groups);
        }
    }
}
