//! What a tree asks of a filesystem: numbered inodes, the names of every directory, and the blocks of each, before any
//! of them has a place.

use std::collections::HashMap;

use sha2::{Digest, Sha256};
use snug_rootfs::tree::{Body, Inode, Kind, RootTree, TreePath};

use super::directory::{Directory, Name, TooManyNames, file_type};
use super::error::Ext4Error;
use super::hash::NameHasher;
use super::structures::{BLOCK, special};
use super::xattr::{MAX_SHARERS, Xattrs};

/// Symlink targets below this many bytes stand in the inode (`ifork.rst`).
pub const INLINE_SYMLINK: usize = 60;
/// The kernel reads a target into one block and ends it with NUL.
const MAX_SYMLINK: usize = BLOCK - 1;
/// Block numbers inside a file have 32 bits, the last of which is not used (`fs/ext4/super.c`, `ext4_max_size`).
const MAX_FILE: u64 = (u32::MAX as u64) * BLOCK as u64;
/// `EXT4_LINK_MAX`; a directory with more subdirectories shows one link (dir_nlink).
pub const MAX_LINKS: u32 = 65_000;
/// Seconds that 32 bits and two epoch bits hold (`inodes.rst`, "Inode Timestamps").
const TIMES: std::ops::RangeInclusive<i64> = -(1 << 31)..=(1 << 34) - (1 << 31) - 1;
/// Major and minor device numbers have 12 and 20 bits (`new_encode_dev`).
const MAX_MAJOR: u32 = (1 << 12) - 1;
const MAX_MINOR: u32 = (1 << 20) - 1;

pub const LOST_FOUND: &[u8] = b"lost+found";

/// An inode with its number and what it needs beside its 256 bytes.
#[derive(Debug)]
pub struct Node<'tree> {
    pub number: u32,
    pub links: u32,
    pub inode: &'tree Inode,
    /// Index of its block in [`Demand::xattr_blocks`].
    pub xattr_block: Option<u32>,
    /// Blocks of a directory; of files and symlinks the inode tells.
    directory_blocks: u32,
}

impl Node<'_> {
    /// Blocks in the inode's map, holes and the map itself not counted.
    pub fn blocks(&self) -> u64 {
        match &self.inode.kind {
            Kind::Directory => u64::from(self.directory_blocks),
            Kind::Symlink(target) => u64::from(target.len() >= INLINE_SYMLINK),
            Kind::File(body) => block_runs(body).map(|(_, length)| length).sum(),
            _ => 0,
        }
    }

    /// Bytes in `i_size`.
    pub fn size(&self) -> u64 {
        match &self.inode.kind {
            Kind::Directory => u64::from(self.directory_blocks) * BLOCK as u64,
            Kind::Symlink(target) => target.len() as u64,
            Kind::File(body) => body.size,
            _ => 0,
        }
    }
}

/// The blocks of a body that hold data, as (first, length) runs: ranges are rounded outwards, and runs that then touch
/// are one.
pub fn block_runs(body: &Body) -> impl Iterator<Item = (u64, u64)> {
    let block = BLOCK as u64;
    let mut ranges = body.extents.as_slice().iter().peekable();
    std::iter::from_fn(move || {
        let first = ranges.next()?;
        let start = first.offset / block;
        let mut end = (first.offset + first.length).div_ceil(block);
        while let Some(range) = ranges.next_if(|range| range.offset / block <= end) {
            end = end.max((range.offset + range.length).div_ceil(block));
        }
        Some((start, end - start))
    })
}

/// A block of attributes that one inode or several have.
#[derive(Debug)]
pub struct XattrBlock {
    /// Index in [`Demand::nodes`] of one of them.
    pub node: u32,
    pub sharers: u32,
}

/// The whole tree, numbered and counted.
pub struct Demand<'tree> {
    /// By number: the root, lost+found, then every other inode in the order of the tree.
    pub nodes: Vec<Node<'tree>>,
    pub xattr_blocks: Vec<XattrBlock>,
    /// Names of all directories, by the number of the directory.
    names: Vec<(u32, Name<'tree>)>,
    /// The number of each directory's parent, by the directory's.
    parents: HashMap<u32, u32>,
    hasher: NameHasher,
    /// Does the tree itself have `/lost+found`?
    pub lost_found_is_own: bool,
}

