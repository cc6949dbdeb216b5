//! From counts to places: how large the filesystem is, and which blocks everything gets. After this nothing can fail
//! but reading and writing.

use std::ops::Range;

use snug_rootfs::tree::Kind;

use super::error::Ext4Error;
use super::extents::{MAX_RUN, Run, tree_blocks};
use super::inventory::{Inventory, block_runs};
use super::layout::{Geometry, Layout, MAX_GROWTH};
use super::on_disk::{BLOCK, BLOCKS_PER_GROUP};
use crate::Ext4Options;
use crate::size::{self, Overhead, SizeDecision, SizePolicy, Structure};

/// More blocks than this the writer does not lay out: 16 TiB, where old block maps end.
const MAX_BLOCKS: u64 = 1 << 32;

/// Journal blocks by the size of the filesystem: mke2fs's table (`lib/ext2fs/mkjournal.c`), as (blocks from which it
/// holds, journal blocks). Smaller filesystems get the least that the kernel accepts.
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

/// Names of overheads in a [`SizeDecision`].
pub(crate) mod structure {
    pub(crate) const SUPERBLOCKS: &str = "superblocks and group descriptors";
    pub(crate) const RESERVED_DESCRIPTORS: &str = "descriptors reserved for growth";
    pub(crate) const BITMAPS: &str = "bitmaps";
    pub(crate) const INODE_TABLES: &str = "inode tables";
    pub(crate) const JOURNAL: &str = "journal";
    pub(crate) const RESERVED: &str = "reserved for root";
}

/// Blocks of one inode, as ranges in [`Plan::runs`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Placed {
    pub runs: Range<u32>,
    /// Of the extent tree beside the inode; what is logical in them means nothing.
    pub tree: Range<u32>,
}

/// What is written, and where.
pub(crate) struct Plan<'tree> {
    pub inventory: Inventory<'tree>,
    pub decision: SizeDecision,
    pub layout: Layout,
    pub runs: Vec<Run>,
    /// By index of [`Inventory::nodes`].
    pub places: Vec<Placed>,
    /// By index of [`Inventory::xattr_blocks`].
    pub xattr_places: Vec<u64>,
    pub journal: Option<Placed>,
    /// Every block before this one is in use; behind it only metadata is.
    pub end: u64,
    pub reserved_blocks: u64,
}

/// What decides ext4's overhead at each size.
struct Ext4Overhead<'options> {
    options: &'options Ext4Options,
}

impl Ext4Overhead<'_> {
    fn geometry(&self, blocks: u64, inodes: u64) -> Option<Geometry> {
        let groups = u32::try_from(blocks.div_ceil(u64::from(BLOCKS_PER_GROUP))).ok()?;
        Geometry::new(groups, inodes, self.options.growth).filter(|geometry| geometry.sizes().contains(&blocks))
    }

    fn journal_blocks(&self, blocks: u64) -> u64 {
        let by_size = JOURNALS.iter().find(|(from, _)| blocks >= *from).map_or(0, |(_, journal)| *journal);
        if self.options.journal { by_size } else { 0 }
    }

    fn reserved_blocks(&self, blocks: u64) -> u64 {
        blocks * u64::from(self.options.reserved_percent) / 100
    }
}

impl size::OverheadModel for Ext4Overhead<'_> {
    fn overhead(&self, blocks: u64, inodes: u64) -> Option<Overhead> {
        let geometry = self.geometry(blocks, inodes)?;
        let copies = geometry.copies().count() as u64;
        let reserved = u64::from(geometry.reserved_descriptor_blocks);
        let groups = u64::from(geometry.groups);
        let journal = self.journal_blocks(blocks);
        // A journal of more runs than its inode holds needs a block for them.
        let journal_tree = u64::from(journal > 2 * MAX_RUN);
        Some(Overhead {
            inodes: geometry.inodes(),
            structures: vec![
                Structure::new(structure::SUPERBLOCKS, copies * (1 + u64::from(geometry.descriptor_blocks))),
                Structure::new(structure::RESERVED_DESCRIPTORS, copies * reserved + u64::from(reserved > 0)),
                Structure::new(structure::BITMAPS, 2 * groups),
                Structure::new(structure::INODE_TABLES, groups * geometry.table_blocks()),
                Structure::new(structure::JOURNAL, journal + journal_tree),
                Structure::new(structure::RESERVED, self.reserved_blocks(blocks)),
            ],
        })
    }

    /// Within the same number of groups only journal and reserved blocks change, and they only grow.
    fn monotonic_until(&self, blocks: u64) -> u64 {
        blocks.next_multiple_of(u64::from(BLOCKS_PER_GROUP))
    }
}

