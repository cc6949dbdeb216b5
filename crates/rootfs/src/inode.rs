//! Inodes: what names stand for, whatever their number.

use std::collections::BTreeMap;

use super::body::Body;

/// A point in time: seconds since the epoch (negative before 1970) and nanoseconds after that second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    pub seconds: i64,
    /// 0..1_000_000_000
    pub nanoseconds: u32,
}

impl Timestamp {
    /// SOURCE_DATE_EPOCH in seconds, where the environment has it: the time that a reproducible build counts as now
    /// (reproducible-builds.org, "SOURCE_DATE_EPOCH specification").
    pub fn source_date_epoch() -> Option<i64> {
        std::env::var("SOURCE_DATE_EPOCH").ok()?.trim().parse().ok()
    }

    pub const fn from_seconds(seconds: i64) -> Self {
        Timestamp { seconds, nanoseconds: 0 }
    }
}

/// Index of an inode in its [`RootTree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(pub(crate) u32);

/// What names stand for: a type with its content, and attributes. `C` is how a file's content is known: by where it is read
/// from, or in a [`Listing`](crate::listing::Listing) by its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode<C = Body> {
    pub kind: Kind<C>,
    /// Permission, set-id and sticky bits: the low twelve bits of `st_mode`.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    /// Extended attributes by full name (`security.capability`); values are arbitrary bytes.
    pub xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
}

impl<C> Inode<C> {
    /// A directory of root's, as it is made where a stream names a file without its folder.
    pub fn directory(mode: u16) -> Self {
        Inode::new(Kind::Directory, mode)
    }

    pub fn new(kind: Kind<C>, mode: u16) -> Self {
        Inode { kind, mode, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: BTreeMap::new() }
    }

    pub fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory)
    }

    /// The same inode with `change` applied to a file's content.
    pub fn map_content<D>(&self, change: impl FnOnce(&C) -> D) -> Inode<D> {
        Inode {
            kind: self.kind.map_content(change),
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            xattrs: self.xattrs.clone(),
        }
    }
}

/// The type of an inode, with what only that type has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind<C = Body> {
    Directory,
    File(C),
    /// The target, as it is written: it is never followed.
    Symlink(Box<[u8]>),
    CharacterDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
    Socket,
}

impl<C> Kind<C> {
    /// The same type with `change` applied to a file's content.
    pub fn map_content<D>(&self, change: impl FnOnce(&C) -> D) -> Kind<D> {
        match self {
            Kind::Directory => Kind::Directory,
            Kind::File(content) => Kind::File(change(content)),
            Kind::Symlink(target) => Kind::Symlink(target.clone()),
            Kind::CharacterDevice { major, minor } => Kind::CharacterDevice { major: *major, minor: *minor },
            Kind::BlockDevice { major, minor } => Kind::BlockDevice { major: *major, minor: *minor },
            Kind::Fifo => Kind::Fifo,
            Kind::Socket => Kind::Socket,
        }
    }

    /// The type's name in messages.
    pub fn noun(&self) -> &'static str {
        match self {
            Kind::Directory => "directory",
            Kind::File(_) => "file",
            Kind::Symlink(_) => "symlink",
            Kind::CharacterDevice { .. } => "character device",
            Kind::BlockDevice { .. } => "block device",
            Kind::Fifo => "FIFO",
            Kind::Socket => "socket",
        }
    }
}
