//! The metadata of the block groups: superblocks, descriptors, bitmaps, inode tables (kernel documentation, `super.rst`,
//! `group_descr.rst`, `bitmaps.rst`, `inode_table.rst`), each written when the pass over the image reaches its block.

use std::iter::Peekable;
use std::ops::Range;
use std::vec::IntoIter;

use anyhow::{Context, Result};
use snug_rootfs::tree::Timestamp;

use super::checksum::crc32c;
use super::extents::write_tree;
use super::group_descriptor::{GroupDescriptor, INODE_TABLE_ZEROED};
use super::hash::{HALF_MD4, SIGNED_HASH};
use super::identity::Description;
use super::inode::{self, Parts, flag, inode_seed, mode};
use super::inventory::Node;
use super::layout::{Geometry, GroupMap, LOG_GROUPS_PER_FLEX};
use super::on_disk::{ADDRESSES_PER_BLOCK, BLOCK, DESCRIPTOR, EXTRA_ISIZE, Field, INODE, INODES_PER_BLOCK, special};
use super::output::Output;
use super::plan::{Placed, Plan};
use super::superblock::{SUPERBLOCK_OFFSET, Superblock, compatible, incompatible, read_only_compatible};
use super::xattr::{XattrError, Xattrs};

/// `s_def_mount_opts`: `user_xattr` and `acl`, mke2fs's default.
const DEFAULT_MOUNT_OPTIONS: u32 = 0x4 | 0x8;
const MAGIC: u16 = 0xef53;

/// A metadata structure; the numbers are of groups unless said otherwise.
#[derive(Debug, Clone, Copy)]
enum Metadata {
    /// Superblock and descriptors, the primary ones or a backup.
    Superblock(u32),
    /// A primary block that is reserved for descriptors, by its block number.
    ReservedDescriptors(u32),
    /// The resize inode's doubly indirect block.
    ResizeMap,
    BlockBitmap(u32),
    InodeBitmap(u32),
    InodeTable(u32),
}

/// All metadata of a filesystem's groups, in the order of its blocks.
pub(crate) struct GroupMetadata<'a> {
    plan: &'a Plan<'a>,
    description: &'a Description<'a>,
    seed: u32,
    superblock: Superblock,
    descriptors: Vec<u8>,
    /// What is still to be written, by its first block.
    pending: Peekable<IntoIter<(u64, Metadata)>>,
}

/// Counts of one group for its descriptor.
struct GroupUse {
    free_blocks: u32,
    used_inodes: u32,
    directories: u32,
    block_bitmap: u32,
    inode_bitmap: u32,
}

impl<'a> GroupMetadata<'a> {
    /// `seed` is the filesystem's checksum seed.
    pub(crate) fn new(plan: &'a Plan<'a>, description: &'a Description<'a>, seed: u32) -> Self {
        let mut metadata = GroupMetadata {
            plan,
            description,
            seed,
            superblock: Superblock::ZERO,
            descriptors: vec![0; plan.layout.geometry.descriptor_blocks as usize * BLOCK],
            pending: in_order(plan).into_iter().peekable(),
        };
        let groups = metadata.count();
        let descriptors = metadata.descriptors.chunks_exact_mut(DESCRIPTOR);
        for (((group, counts), map), place) in (0..).zip(&groups).zip(&plan.layout.groups).zip(descriptors) {
            place.copy_from_slice(&descriptor(plan, counts, map).seal(seed, group));
        }
        metadata.superblock = metadata.superblock(&groups);
        metadata
    }

