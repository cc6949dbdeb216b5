//! The planned filesystem onto the disk: first what the groups hold, then data in one ascending sweep.

use std::io;
use std::ops::Range;

use anyhow::{Context, Result};

use super::checksum::{self, crc32c};
use super::count::Node;
use super::extents::write_tree;
use super::hash::{HALF_MD4, SIGNED_HASH};
use super::inode::{self, Parts};
use super::layout::{LOG_GROUPS_PER_FLEX, group_start};
use super::output::Output;
use super::plan::{Placed, Plan};
use super::structures::*;
use super::xattr::{self, Xattrs};
use super::{journal, layout};
use crate::filesystem::identity::Identity;
use crate::rootfs::tree::{Kind, Timestamp};

/// `s_def_mount_opts`: extended attributes and ACLs are on, as mke2fs has it.
const DEFAULT_MOUNT_OPTIONS: u32 = 0x4 | 0x8;
const MAGIC: u16 = 0xef53;

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
pub struct Writing<'a> {
    plan: &'a Plan<'a>,
    description: &'a Description<'a>,
    output: Output<'a>,
    /// What checksums start from: crc32c of the UUID.
    seed: u32,
}

/// Counts of one group for its descriptor.
struct GroupUse {
    free_blocks: u32,
    used_inodes: u32,
    directories: u32,
    block_bitmap: u32,
    inode_bitmap: u32,
}

impl<'a> Writing<'a> {
    pub fn new(plan: &'a Plan<'a>, description: &'a Description<'a>, output: Output<'a>) -> Self {
        let seed = crc32c(checksum::START, &description.identity.uuid);
        Writing { plan, description, output, seed }
    }

    pub fn run(mut self) -> Result<()> {
        let groups = self.bitmaps().context("write the bitmaps")?;
        self.superblocks(&groups).context("write the superblock")?;
        self.resize_inode().context("reserve descriptors for growth")?;
        self.inode_tables().context("write the inode tables")?;
        self.data().context("write the data")?;
        self.output.flush().context("write the data")
    }

    /// Bitmaps of all groups; what they count is for the descriptors.
    fn bitmaps(&mut self) -> Result<Vec<GroupUse>> {
        let layout = &self.plan.layout;
        let geometry = layout.geometry;
        let directories = self.directories_by_group();
        let mut groups = Vec::with_capacity(layout.groups.len());
        let (mut block_bitmaps, mut inode_bitmaps) = (Vec::new(), Vec::new());
        for (group, map) in (0..).zip(&layout.groups) {
            let blocks = self.block_bitmap(group);
            let used_inodes = self.used_inodes(group);
            let inodes = bitmap(std::iter::once(0..used_inodes), geometry.inodes_per_group);
            groups.push(GroupUse {
                free_blocks: blocks.iter().map(|byte| byte.count_zeros()).sum(),
                used_inodes,
                directories: directories[group as usize],
                block_bitmap: crc32c(self.seed, &blocks),
                inode_bitmap: crc32c(self.seed, &inodes[..geometry.inodes_per_group as usize / 8]),
            });
            block_bitmaps.push((map.block_bitmap, blocks));
            inode_bitmaps.push((map.inode_bitmap, inodes));
            // Written per flexible group, where they are neighbours.
            if (group + 1) % (1 << LOG_GROUPS_PER_FLEX) == 0 || group + 1 == geometry.groups {
                for (block, bytes) in block_bitmaps.drain(..).chain(inode_bitmaps.drain(..)) {
                    self.output.put(block, &bytes)?;
                }
            }
        }
        Ok(groups)
    }