impl<'tree> Demand<'tree> {
    /// `lost_found` is the directory that is added where the tree has none.
    pub fn new(tree: &'tree RootTree, lost_found: &'tree Inode, hasher: NameHasher) -> Result<Self, Ext4Error> {
        let mut numbering = Numbering::new(tree, lost_found)?;
        numbering.names.sort_by_key(|(directory, _)| *directory);
        let Numbering { nodes, names, parents, paths, lost_found_is_own } = numbering;
        let mut demand = Demand { nodes, xattr_blocks: Vec::new(), names, parents, hasher, lost_found_is_own };
        demand.count_directories(&paths)?;
        demand.count_xattrs(&paths)?;
        Ok(demand)
    }

    /// Where an inode of the tree stands in [`Self::nodes`], by its number.
    pub fn position(&self, number: u32) -> Option<usize> {
        let at = match number {
            special::ROOT => 0,
            number => (number.checked_sub(special::FIRST)? + 1) as usize,
        };
        (at < self.nodes.len()).then_some(at)
    }

    /// The entries of a directory, ready to be written.
    pub fn directory(&self, number: u32) -> Result<Directory<'tree>, TooManyNames> {
        let start = self.names.partition_point(|(directory, _)| *directory < number);
        let names = self.names[start..].iter().take_while(|(directory, _)| *directory == number);
        let parent = self.parents.get(&number).copied().unwrap_or(special::ROOT);
        Directory::new(number, parent, names.map(|(_, name)| *name).collect(), &self.hasher)
    }

    fn count_directories(&mut self, paths: &[&TreePath]) -> Result<(), Ext4Error> {
        for (at, path) in paths.iter().enumerate() {
            if !self.nodes[at].inode.is_directory() {
                continue;
            }
            let too_many = |TooManyNames| Ext4Error::TooManyNames { path: (*path).clone() };
            let blocks = self.directory(self.nodes[at].number).map_err(too_many)?.blocks();
            self.nodes[at].directory_blocks = blocks as u32;
        }
        Ok(())
    }

    fn count_xattrs(&mut self, paths: &[&TreePath]) -> Result<(), Ext4Error> {
        let mut known: HashMap<[u8; 32], u32> = HashMap::new();
        for (at, node) in self.nodes.iter_mut().enumerate() {
            let xattrs = Xattrs::new(&node.inode.xattrs)
                .map_err(|source| Ext4Error::Xattrs { path: paths[at].clone(), source })?;
            let Some(block) = xattrs.block() else {
                continue;
            };
            let digest: [u8; 32] = Sha256::digest(&block).into();
            let index = match known.get(&digest) {
                Some(&index) if self.xattr_blocks[index as usize].sharers < MAX_SHARERS => index,
                _ => {
                    let index = self.xattr_blocks.len() as u32;
                    self.xattr_blocks.push(XattrBlock { node: at as u32, sharers: 0 });
                    known.insert(digest, index);
                    index
                }
            };
            self.xattr_blocks[index as usize].sharers += 1;
            node.xattr_block = Some(index);
        }
        Ok(())
    }
}

/// Walks the tree once: numbers inodes, collects names by directory, and refuses what an inode cannot hold.
struct Numbering<'tree> {
    nodes: Vec<Node<'tree>>,
    names: Vec<(u32, Name<'tree>)>,
    parents: HashMap<u32, u32>,
    /// Of each node, for messages.
    paths: Vec<&'tree TreePath>,
    lost_found_is_own: bool,
}