impl<'tree> Plan<'tree> {
    /// Finds the smallest filesystem that `policy` allows and gives everything its blocks.
    pub(crate) fn new(
        inventory: Inventory<'tree>,
        policy: &SizePolicy,
        options: &Ext4Options,
    ) -> Result<Self, Ext4Error> {
        let model = Ext4Overhead { options };
        let too_large = || Ext4Error::FilesystemTooLarge { limit: MAX_BLOCKS * BLOCK as u64 };
        if policy.min_size > MAX_BLOCKS * BLOCK as u64 {
            return Err(too_large());
        }
        if let Some(growth) = options.growth.filter(|&growth| growth > MAX_GROWTH) {
            return Err(Ext4Error::Growth { growth, limit: MAX_GROWTH });
        }
        // Reserved inodes and lost+found are in the decision's count; the root is both in the tree and reserved.
        let own_lost_found = u64::from(inventory.lost_found_is_own);
        let inodes = inventory.nodes.len() as u64 - 1 + own_lost_found + size::EXT4_OWN_INODES;
        let everywhere = Allocation::new(&inventory, 0, &[], false);
        let mut policy = policy.clone();
        let mut data_blocks = everywhere.data_blocks;
        loop {
            if data_blocks > MAX_BLOCKS {
                return Err(too_large());
            }
            let decision = size::decide(size::Demand { data_blocks, inodes }, &policy, &model)?;
            let blocks = decision.total_blocks;
            let asked = decision.inodes + decision.free_inodes;
            if blocks > MAX_BLOCKS {
                return Err(too_large());
            }
            let Some(layout) = model.geometry(blocks, asked).and_then(|geometry| Layout::new(geometry, blocks)) else {
                // Inode tables that do not fit between the copies of the superblock: only where nearly all is metadata.
                policy.min_size = (blocks + 1) * BLOCK as u64;
                continue;
            };
            let journal_blocks = model.journal_blocks(blocks);
            let free = layout.data();
            let allocation = Allocation::new(&inventory, journal_blocks, &free, true);
            // Metadata in the way of a file may cut it into more extents than its inode holds.
            if allocation.data_blocks > data_blocks {
                data_blocks = allocation.data_blocks;
                continue;
            }
            debug_assert!(allocation.end <= blocks);
            return Ok(Plan {
                reserved_blocks: model.reserved_blocks(blocks),
                decision,
                layout,
                runs: allocation.runs,
                places: allocation.places,
                xattr_places: allocation.xattr_places,
                journal: allocation.journal,
                end: allocation.end,
                inventory,
            });
        }
    }

    pub(crate) fn runs_of(&self, range: &Range<u32>) -> &[Run] {
        &self.runs[range.start as usize..range.end as usize]
    }

    /// Where the image has the bodies, in bytes: ascending, and neighbours as one.
    pub(crate) fn body_ranges(&self) -> Vec<Range<u64>> {
        let bytes = |blocks: u64| blocks * BLOCK as u64;
        let files = self.inventory.nodes.iter().zip(&self.places);
        let files = files.filter(|(node, _)| matches!(node.inode.kind, Kind::File(_)));
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for run in files.flat_map(|(_, placed)| self.runs_of(&placed.runs)) {
            let (start, end) = (bytes(run.physical), bytes(run.physical + u64::from(run.length)));
            match ranges.last_mut().filter(|last| last.end == start) {
                Some(last) => last.end = end,
                None => ranges.push(start..end),
            }
        }
        ranges
    }

    /// The blocks of an inode's map, in order.
    pub(crate) fn map_places(&self, placed: &Placed) -> impl Iterator<Item = u64> {
        self.places_of(&placed.runs)
    }

    /// The blocks of the tree over an inode's map, in order.
    pub(crate) fn tree_places(&self, placed: &Placed) -> impl Iterator<Item = u64> {
        self.places_of(&placed.tree)
    }

    fn places_of(&self, range: &Range<u32>) -> impl Iterator<Item = u64> {
        self.runs_of(range).iter().flat_map(|run| run.physical..run.physical + u64::from(run.length))
    }

    /// Blocks of the journal that `placed` is, without a tree over them.
    pub(crate) fn journal_blocks(&self, placed: &Placed) -> u64 {
        self.runs_of(&placed.runs).iter().map(|run| u64::from(run.length)).sum()
    }