    /// Blocks of `group` in use: everything before the plan's end, metadata, and what lies behind the filesystem.
    fn block_bitmap(&self, group: u32) -> Vec<u8> {
        let layout = &self.plan.layout;
        let start = group_start(group);
        let size = layout.group_blocks(group);
        let inside = |range: Range<u64>| {
            let clamp = |block: u64| block.clamp(start, start + u64::from(size)).wrapping_sub(start) as u32;
            clamp(range.start)..clamp(range.end)
        };
        let first = layout.metadata.partition_point(|range| range.end <= start);
        let metadata = layout.metadata[first..].iter().take_while(|range| range.start < start + u64::from(size));
        bitmap(std::iter::once(inside(0..self.plan.end)).chain(metadata.map(|range| inside(range.clone()))), size)
    }

    fn last_inode(&self) -> u32 {
        self.plan.demand.nodes.last().map_or(special::FIRST, |node| node.number)
    }

    /// Inodes are numbered without gaps.
    fn used_inodes(&self, group: u32) -> u32 {
        let per_group = self.plan.layout.geometry.inodes_per_group;
        self.last_inode().saturating_sub(group * per_group).min(per_group)
    }

    fn directories_by_group(&self) -> Vec<u32> {
        let geometry = self.plan.layout.geometry;
        let mut counts = vec![0; geometry.groups as usize];
        for node in self.plan.demand.nodes.iter().filter(|node| node.inode.is_directory()) {
            counts[((node.number - 1) / geometry.inodes_per_group) as usize] += 1;
        }
        counts
    }

    /// Superblock and descriptors, in all copies.
    fn superblocks(&mut self, groups: &[GroupUse]) -> Result<()> {
        let layout = &self.plan.layout;
        let geometry = layout.geometry;
        let mut descriptors = vec![0; geometry.descriptor_blocks as usize * BLOCK];
        for (((group, counts), map), place) in
            (0..).zip(groups).zip(&layout.groups).zip(descriptors.chunks_exact_mut(DESCRIPTOR))
        {
            place.copy_from_slice(&self.descriptor(counts, map).seal(self.seed, group));
        }
        let superblock = self.superblock(groups)?;
        for group in geometry.copies() {
            let start = group_start(group);
            let mut block = [0; BLOCK];
            let offset = if group == 0 { SUPERBLOCK_OFFSET } else { 0 };
            let copy = Superblock { block_group: group as u16, ..superblock.clone() };
            block[offset..offset + 1024].copy_from_slice(&copy.seal());
            self.output.put(start, &block)?;
            self.output.put(start + 1, &descriptors)?;
        }
        Ok(())
    }

    fn descriptor(&self, counts: &GroupUse, map: &layout::GroupMap) -> GroupDescriptor {
        let unused = self.plan.layout.geometry.inodes_per_group - counts.used_inodes;
        GroupDescriptor {
            block_bitmap_lo: map.block_bitmap as u32,
            block_bitmap_hi: (map.block_bitmap >> 32) as u32,
            inode_bitmap_lo: map.inode_bitmap as u32,
            inode_bitmap_hi: (map.inode_bitmap >> 32) as u32,
            inode_table_lo: map.inode_table as u32,
            inode_table_hi: (map.inode_table >> 32) as u32,
            // Counts of a group fit sixteen bits: a whole group is 2^15 blocks.
            free_blocks_lo: counts.free_blocks as u16,
            free_inodes_lo: unused as u16,
            used_directories_lo: counts.directories as u16,
            unused_inodes_lo: unused as u16,
            flags: INODE_TABLE_ZEROED,
            block_bitmap_checksum_lo: counts.block_bitmap as u16,
            block_bitmap_checksum_hi: (counts.block_bitmap >> 16) as u16,
            inode_bitmap_checksum_lo: counts.inode_bitmap as u16,
            inode_bitmap_checksum_hi: (counts.inode_bitmap >> 16) as u16,
            ..GroupDescriptor::ZERO
        }
    }

