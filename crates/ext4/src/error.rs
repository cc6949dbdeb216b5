//! Why a tree has no ext4 image. Everything that can be refused is refused before the first byte is written.

use snug_rootfs::tree::TreePath;

use super::xattr::XattrError;
use crate::size::SizeError;

/// What a caller can tell apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ext4Error {
    #[error("{path}: {source}")]
    Xattrs { path: TreePath, source: XattrError },
    #[error("{path}: a file of {size} bytes is larger than ext4's {limit}")]
    FileTooLarge { path: TreePath, size: u64, limit: u64 },
    #[error("{path}: a symlink target of {length} bytes; ext4 stores 1 to {limit}, none of them NUL")]
    SymlinkTarget { path: TreePath, length: usize, limit: usize },
    #[error("{path}: the device number {major}:{minor} is larger than Linux's 12 and 20 bits")]
    DeviceNumber { path: TreePath, major: u32, minor: u32 },
    #[error("{path}: a time of {seconds} s lies outside of what ext4 stores, the years 1901 to 2446")]
    TimeOutOfRange { path: TreePath, seconds: i64 },
    #[error("{path}: {links} hard links are more than ext4's {limit}")]
    TooManyLinks { path: TreePath, links: u32, limit: u32 },
    #[error("{path}: more names than a directory index holds")]
    TooManyNames { path: TreePath },
    #[error("/lost+found is a {kind}, and e2fsck needs a directory there")]
    LostFound { kind: &'static str },
    #[error("the label is {length} bytes long, more than {limit}")]
    LabelTooLong { length: usize, limit: usize },
    #[error("{percent} % of reserved blocks; ext4 takes 0 to {limit}")]
    ReservedPercent { percent: u8, limit: u8 },
    #[error(
        "growth to {growth} bytes needs more reserved descriptors than the {limit} bytes that ext4 can reserve for"
    )]
    Growth { growth: u64, limit: u64 },
    #[error("the filesystem would be larger than {limit} bytes, the most this writer lays out")]
    FilesystemTooLarge { limit: u64 },
    #[error(transparent)]
    Size(#[from] SizeError),
}