    /// Writes the structures before `block` that are not written yet.
    pub(crate) fn write_before(&mut self, block: u64, output: &mut Output) -> Result<()> {
        while let Some((place, metadata)) = self.pending.next_if(|(place, _)| *place < block) {
            match metadata {
                Metadata::Superblock(group) => {
                    self.put_superblock(group, place, output).context("write the superblock")?;
                }
                Metadata::ReservedDescriptors(number) => output.put(place, &self.backups_of(number))?,
                Metadata::ResizeMap => output.put(place, &self.resize_map())?,
                Metadata::BlockBitmap(group) => output.put(place, &self.block_bitmap(group))?,
                Metadata::InodeBitmap(group) => output.put(place, &self.inode_bitmap(group))?,
                Metadata::InodeTable(group) => {
                    self.inode_table(group, place, output).context("write the inode tables")?;
                }
            }
        }
        Ok(())
    }

    /// Returns the counts and checksums that the descriptors state.
    fn count(&self) -> Vec<GroupUse> {
        // Checksums are of the bits that stand for something, with those past the end of the last group.
        let Geometry { blocks_per_group, inodes_per_group, .. } = self.plan.layout.geometry;
        let directories = self.directories_by_group();
        (0..)
            .zip(directories)
            .map(|(group, directories)| {
                let (blocks, inodes) = (self.block_bitmap(group), self.inode_bitmap(group));
                GroupUse {
                    free_blocks: blocks.iter().map(|byte| byte.count_zeros()).sum(),
                    used_inodes: self.used_inodes(group),
                    directories,
                    block_bitmap: crc32c(self.seed, &blocks[..blocks_per_group as usize / 8]),
                    inode_bitmap: crc32c(self.seed, &inodes[..inodes_per_group as usize / 8]),
                }
            })
            .collect()
    }

    /// The block bitmap of `group`: everything before the plan's end is in use, and metadata; bits past the end of the
    /// filesystem are set too.
    fn block_bitmap(&self, group: u32) -> Vec<u8> {
        let layout = &self.plan.layout;
        let start = layout.geometry.group_start(group);
        let size = layout.group_blocks(group);
        let inside = |range: Range<u64>| {
            let clamp = |block: u64| block.clamp(start, start + u64::from(size)).wrapping_sub(start) as u32;
            clamp(range.start)..clamp(range.end)
        };
        let first = layout.metadata.partition_point(|range| range.end <= start);
        let metadata = layout.metadata[first..].iter().take_while(|range| range.start < start + u64::from(size));
        bitmap(std::iter::once(inside(0..self.plan.end)).chain(metadata.map(|range| inside(range.clone()))), size)
    }

    fn inode_bitmap(&self, group: u32) -> Vec<u8> {
        bitmap(std::iter::once(0..self.used_inodes(group)), self.plan.layout.geometry.inodes_per_group)
    }

    fn last_inode(&self) -> u32 {
        self.plan.inventory.nodes.last().map_or(special::FIRST, |node| node.number)
    }

    /// Inodes are numbered without gaps.
    fn used_inodes(&self, group: u32) -> u32 {
        let per_group = self.plan.layout.geometry.inodes_per_group;
        self.last_inode().saturating_sub(group * per_group).min(per_group)
    }

    fn directories_by_group(&self) -> Vec<u32> {
        let geometry = self.plan.layout.geometry;
        let mut counts = vec![0; geometry.groups as usize];
        for node in self.plan.inventory.nodes.iter().filter(|node| node.inode.is_directory()) {
            counts[((node.number - 1) / geometry.inodes_per_group) as usize] += 1;
        }
        counts
    }

    fn put_superblock(&self, group: u32, place: u64, output: &mut Output) -> std::io::Result<()> {
        let mut block = [0; BLOCK];
        let offset = if group == 0 { SUPERBLOCK_OFFSET } else { 0 };
        let copy = Superblock { block_group: group as u16, ..self.superblock.clone() };
        block[offset..offset + 1024].copy_from_slice(&copy.seal());
        output.put(place, &block)?;
        output.put(place + 1, &self.descriptors)
    }

