//! What stands under every name of a root filesystem, with digests in the place of bodies: the form in which the tree
//! that was meant and the image that was written are compared.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use base16ct::lower::encode_string as hex;
use snug_rootfs::digest;
use snug_rootfs::mtree;
use snug_rootfs::tree::{Kind, RootTree, Timestamp, TreePath};

/// Every name, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    pub records: BTreeMap<TreePath, Record>,
}

/// What one name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub what: What,
    /// Permission, set-id and sticky bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    pub xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
    /// The first name in order of the same inode, where this is a later one.
    pub link_to: Option<TreePath>,
}

/// A type, with what only that type has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Directory,
    File { size: u64, digest: Option<BodyDigest> },
    Symlink(Box<[u8]>),
    CharacterDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
    Socket,
}

/// SHA-256 over a whole body, holes as zeros.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BodyDigest(pub [u8; 32]);

impl fmt::Display for BodyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for BodyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Record {
    /// A root's, from 1970, with nothing special about it.
    pub fn new(what: What, mode: u16) -> Self {
        let (mtime, xattrs) = (Timestamp::default(), BTreeMap::new());
        Record { what, mode, uid: 0, gid: 0, mtime, xattrs, link_to: None }
    }

    /// Bytes of a file; nothing for all else.
    pub fn size(&self) -> u64 {
        match self.what {
            What::File { size, .. } => size,
            _ => 0,
        }
    }
}

impl What {
    /// The type's name in messages.
    pub fn noun(&self) -> &'static str {
        match self {
            What::Directory => "directory",
            What::File { .. } => "file",
            What::Symlink(_) => "symlink",
            What::CharacterDevice { .. } => "character device",
            What::BlockDevice { .. } => "block device",
            What::Fifo => "FIFO",
            What::Socket => "socket",
        }
    }
}

/// How a body is asked for its digest. What cannot be read fails the image, not the check.
pub type Unreadable = (TreePath, io::Error);

impl Contents {
    /// The contents of a tree. With `bodies`, every one of them is read and hashed, each inode's once; `advance` is told
    /// the bytes of each. Bodies that cannot be read have no digest and are answered apart.
    pub fn of(tree: &RootTree, bodies: bool, mut advance: impl FnMut(u64)) -> (Self, Vec<Unreadable>) {
        let mut contents = Contents::default();
        let mut unreadable = Vec::new();
        let mut digests: Vec<Option<BodyDigest>> = vec![None; tree.inode_slots()];
        let mut buffer = digest::body_buffer();
        for entry in tree.entries() {
            let inode = entry.inode;
            let what = match &inode.kind {
                Kind::Directory => What::Directory,
                Kind::File(body) => {
                    let known = &mut digests[RootTree::slot(entry.id)];
                    if bodies && entry.hard_link_to.is_none() {
                        match digest::of_body(tree.bodies(), body, &mut buffer) {
                            Ok(found) => *known = Some(BodyDigest(found)),
                            Err(error) => unreadable.push((entry.path.clone(), error)),
                        }
                        advance(body.size);
                    }
                    What::File { size: body.size, digest: *known }
                }
                Kind::Symlink(target) => What::Symlink(target.clone()),
                Kind::CharacterDevice { major, minor } => What::CharacterDevice { major: *major, minor: *minor },
                Kind::BlockDevice { major, minor } => What::BlockDevice { major: *major, minor: *minor },
                Kind::Fifo => What::Fifo,
                Kind::Socket => What::Socket,
            };
            let record = Record {
                what,
                mode: inode.mode,
                uid: inode.uid,
                gid: inode.gid,
                mtime: inode.mtime,
                xattrs: inode.xattrs.clone(),
                link_to: entry.hard_link_to.cloned(),
            };
            contents.records.insert(entry.path.clone(), record);
        }
        (contents, unreadable)
    }

    /// Does anything stand at `path`, which must be clean?
    pub fn has(&self, path: &str) -> bool {
        TreePath::new(path).is_ok_and(|path| self.records.contains_key(&path))
    }

    /// The contents that a list beside an image states.
    pub fn listed(items: Vec<mtree::Item>) -> Self {
        let mut contents = Contents::default();
        for mtree::Item { path, inode, sha256, hard_link_to } in items {
            let what = match inode.kind {
                Kind::Directory => What::Directory,
                Kind::File(body) => What::File { size: body.size, digest: sha256.map(BodyDigest) },
                Kind::Symlink(target) => What::Symlink(target),
                Kind::CharacterDevice { major, minor } => What::CharacterDevice { major, minor },
                Kind::BlockDevice { major, minor } => What::BlockDevice { major, minor },
                Kind::Fifo => What::Fifo,
                Kind::Socket => What::Socket,
            };
            let record = Record {
                what,
                mode: inode.mode,
                uid: inode.uid,
                gid: inode.gid,
                mtime: inode.mtime,
                xattrs: inode.xattrs,
                link_to: hard_link_to,
            };
            contents.records.insert(path, record);
        }
        contents
    }

    /// Bytes of all files, each inode's once.
    pub fn file_bytes(&self) -> u64 {
        self.records.values().filter(|record| record.link_to.is_none()).map(Record::size).sum()
    }

    /// Inodes whose `security.capability` is set.
    pub fn capabilities(&self) -> usize {
        let capable = |record: &&Record| record.xattrs.contains_key(&b"security.capability"[..]);
        self.records.values().filter(|record| record.link_to.is_none()).filter(capable).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};
    use snug_rootfs::tree::{Body, BodySource, DataRange, Inode};

    #[test]
    fn holes_are_hashed_as_zeros_and_a_second_name_has_the_same_digest() {
        let mut tree = RootTree::new(BodySource::new(b"ab".to_vec()));
        let range = |offset, source| DataRange { offset, length: 1, source };
        let body = Body { size: 6000, extents: [range(1, 0), range(5000, 1)].into_iter().collect() };
        let first = TreePath::new("first").unwrap();
        tree.insert(first.clone(), Inode::new(Kind::File(body), 0o644)).unwrap();
        tree.link(TreePath::new("second").unwrap(), &first).unwrap();
        let (contents, unreadable) = Contents::of(&tree, true, |_| {});
        assert!(unreadable.is_empty());
        let mut plain = vec![0; 6000];
        (plain[1], plain[5000]) = (b'a', b'b');
        let digest = Some(BodyDigest(Sha256::digest(&plain).into()));
        let second = &contents.records[&TreePath::new("second").unwrap()];
        assert_eq!(contents.records[&first].what, What::File { size: 6000, digest });
        assert_eq!((&second.what, second.link_to.as_ref()), (&What::File { size: 6000, digest }, Some(&first)));
        assert_eq!(contents.file_bytes(), 6000);
    }
}
