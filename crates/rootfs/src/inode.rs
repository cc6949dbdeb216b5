//! Inodes: what names stand for, whatever their number.

use std::collections::BTreeMap;

use super::body::Body;

/// Longest name of an extended attribute, in bytes (`XATTR_NAME_MAX`).
pub const XATTR_NAME_MAX: usize = 255;
/// Longest value of an extended attribute, in bytes (`XATTR_SIZE_MAX`).
pub const XATTR_VALUE_MAX: usize = 64 << 10;
/// Extended attributes of one inode, by full name (`security.capability`); values are arbitrary bytes.
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// A point in time: seconds since the epoch (negative before 1970) and nanoseconds after that second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Whole seconds since the epoch, rounded down.
    pub seconds: i64,
    /// 0..1_000_000_000
    pub nanoseconds: u32,
}

impl Timestamp {
    /// Returns `SOURCE_DATE_EPOCH` in seconds, if the environment has it: the time that a reproducible build counts as now
    /// (reproducible-builds.org, "SOURCE_DATE_EPOCH specification").
    pub fn source_date_epoch() -> Option<i64> {
        std::env::var("SOURCE_DATE_EPOCH").ok()?.trim().parse().ok()
    }

    /// A time of whole seconds.
    pub const fn from_seconds(seconds: i64) -> Self {
        Timestamp { seconds, nanoseconds: 0 }
    }
}

/// Index of an inode in its [`RootTree`](crate::tree::RootTree).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(pub(crate) u32);

/// What names stand for: a type with its content, and attributes. `C` is how a file's content is known: by where it is read
/// from, or in a [`Listing`](crate::listing::Listing) by its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode<C = Body> {
    /// The type, with what only that type has.
    pub kind: Kind<C>,
    /// Permission, set-id and sticky bits: the low twelve bits of `st_mode`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last modification.
    pub mtime: Timestamp,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

impl<C> Inode<C> {
    /// A directory of root's, without attributes and with the time 0.
    pub fn directory(mode: u16) -> Self {
        Inode::new(Kind::Directory, mode)
    }

    /// An inode of root's, without attributes and with the time 0.
    pub fn new(kind: Kind<C>, mode: u16) -> Self {
        Inode { kind, mode, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: Xattrs::new() }
    }

    /// Whether this is a directory.
    pub fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory)
    }

    /// Sets the permission bits to those of an access control list. A symlink has no list, and its bits mean nothing.
    pub(crate) fn set_permissions(&mut self, permissions: u16) {
        if !matches!(self.kind, Kind::Symlink(_)) {
            self.mode = self.mode & !0o777 | permissions;
        }
    }

    /// Returns the same inode with `change` applied to a file's content.
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
    /// A directory.
    Directory,
    /// A regular file.
    File(C),
    /// A symlink, with its target as it is written: never followed.
    Symlink(Box<[u8]>),
    /// A character device.
    CharacterDevice {
        /// Major number, below 4096 in Linux.
        major: u32,
        /// Minor number, below 2^20 in Linux.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number, below 4096 in Linux.
        major: u32,
        /// Minor number, below 2^20 in Linux.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
}

impl<C> Kind<C> {
    /// Returns the same type with `change` applied to a file's content.
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

    /// Returns the type's name in messages.
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
