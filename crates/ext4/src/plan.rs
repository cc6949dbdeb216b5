//! Decides the size of the filesystem and allocates every block. After this, only I/O can fail.

use std::ops::Range;

use snug_rootfs::tree::Kind;

use super::error::Ext4Error;
use super::extents::{MAX_RUN, Run, tree_blocks};
use super::inventory::{Inventory, block_runs};
use super::layout::{Layout, MAX_GROWTH};
use super::on_disk::BLOCK;
use super::overhead::Ext4Overhead;
use crate::Ext4Options;
use crate::size::{self, SizeDecision, SizePolicy};

/// The largest filesystem that is written: 16 TiB, where the 32-bit block numbers of the resize inode end.
const MAX_BLOCKS: u64 = 1 << 32;

/// The blocks of one inode, as ranges of indices in [`Plan::runs`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Placed {
    pub runs: Range<u32>,
    /// The blocks of the extent tree outside the inode; their logical numbers have no meaning.
    pub tree: Range<u32>,
}

/// Everything that is written, and where.
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
    /// Every block before this one is in use; from here on, only metadata.
    pub end: u64,
    pub reserved_blocks: u64,
}

impl<'tree> Plan<'tree> {
    /// Finds the smallest filesystem that `policy` allows and allocates its blocks.
    pub(crate) fn new(
        inventory: Inventory<'tree>,
        policy: &SizePolicy,
        options: &Ext4Options,
    ) -> Result<Self, Ext4Error> {
        let mut model = Ext4Overhead::new(options);
        let too_large = || Ext4Error::FilesystemTooLarge { limit: MAX_BLOCKS * BLOCK as u64 };
        if policy.min_size > MAX_BLOCKS * BLOCK as u64 {
            return Err(too_large());
        }
        if let Some(growth) = options.growth.filter(|&growth| growth > MAX_GROWTH) {
            return Err(Ext4Error::Growth { growth, limit: MAX_GROWTH });
        }
        // A lost+found that the tree does not have is in `nodes` as well as in EXT4_OWN_INODES.
        let tree_inodes = inventory.nodes.len() as u64 - u64::from(!inventory.tree_has_lost_found);
        let inodes = tree_inodes + size::EXT4_OWN_INODES;
        let everywhere = Allocation::new(&inventory, 0, &[], false);
        let mut data_blocks = everywhere.data_blocks;
        loop {
            if data_blocks > MAX_BLOCKS {
                return Err(too_large());
            }
            let decision = size::decide(size::Demand { data_blocks, inodes }, policy, &model)?;
            let blocks = decision.total_blocks;
            let asked = decision.inodes + decision.free_inodes;
            if blocks > MAX_BLOCKS {
                return Err(too_large());
            }
            let geometry = model.geometry(blocks, decision.blocks_per_group, asked);
            let layout = geometry.ok().and_then(|geometry| Layout::new(geometry, blocks));
            let layout = layout.expect("the model has an overhead only for what can be laid out");
            let journal_blocks = model.journal_blocks(blocks);
            let free = layout.data();
            let allocation = Allocation::new(&inventory, journal_blocks, &free, true);
            // Group metadata may split a file into more extents than its inode holds.
            if allocation.data_blocks > data_blocks {
                data_blocks = allocation.data_blocks;
                continue;
            }
            if allocation.journal_tree > model.journal_tree_blocks(journal_blocks) {
                model.journal_tree = allocation.journal_tree;
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

    /// Returns the ranges of the image, in bytes, that hold file contents: ascending, adjacent ones merged.
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

    /// Returns the blocks that an inode maps, in order.
    pub(crate) fn map_places(&self, placed: &Placed) -> impl Iterator<Item = u64> {
        self.places_of(&placed.runs)
    }

    /// Returns the blocks of an inode's extent tree, in order.
    pub(crate) fn tree_places(&self, placed: &Placed) -> impl Iterator<Item = u64> {
        self.places_of(&placed.tree)
    }

    fn places_of(&self, range: &Range<u32>) -> impl Iterator<Item = u64> {
        self.runs_of(range).iter().flat_map(|run| run.physical..run.physical + u64::from(run.length))
    }

    /// Returns the number of blocks of the journal, without those of its extent tree.
    pub(crate) fn journal_blocks(&self, placed: &Placed) -> u64 {
        self.runs_of(&placed.runs).iter().map(|run| u64::from(run.length)).sum()
    }

    /// Returns the number of blocks of an inode, those of its extent tree included.
    pub(crate) fn blocks_of(&self, placed: &Placed) -> u64 {
        [&placed.runs, &placed.tree]
            .into_iter()
            .flat_map(|range| self.runs_of(range))
            .map(|run| u64::from(run.length))
            .sum()
    }
}

/// Allocated blocks. Everything gets the next free ones, in this order: directories, attribute blocks, symlinks, journal,
/// files. What the kernel reads to look up files is thus close together, and file contents can be written in one pass.
#[derive(Default)]
struct Allocation {
    places: Vec<Placed>,
    xattr_places: Vec<u64>,
    journal: Option<Placed>,
    runs: Vec<Run>,
    /// The first block that is not allocated.
    end: u64,
    /// Allocated blocks, the journal's not counted.
    data_blocks: u64,
    /// Blocks of the journal's extent tree.
    journal_tree: u64,
}

impl Allocation {
    /// Allocates from the ranges of `free` and, where they do not suffice, behind the last of them. Only counts blocks unless
    /// `record` is set.
    fn new(inventory: &Inventory, journal_blocks: u64, free: &[Range<u64>], record: bool) -> Self {
        let mut allocator = Allocator { free, next: 0, runs: Vec::new(), count: 0, allocated: 0, record };
        allocator.enter(0);
        let mut places = vec![Placed::default(); if record { inventory.nodes.len() } else { 0 }];
        let mut keep = |at: usize, placed: Placed| {
            if record {
                places[at] = placed;
            }
        };
        for (at, directory) in inventory.directories() {
            keep(at, allocator.place(std::iter::once((0, directory.blocks() as u64))));
        }
        let xattr_places = inventory.xattr_blocks.iter().map(|_| allocator.allocate(1).0).collect();
        for &at in &inventory.long_symlinks {
            keep(at as usize, allocator.place(std::iter::once((0, 1))));
        }
        let before_journal = allocator.allocated;
        let journal = (journal_blocks > 0).then(|| allocator.place(std::iter::once((0, journal_blocks))));
        let with_tree = allocator.allocated - before_journal;
        for (at, node) in inventory.nodes.iter().enumerate() {
            if let Kind::File(body) = &node.inode.kind {
                keep(at, allocator.place(block_runs(body)));
            }
        }
        Allocation {
            places,
            xattr_places,
            journal,
            end: allocator.next,
            data_blocks: allocator.allocated - with_tree,
            journal_tree: with_tree - journal_blocks,
            runs: allocator.runs,
        }
    }
}

/// Allocates free blocks in ascending order.
struct Allocator<'free> {
    /// The range that `next` is in, and those behind it.
    free: &'free [Range<u64>],
    next: u64,
    runs: Vec<Run>,
    /// Runs so far, recorded or not.
    count: u32,
    /// Blocks so far.
    allocated: u64,
    record: bool,
}

impl Allocator<'_> {
    /// Moves on to the free range at index `at`.
    fn enter(&mut self, at: usize) {
        self.free = &self.free[at.min(self.free.len())..];
        if let Some(range) = self.free.first() {
            self.next = range.start;
        }
    }

    /// Allocates up to `blocks` adjacent blocks; returns the first, and how many.
    fn allocate(&mut self, blocks: u64) -> (u64, u64) {
        while self.free.first().is_some_and(|range| range.end == self.next) {
            if self.free.len() == 1 {
                // Behind the last range: more blocks than the filesystem has, which the caller sees by their number.
                self.free = &[];
            } else {
                self.enter(1);
            }
        }
        let left = self.free.first().map_or(u64::MAX, |range| range.end - self.next);
        let length = blocks.min(left).min(MAX_RUN);
        let start = self.next;
        self.next += length;
        self.allocated += length;
        (start, length)
    }

    fn allocate_runs(&mut self, mut logical: u64, mut blocks: u64) {
        while blocks > 0 {
            let (physical, length) = self.allocate(blocks);
            if self.record {
                // Files have fewer than 2^32 blocks, runs at most MAX_RUN.
                self.runs.push(Run { logical: logical as u32, length: length as u32, physical });
            }
            self.count += 1;
            logical += length;
            blocks -= length;
        }
    }

    /// Allocates blocks for all (logical, length) runs of an inode, and for its extent tree.
    fn place(&mut self, wanted: impl Iterator<Item = (u64, u64)>) -> Placed {
        let start = self.count;
        for (logical, blocks) in wanted {
            self.allocate_runs(logical, blocks);
        }
        let end = self.count;
        self.allocate_runs(0, tree_blocks((end - start) as usize));
        Placed { runs: start..end, tree: end..self.count }
    }
}