    /// Blocks of an inode's map and of the tree over it.
    pub(crate) fn blocks_of(&self, placed: &Placed) -> u64 {
        [&placed.runs, &placed.tree]
            .into_iter()
            .flat_map(|range| self.runs_of(range))
            .map(|run| u64::from(run.length))
            .sum()
    }
}

/// Everything gets the next free blocks, in this order: directories, shared attributes, symlinks, journal, files.
/// What the kernel reads to find files thus lies together, and the bodies can be written in one sweep.
#[derive(Default)]
struct Allocation {
    places: Vec<Placed>,
    xattr_places: Vec<u64>,
    journal: Option<Placed>,
    runs: Vec<Run>,
    /// First block that was not given away.
    end: u64,
    /// Blocks given away, the journal's not counted.
    data_blocks: u64,
}

impl Allocation {
    /// Takes blocks from the ranges of `free` and, where they are not enough, from behind the last. Only counts unless
    /// `record`ing.
    fn new(inventory: &Inventory, journal_blocks: u64, free: &[Range<u64>], record: bool) -> Self {
        let mut taker = Taker { free, next: 0, runs: Vec::new(), count: 0, taken: 0, record };
        taker.enter(0);
        let mut places = vec![Placed::default(); if record { inventory.nodes.len() } else { 0 }];
        let mut keep = |at: usize, placed: Placed| {
            if record {
                places[at] = placed;
            }
        };
        for (at, directory) in inventory.directories() {
            keep(at, taker.place(std::iter::once((0, directory.blocks() as u64))));
        }
        let xattr_places = inventory.xattr_blocks.iter().map(|_| taker.take_one()).collect();
        for &at in &inventory.long_symlinks {
            keep(at as usize, taker.place(std::iter::once((0, 1))));
        }
        let before_journal = taker.taken;
        let journal = (journal_blocks > 0).then(|| taker.place(std::iter::once((0, journal_blocks))));
        let journal_blocks = taker.taken - before_journal;
        for (at, node) in inventory.nodes.iter().enumerate() {
            if let Kind::File(body) = &node.inode.kind {
                keep(at, taker.place(block_runs(body)));
            }
        }
        Allocation {
            places,
            xattr_places,
            journal,
            end: taker.next,
            data_blocks: taker.taken - journal_blocks,
            runs: taker.runs,
        }
    }
}

/// Gives away free blocks from front to back.
struct Taker<'free> {
    /// The range that `next` is in, and those behind it.
    free: &'free [Range<u64>],
    next: u64,
    runs: Vec<Run>,
    /// Of runs, recorded or not.
    count: u32,
    /// Of blocks.
    taken: u64,
    record: bool,
}

impl Taker<'_> {
    /// Goes to the range at index `at`.
    fn enter(&mut self, at: usize) {
        self.free = &self.free[at.min(self.free.len())..];
        if let Some(range) = self.free.first() {
            self.next = range.start;
        }
    }

    /// Up to `blocks` neighbouring blocks: the first, and how many.
    fn take(&mut self, blocks: u64) -> (u64, u64) {
        while self.free.first().is_some_and(|range| range.end == self.next) {
            if self.free.len() == 1 {
                // Behind the last range: more than the filesystem has, which the count will show.
                self.free = &[];
            } else {
                self.enter(1);
            }
        }
        let left = self.free.first().map_or(u64::MAX, |range| range.end - self.next);
        let length = blocks.min(left).min(MAX_RUN);
        let start = self.next;
        self.next += length;
        self.taken += length;
        (start, length)
    }

    fn take_one(&mut self) -> u64 {
        self.take(1).0
    }

    fn take_runs(&mut self, mut logical: u64, mut blocks: u64) {
        while blocks > 0 {
            let (physical, length) = self.take(blocks);
            if self.record {
                // Files end below 2^32 blocks, runs at MAX_RUN.
                self.runs.push(Run { logical: logical as u32, length: length as u32, physical });
            }
            self.count += 1;
            logical += length;
            blocks -= length;
        }
    }

    /// Blocks for all (logical, length) runs of an inode, and for the tree over them.
    fn place(&mut self, wanted: impl Iterator<Item = (u64, u64)>) -> Placed {
        let start = self.count;
        for (logical, blocks) in wanted {
            self.take_runs(logical, blocks);
        }
        let end = self.count;
        self.take_runs(0, tree_blocks((end - start) as usize));
        Placed { runs: start..end, tree: end..self.count }
    }
}
