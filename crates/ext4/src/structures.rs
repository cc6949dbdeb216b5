//! The structures on the disk, field by field, after the kernel's `Documentation/filesystems/ext4/` and, where a
//! field is only reserved there, `fs/ext4/ext4.h`. Everything is little-endian but the journal.

use super::checksum::{self, crc32c};

/// Bytes of a block: the page size of every machine these images run on, and what mke2fs chooses above 512 MiB.
pub(crate) const BLOCK: usize = 4096;
/// Bytes of an inode: 128 of old, [`EXTRA_ISIZE`] with the wide times, and 96 for extended attributes.
pub(crate) const INODE: usize = 256;
/// Bytes of an inode after the first 128 that fields take (`i_extra_isize`).
pub(crate) const EXTRA_ISIZE: usize = 32;
/// Where an inode's own extended attributes begin.
pub(crate) const INODE_XATTRS: usize = 128 + EXTRA_ISIZE;
/// Bytes of a group descriptor with the 64bit feature.
pub(crate) const DESCRIPTOR: usize = 64;
/// Inodes in one block of the inode table.
pub(crate) const INODES_PER_BLOCK: u32 = (BLOCK / INODE) as u32;
/// Descriptors in one block of the group descriptor table.
pub(crate) const DESCRIPTORS_PER_BLOCK: u32 = (BLOCK / DESCRIPTOR) as u32;
/// Blocks of a group: as many as one block of bitmap has bits.
pub(crate) const BLOCKS_PER_GROUP: u32 = (BLOCK * 8) as u32;
/// Block numbers in a block of the old indirect maps, which the resize inode still uses.
pub(crate) const ADDRESSES_PER_BLOCK: u32 = (BLOCK / 4) as u32;
/// The superblock lies behind the boot sector.
pub(crate) const SUPERBLOCK_OFFSET: usize = 1024;

/// Inode numbers with a fixed meaning (`special_inodes.rst`).
pub(crate) mod special {
    pub(crate) const ROOT: u32 = 2;
    pub(crate) const RESIZE: u32 = 7;
    pub(crate) const JOURNAL: u32 = 8;
    /// Everything below is reserved; mke2fs gives this one to lost+found.
    pub(crate) const FIRST: u32 = 11;
}

/// `super.rst`, "Superblock Compatible Feature Flags".
pub(crate) mod compatible {
    pub(crate) const HAS_JOURNAL: u32 = 0x4;
    pub(crate) const EXT_ATTR: u32 = 0x8;
    pub(crate) const RESIZE_INODE: u32 = 0x10;
    pub(crate) const DIR_INDEX: u32 = 0x20;
}

/// `super.rst`, "Superblock Incompatible Feature Flags".
pub(crate) mod incompatible {
    pub(crate) const FILETYPE: u32 = 0x2;
    pub(crate) const EXTENTS: u32 = 0x40;
    pub(crate) const SIXTY_FOUR_BIT: u32 = 0x80;
    pub(crate) const FLEX_BG: u32 = 0x200;
    pub(crate) const CSUM_SEED: u32 = 0x2000;
}

/// `super.rst`, "Superblock Read-Only Compatible Feature Flags".
pub(crate) mod read_only_compatible {
    pub(crate) const SPARSE_SUPER: u32 = 0x1;
    pub(crate) const LARGE_FILE: u32 = 0x2;
    pub(crate) const HUGE_FILE: u32 = 0x8;
    pub(crate) const DIR_NLINK: u32 = 0x20;
    pub(crate) const EXTRA_ISIZE: u32 = 0x40;
    pub(crate) const METADATA_CSUM: u32 = 0x400;
}

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

/// A value with a fixed form on the disk.
pub(crate) trait Field {
    /// Bytes on the disk.
    const SIZE: usize;
    /// Writes the value to `out`, which is exactly [`Self::SIZE`] bytes long.
    fn put(&self, out: &mut [u8]);
}

