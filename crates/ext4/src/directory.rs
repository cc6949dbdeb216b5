//! Directory blocks: one linear block where the names fit into it, otherwise a hash tree (kernel documentation,
//! `directory.rst`). Both are packed: an entry goes to the next block only if it does not fit into this one.

use super::checksum::crc32c;
use super::hash::{HALF_MD4, NameHash, NameHasher};
use super::on_disk::{BLOCK, Field, on_disk};

on_disk! {
    /// `directory.rst`: the fixed part of a directory entry, before the name.
    DirectoryEntry, 8, {
        inode: u32,
        record_length: u16,
        name_length: u8,
        file_type: u8,
    }
}

/// Bytes of the fake entry at the end of a directory block that holds the checksum (`directory.rst`).
pub(crate) const DIRECTORY_TAIL: usize = 12;
/// The file type that marks [`DIRECTORY_TAIL`].
pub(crate) const TAIL_FILE_TYPE: u8 = 0xde;

on_disk! {
    /// `directory.rst`, "Hash Tree Directories": the header behind `.` and `..` in the root of an index.
    IndexRootInfo, 8, {
        reserved: u32,
        hash_version: u8,
        info_length: u8,
        indirect_levels: u8,
        unused_flags: u8,
    }
}

on_disk! {
    /// `directory.rst`: an entry of an index; in the first one, limit and count are in place of the hash.
    IndexEntry, 8, {
        hash: u32,
        block: u32,
    }
}

/// Bytes for entries in a block that ends with a checksum.
const ENTRIES_SIZE: usize = BLOCK - DIRECTORY_TAIL;
/// Bytes of the entries `.` and `..`, padding included.
const DOT: usize = record_length(1);
const DOT_DOT: usize = record_length(2);
/// Bytes of `struct dx_tail`, which holds the checksum of an index block, and of an index entry.
const INDEX_TAIL: usize = 8;
const INDEX_ENTRY: usize = <IndexEntry as Field>::SIZE;
/// Where the index entries begin in the root, and in inner nodes, which begin with an empty directory entry.
const ROOT_ENTRIES: usize = DOT + DOT_DOT + <IndexRootInfo as Field>::SIZE;
const NODE_ENTRIES: usize = <DirectoryEntry as Field>::SIZE;
/// Entries of the root and of an inner node: 507 and 510.
const ROOT_LIMIT: usize = (BLOCK - ROOT_ENTRIES - INDEX_TAIL) / INDEX_ENTRY;
const NODE_LIMIT: usize = (BLOCK - NODE_ENTRIES - INDEX_TAIL) / INDEX_ENTRY;
/// Leaf blocks under an index of two levels, the most without the feature large_dir: about 1 GiB of entries.
const MAX_LEAVES: usize = ROOT_LIMIT * NODE_LIMIT;

/// The type of an entry's inode as a directory states it (`directory.rst`, "ftype").
pub(crate) mod file_type {
    pub(crate) const REGULAR: u8 = 1;
    pub(crate) const DIRECTORY: u8 = 2;
    pub(crate) const CHARACTER_DEVICE: u8 = 3;
    pub(crate) const BLOCK_DEVICE: u8 = 4;
    pub(crate) const FIFO: u8 = 5;
    pub(crate) const SOCKET: u8 = 6;
    pub(crate) const SYMLINK: u8 = 7;
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Name<'tree> {
    pub inode: u32,
    pub file_type: u8,
    pub name: &'tree [u8],
}

/// One directory, its names in the order in which [`arrange`] put them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Directory<'a> {
    /// Inode number of the directory itself.
    pub inode: u32,
    /// Inode number of the parent directory.
    pub parent: u32,
    pub names: &'a [Name<'a>],
    /// Empty if the directory has no index.
    pub leaves: &'a [Leaf],
}

/// A block of names under an index.
#[derive(Debug)]
pub(crate) struct Leaf {
    /// The hash of its first name.
    hash: u32,
    /// The number of names in it.
    names: usize,
}

/// The blocks of a directory, in order.
pub(crate) trait Blocks {
    type Error;

