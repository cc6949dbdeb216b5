//! Group descriptors (kernel documentation, `group_descr.rst`).

use super::checksum::crc32c;
use super::on_disk::{DESCRIPTOR, Field, on_disk};

on_disk! {
    /// `group_descr.rst`: one block group, with the upper halves of the feature 64bit.
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
        /// Inodes at the end of the table that have never been used.
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

/// `bg_flags`: the inode table is zeroed, so the kernel need not do it after the first mount.
pub(crate) const INODE_TABLE_ZEROED: u16 = 0x4;

impl GroupDescriptor {
    /// Returns the encoded descriptor of `group` with its checksum, the lower half of a crc32c.
    pub(crate) fn seal(&self, filesystem_seed: u32, group: u32) -> [u8; DESCRIPTOR] {
        let mut bytes = [0; DESCRIPTOR];
        self.put(&mut bytes);
        let sum = crc32c(crc32c(filesystem_seed, &group.to_le_bytes()), &bytes);
        bytes[0x1e..0x20].copy_from_slice(&(sum as u16).to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_kernel_documentation_says() {
        let descriptor = GroupDescriptor { unused_inodes_hi: 0x2211, ..GroupDescriptor::ZERO };
        assert_eq!(descriptor.seal(0, 0)[0x32..0x34], [0x11, 0x22]);
    }
}
