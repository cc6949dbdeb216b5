//! The planned filesystem onto the disk, in one ascending sweep: what the groups hold, and between it the data.

use anyhow::{Context, Result};
use snug_rootfs::tree::{Body, Kind};

use super::checksum::{self, crc32c};
use super::directory::Blocks;
use super::extents::write_tree;
use super::groups::Structures;
use super::inode::inode_seed;
use super::journal;
use super::on_disk::{BLOCK, special};
use super::output::Output;
use super::plan::{Placed, Plan};
use super::xattr::{self, Xattrs};
use crate::identity::Description;

/// Writes one plan.
pub(crate) struct Writing<'a, 'output> {
    plan: &'a Plan<'a>,
    description: &'a Description<'a>,
    structures: Structures<'a>,
    output: &'output mut Output<'a>,
    /// What checksums start from: crc32c of the UUID.
    seed: u32,
}

impl<'a, 'output> Writing<'a, 'output> {
    pub(crate) fn new(plan: &'a Plan<'a>, description: &'a Description<'a>, output: &'output mut Output<'a>) -> Self {
        let seed = crc32c(checksum::START, &description.identity.uuid);
        Writing { plan, description, structures: Structures::new(plan, description, seed), output, seed }
    }

    pub(crate) fn run(mut self) -> Result<()> {
        self.data().context("write the data")?;
        self.structures.write_before(u64::MAX, self.output)?;
        self.output.flush().context("write the data")
    }

    /// Everything that the plan gave blocks to, in the order in which it did.
    fn data(&mut self) -> Result<()> {
        let plan = self.plan;
        let inventory = &plan.inventory;
        for (at, directory) in inventory.directories() {
            let placed = &plan.places[at];
            let seed = inode_seed(self.seed, directory.inode);
            directory.write(seed, &mut InMap { places: plan.map_places(placed), writing: self })?;
            self.extent_blocks(placed, directory.inode)?;
        }
        for (shared, &place) in inventory.xattr_blocks.iter().zip(&plan.xattr_places) {
            let xattrs = Xattrs::new(&inventory.nodes[shared.node as usize].inode.xattrs)?;
            let mut block = xattrs.block().expect("it was counted");
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
        self.structures.write_before(block, self.output)?;
        Ok(self.output.put(block, bytes)?)
    }

    fn put_body(&mut self, block: u64, body: &Body, logical: u32, blocks: u32) -> Result<()> {
        self.structures.write_before(block, self.output)?;
        Ok(self.output.put_body(block, body, logical, blocks)?)
    }

    /// Blocks of an extent tree outside of its inode.
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

/// The blocks of an inode's map, one after the other.
struct InMap<'w, 'a, 'output, I> {
    places: I,
    writing: &'w mut Writing<'a, 'output>,
}

impl<I: Iterator<Item = u64>> Blocks for InMap<'_, '_, '_, I> {
    type Error = anyhow::Error;

    fn next(&mut self) -> Result<&mut [u8; BLOCK]> {
        let Writing { structures, output, .. } = &mut *self.writing;
        let place = self.places.next().expect("it was counted");
        structures.write_before(place, output)?;
        Ok(output.block(place)?)
    }
}
