//! What a tree needs of a filesystem: numbered inodes, the names of every directory, and how many blocks each needs, before
//! any block is allocated.

use std::collections::HashMap;
use std::ops::Range;

use sha2::{Digest, Sha256};
use snug_rootfs::tree::{self, Body, Inode, Kind, RootTree, TreePath};

use super::directory::{Directory, Leaf, Name, TooManyNames, arrange, file_type};
use super::error::Ext4Error;
use super::hash::NameHasher;
use super::on_disk::{BLOCK, special};
use super::xattr::{MAX_SHARERS, Xattrs};

/// Symlink targets shorter than this many bytes are stored in the inode (`ifork.rst`).
pub(crate) const INLINE_SYMLINK: usize = 60;
/// The kernel reads a target into one block and terminates it with NUL.
const MAX_SYMLINK: usize = BLOCK - 1;
/// Bytes of the largest file: logical block numbers have 32 bits, the last of which is not used (`fs/ext4/super.c`, `ext4_max_size`).
pub const MAX_FILE: u64 = (u32::MAX as u64) * BLOCK as u64;
/// Names of one inode (`EXT4_LINK_MAX`); a directory with more subdirectories shows one link (dir_nlink).
pub const MAX_LINKS: u32 = 65_000;
/// Seconds since 1970 that 32 bits and two epoch bits can state (`inodes.rst`, "Inode Timestamps").
pub const TIMES: std::ops::RangeInclusive<i64> = -(1 << 31)..=(1 << 34) - (1 << 31) - 1;
/// Major and minor device numbers have 12 and 20 bits (`new_encode_dev`).
const MAX_MAJOR: u32 = (1 << 12) - 1;
const MAX_MINOR: u32 = (1 << 20) - 1;

pub(crate) const LOST_FOUND: &[u8] = b"lost+found";

/// An inode with its number and what it needs apart from its 256 bytes.
#[derive(Debug)]
pub(crate) struct Node<'tree> {
    pub number: u32,
    pub links: u32,
    pub inode: &'tree Inode,
    /// Index of its block in [`Inventory::xattr_blocks`].
    pub xattr_block: Option<u32>,
    /// Blocks of a directory; zero for all else.
    directory_blocks: u32,
}

impl Node<'_> {
    /// Blocks that the inode maps; holes and the blocks of its extent tree are not counted.
    pub(crate) fn blocks(&self) -> u64 {
        match &self.inode.kind {
            Kind::Directory => u64::from(self.directory_blocks),
            Kind::Symlink(target) => u64::from(target.len() >= INLINE_SYMLINK),
            Kind::File(body) => block_runs(body).map(|(_, length)| length).sum(),
            _ => 0,
        }
    }

    /// Bytes in `i_size`.
    pub(crate) fn size(&self) -> u64 {
        match &self.inode.kind {
            Kind::Directory => u64::from(self.directory_blocks) * BLOCK as u64,
            Kind::Symlink(target) => target.len() as u64,
            Kind::File(body) => body.size,
            _ => 0,
        }
    }
}

/// Returns the logical blocks of a body that hold data, as (first, length) runs.
pub(crate) fn block_runs(body: &Body) -> impl Iterator<Item = (u64, u64)> {
    const { assert!(BLOCK as u64 == tree::BLOCK) };
    body.runs().map(|run| (run.start / tree::BLOCK, (run.end - run.start).div_ceil(tree::BLOCK)))
}

/// An extended attribute block, shared by inodes whose attributes are equal.
#[derive(Debug)]
pub(crate) struct XattrBlock {
    /// Index in [`Inventory::nodes`] of one of these inodes.
    pub node: u32,
    pub sharers: u32,
}

/// One directory.
#[derive(Debug)]
struct Listing {
    /// Its index in [`Inventory::nodes`].
    node: usize,
    /// Inode number of the parent directory.
    parent: u32,
    /// Range in [`Inventory::names`].
    names: Range<usize>,
    leaves: Vec<Leaf>,
}

/// The whole tree, numbered and measured.
pub(crate) struct Inventory<'tree> {
    /// By number: the root, lost+found, then every other inode in the order of the tree.
    pub nodes: Vec<Node<'tree>>,
    pub xattr_blocks: Vec<XattrBlock>,
    /// Indices in [`Self::nodes`] of symlinks whose targets take a block.
    pub long_symlinks: Vec<u32>,
    /// In the order of [`Self::nodes`].
    listings: Vec<Listing>,
    /// The names in all directories, grouped by directory.
    names: Vec<Name<'tree>>,
    /// Whether the tree itself has `/lost+found`.
    pub tree_has_lost_found: bool,
}

