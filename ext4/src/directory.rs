//! Directory blocks: one linear block where the names fit it, otherwise a hash tree (kernel documentation,
//! `directory.rst`). Both are packed: an entry goes to the next block only when it does not fit this one.

use super::checksum::crc32c;
use super::hash::{HALF_MD4, NameHash, NameHasher};
use super::structures::{BLOCK, DIRECTORY_TAIL, DirectoryEntry, Field, IndexEntry, IndexRootInfo, TAIL_FILE_TYPE};

/// Bytes for entries in a block that ends with a checksum.
const ROOM: usize = BLOCK - DIRECTORY_TAIL;
/// Bytes of `.` and of `..` with their records' padding.
const DOT: usize = record_length(1);
const DOT_DOT: usize = record_length(2);
/// Bytes of the checksum behind the entries of an index block, and of one index entry.
const INDEX_TAIL: usize = 8;
const INDEX_ENTRY: usize = <IndexEntry as Field>::SIZE;
/// Where the index entries begin in the root and in inner nodes, whose head is an empty directory entry.
const ROOT_ENTRIES: usize = DOT + DOT_DOT + <IndexRootInfo as Field>::SIZE;
const NODE_ENTRIES: usize = <DirectoryEntry as Field>::SIZE;
/// Entries of the root and of an inner node: 507 and 510.
const ROOT_LIMIT: usize = (BLOCK - ROOT_ENTRIES - INDEX_TAIL) / INDEX_ENTRY;
const NODE_LIMIT: usize = (BLOCK - NODE_ENTRIES - INDEX_TAIL) / INDEX_ENTRY;
/// Leaf blocks under an index of two levels, the most without the feature large_dir: about 1 GiB of entries.
const MAX_LEAVES: usize = ROOT_LIMIT * NODE_LIMIT;

/// The type of an entry's inode, repeated in the directory (`directory.rst`, "ftype").
pub mod file_type {
    pub const REGULAR: u8 = 1;
    pub const DIRECTORY: u8 = 2;
    pub const CHARACTER_DEVICE: u8 = 3;
    pub const BLOCK_DEVICE: u8 = 4;
    pub const FIFO: u8 = 5;
    pub const SOCKET: u8 = 6;
    pub const SYMLINK: u8 = 7;
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub struct Name<'tree> {
    pub inode: u32,
    pub file_type: u8,
    pub name: &'tree [u8],
}

/// The names of one directory, in the order in which they will be written.
pub struct Directory<'tree> {
    /// Of the directory itself.
    pub inode: u32,
    pub parent: u32,
    names: Vec<Name<'tree>>,
    /// Of each leaf, the hash of its first name and how many names it holds; empty without an index.
    leaves: Vec<Leaf>,
}

struct Leaf {
    hash: u32,
    names: usize,
}

/// A directory holds more names than an index of two levels can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyNames;

/// Bytes of a directory entry with a name of `length` bytes: entries are aligned to four.
const fn record_length(length: usize) -> usize {
    <DirectoryEntry as Field>::SIZE + length.next_multiple_of(4)
}

impl<'tree> Directory<'tree> {
    pub fn new(
        inode: u32,
        parent: u32,
        mut names: Vec<Name<'tree>>,
        hasher: &NameHasher,
    ) -> Result<Self, TooManyNames> {
        let bytes: usize = names.iter().map(|name| record_length(name.name.len())).sum();
        if DOT + DOT_DOT + bytes <= ROOM {
            return Ok(Directory { inode, parent, names, leaves: Vec::new() });
        }
        let mut hashed: Vec<(NameHash, Name)> = names.drain(..).map(|name| (hasher.hash(name.name), name)).collect();
        hashed.sort_unstable_by(|(a, x), (b, y)| a.cmp(b).then_with(|| x.name.cmp(y.name)));
        let mut leaves: Vec<Leaf> = Vec::new();
        let (mut free, mut last) = (0, None);
        for (hash, name) in &hashed {
            let length = record_length(name.name.len());
            if length > free {
                // The lowest bit says that names of this hash already stand in the leaf before.
                let continued = u32::from(last == Some(hash.major));
                leaves.push(Leaf { hash: hash.major | continued, names: 0 });
                free = ROOM;
            }
            free -= length;
            last = Some(hash.major);
            if let Some(leaf) = leaves.last_mut() {
                leaf.names += 1;
            }
        }
        names.extend(hashed.into_iter().map(|(_, name)| name));
        if leaves.len() > MAX_LEAVES {
            return Err(TooManyNames);
        }
        Ok(Directory { inode, parent, names, leaves })
    }

    /// Does it need the index flag?
    pub fn is_indexed(&self) -> bool {
        !self.leaves.is_empty()
    }

