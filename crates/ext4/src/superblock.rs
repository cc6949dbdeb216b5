//! The superblock (kernel documentation, `super.rst`).

use super::checksum::{self, crc32c};
use super::on_disk::{Field, on_disk};

/// Bytes before the superblock in group 0, left for a boot sector.
pub(crate) const SUPERBLOCK_OFFSET: usize = 1024;

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
        /// 0xffff: no check after a number of mounts.
        max_mount_count: u16,
        magic: u16,
        /// 1: cleanly unmounted.
        state: u16,
        /// 1: continue after an error.
        errors: u16,
        minor_revision: u16,
        last_check: u32,
        check_interval: u32,
        creator_os: u32,
        /// 1: inode size and features are dynamic.
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
        /// The four little-endian words of the hash's initial state.
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
        /// Blocks that no file can use: the group metadata and the journal.
        overhead_blocks: u32,
        backup_groups: [u32; 2],
        encrypt_algorithms: [u8; 4],
        encrypt_password_salt: [u8; 16],
        lost_found_inode: u32,
        project_quota_inode: u32,
        /// The seed of metadata checksums: crc32c of the UUID that the filesystem was made with.
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

impl Superblock {
    /// Returns the encoded superblock with its checksum.
    pub(crate) fn seal(&self) -> [u8; 1024] {
        let mut bytes = [0; 1024];
        self.put(&mut bytes);
        let sum = crc32c(checksum::START, &bytes[..1020]);
        bytes[1020..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_kernel_documentation_says() {
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
    }
}