    fn superblock(&mut self, groups: &[GroupUse]) -> Result<Superblock> {
        let plan = self.plan;
        let geometry = plan.layout.geometry;
        let free_blocks: u64 = groups.iter().map(|group| u64::from(group.free_blocks)).sum();
        let free_inodes = geometry.inodes() - u64::from(self.last_inode());
        let time = self.description.time.max(0) as u64;
        let mut label = [0; 16];
        label[..self.description.label.len()].copy_from_slice(self.description.label);
        let mut superblock = Superblock {
            inodes_count: geometry.inodes() as u32,
            blocks_count_lo: plan.layout.blocks as u32,
            blocks_count_hi: (plan.layout.blocks >> 32) as u32,
            reserved_blocks_lo: plan.reserved_blocks as u32,
            reserved_blocks_hi: (plan.reserved_blocks >> 32) as u32,
            free_blocks_lo: free_blocks as u32,
            free_blocks_hi: (free_blocks >> 32) as u32,
            free_inodes: free_inodes as u32,
            log_block_size: (BLOCK / 1024).ilog2(),
            log_cluster_size: (BLOCK / 1024).ilog2(),
            blocks_per_group: BLOCKS_PER_GROUP,
            clusters_per_group: BLOCKS_PER_GROUP,
            inodes_per_group: geometry.inodes_per_group,
            max_mount_count: u16::MAX,
            magic: MAGIC,
            state: 1,
            errors: 1,
            // The time of the last write stays zero: one derived from the tree may lie in the future, which e2fsck
            // takes for an error.
            last_check: time as u32,
            last_check_hi: (time >> 32) as u8,
            mkfs_time: time as u32,
            mkfs_time_hi: (time >> 32) as u8,
            revision: 1,
            first_inode: special::FIRST,
            inode_size: INODE as u16,
            compatible: compatible::EXT_ATTR | compatible::DIR_INDEX,
            incompatible: incompatible::FILETYPE
                | incompatible::EXTENTS
                | incompatible::SIXTY_FOUR_BIT
                | incompatible::FLEX_BG,
            read_only_compatible: read_only_compatible::SPARSE_SUPER
                | read_only_compatible::LARGE_FILE
                | read_only_compatible::HUGE_FILE
                | read_only_compatible::DIR_NLINK
                | read_only_compatible::EXTRA_ISIZE
                | read_only_compatible::METADATA_CSUM,
            uuid: self.description.identity.uuid,
            label,
            hash_seed: self.description.identity.hash_seed,
            default_hash_version: HALF_MD4,
            flags: SIGNED_HASH,
            descriptor_size: DESCRIPTOR as u16,
            default_mount_options: DEFAULT_MOUNT_OPTIONS,
            min_extra_isize: EXTRA_ISIZE as u16,
            want_extra_isize: EXTRA_ISIZE as u16,
            log_groups_per_flex: LOG_GROUPS_PER_FLEX,
            checksum_type: 1,
            ..Superblock::ZERO
        };
        if geometry.reserved_descriptor_blocks > 0 {
            superblock.compatible |= compatible::RESIZE_INODE;
            superblock.reserved_gdt_blocks = geometry.reserved_descriptor_blocks as u16;
        }
        if self.description.checksum_seed {
            superblock.incompatible |= incompatible::CSUM_SEED;
            superblock.checksum_seed = self.seed;
        }
        let mut overhead = geometry.metadata_blocks() - u64::from(geometry.reserved_descriptor_blocks > 0);
        if let Some(placed) = &plan.journal {
            overhead += self.journal_blocks(placed);
            superblock.compatible |= compatible::HAS_JOURNAL;
            superblock.journal_inode = special::JOURNAL;
            superblock.journal_backup_type = 1;
            let map = self.extent_root(placed, special::JOURNAL);
            for (word, bytes) in superblock.journal_blocks.iter_mut().zip(map.as_chunks::<4>().0) {
                *word = u32::from_le_bytes(*bytes);
            }
            let size = self.journal_blocks(placed) * BLOCK as u64;
            superblock.journal_blocks[15] = (size >> 32) as u32;
            superblock.journal_blocks[16] = size as u32;
        }
        superblock.overhead_blocks = overhead as u32;
        Ok(superblock)
    }