impl<'tree> Inventory<'tree> {
    /// Numbers and measures `tree`, to which the directory `lost_found` is added if it has no `/lost+found`. Fails where an
    /// inode, a directory or the attributes exceed what ext4 can store.
    pub(crate) fn new(tree: &'tree RootTree, lost_found: &'tree Inode, hasher: NameHasher) -> Result<Self, Ext4Error> {
        let numbering = Numbering::new(tree, lost_found)?;
        let Numbering { nodes, long_symlinks, mut listings, names, paths, tree_has_lost_found, .. } = numbering;
        listings.sort_unstable_by_key(|listing| listing.node);
        let xattr_blocks = Vec::new();
        let mut inventory = Inventory { nodes, xattr_blocks, long_symlinks, listings, names, tree_has_lost_found };
        inventory.arrange_directories(hasher, &paths)?;
        inventory.count_xattrs(&paths)?;
        Ok(inventory)
    }

    /// Returns the index in [`Self::nodes`] of the inode with this number.
    pub(crate) fn position(&self, number: u32) -> Option<usize> {
        position(number).filter(|&at| at < self.nodes.len())
    }

    /// Returns every directory, ready to be written, with its index in [`Self::nodes`].
    pub(crate) fn directories(&self) -> impl Iterator<Item = (usize, Directory<'_>)> {
        self.listings.iter().map(|listing| (listing.node, self.directory(listing)))
    }

    fn directory<'a>(&'a self, listing: &'a Listing) -> Directory<'a> {
        Directory {
            inode: self.nodes[listing.node].number,
            parent: listing.parent,
            names: &self.names[listing.names.clone()],
            leaves: &listing.leaves,
        }
    }

    fn arrange_directories(&mut self, hasher: NameHasher, paths: &[&TreePath]) -> Result<(), Ext4Error> {
        for at in 0..self.listings.len() {
            let listing = &mut self.listings[at];
            let node = listing.node;
            let too_many = |TooManyNames| Ext4Error::TooManyNames { path: paths[node].clone() };
            listing.leaves = arrange(&mut self.names[listing.names.clone()], &hasher).map_err(too_many)?;
            self.nodes[node].directory_blocks = self.directory(&self.listings[at]).blocks() as u32;
        }
        Ok(())
    }

    fn count_xattrs(&mut self, paths: &[&TreePath]) -> Result<(), Ext4Error> {
        let mut known: HashMap<[u8; 32], u32> = HashMap::new();
        let nodes = self.nodes.iter_mut().enumerate();
        for (at, node) in nodes.filter(|(_, node)| !node.inode.xattrs.is_empty()) {
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

/// Returns the index in [`Inventory::nodes`] of the inode with this number.
fn position(number: u32) -> Option<usize> {
    match number {
        special::ROOT => Some(0),
        number => Some((number.checked_sub(special::FIRST)? + 1) as usize),
    }
}

/// One walk over the tree, which numbers inodes and counts their links, collects names by directory, and refuses what an
/// inode cannot hold.
struct Numbering<'tree> {
    nodes: Vec<Node<'tree>>,
    long_symlinks: Vec<u32>,
    /// Directories that are complete, and their names.
    listings: Vec<Listing>,
    names: Vec<Name<'tree>>,
    /// The ancestors of the current entry, from the root down.
    open: Vec<Open<'tree>>,
    /// Of each node, for messages.
    paths: Vec<&'tree TreePath>,
    tree_has_lost_found: bool,
}

/// A directory whose names are being collected.
struct Open<'tree> {
    number: u32,
    /// Bytes of its path, which identify it among the ancestors of an entry.
    length: usize,
    names: Vec<Name<'tree>>,
}

impl<'tree> Numbering<'tree> {
    fn new(tree: &'tree RootTree, lost_found: &'tree Inode) -> Result<Self, Ext4Error> {
        let own = tree.subtree(&TreePath::new(LOST_FOUND).expect("it is one name")).next();
        let own = own.map(|(path, id)| (path, tree.inode(id)));
        if let Some((_, inode)) = own.filter(|(_, inode)| !inode.is_directory()) {
            return Err(Ext4Error::LostFound { kind: inode.kind.noun() });
        }
        let mut numbering = Numbering {
            nodes: Vec::with_capacity(tree.inode_slots() + 1),
            long_symlinks: Vec::new(),
            listings: Vec::new(),
            names: Vec::with_capacity(tree.len()),
            open: Vec::new(),
            paths: Vec::with_capacity(tree.inode_slots() + 1),
            tree_has_lost_found: own.is_some(),
        };
        let mut numbers = vec![0; tree.inode_slots()];
        for entry in tree.entries() {
            let slot = RootTree::slot(entry.id);
            if entry.path.is_root() {
                numbers[slot] = special::ROOT;
                numbering.add(special::ROOT, entry.inode, entry.path)?;
                numbering.open(special::ROOT, 0);
                let (path, inode) = own.unwrap_or((entry.path, lost_found));
                numbering.add(special::FIRST, inode, path)?;
                if own.is_none() {
                    numbering.name(special::FIRST, lost_found, LOST_FOUND);
                    numbering.open(special::FIRST, LOST_FOUND.len());
                    numbering.close();
                }
                continue;
            }
            let parent = entry.path.parent_bytes().map_or(0, <[u8]>::len);
            while numbering.open.last().is_some_and(|directory| directory.length != parent) {
                numbering.close();
            }
            if entry.hard_link_to.is_none() {
                numbers[slot] = if entry.path.as_bytes() == LOST_FOUND {
                    special::FIRST
                } else {
                    numbering.add(numbering.next_number(), entry.inode, entry.path)?
                };
            }
            numbering.name(numbers[slot], entry.inode, entry.path.name());
            if entry.inode.is_directory() {
                numbering.open(numbers[slot], entry.path.as_bytes().len());
            }
        }
        while !numbering.open.is_empty() {
            numbering.close();
        }
        numbering.check_links()?;
        Ok(numbering)
    }