macro_rules! little_endian {
    ($($integer:ty),*) => {$(
        impl Field for $integer {
            const SIZE: usize = size_of::<$integer>();
            fn put(&self, out: &mut [u8]) {
                out.copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
little_endian!(u8, u16, u32, u64);

impl<T: Field, const N: usize> Field for [T; N] {
    const SIZE: usize = T::SIZE * N;
    fn put(&self, out: &mut [u8]) {
        for (value, place) in self.iter().zip(out.chunks_exact_mut(T::SIZE)) {
            value.put(place);
        }
    }
}

/// An integer of the journal, which is big-endian (`journal.rst`).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct BigEndian(pub u32);

impl Field for BigEndian {
    const SIZE: usize = 4;
    fn put(&self, out: &mut [u8]) {
        out.copy_from_slice(&self.0.to_be_bytes());
    }
}

/// Declares a structure whose fields lie one behind the other, and proves at compile time that they fill its size.
macro_rules! on_disk {
    ($(#[$doc:meta])* $name:ident, $size:expr, { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub(crate) struct $name { $($(#[$field_doc])* pub $field: $type,)* }

        impl $name {
            #[allow(dead_code, reason = "some structures are always written in full")]
            pub(crate) const ZERO: $name = $name { $($field: <$type as Zero>::ZERO,)* };
        }

        const _: () = assert!(0 $(+ <$type as Field>::SIZE)* == $size, "the fields fill the structure");

        impl Field for $name {
            const SIZE: usize = $size;
            fn put(&self, out: &mut [u8]) {
                let mut rest = &mut out[..$size];
                $(
                    let (place, behind) = rest.split_at_mut(<$type as Field>::SIZE);
                    self.$field.put(place);
                    rest = behind;
                )*
                debug_assert!(rest.is_empty());
            }
        }
    };
}

/// The zero that reserved fields hold.
pub(crate) trait Zero {
    const ZERO: Self;
}
macro_rules! zero {
    ($($integer:ty),*) => {$(impl Zero for $integer { const ZERO: Self = 0; })*};
}
zero!(u8, u16, u32, u64);
impl<T: Zero, const N: usize> Zero for [T; N] {
    const ZERO: Self = [T::ZERO; N];
}
impl Zero for BigEndian {
    const ZERO: Self = BigEndian(0);
}

on_disk! {
    /// `super.rst`: the superblock, 1024 bytes behind the start of the filesystem and of every backup group's block 0
    /// (there without the boot sector).
    Superblock, 1024, {
        inodes_count: u32,
        blocks_count_lo: u32,
        reserved_blocks_lo: u32,
        free_blocks_lo: u32,
        free_inodes: u32,
        first_data_block: u32,
        /// 2 ^ (10 + this) bytes a block.
        log_block_size: u32,
        log_cluster_size: u32,
        blocks_per_group: u32,
        clusters_per_group: u32,
        inodes_per_group: u32,
        mount_time: u32,
        write_time: u32,
        mount_count: u16,
        /// 0xffff: never forced to be checked by counting.
        max_mount_count: u16,
        magic: u16,
        /// 1: cleanly unmounted.
        state: u16,
        /// 1: carry on after an error.
        errors: u16,
        minor_revision: u16,
        last_check: u32,
        check_interval: u32,
        creator_os: u32,
        /// 1: inode sizes and features are stated.
        revision: u32,
        default_reserved_uid: u16,
        default_reserved_gid: u16,
        first_inode: u32,
        inode_size: u16,
        /// The group whose copy this is.
        block_group: u16,
        compatible: u32,
        incompatible: u32,
        read_only_compatible: u32,
        uuid: [u8; 16],
        label: [u8; 16],
        last_mounted: [u8; 64],
        algorithm_bitmap: u32,
        preallocate_blocks: u8,
        preallocate_directory_blocks: u8,
        reserved_gdt_blocks: u16,
        journal_uuid: [u8; 16],
        journal_inode: u32,
        journal_device: u32,
        last_orphan: u32,
        /// As the four little-endian words that the hash starts from.
        hash_seed: [u8; 16],
        /// 1: half MD4.
        default_hash_version: u8,
        /// 1: `journal_blocks` holds the journal inode's block map.
        journal_backup_type: u8,
        descriptor_size: u16,
        default_mount_options: u32,
        first_meta_group: u32,
        mkfs_time: u32,
        journal_blocks: [u32; 17],
        blocks_count_hi: u32,
        reserved_blocks_hi: u32,
        free_blocks_hi: u32,
        min_extra_isize: u16,
        want_extra_isize: u16,
        /// 1: directory hashes take names as signed bytes; 2: as unsigned.
        flags: u32,
        raid_stride: u16,
        mmp_interval: u16,
        mmp_block: u64,
        raid_stripe_width: u32,
        log_groups_per_flex: u8,
        /// 1: crc32c.
        checksum_type: u8,
        reserved_pad: u16,
        kilobytes_written: u64,
        snapshot_inode: u32,
        snapshot_id: u32,
        snapshot_reserved_blocks: u64,
        snapshot_list: u32,
        error_count: u32,
        first_error: [u8; 52],
        last_error: [u8; 52],
        mount_options: [u8; 64],
        user_quota_inode: u32,
        group_quota_inode: u32,
        /// Blocks that no file can ever have: metadata of the groups and the journal.
        overhead_blocks: u32,
        backup_groups: [u32; 2],
        encrypt_algorithms: [u8; 4],
        encrypt_password_salt: [u8; 16],
        lost_found_inode: u32,
        project_quota_inode: u32,
        /// What metadata checksums start from: crc32c of the UUID the filesystem was made with.
        checksum_seed: u32,
        write_time_hi: u8,
        mount_time_hi: u8,
        mkfs_time_hi: u8,
        last_check_hi: u8,
        first_error_time_hi: u8,
        last_error_time_hi: u8,
        first_error_code: u8,
        last_error_code: u8,
        encoding: u16,
        encoding_flags: u16,
        orphan_file_inode: u32,
        reserved: [u32; 94],
        checksum: u32,
    }
}

on_disk! {
    /// `group_descr.rst`: one group of blocks, with the 64bit feature's upper halves.
    GroupDescriptor, DESCRIPTOR, {
        block_bitmap_lo: u32,
        inode_bitmap_lo: u32,
        inode_table_lo: u32,
        free_blocks_lo: u16,
        free_inodes_lo: u16,
        used_directories_lo: u16,
        flags: u16,
        exclude_bitmap_lo: u32,
        block_bitmap_checksum_lo: u16,
        inode_bitmap_checksum_lo: u16,
        /// Inodes at the end of the table that were never used.
        unused_inodes_lo: u16,
        checksum: u16,
        block_bitmap_hi: u32,
        inode_bitmap_hi: u32,
        inode_table_hi: u32,
        free_blocks_hi: u16,
        free_inodes_hi: u16,
        used_directories_hi: u16,
        unused_inodes_hi: u16,
        exclude_bitmap_hi: u32,
        block_bitmap_checksum_hi: u16,
        inode_bitmap_checksum_hi: u16,
        reserved: u32,
    }
}

/// `bg_flags`: the inode table is zeroed on the disk, so the kernel need not do it after the first mount.
pub(crate) const INODE_TABLE_ZEROED: u16 = 0x4;

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

/// The seed of everything that belongs to one inode (generation 0): its own checksum, its directory and extent blocks.
pub(crate) fn inode_seed(filesystem_seed: u32, number: u32) -> u32 {
    crc32c(crc32c(filesystem_seed, &number.to_le_bytes()), &0u32.to_le_bytes())
}

/// Puts the checksum into a whole inode whose checksum fields are zero.
pub(crate) fn seal_inode(inode: &mut [u8], seed: u32) {
    let sum = crc32c(seed, inode);
    inode[CHECKSUM_LO..][..2].copy_from_slice(&(sum as u16).to_le_bytes());
    inode[CHECKSUM_HI..][..2].copy_from_slice(&((sum >> 16) as u16).to_le_bytes());
}

impl Superblock {
    /// The 1024 bytes with their checksum.
    pub(crate) fn seal(&self) -> [u8; 1024] {
        let mut bytes = [0; 1024];
        self.put(&mut bytes);
        let sum = crc32c(checksum::START, &bytes[..1020]);
        bytes[1020..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }
}

impl GroupDescriptor {
    /// The descriptor of `group` with its checksum: the lower half of a crc32c.
    pub(crate) fn seal(&self, filesystem_seed: u32, group: u32) -> [u8; DESCRIPTOR] {
        let mut bytes = [0; DESCRIPTOR];
        self.put(&mut bytes);
        let sum = crc32c(crc32c(filesystem_seed, &group.to_le_bytes()), &bytes);
        bytes[0x1e..0x20].copy_from_slice(&(sum as u16).to_le_bytes());
        bytes
    }
}

on_disk! {
    /// `ifork.rst`, "Extent Tree": the head of every node.
    ExtentHeader, 12, {
        magic: u16,
        entries: u16,
        max: u16,
        depth: u16,
        generation: u32,
    }
}

/// `eh_magic`
pub(crate) const EXTENT_MAGIC: u16 = 0xf30a;

on_disk! {
    /// `ifork.rst`: an inner node's entry.
    ExtentIndex, 12, {
        logical: u32,
        child_lo: u32,
        child_hi: u16,
        unused: u16,
    }
}

on_disk! {
    /// `ifork.rst`: a run of blocks.
    ExtentLeaf, 12, {
        logical: u32,
        /// 1..=32768; more would mean unwritten blocks.
        length: u16,
        physical_hi: u16,
        physical_lo: u32,
    }
}

on_disk! {
    /// `directory.rst`: the fixed part of a directory entry, before the name.
    DirectoryEntry, 8, {
        inode: u32,
        record_length: u16,
        name_length: u8,
        file_type: u8,
    }
}

/// Bytes of the fake entry at the end of a directory block that holds the checksum (`directory.rst`).
pub(crate) const DIRECTORY_TAIL: usize = 12;
/// The file type that marks [`DIRECTORY_TAIL`].
pub(crate) const TAIL_FILE_TYPE: u8 = 0xde;

on_disk! {
    /// `directory.rst`, "Hash Tree Directories": what stands behind `.` and `..` in the root of an index.
    IndexRootInfo, 8, {
        reserved: u32,
        hash_version: u8,
        info_length: u8,
        indirect_levels: u8,
        unused_flags: u8,
    }
}

on_disk! {
    /// `directory.rst`: an entry of an index; the first one's hash is taken by limit and count.
    IndexEntry, 8, {
        hash: u32,
        block: u32,
    }
}

on_disk! {
    /// `attributes.rst`: the head of an attribute block.
    XattrHeader, 32, {
        magic: u32,
        reference_count: u32,
        blocks: u32,
        hash: u32,
        checksum: u32,
        reserved: [u32; 3],
    }
}

/// `h_magic`, of blocks and of the attributes in an inode.
pub(crate) const XATTR_MAGIC: u32 = 0xea02_0000;

on_disk! {
    /// `attributes.rst`: the fixed part of an attribute, before its name.
    XattrEntry, 16, {
        name_length: u8,
        name_index: u8,
        value_offset: u16,
        value_inode: u32,
        value_size: u32,
        hash: u32,
    }
}

on_disk! {
    /// `journal.rst`: the head of the journal, in its first block; big-endian, version 2, without features.
    JournalSuperblock, 1024, {
        magic: BigEndian,
        block_type: BigEndian,
        header_sequence: BigEndian,
        block_size: BigEndian,
        blocks: BigEndian,
        first_log_block: BigEndian,
        first_sequence: BigEndian,
        /// 0: nothing to replay.
        start: BigEndian,
        errno: BigEndian,
        compatible: BigEndian,
        incompatible: BigEndian,
        read_only_compatible: BigEndian,
        uuid: [u8; 16],
        users: BigEndian,
        dynamic_superblock: BigEndian,
        max_transaction: BigEndian,
        max_transaction_data: BigEndian,
        checksum_type: u8,
        padding: [u8; 3],
        fast_commit_blocks: BigEndian,
        head: BigEndian,
        reserved: [u32; 40],
        checksum: BigEndian,
        user_ids: [u8; 768],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_kernel_documentation_says() {
        let mut superblock = Superblock::ZERO;
        superblock.magic = 0xef53;
        superblock.hash_seed = [0xaa; 16];
        superblock.overhead_blocks = 0x0403_0201;
        superblock.checksum_seed = 0x0807_0605;
        let bytes = superblock.seal();
        assert_eq!(bytes[0x38..0x3a], [0x53, 0xef]);
        assert_eq!(bytes[0xec..0xfc], [0xaa; 16]);
        assert_eq!(bytes[0x248..0x24c], [1, 2, 3, 4]);
        assert_eq!(bytes[0x270..0x274], [5, 6, 7, 8]);

        let mut inode = [0; INODE_XATTRS];
        let fields = InodeFields { extra_isize: 0x2211, project: 0x4433_2211, ..InodeFields::ZERO };
        fields.put(&mut inode);
        assert_eq!(inode[0x80..0x82], [0x11, 0x22]);
        assert_eq!(inode[0x9c..0xa0], [0x11, 0x22, 0x33, 0x44]);

        let descriptor = GroupDescriptor { unused_inodes_hi: 0x2211, ..GroupDescriptor::ZERO };
        assert_eq!(descriptor.seal(0, 0)[0x32..0x34], [0x11, 0x22]);
    }
}