impl<'tree> Numbering<'tree> {
    fn new(tree: &'tree RootTree, lost_found: &'tree Inode) -> Result<Self, Ext4Error> {
        let mut links = tree.link_counts();
        let own = tree.entries().find(|entry| entry.path.as_bytes() == LOST_FOUND);
        if let Some(entry) = own.as_ref().filter(|entry| !entry.inode.is_directory()) {
            return Err(Ext4Error::LostFound { kind: entry.inode.kind.noun() });
        }
        let mut numbering = Numbering {
            nodes: Vec::with_capacity(tree.inode_slots() + 1),
            names: Vec::with_capacity(tree.len()),
            parents: HashMap::new(),
            paths: Vec::with_capacity(tree.inode_slots() + 1),
            lost_found_is_own: own.is_some(),
        };
        let mut numbers = vec![0; tree.inode_slots()];
        // The directories above the current entry, by depth.
        let mut above: Vec<u32> = Vec::new();
        for entry in tree.entries() {
            let slot = RootTree::slot(entry.id);
            if entry.path.is_root() {
                if own.is_none() {
                    links[slot] += 1;
                }
                numbers[slot] = special::ROOT;
                numbering.add(special::ROOT, links[slot], entry.inode, entry.path)?;
                above.push(special::ROOT);
                let (inode, links) = match &own {
                    Some(own) => (own.inode, links[RootTree::slot(own.id)]),
                    None => (lost_found, 2),
                };
                let path = own.as_ref().map_or(entry.path, |own| own.path);
                numbering.add(special::FIRST, links, inode, path)?;
                if own.is_none() {
                    numbering.name(special::ROOT, special::FIRST, lost_found, LOST_FOUND);
                }
                continue;
            }
            let parent = above[entry.path.depth() - 1];
            if entry.hard_link_to.is_none() {
                let is_lost_found = entry.path.as_bytes() == LOST_FOUND;
                numbers[slot] = if is_lost_found { special::FIRST } else { numbering.next_number() };
                if !is_lost_found {
                    numbering.add(numbers[slot], links[slot], entry.inode, entry.path)?;
                }
            }
            if entry.inode.is_directory() {
                above.truncate(entry.path.depth());
                above.push(numbers[slot]);
                numbering.parents.insert(numbers[slot], parent);
            }
            numbering.name(parent, numbers[slot], entry.inode, entry.path.name());
        }
        Ok(numbering)
    }

    fn next_number(&self) -> u32 {
        special::FIRST + self.nodes.len() as u32 - 1
    }

    fn name(&mut self, directory: u32, inode: u32, target: &Inode, name: &'tree [u8]) {
        self.names.push((directory, Name { inode, file_type: file_type_of(&target.kind), name }));
    }

    fn add(&mut self, number: u32, links: u32, inode: &'tree Inode, path: &'tree TreePath) -> Result<(), Ext4Error> {
        check(inode, links, path)?;
        self.nodes.push(Node { number, links, inode, xattr_block: None, directory_blocks: 0 });
        self.paths.push(path);
        Ok(())
    }
}

/// Refuses what an inode of ext4 cannot hold.
fn check(inode: &Inode, links: u32, path: &TreePath) -> Result<(), Ext4Error> {
    let path = || path.clone();
    if !TIMES.contains(&inode.mtime.seconds) {
        return Err(Ext4Error::TimeOutOfRange { path: path(), seconds: inode.mtime.seconds });
    }
    match &inode.kind {
        Kind::Directory => return Ok(()),
        Kind::File(body) if body.size > MAX_FILE => {
            return Err(Ext4Error::FileTooLarge { path: path(), size: body.size, limit: MAX_FILE });
        }
        Kind::Symlink(target) if !(1..=MAX_SYMLINK).contains(&target.len()) || target.contains(&0) => {
            return Err(Ext4Error::SymlinkTarget { path: path(), length: target.len(), limit: MAX_SYMLINK });
        }
        &Kind::CharacterDevice { major, minor } | &Kind::BlockDevice { major, minor }
            if major > MAX_MAJOR || minor > MAX_MINOR =>
        {
            return Err(Ext4Error::DeviceNumber { path: path(), major, minor });
        }
        _ => {}
    }
    if links > MAX_LINKS {
        return Err(Ext4Error::TooManyLinks { path: path(), links, limit: MAX_LINKS });
    }
    Ok(())
}

fn file_type_of(kind: &Kind) -> u8 {
    match kind {
        Kind::Directory => file_type::DIRECTORY,
        Kind::File(_) => file_type::REGULAR,
        Kind::Symlink(_) => file_type::SYMLINK,
        Kind::CharacterDevice { .. } => file_type::CHARACTER_DEVICE,
        Kind::BlockDevice { .. } => file_type::BLOCK_DEVICE,
        Kind::Fifo => file_type::FIFO,
        Kind::Socket => file_type::SOCKET,
    }
}
