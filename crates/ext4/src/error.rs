//! Why a tree cannot be written as ext4. All of these errors are reported before the first byte is written.

use snug_rootfs::tree::TreePath;

use super::xattr::XattrError;
use crate::size::SizeError;

/// Why a tree cannot be written as ext4 with the given options and policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ext4Error {
    /// The extended attributes of an inode cannot be stored.
    #[error("{path}: {source}")]
    Xattrs {
        /// One path of the inode.
        path: TreePath,
        /// Why not.
        source: XattrError,
    },
    /// A file has more than 2^32 - 1 blocks.
    #[error("{path}: a file of {size} bytes is larger than ext4's limit of {limit}")]
    FileTooLarge {
        /// The file.
        path: TreePath,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The target of a symlink is empty, does not fit into a block or contains NUL.
    #[error("{path}: a symlink target of {length} bytes; ext4 stores 1 to {limit}, none of them NUL")]
    SymlinkTarget {
        /// The symlink.
        path: TreePath,
        /// Bytes of its target.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A device number has more than the 12 bits (major) or 20 bits (minor) of Linux.
    #[error("{path}: the device number {major}:{minor} exceeds Linux's 12 and 20 bits")]
    DeviceNumber {
        /// The device node.
        path: TreePath,
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// A time is before 1901-12-13 or after 2446-05-10 (kernel documentation, `inodes.rst`, "Inode Timestamps").
    #[error("{path}: ext4 stores times from 1901 to 2446, not {seconds} s since 1970")]
    TimeOutOfRange {
        /// One path of the inode.
        path: TreePath,
        /// Its modification time, in seconds since 1970.
        seconds: i64,
    },
    /// An inode other than a directory has more than 65,000 names.
    #[error("{path}: {links} hard links exceed ext4's limit of {limit}")]
    TooManyLinks {
        /// One path of the inode.
        path: TreePath,
        /// The number of its names.
        links: u32,
        /// The limit.
        limit: u32,
    },
    /// A directory has more names than fit into an index of two levels: about 1 GiB of directory entries.
    #[error("{path}: more names than a directory index holds")]
    TooManyNames {
        /// The directory.
        path: TreePath,
    },
    /// `/lost+found` of the tree is not a directory.
    #[error("/lost+found is a {kind}, and e2fsck needs a directory there")]
    LostFound {
        /// What it is.
        kind: &'static str,
    },
    /// [`crate::Ext4Options::label`] is too long.
    #[error("the label has {length} bytes; ext4 stores {limit}")]
    LabelTooLong {
        /// Its bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// [`crate::Ext4Options::reserved_percent`] is too large.
    #[error("{percent} % of reserved blocks; 0 to {limit} are possible")]
    ReservedPercent {
        /// The value.
        percent: u8,
        /// The largest value.
        limit: u8,
    },
    /// [`crate::Ext4Options::growth`] is more than the resize inode can reserve descriptors for.
    #[error("growth to {growth} bytes needs more group descriptors than ext4 can reserve, enough for {limit} bytes")]
    Growth {
        /// The value in bytes.
        growth: u64,
        /// The largest value in bytes.
        limit: u64,
    },
    /// The filesystem would have more than 2^32 blocks.
    #[error("the filesystem would be larger than {limit} bytes, the largest that this writer supports")]
    FilesystemTooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// No size satisfies the policy.
    #[error(transparent)]
    Size(#[from] SizeError),
}