    /// Inner nodes between the root of the index and the leaves.
    fn nodes(&self) -> usize {
        if self.leaves.len() <= ROOT_LIMIT { 0 } else { self.leaves.len().div_ceil(NODE_LIMIT) }
    }

    pub fn blocks(&self) -> usize {
        1 + self.nodes() + self.leaves.len()
    }

    /// Appends all blocks to `out`; `seed` is the directory inode's checksum seed.
    pub fn write(&self, seed: u32, out: &mut Vec<u8>) {
        if !self.is_indexed() {
            let mut block = LinearBlock::new();
            block.push(self.dot());
            block.push(self.dot_dot());
            self.names.iter().for_each(|&name| block.push(name));
            block.finish(seed, out);
            return;
        }
        self.write_index(seed, out);
        let mut names = self.names.iter();
        for leaf in &self.leaves {
            let mut block = LinearBlock::new();
            names.by_ref().take(leaf.names).for_each(|&name| block.push(name));
            block.finish(seed, out);
        }
    }

    fn dot(&self) -> Name<'tree> {
        Name { inode: self.inode, file_type: file_type::DIRECTORY, name: b"." }
    }

    fn dot_dot(&self) -> Name<'tree> {
        Name { inode: self.parent, file_type: file_type::DIRECTORY, name: b".." }
    }

    /// The root in block 0, inner nodes in the blocks behind it, leaves after them.
    fn write_index(&self, seed: u32, out: &mut Vec<u8>) {
        let nodes = self.nodes();
        let first_leaf = 1 + nodes;
        let leaf_entries: Vec<IndexEntry> =
            (first_leaf..).zip(&self.leaves).map(|(block, leaf)| index_entry(leaf.hash, block)).collect();
        let node_entries: Vec<IndexEntry> = (1..)
            .zip(leaf_entries.chunks(NODE_LIMIT))
            .map(|(block, below)| index_entry(below[0].hash, block))
            .collect();

        let mut root = [0; BLOCK];
        put_entry(&mut root, self.dot(), DOT);
        put_entry(&mut root[DOT..], self.dot_dot(), BLOCK - DOT);
        let info = IndexRootInfo {
            hash_version: HALF_MD4,
            info_length: <IndexRootInfo as Field>::SIZE as u8,
            indirect_levels: u8::from(nodes > 0),
            ..IndexRootInfo::ZERO
        };
        info.put(&mut root[DOT + DOT_DOT..ROOT_ENTRIES]);
        let top = if nodes > 0 { &node_entries } else { &leaf_entries };
        put_index(&mut root, ROOT_ENTRIES, ROOT_LIMIT, top, seed);
        out.extend_from_slice(&root);

        for below in leaf_entries.chunks(NODE_LIMIT).take(nodes) {
            let mut node = [0; BLOCK];
            let head = DirectoryEntry { record_length: BLOCK as u16, ..DirectoryEntry::ZERO };
            head.put(&mut node[..NODE_ENTRIES]);
            put_index(&mut node, NODE_ENTRIES, NODE_LIMIT, below, seed);
            out.extend_from_slice(&node);
        }
    }
}

fn index_entry(hash: u32, block: usize) -> IndexEntry {
    IndexEntry { hash, block: u32::try_from(block).expect("at most MAX_LEAVES leaves") }
}

/// Fills in the entries, limit, count and checksum of an index block. The checksum covers the block up to the last
/// entry in use, then the tail with a zero checksum.
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

/// A block of entries, the last of which reaches up to the checksum.
struct LinearBlock {
    bytes: [u8; BLOCK],
    used: usize,
    last: usize,
}

impl LinearBlock {
    fn new() -> Self {
        LinearBlock { bytes: [0; BLOCK], used: 0, last: 0 }
    }

    fn push(&mut self, name: Name) {
        let length = record_length(name.name.len());
        put_entry(&mut self.bytes[self.used..ROOM], name, length);
        self.last = self.used;
        self.used += length;
    }

    fn finish(mut self, seed: u32, out: &mut Vec<u8>) {
        let reach = (ROOM - self.last) as u16;
        reach.put(&mut self.bytes[self.last + 4..self.last + 6]);
        let tail =
            DirectoryEntry { record_length: DIRECTORY_TAIL as u16, file_type: TAIL_FILE_TYPE, ..DirectoryEntry::ZERO };
        tail.put(&mut self.bytes[ROOM..ROOM + 8]);
        let sum = crc32c(seed, &self.bytes[..ROOM]);
        sum.put(&mut self.bytes[ROOM + 8..]);
        out.extend_from_slice(&self.bytes);
    }
}
