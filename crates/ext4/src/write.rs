//! Writes a planned filesystem in one pass over ascending blocks: the data, and the block groups' metadata in between.

use anyhow::{Context, Result};
use snug_rootfs::tree::{Body, Kind};

use super::checksum::{self, crc32c};
use super::directory::Blocks;
use super::extents::write_tree;
use super::groups::GroupMetadata;
use super::inode::inode_seed;
use super::journal;
use super::on_disk::{BLOCK, special};
use super::output::Output;
use super::plan::{Placed, Plan};
use super::xattr::{self, Xattrs};
use crate::identity::Description;

/// Writes one plan.
pub(crate) struct ImageWriter<'a, 'output> {
    plan: &'a Plan<'a>,
    description: &'a Description<'a>,
    metadata: GroupMetadata<'a>,
    output: &'output mut Output<'a>,
    /// The seed of metadata checksums: crc32c of the UUID.
    seed: u32,
}

impl<'a, 'output> ImageWriter<'a, 'output> {
    pub(crate) fn new(plan: &'a Plan<'a>, description: &'a Description<'a>, output: &'output mut Output<'a>) -> Self {
        let seed = crc32c(checksum::START, &description.identity.uuid);
        ImageWriter { plan, description, metadata: GroupMetadata::new(plan, description, seed), output, seed }
    }

    pub(crate) fn run(mut self) -> Result<()> {
        self.data().context("write the data")?;
        self.metadata.write_before(u64::MAX, self.output)?;
        self.output.flush().context("write the data")
    }

    /// Writes everything that has data blocks, in the order in which the plan allocated them.
    fn data(&mut self) -> Result<()> {
        let plan = self.plan;
        let inventory = &plan.inventory;
        for (at, directory) in inventory.directories() {
            let placed = &plan.places[at];
            let seed = inode_seed(self.seed, directory.inode);
            directory.write(seed, &mut MappedBlocks { numbers: plan.map_places(placed), writer: self })?;
            self.extent_blocks(placed, directory.inode)?;
        }
        for (shared, &place) in inventory.xattr_blocks.iter().zip(&plan.xattr_places) {
            let xattrs = Xattrs::new(&inventory.nodes[shared.node as usize].inode.xattrs)?;
            let mut block = xattrs.block().expect("the inventory counted it");
            xattr::seal_block(&mut block, place, shared.sharers, self.seed);
            self.put(place, &block)?;
        }
        for &at in &inventory.long_symlinks {
            if let Kind::Symlink(target) = &inventory.nodes[at as usize].inode.kind {
                let mut block = [0; BLOCK];
                block[..target.len()].copy_from_slice(target);
                let place = plan.runs_of(&plan.places[at as usize].runs)[0].physical;
                self.put(place, &block)?;
            }
        }
        if let Some(placed) = &plan.journal {
            let first = journal::first_block(plan.journal_blocks(placed), self.description.identity.uuid);
            self.put(plan.runs_of(&placed.runs)[0].physical, &first)?;
            self.extent_blocks(placed, special::JOURNAL)?;
        }
        for (node, placed) in inventory.nodes.iter().zip(&plan.places) {
            if let Kind::File(body) = &node.inode.kind {
                for run in plan.runs_of(&placed.runs) {
                    self.put_body(run.physical, body, run.logical, run.length)?;
                }
                self.extent_blocks(placed, node.number)?;
            }
        }
        Ok(())
    }

    fn put(&mut self, block: u64, bytes: &[u8]) -> Result<()> {
        self.metadata.write_before(block, self.output)?;
        Ok(self.output.put(block, bytes)?)
    }

    fn put_body(&mut self, block: u64, body: &Body, logical: u32, blocks: u32) -> Result<()> {
        self.metadata.write_before(block, self.output)?;
        Ok(self.output.put_body(block, body, logical, blocks)?)
    }

    /// Writes the blocks of an extent tree that are not in the inode.
    fn extent_blocks(&mut self, placed: &Placed, number: u32) -> Result<()> {
        if placed.tree.is_empty() {
            return Ok(());
        }
        let plan = self.plan;
        let mut result = Ok(());
        let seed = inode_seed(self.seed, number);
        write_tree(plan.runs_of(&placed.runs), plan.tree_places(placed), seed, |block, bytes| {
            if result.is_ok() {
                result = self.put(block, bytes);
            }
        });
        result
    }
}

/// The blocks that an inode maps, in order.
struct MappedBlocks<'w, 'a, 'output, I> {
    numbers: I,
    writer: &'w mut ImageWriter<'a, 'output>,
}

impl<I: Iterator<Item = u64>> Blocks for MappedBlocks<'_, '_, '_, I> {
    type Error = anyhow::Error;

    fn next(&mut self) -> Result<&mut [u8; BLOCK]> {
        let ImageWriter { metadata, output, .. } = &mut *self.writer;
        let number = self.numbers.next().expect("the inventory counted the directory's blocks");
        metadata.write_before(number, output)?;
        Ok(output.block(number)?)
    }
}
