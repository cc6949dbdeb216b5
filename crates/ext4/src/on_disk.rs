//! What all structures on the disk have in common: their sizes, and fields that lie one behind the other. The structures
//! themselves are in the modules that write them, after the kernel's `Documentation/filesystems/ext4/` and, where a field is
//! only reserved there, `fs/ext4/ext4.h`. Everything is little-endian but the journal.

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

/// Inode numbers with a fixed meaning (`special_inodes.rst`).
pub(crate) mod special {
    pub(crate) const ROOT: u32 = 2;
    pub(crate) const RESIZE: u32 = 7;
    pub(crate) const JOURNAL: u32 = 8;
    /// Everything below is reserved; mke2fs gives this one to lost+found.
    pub(crate) const FIRST: u32 = 11;
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
            pub(crate) const ZERO: $name = $name { $($field: <$type as $crate::on_disk::Zero>::ZERO,)* };
        }

        const _: () = assert!(0 $(+ <$type as $crate::on_disk::Field>::SIZE)* == $size, "the fields fill the structure");

        impl $crate::on_disk::Field for $name {
            const SIZE: usize = $size;
            fn put(&self, out: &mut [u8]) {
                let mut rest = &mut out[..$size];
                $(
                    let (place, behind) = rest.split_at_mut(<$type as $crate::on_disk::Field>::SIZE);
                    self.$field.put(place);
                    rest = behind;
                )*
                debug_assert!(rest.is_empty());
            }
        }
    };
}
pub(crate) use on_disk;

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
