//! The planned filesystem onto the disk, in one ascending sweep: what the groups hold, and between it the data.

use anyhow::{Context, Result};
use snug_rootfs::tree::{Body, Kind};

use super::checksum::{self, crc32c};
use super::extents::write_tree;
use super::groups::Structures;
use super::journal;
use super::output::Output;
use super::plan::{Placed, Plan};
use super::structures::{BLOCK, inode_seed, special};
use super::xattr::{self, Xattrs};
use crate::identity::Identity;

/// What the superblock says beside the plan.
pub struct Description<'label> {
    pub identity: Identity,
    /// When the filesystem was made, in seconds since the epoch.
    pub time: i64,
    pub label: &'label [u8],
    /// Store the seed of checksums, so that the UUID can be changed.
    pub checksum_seed: bool,
}

/// Writes one plan.
pub struct Writing<'a, 'output> {
    plan: &'a Plan<'a>,
    description: &'a Description<'a>,
    structures: Structures<'a>,
    output: &'output mut Output<'a>,
    /// What checksums start from: crc32c of the UUID.
    seed: u32,
}

impl<'a, 'output> Writing<'a, 'output> {
    pub fn new(plan: &'a Plan<'a>, description: &'a Description<'a>, output: &'output mut Output<'a>) -> Self {
        let seed = crc32c(checksum::START, &description.identity.uuid);
        Writing { plan, description, structures: Structures::new(plan, description, seed), output, seed }
    }

    pub fn run(mut self) -> Result<()> {
        self.data().context("write the data")?;
        self.structures.write_before(u64::MAX, self.output)?;
        self.output.flush().context("write the data")
    }

    /// Everything that the plan gave blocks to, in the order in which it did.
    fn data(&mut self) -> Result<()> {
        let plan = self.plan;
        let demand = &plan.demand;
        let nodes = || demand.nodes.iter().zip(&plan.places);
        let mut bytes = Vec::new();
        for (node, placed) in nodes().filter(|(node, _)| node.inode.is_directory()) {
            let directory = demand.directory(node.number).expect("it was counted");
            bytes.clear();
            directory.write(inode_seed(self.seed, node.number), &mut bytes);
            self.put_runs(placed, &bytes)?;
            self.extent_blocks(placed, node.number)?;
        }
        for (shared, &place) in demand.xattr_blocks.iter().zip(&plan.xattr_places) {
            let xattrs = Xattrs::new(&demand.nodes[shared.node as usize].inode.xattrs)?;
            let mut block = xattrs.block().expect("it was counted");
            xattr::seal_block(&mut block, place, shared.sharers, self.seed);
            self.put(place, &block)?;
        }
        for (node, placed) in nodes() {
            if let Kind::Symlink(target) = &node.inode.kind
                && !placed.runs.is_empty()
            {
                bytes.clear();
                bytes.extend_from_slice(target);
                bytes.resize(BLOCK, 0);
                self.put_runs(placed, &bytes)?;
            }
        }
        if let Some(placed) = &plan.journal {
            let first = journal::first_block(plan.journal_blocks(placed), self.description.identity.uuid);
            self.put(plan.runs_of(&placed.runs)[0].physical, &first)?;
            self.extent_blocks(placed, special::JOURNAL)?;
        }
        for (node, placed) in nodes() {
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

    /// Bytes of whole blocks into an inode's runs.
    fn put_runs(&mut self, placed: &Placed, mut bytes: &[u8]) -> Result<()> {
        for run in self.plan.runs_of(&placed.runs) {
            let (now, later) = bytes.split_at(run.length as usize * BLOCK);
            self.put(run.physical, now)?;
            bytes = later;
        }
        Ok(())
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
