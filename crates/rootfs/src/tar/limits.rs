//! How much of a stranger's archive is believed.

/// Bounds on an archive, so that no input can exhaust memory or disk. What is above one is a typed error.
///
/// Names (255 bytes), paths (4096 bytes) and symlink targets (4095 bytes) are bounded by what Linux can hold and are
/// not negotiable; these are.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Entries, and inodes made for them, directories that were only implied included. Default 10 million.
    pub entries: usize,
    /// Bytes of file data stored in the archive. Default 16 TiB, the largest ext4 with 4 KiB blocks.
    pub data_bytes: u64,
    /// Bytes of one pax extended header, or of one GNU long name. Default 1 MiB.
    pub extended_header_bytes: u64,
    /// Bytes of one extended attribute's value. Default 64 KiB, the kernel's `XATTR_SIZE_MAX`.
    pub xattr_bytes: usize,
    /// Data ranges of one sparse file. Default one million.
    pub sparse_ranges: usize,
    /// Bytes of memory for everything but fixed-size inodes: names, symlink targets, attributes, sparse maps, of the
    /// whole archive. Default 1 GiB.
    pub metadata_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            entries: 10_000_000,
            data_bytes: 16 << 40,
            extended_header_bytes: 1 << 20,
            xattr_bytes: 64 << 10,
            sparse_ranges: 1_000_000,
            metadata_bytes: 1 << 30,
        }
    }
}