    /// Returns the next block, filled with zeros.
    fn next(&mut self) -> Result<&mut [u8; BLOCK], Self::Error>;
}

/// The directory has more names than an index of two levels holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooManyNames;

/// Returns the bytes of a directory entry whose name has `length` bytes; entries are aligned to four.
const fn record_length(length: usize) -> usize {
    <DirectoryEntry as Field>::SIZE + length.next_multiple_of(4)
}

/// Sorts the names of a directory into the order in which they will be written and divides them among the leaves of an index.
/// Returns no leaves if one block holds all names.
pub(crate) fn arrange(names: &mut [Name], hasher: &NameHasher) -> Result<Vec<Leaf>, TooManyNames> {
    let bytes: usize = names.iter().map(|name| record_length(name.name.len())).sum();
    let mut leaves: Vec<Leaf> = Vec::new();
    if DOT + DOT_DOT + bytes <= ENTRIES_SIZE {
        return Ok(leaves);
    }
    let mut hashed: Vec<(NameHash, Name)> = names.iter().map(|name| (hasher.hash(name.name), *name)).collect();
    hashed.sort_unstable_by(|(a, x), (b, y)| a.cmp(b).then_with(|| x.name.cmp(y.name)));
    let (mut free, mut last) = (0, None);
    for ((hash, name), place) in hashed.into_iter().zip(names) {
        let length = record_length(name.name.len());
        if length > free {
            // The lowest bit means that the leaf before has names with the same hash.
            let continued = u32::from(last == Some(hash.major));
            leaves.push(Leaf { hash: hash.major | continued, names: 0 });
            free = ENTRIES_SIZE;
        }
        free -= length;
        last = Some(hash.major);
        if let Some(leaf) = leaves.last_mut() {
            leaf.names += 1;
        }
        *place = name;
    }
    if leaves.len() > MAX_LEAVES { Err(TooManyNames) } else { Ok(leaves) }
}

impl<'a> Directory<'a> {
    /// Whether the directory has a hash tree.
    pub(crate) fn is_indexed(&self) -> bool {
        !self.leaves.is_empty()
    }

    /// Returns the number of inner nodes between the root of the index and the leaves.
    fn nodes(&self) -> usize {
        if self.leaves.len() <= ROOT_LIMIT { 0 } else { self.leaves.len().div_ceil(NODE_LIMIT) }
    }

    /// Returns the number of blocks of the directory.
    pub(crate) fn blocks(&self) -> usize {
        1 + self.nodes() + self.leaves.len()
    }

    /// Fills in all [`Self::blocks`] of the directory; `seed` is the checksum seed of its inode.
    pub(crate) fn write<B: Blocks>(&self, seed: u32, blocks: &mut B) -> Result<(), B::Error> {
        if !self.is_indexed() {
            let mut block = LinearBlock::new(blocks.next()?);
            block.push(self.dot());
            block.push(self.dot_dot());
            self.names.iter().for_each(|&name| block.push(name));
            block.finish(seed);
            return Ok(());
        }
        self.write_index(seed, blocks)?;
        let mut names = self.names.iter();
        for leaf in self.leaves {
            let mut block = LinearBlock::new(blocks.next()?);
            names.by_ref().take(leaf.names).for_each(|&name| block.push(name));
            block.finish(seed);
        }
        Ok(())
    }

