//! What all on-disk structures have in common: sizes, reserved inodes, and the encoding of fields. The structures themselves
//! are in the modules that write them, after the kernel's `Documentation/filesystems/ext4/` and, where a field is only
//! reserved there, `fs/ext4/ext4.h`. Everything is little-endian but the journal.

/// Bytes of a block: the smallest page size of the kernel, and mke2fs's choice from 512 MiB on.
pub(crate) const BLOCK: usize = 4096;
/// Bytes of an inode: the 128 of ext2, [`EXTRA_ISIZE`] with nanoseconds and epochs, and 96 for extended attributes.
pub(crate) const INODE: usize = 256;
/// Bytes of fields behind the first 128 (`i_extra_isize`).
pub(crate) const EXTRA_ISIZE: usize = 32;
/// Where the extended attributes in an inode begin.
pub(crate) const INODE_XATTRS: usize = 128 + EXTRA_ISIZE;
/// Bytes of a group descriptor with the 64bit feature.
pub(crate) const DESCRIPTOR: usize = 64;
/// Inodes in one block of the inode table.
pub(crate) const INODES_PER_BLOCK: u32 = (BLOCK / INODE) as u32;
/// Descriptors in one block of the group descriptor table.
pub(crate) const DESCRIPTORS_PER_BLOCK: u32 = (BLOCK / DESCRIPTOR) as u32;
/// Block numbers in an indirect block, of which only the resize inode has any.
pub(crate) const ADDRESSES_PER_BLOCK: u32 = (BLOCK / 4) as u32;

/// Reserved inode numbers (`special_inodes.rst`).
pub(crate) mod special {
    pub(crate) const ROOT: u32 = 2;
    pub(crate) const RESIZE: u32 = 7;
    pub(crate) const JOURNAL: u32 = 8;
    /// The first that is not reserved; mke2fs uses it for lost+found.
    pub(crate) const FIRST: u32 = 11;
}

/// A value with a fixed encoding.
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

/// Declares a structure with adjacent fields, and checks at compile time that they fill its size.
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

/// A zero, the value of reserved fields.
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
