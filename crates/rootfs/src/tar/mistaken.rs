//! Files that are given for a tar by mistake, told by their first bytes.

use super::error::TarError;

/// Bytes of the input that are looked at: up to the superblocks of ext4 and erofs, which stand behind a kibibyte.
pub(super) const LOOKED_AT: usize = 2 << 10;

/// The format, the command that makes a tar of it, and a file name for that.
type Compressed = (&'static [u8], &'static str, &'static str, &'static str);

/// First bytes of compressed files and of archives that a pipe makes a tar of.
const COMPRESSED: &[Compressed] = &[
    (b"\x1f\x8b", "gzip", "gzip -dc", "x.tar.gz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc", "x.tar.zst"),
    (b"\xfd7zXZ\0", "xz", "xz -dc", "x.tar.xz"),
    (b"BZh", "bzip2", "bzip2 -dc", "x.tar.bz2"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -dc", "x.tar.lz4"),
    (b"\x02\x21\x4c\x18", "lz4", "lz4 -dc", "x.tar.lz4"),
    (b"\x5d\0\0", "lzma", "xz --format=lzma -dc", "x.tar.lzma"),
    (b"LZIP", "lzip", "lzip -dc", "x.tar.lz"),
    (b"\x89LZO\0", "lzop", "lzop -dc", "x.tar.lzo"),
    (b"\x1f\x9d", "compress", "gzip -dc", "x.tar.Z"),
    (b"PK\x03\x04", "zip", "bsdtar -cf - --format pax @- <", "x.zip"),
];

/// What all sixteen magic numbers of zstd's skippable frames end in; some compressors begin with one (RFC 8878, 3.1.2).
const SKIPPABLE: &[u8] = b"\x2a\x4d\x18";

const BY_BSDTAR: &str = "make a tar of it: bsdtar -cf - --format pax @- < FILE | cargo xtask pack - …";
const BY_MOUNT: &str =
    "pack what is in it: mount -o ro,loop FILE /mnt, then tar -C /mnt --xattrs -c . | cargo xtask pack - …";
const BY_CONVERSION: &str = "pack what is in it: qemu-img convert -O raw FILE disk.img, mount its root filesystem at /mnt, then tar -C /mnt \
     --xattrs -c . | cargo xtask pack - …";

/// Offset and bytes of the magic number, what the file is, and how what is in it is packed.
const FOREIGN: &[(usize, &[u8], &str, &str)] = &[
    (0, b"hsqs", "a squashfs image", "make a tar of it: sqfs2tar FILE | cargo xtask pack - …"),
    (0, b"070701", "a cpio archive", BY_BSDTAR),
    (0, b"070702", "a cpio archive", BY_BSDTAR),
    (0, b"070707", "a cpio archive", BY_BSDTAR),
    (0, b"\xc7\x71", "a cpio archive", BY_BSDTAR),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it, then tar -C FOLDER -c . | cargo xtask pack - …"),
    (0, b"!<arch>\n", "an ar archive", "of a Debian package, dpkg-deb --fsys-tarfile FILE writes the tar"),
    (0, b"\xed\xab\xee\xdb", "an RPM package", BY_BSDTAR),
    (0, b"QFI\xfb", "a qcow2 disk", BY_CONVERSION),
    (0, b"KDMV", "a VMDK disk", BY_CONVERSION),
    (0, b"vhdxfile", "a VHDX disk", BY_CONVERSION),
    (0, b"conectix", "a VHD disk", BY_CONVERSION),
    (64, b"\x7f\x10\xda\xbe", "a VDI disk", BY_CONVERSION),
    (1024, b"\xe2\xe1\xf5\xe0", "an erofs image", BY_MOUNT),
    (1080, b"\x53\xef", "an ext2, ext3 or ext4 image", BY_MOUNT),
    (0, b"XFSB", "an XFS image", BY_MOUNT),
    // Last: boot sectors begin in many ways.
    (
        510,
        b"\x55\xaa",
        "a disk with a boot sector",
        "mount its root filesystem at /mnt, then tar -C /mnt --xattrs -c . | cargo xtask pack - …",
    ),
];

/// Returns the error for a compressed file, by the beginning of the input.
pub(super) fn compressed(start: &[u8]) -> Option<TarError> {
    let skippable = start.first().is_some_and(|first| first & 0xf0 == 0x50) && start[1..].starts_with(SKIPPABLE);
    let start = if skippable { COMPRESSED[1].0 } else { start };
    let (_, format, command, sample) = *COMPRESSED.iter().find(|(magic, ..)| start.starts_with(magic))?;
    Some(TarError::Compressed { format, command, sample })
}

/// Returns the error for another known format, by the beginning of an input that is no tar.
pub(super) fn foreign(start: &[u8]) -> Option<TarError> {
    let is = |offset: usize, magic: &[u8]| start.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    let (_, _, format, hint) = *FOREIGN.iter().find(|(offset, magic, ..)| is(*offset, magic))?;
    Some(TarError::Foreign { format, hint })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::{Limits, read_stream};

    #[test]
    fn what_is_no_tar_is_told_from_its_first_bytes() {
        let said = |offset: usize, magic: &[u8]| {
            let mut bytes = vec![0; 64 << 10];
            bytes[offset..offset + magic.len()].copy_from_slice(magic);
            let spool = tempfile::tempfile().unwrap();
            read_stream(&bytes[..], spool, &Limits::default(), &mut |_| {}).unwrap_err().to_string()
        };
        for (magic, format, command, sample) in COMPRESSED {
            let said = said(0, magic);
            assert!(said.contains(&format!("{format}-compressed")) && said.contains(command) && said.contains(sample));
        }
        assert!(said(0, b"\x5e\x2a\x4d\x18").contains("zstd-compressed"));
        for (offset, magic, format, hint) in FOREIGN {
            assert_eq!(said(*offset, magic), format!("the input is {format}, not a tar\nhint: {hint}"));
        }
        assert!(LOOKED_AT >= FOREIGN.iter().map(|(offset, magic, ..)| offset + magic.len()).max().unwrap());
    }
}