    fn dot(&self) -> Name<'a> {
        Name { inode: self.inode, file_type: file_type::DIRECTORY, name: b"." }
    }

    fn dot_dot(&self) -> Name<'a> {
        Name { inode: self.parent, file_type: file_type::DIRECTORY, name: b".." }
    }

    /// Writes the root into block 0 and the inner nodes into the blocks behind it; the leaves follow.
    fn write_index<B: Blocks>(&self, seed: u32, blocks: &mut B) -> Result<(), B::Error> {
        let nodes = self.nodes();
        let first_leaf = 1 + nodes;
        let leaf_entries: Vec<IndexEntry> =
            (first_leaf..).zip(self.leaves).map(|(block, leaf)| index_entry(leaf.hash, block)).collect();
        let node_entries: Vec<IndexEntry> = (1..)
            .zip(leaf_entries.chunks(NODE_LIMIT))
            .map(|(block, below)| index_entry(below[0].hash, block))
            .collect();

        let root = blocks.next()?;
        put_entry(root, self.dot(), DOT);
        put_entry(&mut root[DOT..], self.dot_dot(), BLOCK - DOT);
        let info = IndexRootInfo {
            hash_version: HALF_MD4,
            info_length: <IndexRootInfo as Field>::SIZE as u8,
            indirect_levels: u8::from(nodes > 0),
            ..IndexRootInfo::ZERO
        };
        info.put(&mut root[DOT + DOT_DOT..ROOT_ENTRIES]);
        let top = if nodes > 0 { &node_entries } else { &leaf_entries };
        put_index(root, ROOT_ENTRIES, ROOT_LIMIT, top, seed);

        for below in leaf_entries.chunks(NODE_LIMIT).take(nodes) {
            let node = blocks.next()?;
            let head = DirectoryEntry { record_length: BLOCK as u16, ..DirectoryEntry::ZERO };
            head.put(&mut node[..NODE_ENTRIES]);
            put_index(node, NODE_ENTRIES, NODE_LIMIT, below, seed);
        }
        Ok(())
    }
}

fn index_entry(hash: u32, block: usize) -> IndexEntry {
    IndexEntry { hash, block: u32::try_from(block).expect("at most MAX_LEAVES leaves") }
}

/// Fills in the entries, limit, count and checksum of an index block. The checksum covers the block up to the last entry in
/// use and the tail with its checksum as zero.
fn put_index(block: &mut [u8; BLOCK], start: usize, limit: usize, entries: &[IndexEntry], seed: u32) {
    for (entry, place) in entries.iter().zip(block[start..].chunks_exact_mut(INDEX_ENTRY)) {
        entry.put(place);
    }
    (limit as u16).put(&mut block[start..start + 2]);
    (entries.len() as u16).put(&mut block[start + 2..start + 4]);
    let sum = crc32c(seed, &block[..start + entries.len() * INDEX_ENTRY]);
    let sum = crc32c(sum, &[0; INDEX_TAIL]);
    let tail = start + limit * INDEX_ENTRY;
    sum.put(&mut block[tail + 4..tail + 8]);
}

fn put_entry(out: &mut [u8], name: Name, length: usize) {
    let fixed = <DirectoryEntry as Field>::SIZE;
    let entry = DirectoryEntry {
        inode: name.inode,
        record_length: length as u16,
        name_length: name.name.len() as u8,
        file_type: name.file_type,
    };
    entry.put(&mut out[..fixed]);
    out[fixed..fixed + name.name.len()].copy_from_slice(name.name);
}

/// A block of entries, the last of which extends to the tail.
struct LinearBlock<'a> {
    bytes: &'a mut [u8; BLOCK],
    used: usize,
    last: usize,
}

impl<'a> LinearBlock<'a> {
    /// `bytes` must be zeros.
    fn new(bytes: &'a mut [u8; BLOCK]) -> Self {
        LinearBlock { bytes, used: 0, last: 0 }
    }

    fn push(&mut self, name: Name) {
        let length = record_length(name.name.len());
        put_entry(&mut self.bytes[self.used..ENTRIES_SIZE], name, length);
        self.last = self.used;
        self.used += length;
    }

    fn finish(self, seed: u32) {
        let reach = (ENTRIES_SIZE - self.last) as u16;
        reach.put(&mut self.bytes[self.last + 4..self.last + 6]);
        let tail =
            DirectoryEntry { record_length: DIRECTORY_TAIL as u16, file_type: TAIL_FILE_TYPE, ..DirectoryEntry::ZERO };
        tail.put(&mut self.bytes[ENTRIES_SIZE..ENTRIES_SIZE + 8]);
        let sum = crc32c(seed, &self.bytes[..ENTRIES_SIZE]);
        sum.put(&mut self.bytes[ENTRIES_SIZE + 8..]);
    }
}
