//! The 256 bytes of an inode (kernel documentation, `inodes.rst`).

use snug_rootfs::tree::{Kind, Timestamp};

use super::checksum::crc32c;
use super::extents::EXTENT_MAGIC;
use super::inventory::{MAX_LINKS, Node};
use super::on_disk::{EXTRA_ISIZE, Field, INODE, INODE_XATTRS, on_disk};
use super::xattr::{XattrError, Xattrs};

/// `i_mode`'s type bits (`inodes.rst`).
pub(crate) mod mode {
    pub(crate) const FIFO: u16 = 0x1000;
    pub(crate) const CHARACTER_DEVICE: u16 = 0x2000;
    pub(crate) const DIRECTORY: u16 = 0x4000;
    pub(crate) const BLOCK_DEVICE: u16 = 0x6000;
    pub(crate) const REGULAR: u16 = 0x8000;
    pub(crate) const SYMLINK: u16 = 0xa000;
    pub(crate) const SOCKET: u16 = 0xc000;
}

/// `i_flags` (`inodes.rst`).
pub(crate) mod flag {
    /// The directory has hash-tree indexes.
    pub(crate) const INDEX: u32 = 0x1000;
    /// The inode's blocks are mapped by extents.
    pub(crate) const EXTENTS: u32 = 0x8_0000;
}

on_disk! {
    /// `inodes.rst`: the fields of an inode; extended attributes fill the rest of its 256 bytes.
    InodeFields, INODE_XATTRS, {
        mode: u16,
        uid_lo: u16,
        size_lo: u32,
        atime: u32,
        ctime: u32,
        mtime: u32,
        dtime: u32,
        gid_lo: u16,
        links_count: u16,
        /// In sectors of 512 bytes.
        blocks_lo: u32,
        flags: u32,
        version: u32,
        /// Extent tree root, inline symlink target or device number.
        block: [u8; 60],
        generation: u32,
        file_acl_lo: u32,
        size_hi: u32,
        fragment: u32,
        blocks_hi: u16,
        file_acl_hi: u16,
        uid_hi: u16,
        gid_hi: u16,
        checksum_lo: u16,
        reserved: u16,
        extra_isize: u16,
        checksum_hi: u16,
        ctime_extra: u32,
        mtime_extra: u32,
        atime_extra: u32,
        crtime: u32,
        crtime_extra: u32,
        version_hi: u32,
        project: u32,
    }
}

const CHECKSUM_LO: usize = 0x7c;
const CHECKSUM_HI: usize = 0x82;

/// Returns the checksum seed of one inode (of generation 0), of its directory blocks and of its extent blocks.
pub(crate) fn inode_seed(filesystem_seed: u32, number: u32) -> u32 {
    crc32c(crc32c(filesystem_seed, &number.to_le_bytes()), &0u32.to_le_bytes())
}

/// Fills in the checksum of a complete inode whose checksum fields are zero.
pub(crate) fn seal_inode(inode: &mut [u8], seed: u32) {
    let sum = crc32c(seed, inode);
    inode[CHECKSUM_LO..][..2].copy_from_slice(&(sum as u16).to_le_bytes());
    inode[CHECKSUM_HI..][..2].copy_from_slice(&((sum >> 16) as u16).to_le_bytes());
}

/// `i_blocks` counts sectors of 512 bytes, whatever the block size (in an inode without the flag huge_file).
const SECTORS_PER_BLOCK: u64 = 8;

/// Encodes a time: 32 bits of seconds; two more, the epoch, below the nanoseconds.
pub(crate) fn encode_time(time: Timestamp) -> (u32, u32) {
    let low = time.seconds as i32;
    let epoch = ((time.seconds - i64::from(low)) >> 32) as u32 & 3;
    (low as u32, epoch | time.nanoseconds << 2)
}

/// Returns the fields that all inodes have in common, with `time` as all four times.
pub(crate) fn fields(time: Timestamp) -> InodeFields {
    let (seconds, extra) = encode_time(time);
    InodeFields {
        atime: seconds,
        ctime: seconds,
        mtime: seconds,
        crtime: seconds,
        atime_extra: extra,
        ctime_extra: extra,
        mtime_extra: extra,
        crtime_extra: extra,
        extra_isize: EXTRA_ISIZE as u16,
        ..InodeFields::ZERO
    }
}

impl InodeFields {
    pub(crate) fn set_size(&mut self, bytes: u64) {
        self.size_lo = bytes as u32;
        self.size_hi = (bytes >> 32) as u32;
    }

    pub(crate) fn set_blocks(&mut self, blocks: u64) {
        let sectors = blocks * SECTORS_PER_BLOCK;
        self.blocks_lo = sectors as u32;
        self.blocks_hi = (sectors >> 32) as u16;
    }