    fn superblock(&self, groups: &[GroupUse]) -> Superblock {
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
            blocks_per_group: geometry.blocks_per_group,
            clusters_per_group: geometry.blocks_per_group,
            inodes_per_group: geometry.inodes_per_group,
            max_mount_count: u16::MAX,
            magic: MAGIC,
            state: 1,
            errors: 1,
            // `s_wtime` stays zero: the newest time of a tree may be in the future, which e2fsck reports as an error.
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
                | incompatible::FLEX_BG
                | incompatible::CSUM_SEED,
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
            // Stored so that the UUID can be changed without rewriting every checksum.
            checksum_seed: self.seed,
            ..Superblock::ZERO
        };
        if geometry.reserved_descriptor_blocks > 0 {
            superblock.compatible |= compatible::RESIZE_INODE;
            superblock.reserved_gdt_blocks = geometry.reserved_descriptor_blocks as u16;
        }

        let mut overhead = geometry.metadata_blocks() - u64::from(geometry.reserved_descriptor_blocks > 0);
        if let Some(placed) = &plan.journal {
            overhead += plan.journal_blocks(placed);
            superblock.compatible |= compatible::HAS_JOURNAL;
            superblock.journal_inode = special::JOURNAL;
            superblock.journal_backup_type = 1;
            let map = self.extent_root(placed, special::JOURNAL);
            for (word, bytes) in superblock.journal_blocks.iter_mut().zip(map.as_chunks::<4>().0) {
                *word = u32::from_le_bytes(*bytes);
            }
            let size = plan.journal_blocks(placed) * BLOCK as u64;
            superblock.journal_blocks[15] = (size >> 32) as u32;
            superblock.journal_blocks[16] = size as u32;
        }
        superblock.overhead_blocks = overhead as u32;
        superblock
    }

    /// The content of a primary reserved descriptor block: for the resize inode it is an indirect block that lists its
    /// backups in the other groups (`super.rst`, "Reserved GDT"; e2fsprogs `lib/ext2fs/res_gdt.c`).
    fn backups_of(&self, number: u32) -> [u8; BLOCK] {
        let mut copies = [0; BLOCK];
        let geometry = self.plan.layout.geometry;
        for (place, group) in copies.chunks_exact_mut(4).zip(geometry.copies().into_iter().skip(1)) {
            // Indirect blocks hold 32-bit numbers, and the writer stays below 2^32 blocks.
            (geometry.group_start(group) as u32 + number).put(place);
        }
        copies
    }

    /// The resize inode's doubly indirect block, which lists the primary reserved descriptor blocks.
    fn resize_map(&self) -> [u8; BLOCK] {
        let mut top = [0; BLOCK];
        for number in reserved(self.plan) {
            let slot = ((number - 1) % ADDRESSES_PER_BLOCK) as usize;
            number.put(&mut top[4 * slot..4 * slot + 4]);
        }
        top
    }

    fn inode_table(&self, group: u32, place: u64, output: &mut Output) -> Result<()> {
        let first = group * self.plan.layout.geometry.inodes_per_group + 1;
        for (block, start) in (place..).zip((0..self.used_inodes(group)).step_by(INODES_PER_BLOCK as usize)) {
            let bytes = output.block(block)?;
            for (number, place) in (first + start..).zip(bytes.chunks_exact_mut(INODE)) {
                let inode = match self.plan.inventory.position(number) {
                    Some(at) => self.node(&self.plan.inventory.nodes[at], &self.plan.places[at])?,
                    None => match self.special_inode(number) {
                        Some(bytes) => bytes,
                        None => continue,
                    },
                };
                place.copy_from_slice(&inode);
            }
        }
        Ok(())
    }

    fn node(&self, node: &Node, placed: &Placed) -> Result<[u8; INODE], XattrError> {
        let indexed = node.inode.is_directory() && node.blocks() > 1;
        let xattr_block = node.xattr_block.map_or(0, |index| self.plan.xattr_places[index as usize]);
        let parts = Parts {
            map: self.extent_root(placed, node.number),
            blocks: self.plan.blocks_of(placed) + u64::from(node.xattr_block.is_some()),
            xattr_block,
            indexed,
        };
        inode::encode(node, &parts, self.seed)
    }

    /// Returns the resize inode or the journal inode; the other reserved inodes stay zero.
    fn special_inode(&self, number: u32) -> Option<[u8; INODE]> {
        let geometry = self.plan.layout.geometry;
        let mut fields = inode::fields(Timestamp::from_seconds(self.description.time.max(0)));
        fields.mode = mode::REGULAR | 0o600;
        fields.links_count = 1;
        match number {
            special::RESIZE => {
                let block = self.plan.layout.resize_block?;
                let copies = geometry.copies().len() as u64;
                fields.set_blocks(1 + u64::from(geometry.reserved_descriptor_blocks) * copies);
                // As in mke2fs: all that direct, indirect and doubly indirect blocks can map.
                let addresses = u64::from(ADDRESSES_PER_BLOCK);
                fields.set_size((12 + addresses + addresses * addresses) * BLOCK as u64);
                (block as u32).put(&mut fields.block[4 * 13..4 * 14]);
            }
            special::JOURNAL => {
                let placed = self.plan.journal.as_ref()?;
                fields.set_blocks(self.plan.blocks_of(placed));
                fields.set_size(self.plan.journal_blocks(placed) * BLOCK as u64);
                fields.flags = flag::EXTENTS;
                fields.block = self.extent_root(placed, number);
            }
            _ => return None,
        }
        Some(fields.seal(number, &Xattrs::default(), self.seed))
    }

    fn extent_root(&self, placed: &Placed, number: u32) -> [u8; 60] {
        let runs = self.plan.runs_of(&placed.runs);
        write_tree(runs, self.plan.tree_places(placed), inode_seed(self.seed, number), |_, _| ())
    }
}

