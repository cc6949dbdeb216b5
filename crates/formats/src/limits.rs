//! What each type of filesystem, by the program that writes it, can hold of a tree.

use snug_rootfs::fit::{FilesystemLimits, HOLES_WRITTEN_OUT_MAX};
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
/// Bytes of what else an extended header has beside attributes: a path and a symlink's target of up to 4096 bytes each, owner,
/// size and time.
const OTHER_RECORDS: usize = 2 * 4096 + 512;

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
    hole_bytes: u64::MAX,
};

/// ext4 through a loop mount. GNU tar, which fills it, knows no sockets.
const EXT4_BY_LOOP: FilesystemLimits = FilesystemLimits { name: "ext4 by a loop mount", sockets: false, ..EXT4 };

/// ext4 by mke2fs, which copies times as 32 bits of whole seconds.
const EXT4_BY_MKE2FS: FilesystemLimits = FilesystemLimits {
    name: "ext4 by mke2fs",
    times: 0..=i32::MAX as i64,
    nanoseconds_since: i64::MAX,
    sockets: false,
    ..EXT4
};

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
    hole_bytes: HOLES_WRITTEN_OUT_MAX,
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
    hole_bytes: HOLES_WRITTEN_OUT_MAX,
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

#[cfg(test)]
mod tests {
    use snug_rootfs::tar::TarOptions;
    use snug_rootfs::tree::{BodySource, Inode, Kind, RootTree, TreePath};

    use super::*;

    /// Returns the bytes of the longest extended header of an archive.
    fn longest_header(archive: &[u8]) -> usize {
        let headers = archive.chunks_exact(512).filter(|block| &block[257..262] == b"ustar" && block[156] == b'x');
        let size = |block: &[u8]| usize::from_str_radix(std::str::from_utf8(&block[124..135]).unwrap(), 8).unwrap();
        headers.map(size).max().unwrap()
    }

    #[test]
    fn attributes_fit_beside_the_longest_names() {
        let path = TreePath::new([&b"0123456/".repeat(511)[..], b"0123456"].concat()).unwrap();
        for (limits, header) in [(&SQUASHFS, TAR2SQFS_HEADER), (&EROFS, MKFS_EROFS_HEADER)] {
            let with = |length| Xattrs::from([(b"trusted.x".as_slice().into(), vec![b'v'; length].into())]);
            let most = (0..header).rev().find(|&length| (limits.xattrs_fit)(&with(length))).unwrap();
            let mut tree = RootTree::new(BodySource::new(Vec::new()));
            let mut symlink = Inode::new(Kind::Symlink(vec![b't'; 4095].into()), 0o777);
            symlink.uid = u32::MAX - 1;
            symlink.gid = u32::MAX - 1;
            symlink.mtime.seconds = i64::MIN;
            symlink.xattrs = with(most);
            tree.insert(path.clone(), symlink).unwrap();
            let mut archive = Vec::new();
            tar::write(&tree, &mut archive, TarOptions::PLAIN, &mut |_| {}).unwrap();
            let longest = longest_header(&archive);
            assert!((header - 1024..=header).contains(&longest), "{}: {longest} bytes", limits.name);
        }
    }

    #[test]
    fn who_cannot_hold_something_is_named() {
        for writer in [Ext4Writer::Mke2fs, Ext4Writer::Loop] {
            let by_writer = limits(&Filesystem::Ext4(crate::Ext4Options { writer, ..Default::default() }));
            assert_ne!(by_writer.name, EXT4.name, "ext4 can hold more");
        }
    }
}