    fn journal_blocks(&self, placed: &Placed) -> u64 {
        self.plan.runs_of(&placed.runs).iter().map(|run| u64::from(run.length)).sum()
    }

    /// The reserved descriptor blocks as the resize inode's map has them: each one of the first copy is an indirect block
    /// that names its counterparts in the other copies (`super.rst`, "Reserved GDT"; e2fsprogs `lib/ext2fs/res_gdt.c`).
    fn resize_inode(&mut self) -> Result<()> {
        let geometry = self.plan.layout.geometry;
        let Some(doubly_indirect) = self.plan.layout.resize_block else {
            return Ok(());
        };
        let first = 1 + geometry.descriptor_blocks;
        let mut top = [0; BLOCK];
        for number in first..first + geometry.reserved_descriptor_blocks {
            let slot = ((number - 1) % ADDRESSES_PER_BLOCK) as usize;
            number.put(&mut top[4 * slot..4 * slot + 4]);
            let mut copies = [0; BLOCK];
            for (place, group) in copies.chunks_exact_mut(4).zip(geometry.copies().skip(1)) {
                // Old block maps hold 32 bits, and the writer stays below 2^32 blocks.
                (group_start(group) as u32 + number).put(place);
            }
            self.output.put(u64::from(number), &copies)?;
        }
        self.output.put(doubly_indirect, &top)?;
        Ok(())
    }

    fn inode_tables(&mut self) -> Result<()> {
        let plan = self.plan;
        let geometry = plan.layout.geometry;
        let mut nodes = plan.demand.nodes.iter().zip(&plan.places).peekable();
        for (group, map) in (0..).zip(&plan.layout.groups) {
            let first = group * geometry.inodes_per_group + 1;
            let used = self.used_inodes(group);
            for start in (0..used).step_by(INODES_PER_BLOCK as usize) {
                let mut block = [0; BLOCK];
                for (number, place) in (first + start..).zip(block.chunks_exact_mut(INODE)) {
                    let bytes = match nodes.next_if(|(node, _)| node.number == number) {
                        Some((node, placed)) => self.node(node, placed)?,
                        None => match self.special_inode(number) {
                            Some(bytes) => bytes,
                            None => continue,
                        },
                    };
                    place.copy_from_slice(&bytes);
                }
                self.output.put(map.inode_table + u64::from(start / INODES_PER_BLOCK), &block)?;
            }
        }
        Ok(())
    }

    fn node(&self, node: &Node, placed: &Placed) -> Result<[u8; INODE]> {
        let indexed = node.inode.is_directory() && node.blocks() > 1;
        let xattr_block = node.xattr_block.map_or(0, |index| self.plan.xattr_places[index as usize]);
        let parts = Parts {
            map: self.extent_root(placed, node.number),
            blocks: self.plan.blocks_of(placed) + u64::from(node.xattr_block.is_some()),
            xattr_block,
            indexed,
        };
        Ok(inode::encode(node, &parts, self.seed)?)
    }

    /// Inodes below the first that belong to the filesystem itself. The others stay zero.
    fn special_inode(&self, number: u32) -> Option<[u8; INODE]> {
        let geometry = self.plan.layout.geometry;
        let mut fields = inode::fields(Timestamp::from_seconds(self.description.time.max(0)));
        fields.mode = mode::REGULAR | 0o600;
        fields.links_count = 1;
        match number {
            special::RESIZE => {
                let block = self.plan.layout.resize_block?;
                let copies = geometry.copies().count() as u64;
                fields.set_blocks(1 + u64::from(geometry.reserved_descriptor_blocks) * copies);
                // As much as direct, indirect and doubly indirect blocks can map.
                let addresses = u64::from(ADDRESSES_PER_BLOCK);
                fields.set_size((12 + addresses + addresses * addresses) * BLOCK as u64);
                (block as u32).put(&mut fields.block[4 * 13..4 * 14]);
            }
            special::JOURNAL => {
                let placed = self.plan.journal.as_ref()?;
                fields.set_blocks(self.plan.blocks_of(placed));
                fields.set_size(self.journal_blocks(placed) * BLOCK as u64);
                fields.flags = flag::EXTENTS;
                fields.block = self.extent_root(placed, number);
            }
            _ => return None,
        }
        Some(fields.seal(number, &Xattrs::default(), self.seed))
    }

