//! What a root filesystem holds, name by name, with digests in the place of contents: what [`mtree`](crate::mtree) reads
//! and writes, and the form in which the tree that was meant and the image that was written are compared.

use std::collections::BTreeMap;
use std::io;

use super::digest::{self, BodyDigests, ContentDigest};
use super::tree::{Body, Entry, Inode, Kind, RootTree, TreePath};

/// All entries of a root filesystem, in order of their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The entry of each name, the root and hard links included.
    pub records: BTreeMap<TreePath, Record>,
}

/// One entry of a [`Listing`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What the name stands for.
    pub inode: Inode<Content>,
    /// The first name in order of the same inode, when this is a later one.
    pub hard_link_to: Option<TreePath>,
}

/// What a listing says of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// `st_size`, in bytes.
    pub size: u64,
    /// `None` where it was not read.
    pub digest: Option<ContentDigest>,
}

/// A file whose content could not be read.
#[derive(Debug)]
pub struct Unreadable {
    /// The first of its names.
    pub path: TreePath,
    /// Why.
    pub error: io::Error,
}

impl Record {
    /// An inode of root's, with a name of its own and the time 0.
    pub fn new(kind: Kind<Content>, mode: u16) -> Self {
        Record { inode: Inode::new(kind, mode), hard_link_to: None }
    }

    /// `st_size` of a file; 0 for all other types.
    pub fn size(&self) -> u64 {
        match &self.inode.kind {
            Kind::File(content) => content.size,
            _ => 0,
        }
    }
}

impl Listing {
    /// Lists a tree, without digests of its files.
    pub fn of(tree: &RootTree) -> Self {
        Self::with(tree, |_, _| None)
    }

    /// Lists a tree whose files have these `digests`.
    pub fn of_hashed(tree: &RootTree, digests: &BodyDigests) -> Self {
        Self::with(tree, |entry, _| digests.get(entry.id).copied())
    }

    /// Lists a tree and reads every file for its digest. `advance` is called with the bytes of each file. Files that cannot be
    /// read have no digest and are returned apart.
    pub fn read(tree: &RootTree, mut advance: impl FnMut(u64)) -> (Self, Vec<Unreadable>) {
        let mut unreadable = Vec::new();
        let mut digests: Vec<Option<ContentDigest>> = vec![None; tree.inode_slots()];
        let mut buffer = digest::body_buffer();
        let listing = Self::with(tree, |entry, body| {
            let known = &mut digests[RootTree::slot(entry.id)];
            if entry.hard_link_to.is_none() {
                match digest::of_body(tree.bodies(), body, &mut buffer) {
                    Ok(found) => *known = Some(found),
                    Err(error) => unreadable.push(Unreadable { path: entry.path.clone(), error }),
                }
                advance(body.size);
            }
            *known
        });
        (listing, unreadable)
    }

    fn with(tree: &RootTree, mut digest: impl FnMut(&Entry, &Body) -> Option<ContentDigest>) -> Self {
        let record = |entry: Entry| {
            let content = |body: &Body| Content { size: body.size, digest: digest(&entry, body) };
            let record = Record { inode: entry.inode.map_content(content), hard_link_to: entry.hard_link_to.cloned() };
            (entry.path.clone(), record)
        };
        Listing { records: tree.entries().map(record).collect() }
    }

    /// Whether there is an entry at `path`, which must be clean.
    pub fn has(&self, path: &str) -> bool {
        TreePath::new(path).is_ok_and(|path| self.records.contains_key(&path))
    }

    /// Bytes of all files, each inode's once.
    pub fn file_bytes(&self) -> u64 {
        self.inodes().map(Record::size).sum()
    }

    /// Number of inodes with file capabilities (the attribute `security.capability`).
    pub fn capabilities(&self) -> usize {
        self.inodes().filter(|record| record.inode.xattrs.contains_key(&b"security.capability"[..])).count()
    }

    /// One record of each inode.
    fn inodes(&self) -> impl Iterator<Item = &Record> {
        self.records.values().filter(|record| record.hard_link_to.is_none())
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::tree::{BodySource, DataRange};

    #[test]
    fn holes_are_hashed_as_zeros_and_a_second_name_has_the_same_digest() {
        let mut tree = RootTree::new(BodySource::new(b"ab".to_vec()));
        let range = |offset, source| DataRange { offset, length: 1, source };
        let body = Body { size: 6000, extents: [range(1, 0), range(5000, 1)].into_iter().collect() };
        let first = TreePath::new("first").unwrap();
        tree.insert(first.clone(), Inode::new(Kind::File(body), 0o644)).unwrap();
        tree.link(TreePath::new("second").unwrap(), &first).unwrap();
        let (listing, unreadable) = Listing::read(&tree, |_| {});
        assert!(unreadable.is_empty());
        let mut plain = vec![0; 6000];
        (plain[1], plain[5000]) = (b'a', b'b');
        let file =
            Kind::File(Content { size: 6000, digest: Some(ContentDigest::Whole(Sha256::digest(&plain).into())) });
        let second = &listing.records[&TreePath::new("second").unwrap()];
        assert_eq!(listing.records[&first].inode.kind, file);
        assert_eq!((&second.inode.kind, second.hard_link_to.as_ref()), (&file, Some(&first)));
        assert_eq!(listing.file_bytes(), 6000);
    }
}
