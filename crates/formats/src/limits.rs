//! What each type of filesystem, by the program that writes it, can hold of a tree.

use snug_rootfs::fit::FilesystemLimits;
use snug_rootfs::tar;
use snug_rootfs::tree::Xattrs;

use crate::{Ext4Writer, Filesystem};

/// The namespaces that squashfs and erofs number (`fs/squashfs/xattr.c`, `fs/erofs/xattr.c`); the programs drop others silently
/// or fail half-way.
const XATTR_NAMESPACES: &[&[u8]] = &[b"user.", b"trusted.", b"security."];
/// Bytes of an extended header of a tar that tar2sqfs reads (`TAR_MAX_PAX_LEN` of squashfs-tools-ng 1.2).
const TAR2SQFS_HEADER: usize = 64 << 10;
/// Bytes of an extended header of a tar that mkfs.erofs 1.8 reads, the size of its buffer.
const MKFS_EROFS_HEADER: usize = 32 << 10;
/// Bytes of what else an extended header has beside attributes: a path of up to 4096 bytes, owner, size and time.
const OTHER_RECORDS: usize = 4096 + 512;

/// ext4 by the native writer. Sources: [`snug_ext4`].
const EXT4: FilesystemLimits = FilesystemLimits {
    name: "ext4",
    times: snug_ext4::TIMES,
    nanoseconds_since: i64::MIN,
    xattr_namespaces: snug_ext4::XATTR_NAMESPACES,
    xattrs_fit: snug_ext4::xattrs_fit,
    acls: true,
    sockets: true,
    file_bytes: snug_ext4::MAX_FILE,
    links: snug_ext4::MAX_LINKS,
};

/// ext4 through a loop mount. GNU tar, which fills it, knows no sockets.
const EXT4_BY_LOOP: FilesystemLimits = FilesystemLimits { sockets: false, ..EXT4 };

/// ext4 by mke2fs, which copies times as 32 bits of whole seconds.
const EXT4_BY_MKE2FS: FilesystemLimits =
    FilesystemLimits { times: 0..=i32::MAX as i64, nanoseconds_since: i64::MAX, sockets: false, ..EXT4 };

/// squashfs: times are unsigned 32 bits, there are no access control lists (`fs/squashfs/squashfs_fs.h`).
const SQUASHFS: FilesystemLimits = FilesystemLimits {
    name: "squashfs",
    times: 0..=u32::MAX as i64,
    nanoseconds_since: i64::MAX,
    xattr_namespaces: XATTR_NAMESPACES,
    xattrs_fit: |xattrs| fits_header(xattrs, TAR2SQFS_HEADER),
    acls: false,
    sockets: false,
    file_bytes: i64::MAX as u64,
    links: u32::MAX,
};

/// erofs: times are 64 bits and nanoseconds (`fs/erofs/erofs_fs.h`). mkfs.erofs 1.8 misreads fractions before 1970.
const EROFS: FilesystemLimits = FilesystemLimits {
    name: "erofs",
    times: i64::MIN..=i64::MAX,
    nanoseconds_since: 0,
    xattr_namespaces: XATTR_NAMESPACES,
    xattrs_fit: |xattrs| fits_header(xattrs, MKFS_EROFS_HEADER),
    acls: true,
    sockets: false,
    file_bytes: i64::MAX as u64,
    links: u32::MAX,
};

/// Returns what images of this type can hold.
pub fn limits(filesystem: &Filesystem) -> &'static FilesystemLimits {
    match filesystem {
        Filesystem::Ext4(options) => match options.writer {
            Ext4Writer::Native => &EXT4,
            Ext4Writer::Mke2fs => &EXT4_BY_MKE2FS,
            Ext4Writer::Loop => &EXT4_BY_LOOP,
        },
        Filesystem::Squashfs(_) => &SQUASHFS,
        Filesystem::Erofs(_) => &EROFS,
    }
}

/// Whether attributes fit into the extended header by which a program is given them.
fn fits_header(xattrs: &Xattrs, header: usize) -> bool {
    tar::xattrs_bytes(xattrs) + OTHER_RECORDS <= header
}