    fn next_number(&self) -> u32 {
        special::FIRST + self.nodes.len() as u32 - 1
    }

    /// Begins a directory inside the innermost open one.
    fn open(&mut self, number: u32, length: usize) {
        self.open.push(Open { number, length, names: Vec::new() });
    }

    /// Completes the innermost open directory.
    fn close(&mut self) {
        let done = self.open.pop().expect("one is open");
        let start = self.names.len();
        self.names.extend(done.names);
        let parent = self.open.last().map_or(special::ROOT, |above| above.number);
        let node = position(done.number).expect("it was added");
        self.listings.push(Listing { node, parent, names: start..self.names.len(), leaves: Vec::new() });
    }

    /// Adds a name for an inode to the innermost open directory.
    fn name(&mut self, inode: u32, target: &Inode, name: &'tree [u8]) {
        let directory = self.open.last_mut().expect("the root is the first of all entries");
        directory.names.push(Name { inode, file_type: file_type_of(&target.kind), name });
        // A subdirectory's `..` counts as a link of the directory that it is in.
        let counted = if target.is_directory() { directory.number } else { inode };
        self.nodes[position(counted).expect("it was added")].links += 1;
    }

    fn add(&mut self, number: u32, inode: &'tree Inode, path: &'tree TreePath) -> Result<u32, Ext4Error> {
        check(inode, path)?;
        if matches!(&inode.kind, Kind::Symlink(target) if target.len() >= INLINE_SYMLINK) {
            self.long_symlinks.push(self.nodes.len() as u32);
        }
        // A directory's entry above it and its own `.`; all others are counted by name.
        let links = if inode.is_directory() { 2 } else { 0 };
        self.nodes.push(Node { number, links, inode, xattr_block: None, directory_blocks: 0 });
        self.paths.push(path);
        Ok(number)
    }

    fn check_links(&self) -> Result<(), Ext4Error> {
        let too_many = |node: &Node| node.links > MAX_LINKS && !node.inode.is_directory();
        match self.nodes.iter().position(too_many) {
            None => Ok(()),
            Some(at) => {
                let (path, links) = (self.paths[at].clone(), self.nodes[at].links);
                Err(Ext4Error::TooManyLinks { path, links, limit: MAX_LINKS })
            }
        }
    }
}

/// Refuses what an ext4 inode cannot store.
fn check(inode: &Inode, path: &TreePath) -> Result<(), Ext4Error> {
    let path = || path.clone();
    if !TIMES.contains(&inode.mtime.seconds) {
        return Err(Ext4Error::TimeOutOfRange { path: path(), seconds: inode.mtime.seconds });
    }
    match &inode.kind {
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