/// Returns the numbers of the primary reserved descriptor blocks.
fn reserved(plan: &Plan) -> Range<u32> {
    let geometry = plan.layout.geometry;
    let first = 1 + geometry.descriptor_blocks;
    first..first + geometry.reserved_descriptor_blocks
}

/// Returns every metadata structure with its first block, in ascending order.
fn in_order(plan: &Plan) -> Vec<(u64, Metadata)> {
    let layout = &plan.layout;
    let superblock = |group| (layout.geometry.group_start(group), Metadata::Superblock(group));
    let mut all: Vec<_> = layout.geometry.copies().into_iter().map(superblock).collect();
    if let Some(place) = layout.resize_block {
        all.push((place, Metadata::ResizeMap));
        all.extend(reserved(plan).map(|number| (u64::from(number), Metadata::ReservedDescriptors(number))));
    }
    for (group, map) in (0..).zip(&layout.groups) {
        all.push((map.block_bitmap, Metadata::BlockBitmap(group)));
        all.push((map.inode_bitmap, Metadata::InodeBitmap(group)));
        all.push((map.inode_table, Metadata::InodeTable(group)));
    }
    all.sort_unstable_by_key(|(place, _)| *place);
    all
}

fn descriptor(plan: &Plan, counts: &GroupUse, map: &GroupMap) -> GroupDescriptor {
    let unused = plan.layout.geometry.inodes_per_group - counts.used_inodes;
    GroupDescriptor {
        block_bitmap_lo: map.block_bitmap as u32,
        block_bitmap_hi: (map.block_bitmap >> 32) as u32,
        inode_bitmap_lo: map.inode_bitmap as u32,
        inode_bitmap_hi: (map.inode_bitmap >> 32) as u32,
        inode_table_lo: map.inode_table as u32,
        inode_table_hi: (map.inode_table >> 32) as u32,
        // Counts of a group fit 16 bits: a group has at most 2^15 blocks.
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

/// Returns a bitmap block in which the bits in `used` and those from `size` on are set.
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
