//! Extended attributes: in the inode as far as they fit, the rest in one block, which inodes with an equal rest share
//! (kernel documentation, `attributes.rst`).

use std::collections::BTreeMap;

use snug_rootfs::acl::{self, Acl};

use super::checksum::crc32c;
use super::on_disk::{BLOCK, Field, INODE, INODE_XATTRS, on_disk};

on_disk! {
    /// `attributes.rst`: the header of an attribute block.
    XattrHeader, 32, {
        magic: u32,
        reference_count: u32,
        blocks: u32,
        hash: u32,
        checksum: u32,
        reserved: [u32; 3],
    }
}

/// `h_magic`, of attribute blocks and of the attributes in an inode.
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

/// Bytes of an attribute before its name.
const ENTRY: usize = <XattrEntry as Field>::SIZE;
/// Four zero bytes terminate the list of entries.
const END: usize = 4;
const HEADER: usize = <XattrHeader as Field>::SIZE;
/// Bytes for entries and values in the inode, behind the magic number.
pub(crate) const INODE_ROOM: usize = INODE - INODE_XATTRS - 4 - END;
/// Bytes for entries and values in the block.
pub(crate) const BLOCK_ROOM: usize = BLOCK - HEADER - END;
/// The most inodes that may share a block (`EXT4_XATTR_REFCOUNT_MAX`).
pub(crate) const MAX_SHARERS: u32 = 1024;

/// Numbers for the prefixes of names (`attributes.rst`, "Attribute Name Indices"). Those of ACLs stand for the whole name.
const PREFIXES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
const ACLS: [(&[u8], u8); 2] = [(acl::ACCESS, 2), (acl::DEFAULT, 3)];

/// Beginnings of the names of the extended attributes that ext4 holds, access control lists aside.
pub const XATTR_NAMESPACES: &[&[u8]] = &[PREFIXES[0].0, PREFIXES[1].0, PREFIXES[2].0];

/// Why the extended attributes of an inode cannot be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XattrError {
    /// The name, held here, is not in `user.`, `trusted.` or `security.`, nor is it that of an ACL.
    #[error("ext4 does not store the namespace of the attribute `{}`", .0.escape_ascii())]
    Namespace(Vec<u8>),
    /// The value of this attribute is none that the kernel accepts (acl(5)).
    #[error("the attribute `{}` is not a valid POSIX ACL", .0.escape_ascii())]
    Acl(Vec<u8>),
    /// The attributes fit neither into the inode nor into a block.
    #[error("{bytes} bytes of extended attributes are more than the {INODE_ROOM} of the inode and {limit} of a block")]
    TooLarge {
        /// Bytes of names, values and their padding.
        bytes: usize,
        /// Bytes that a block holds.
        limit: usize,
    },
}

/// One attribute in its on-disk encoding.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Attribute {
    // The derived order is the one in which the kernel searches a block: by index, length of the name, name.
    index: u8,
    name_length: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Attribute {
    fn new(full_name: &[u8], value: &[u8]) -> Result<Self, XattrError> {
        let made = |index, name: &[u8], value: Vec<u8>| Attribute {
            index,
            name_length: name.len(),
            name: name.to_vec(),
            value,
        };
        for (acl, index) in ACLS {
            if full_name == acl {
                let value = acl_on_disk(value).ok_or_else(|| XattrError::Acl(full_name.to_vec()))?;
                return Ok(made(index, b"", value));
            }
        }
        PREFIXES
            .iter()
            .find_map(|(prefix, index)| Some((full_name.strip_prefix(*prefix)?, *index)))
            .filter(|(name, _)| (1..=255).contains(&name.len()) && !name.contains(&0))
            .map(|(name, index)| made(index, name, value.to_vec()))
            .ok_or_else(|| XattrError::Namespace(full_name.to_vec()))
    }

    fn entry_size(&self) -> usize {
        ENTRY + self.name.len().next_multiple_of(4)
    }

    fn value_size(&self) -> usize {
        self.value.len().next_multiple_of(4)
    }

    fn size(&self) -> usize {
        self.entry_size() + self.value_size()
    }

    /// `e_hash` (`fs/ext4/xattr.c`, `ext4_xattr_hash_entry`).
    fn hash(&self) -> u32 {
        let name = self.name.iter().fold(0_u32, |hash, &byte| hash.rotate_left(5) ^ u32::from(byte));
        self.value.chunks(4).fold(name, |hash, bytes| {
            let mut word = [0; 4];
            word[..bytes.len()].copy_from_slice(bytes);
            hash.rotate_left(16) ^ u32::from_le_bytes(word)
        })
    }
}