    fn tree_places(&self, placed: &Placed) -> impl Iterator<Item = u64> + use<'a> {
        let runs: &'a [_] = self.plan.runs_of(&placed.tree);
        runs.iter().flat_map(|run| run.physical..run.physical + u64::from(run.length))
    }

    fn extent_root(&self, placed: &Placed, number: u32) -> [u8; 60] {
        let seed = inode_seed(self.seed, number);
        write_tree(self.plan.runs_of(&placed.runs), self.tree_places(placed), seed, |_, _| ())
    }

    /// Blocks of an extent tree outside of its inode.
    fn extent_blocks(&mut self, placed: &Placed, number: u32) -> io::Result<()> {
        let mut result = Ok(());
        let seed = inode_seed(self.seed, number);
        write_tree(self.plan.runs_of(&placed.runs), self.tree_places(placed), seed, |block, bytes| {
            if result.is_ok() {
                result = self.output.put(block, bytes);
            }
        });
        result
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
            self.put_bytes(placed, &bytes)?;
            self.extent_blocks(placed, node.number)?;
        }
        for (shared, &place) in demand.xattr_blocks.iter().zip(&plan.xattr_places) {
            let xattrs = Xattrs::new(&demand.nodes[shared.node as usize].inode.xattrs)?;
            let mut block = xattrs.block().expect("it was counted");
            xattr::seal_block(&mut block, place, shared.sharers, self.seed);
            self.output.put(place, &block)?;
        }
        for (node, placed) in nodes() {
            if let Kind::Symlink(target) = &node.inode.kind
                && !placed.runs.is_empty()
            {
                bytes.clear();
                bytes.extend_from_slice(target);
                bytes.resize(BLOCK, 0);
                self.put_bytes(placed, &bytes)?;
            }
        }
        if let Some(placed) = &plan.journal {
            let first = journal::first_block(self.journal_blocks(placed), self.description.identity.uuid);
            self.output.put(plan.runs_of(&placed.runs)[0].physical, &first)?;
            self.extent_blocks(placed, special::JOURNAL)?;
        }
        for (node, placed) in nodes() {
            if let Kind::File(body) = &node.inode.kind {
                for run in plan.runs_of(&placed.runs) {
                    self.output.put_body(run.physical, body, run.logical, run.length)?;
                }
                self.extent_blocks(placed, node.number)?;
            }
        }
        Ok(())
    }

    /// Bytes of whole blocks into an inode's runs.
    fn put_bytes(&mut self, placed: &Placed, mut bytes: &[u8]) -> io::Result<()> {
        for run in self.plan.runs_of(&placed.runs) {
            let (now, later) = bytes.split_at(run.length as usize * BLOCK);
            self.output.put(run.physical, now)?;
            bytes = later;
        }
        Ok(())
    }
}

/// A block of bits: those in `used` and those from `size` on are set.
fn bitmap(used: impl Iterator<Item = Range<u32>>, size: u32) -> Vec<u8> {
    let mut bytes = vec![0_u8; BLOCK];
    let mut set = |range: Range<u32>| {
        let (mut bit, end) = (range.start, range.end);
        while bit < end {
            if bit % 8 == 0 && end - bit >= 8 {
                let whole = (end - bit) / 8;
                bytes[(bit / 8) as usize..][..whole as usize].fill(0xff);
                bit += whole * 8;
            } else {
                bytes[(bit / 8) as usize] |= 1 << (bit % 8);
                bit += 1;
            }
        }
    };
    used.for_each(&mut set);
    set(size..(BLOCK * 8) as u32);
    bytes
}