    /// Returns the complete inode with its xattrs and checksum.
    pub(crate) fn seal(&self, number: u32, xattrs: &Xattrs, filesystem_seed: u32) -> [u8; INODE] {
        let mut bytes = [0; INODE];
        self.put(&mut bytes[..INODE_XATTRS]);
        xattrs.put_in_inode(&mut bytes[INODE_XATTRS..]);
        seal_inode(&mut bytes, inode_seed(filesystem_seed, number));
        bytes
    }
}

/// Where the parts of an inode are.
pub(crate) struct Parts {
    /// Root of the extent tree.
    pub map: [u8; 60],
    /// All blocks: content, extent tree, attributes.
    pub blocks: u64,
    /// Block number of the attributes; 0 if there are none outside the inode.
    pub xattr_block: u64,
    /// Whether this is a directory with an index.
    pub indexed: bool,
}

/// Encodes an inode of the tree.
pub(crate) fn encode(node: &Node, parts: &Parts, filesystem_seed: u32) -> Result<[u8; INODE], XattrError> {
    let inode = node.inode;
    let mut fields = fields(inode.mtime);
    let (kind, block) = match &inode.kind {
        Kind::Directory => (mode::DIRECTORY, parts.map),
        Kind::File(_) => (mode::REGULAR, parts.map),
        Kind::Symlink(target) => (mode::SYMLINK, inline_target(target).unwrap_or(parts.map)),
        Kind::CharacterDevice { major, minor } => (mode::CHARACTER_DEVICE, device(*major, *minor)),
        Kind::BlockDevice { major, minor } => (mode::BLOCK_DEVICE, device(*major, *minor)),
        Kind::Fifo => (mode::FIFO, [0; 60]),
        Kind::Socket => (mode::SOCKET, [0; 60]),
    };
    fields.mode = kind | (inode.mode & 0o7777);
    fields.block = block;
    if block[..2] == EXTENT_MAGIC.to_le_bytes() && block == parts.map {
        fields.flags |= flag::EXTENTS;
    }
    if parts.indexed {
        fields.flags |= flag::INDEX;
    }
    fields.set_size(node.size());
    fields.set_blocks(parts.blocks);
    fields.links_count = if node.links > MAX_LINKS { 1 } else { node.links as u16 };
    (fields.uid_lo, fields.uid_hi) = (inode.uid as u16, (inode.uid >> 16) as u16);
    (fields.gid_lo, fields.gid_hi) = (inode.gid as u16, (inode.gid >> 16) as u16);
    (fields.file_acl_lo, fields.file_acl_hi) = (parts.xattr_block as u32, (parts.xattr_block >> 32) as u16);
    Ok(fields.seal(node.number, &Xattrs::new(&inode.xattrs)?, filesystem_seed))
}

fn inline_target(target: &[u8]) -> Option<[u8; 60]> {
    let mut block = [0; 60];
    // The last byte stays zero: the target is terminated by NUL.
    (target.len() < block.len()).then(|| {
        block[..target.len()].copy_from_slice(target);
        block
    })
}

/// Small device numbers are in the first word in the old encoding, larger ones in the second (`include/linux/kdev_t.h`).
fn device(major: u32, minor: u32) -> [u8; 60] {
    let mut block = [0; 60];
    if major < 256 && minor < 256 {
        block[..4].copy_from_slice(&(major << 8 | minor).to_le_bytes());
    } else {
        let number = minor & 0xff | major << 8 | (minor & !0xff) << 12;
        block[4..8].copy_from_slice(&number.to_le_bytes());
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_kernel_documentation_says() {
        let mut inode = [0; INODE_XATTRS];
        let fields = InodeFields { extra_isize: 0x2211, project: 0x4433_2211, ..InodeFields::ZERO };
        fields.put(&mut inode);
        assert_eq!(inode[0x80..0x82], [0x11, 0x22]);
        assert_eq!(inode[0x9c..0xa0], [0x11, 0x22, 0x33, 0x44]);
    }

    #[test]
    fn times_before_1970_and_after_2038_keep_their_epoch() {
        let encode = |seconds| encode_time(Timestamp { seconds, nanoseconds: 7 });
        assert_eq!(encode(-5), (u32::MAX - 4, 7 << 2));
        assert_eq!(encode(-(1 << 31)), (1 << 31, 7 << 2));
        assert_eq!(encode((1 << 31) - 1), ((1 << 31) - 1, 7 << 2));
        assert_eq!(encode(1 << 31), (1 << 31, 7 << 2 | 1));
        assert_eq!(encode((1 << 34) - (1 << 31) - 1), (i32::MAX as u32, 7 << 2 | 3));
    }
}