/// The attributes of one inode, divided between the inode and a block.
#[derive(Debug, Default)]
pub(crate) struct Xattrs {
    inode: Vec<Attribute>,
    block: Vec<Attribute>,
}

impl Xattrs {
    pub(crate) fn new(attributes: &BTreeMap<Box<[u8]>, Box<[u8]>>) -> Result<Self, XattrError> {
        if attributes.is_empty() {
            return Ok(Xattrs::default());
        }
        let mut all =
            attributes.iter().map(|(name, value)| Attribute::new(name, value)).collect::<Result<Vec<_>, _>>()?;
        all.sort();
        let inside = fullest(&all, INODE_ROOM);
        let (mut inode, mut block) = (Vec::new(), Vec::new());
        for (attribute, inside) in all.into_iter().zip(inside) {
            if inside { inode.push(attribute) } else { block.push(attribute) }
        }
        let bytes: usize = block.iter().map(Attribute::size).sum();
        if bytes > BLOCK_ROOM {
            let inside: usize = inode.iter().map(Attribute::size).sum();
            return Err(XattrError::TooLarge { bytes: inside + bytes, limit: BLOCK_ROOM });
        }
        Ok(Xattrs { inode, block })
    }

    /// Writes the attributes that go into the inode to `area`, its zeroed bytes behind the fields.
    pub(crate) fn put_in_inode(&self, area: &mut [u8]) {
        if self.inode.is_empty() {
            return;
        }
        XATTR_MAGIC.put(&mut area[..4]);
        // Offsets of values count from the first entry; the hashes of attributes in an inode are zero.
        put_attributes(&self.inode, &mut area[4..], 0, |_| 0);
    }

    /// Returns the block for the other attributes, if there are any. Its reference count and checksum are left to
    /// [`seal_block`].
    pub(crate) fn block(&self) -> Option<Vec<u8>> {
        if self.block.is_empty() {
            return None;
        }
        let mut bytes = vec![0; BLOCK];
        let hash = self.block.iter().fold(0_u32, |hash, attribute| hash.rotate_left(16) ^ attribute.hash());
        // An attribute with the hash zero tells the kernel not to share the block.
        let hash = if self.block.iter().any(|attribute| attribute.hash() == 0) { 0 } else { hash };
        let header = XattrHeader { magic: XATTR_MAGIC, blocks: 1, hash, ..XattrHeader::ZERO };
        header.put(&mut bytes[..HEADER]);
        put_attributes(&self.block, &mut bytes[HEADER..], HEADER, Attribute::hash);
        Some(bytes)
    }
}

/// Fills in the reference count and the checksum of an attribute block with this block number.
pub(crate) fn seal_block(block: &mut [u8], number: u64, sharers: u32, filesystem_seed: u32) {
    sharers.put(&mut block[4..8]);
    0_u32.put(&mut block[16..20]);
    let sum = crc32c(crc32c(filesystem_seed, &number.to_le_bytes()), block);
    sum.put(&mut block[16..20]);
}

/// Writes entries from the front of `area` and values from its end; `base` is added to the offsets of values.
fn put_attributes(attributes: &[Attribute], area: &mut [u8], base: usize, hash: impl Fn(&Attribute) -> u32) {
    let (mut front, mut back) = (0, area.len());
    for attribute in attributes {
        back -= attribute.value_size();
        area[back..back + attribute.value.len()].copy_from_slice(&attribute.value);
        let entry = XattrEntry {
            name_length: attribute.name.len() as u8,
            name_index: attribute.index,
            value_offset: if attribute.value.is_empty() { 0 } else { (base + back) as u16 },
            value_inode: 0,
            value_size: attribute.value.len() as u32,
            hash: hash(attribute),
        };
        entry.put(&mut area[front..front + ENTRY]);
        area[front + ENTRY..][..attribute.name.len()].copy_from_slice(&attribute.name);
        front += attribute.entry_size();
    }
}

/// Returns which attributes together fill `room` bytes best: the optimum, found by dynamic programming over multiples of four.
fn fullest(attributes: &[Attribute], room: usize) -> Vec<bool> {
    let slots = room / 4;
    // For each reachable sum of sizes, the first set of attributes that was found to have it.
    let mut reached: Vec<Option<Vec<bool>>> = vec![None; slots + 1];
    reached[0] = Some(vec![false; attributes.len()]);
    for (at, attribute) in attributes.iter().enumerate() {
        let size = attribute.size() / 4;
        for fill in (size..=slots).rev() {
            if reached[fill].is_none()
                && let Some(mut chosen) = reached[fill - size].clone()
            {
                chosen[at] = true;
                reached[fill] = Some(chosen);
            }
        }
    }
    reached.into_iter().rev().flatten().next().unwrap_or_else(|| vec![false; attributes.len()])
}

/// Whether the extended attributes of one inode fit into the inode and one block, and have names and values that ext4 can hold.
pub fn xattrs_fit(attributes: &snug_rootfs::tree::Xattrs) -> bool {
    Xattrs::new(attributes).is_ok()
}

/// Version of ACLs on the disk, where entries without an id have four bytes (`fs/ext4/acl.h`).
const ACL_VERSION_ON_DISK: u32 = 1;

/// Converts an ACL from the form of getxattr(2) to the on-disk form. `None` if the kernel would refuse it.
fn acl_on_disk(value: &[u8]) -> Option<Vec<u8>> {
    let mut out = ACL_VERSION_ON_DISK.to_le_bytes().to_vec();
    for entry in Acl::from_xattr(value)?.entries() {
        out.extend(entry.tag.to_le_bytes());
        out.extend(entry.permissions.to_le_bytes());
        out.extend(entry.id.map(u32::to_le_bytes).into_iter().flatten());
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(list: &[(&str, usize)]) -> BTreeMap<Box<[u8]>, Box<[u8]>> {
        list.iter().map(|(name, length)| (name.as_bytes().into(), vec![b'v'; *length].into())).collect()
    }

    #[test]
    fn the_limit_is_exact_to_the_byte() {
        // 16 + 4 for `user.name`, in the block; the other fills the inode.
        let full = attributes(&[("user.name", BLOCK_ROOM - 20), ("user.four", INODE_ROOM - 20)]);
        assert!(Xattrs::new(&full).is_ok());
        let over = attributes(&[("user.name", BLOCK_ROOM - 19), ("user.four", INODE_ROOM - 20)]);
        assert_eq!(
            Xattrs::new(&over).unwrap_err(),
            XattrError::TooLarge { bytes: INODE_ROOM + BLOCK_ROOM + 4, limit: BLOCK_ROOM }
        );
    }

    #[test]
    fn the_inode_is_filled_as_well_as_it_can_be() {
        let three = attributes(&[("user.a", 20), ("user.b", 24), ("user.c", 20)]);
        let xattrs = Xattrs::new(&three).unwrap();
        assert_eq!((xattrs.inode.len(), xattrs.block.len()), (2, 1));
        assert_eq!(xattrs.inode.iter().map(Attribute::size).sum::<usize>(), 84);
    }

    #[test]
    fn namespaces_that_the_kernel_would_not_show_are_refused() {
        for name in ["com.apple.quarantine", "system.data", "user.", "trusted"] {
            let error = Xattrs::new(&attributes(&[(name, 1)])).unwrap_err();
            assert_eq!(error, XattrError::Namespace(name.as_bytes().to_vec()));
        }
    }

    #[test]
    fn acls_lose_the_ids_that_mean_nothing() {
        let entry = |tag: u16, id: u32| [&tag.to_le_bytes()[..], &6_u16.to_le_bytes(), &id.to_le_bytes()].concat();
        let acl = [
            2_u32.to_le_bytes().to_vec(),
            entry(1, u32::MAX),
            entry(2, 1000),
            entry(4, u32::MAX),
            entry(0x10, u32::MAX),
            entry(0x20, u32::MAX),
        ]
        .concat();
        let disk = acl_on_disk(&acl).unwrap();
        assert_eq!(disk.len(), 4 + 4 * 4 + 8);
        assert_eq!(disk[..12], [1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 6, 0]);
        assert_eq!(acl_on_disk(&acl[..acl.len() - 8]), None, "without `other`");
        assert_eq!(acl_on_disk(&acl[..7]), None);
    }
}
