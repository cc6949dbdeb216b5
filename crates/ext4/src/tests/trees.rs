//! Trees for the tests: built by hand, and at random.

use std::collections::BTreeMap;
use std::io;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use snug_rootfs::tree::{Body, BodySource, DataRange, Inode, Kind, ReadAt, RootTree, Timestamp, TreePath};

/// Endless bytes that differ everywhere, without taking memory.
pub(super) struct Noise;

impl ReadAt for Noise {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        for (at, byte) in (offset..).zip(buffer.iter_mut()) {
            *byte = ((at / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (8 * (at % 8))) as u8;
        }
        Ok(())
    }
}

/// Endless zeros: they take blocks in the filesystem and none in the image file.
pub(super) struct Zeros;

impl ReadAt for Zeros {
    fn read_exact_at(&self, buffer: &mut [u8], _offset: u64) -> io::Result<()> {
        buffer.fill(0);
        Ok(())
    }
}

/// Zeros with a noisy block here and there: large bodies that take little room in the image file.
pub(super) struct Pebbles;

/// One block of so many is noise; a prime, so that noise falls everywhere in a group.
const PEBBLE: u64 = 251;

impl ReadAt for Pebbles {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        buffer.fill(0);
        let end = offset + buffer.len() as u64;
        for block in (offset / 4096..end.div_ceil(4096)).filter(|block| block % PEBBLE == 0) {
            let (from, to) = ((block * 4096).max(offset), (block * 4096 + 4096).min(end));
            Noise.read_exact_at(&mut buffer[(from - offset) as usize..(to - offset) as usize], from)?;
        }
        Ok(())
    }
}

pub(super) fn at(path: &str) -> TreePath {
    TreePath::new(path).expect("a good path")
}

pub(super) fn empty() -> RootTree {
    RootTree::new(BodySource::new(Noise))
}

pub(super) fn file(size: u64) -> Inode {
    Inode::new(Kind::File(Body::contiguous(size, 0)), 0o644)
}

/// A tree of one file of zeros that takes `blocks` blocks.
pub(super) fn zeros(blocks: u64) -> RootTree {
    let mut tree = RootTree::new(BodySource::new(Zeros));
    tree.insert(at("zeros"), file(blocks * 4096)).expect("the tree is empty");
    tree
}

/// A file of `count` data blocks, each with a hole behind it: as many extents.
pub(super) fn comb(count: u64) -> Inode {
    let ranges = (0..count).map(|tooth| DataRange { offset: tooth * 8192, length: 4096, source: tooth * 4096 });
    Inode::new(Kind::File(Body { size: count * 8192, extents: ranges.collect() }), 0o600)
}

/// Names of 1 to 255 bytes, most of them not UTF-8.
fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_map(|byte| if byte == 0 || byte == b'/' { b'x' } else { byte });
    prop_oneof![4 => vec(byte.clone(), 1..12), 1 => vec(byte, 1..=255)]
        .prop_map(|name| if name == b"." || name == b".." { b"dots".to_vec() } else { name })
}

/// Times at and between the edges of what ext4 stores: 1901 to 2446.
pub(super) fn any_time() -> impl Strategy<Value = Timestamp> {
    let edges = [-(1 << 31), -5, -1, 0, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 34) - (1 << 31) - 1];
    (prop_oneof![proptest::sample::select(edges.to_vec()), -(1_i64 << 31)..(1 << 34) - (1 << 31)], 0..1_000_000_000_u32)
        .prop_map(|(seconds, nanoseconds)| Timestamp { seconds, nanoseconds })
}

/// Times whose lower 32 bits are not negative, which is all that ext4-view reads.
pub(super) fn plain_time() -> impl Strategy<Value = Timestamp> {
    any_time().prop_map(|time| Timestamp { seconds: time.seconds.max(0) & !(1 << 31), ..time })
}

/// Whole files, and files with holes at odd places.
fn body() -> impl Strategy<Value = Body> {
    let border = proptest::sample::select(vec![0_u64, 1, 4095, 4096, 4097, 8192, 65536, 1 << 20]);
    let whole = (border, 0..3_u64, any::<u32>()).prop_map(|(size, more, at)| Body::contiguous(size + more, at.into()));
    let holes = vec((0..20_000_u64, 1..20_000_u64), 0..12).prop_map(|pieces| {
        let (mut offset, mut ranges) = (0, Vec::new());
        for (hole, length) in pieces {
            offset += hole + 1;
            ranges.push(DataRange { offset, length, source: offset * 3 });
            offset += length;
        }
        Body { size: offset + 5000, extents: ranges.into_iter().collect() }
    });
    prop_oneof![3 => whole, 1 => holes]
}

fn kind() -> impl Strategy<Value = Kind> {
    let target = prop_oneof![Just(59_usize), Just(60), Just(4095), 1..300_usize];
    prop_oneof![
        4 => body().prop_map(Kind::File),
        2 => Just(Kind::Directory),
        1 => target.prop_map(|length| Kind::Symlink(b"target/".iter().copied().cycle().take(length).collect())),
        1 => (0..4096_u32, 0..1_u32 << 20).prop_map(|(major, minor)| Kind::CharacterDevice { major, minor }),
        1 => (0..256_u32, 0..256_u32).prop_map(|(major, minor)| Kind::BlockDevice { major, minor }),
        1 => Just(Kind::Fifo),
        1 => Just(Kind::Socket),
    ]
}

/// Attributes of every namespace that is on all types of files, or that of users, which is on two.
fn attributes() -> impl Strategy<Value = BTreeMap<String, Vec<u8>>> {
    let value = prop_oneof![vec(any::<u8>(), 0..40), vec(any::<u8>(), 200..700)];
    btree_map("(trusted|security|user)\\.[a-z]{1,20}", value, 0..5)
}

/// An access control list as the kernel gives it (`linux/posix_acl_xattr.h`): a version, then entries of tag, permissions
/// and id, in an order of their own.
fn access_control_list() -> impl Strategy<Value = Vec<u8>> {
    let named = || btree_map(0..u32::MAX, 0..8_u16, 0..4);
    (named(), named(), any::<[u8; 4]>()).prop_map(|(users, groups, permissions)| {
        let entry = |tag: u16, permissions: u16, id: u32| (tag, permissions & 7, id);
        let class = |tag, at: usize| entry(tag, permissions[at].into(), u32::MAX);
        let named = |tag, list: &BTreeMap<u32, u16>| -> Vec<_> {
            list.iter().map(|(id, permissions)| entry(tag, *permissions, *id)).collect()
        };
        let mask = (!users.is_empty() || !groups.is_empty()).then(|| class(0x10, 2));
        let entries = std::iter::once(class(0x01, 0))
            .chain(named(0x02, &users))
            .chain([class(0x04, 1)])
            .chain(named(0x08, &groups))
            .chain(mask)
            .chain([class(0x20, 3)]);
        let bytes = entries.flat_map(|(tag, permissions, id)| {
            [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
        });
        2_u32.to_le_bytes().into_iter().chain(bytes).collect()
    })
}

fn inode(time: impl Strategy<Value = Timestamp>) -> impl Strategy<Value = Inode> {
    let xattrs = prop_oneof![3 => Just(BTreeMap::new()), 1 => attributes()];
    let lists = prop_oneof![7 => Just(None), 1 => access_control_list().prop_map(Some)];
    let all = (kind(), 0..0o10000_u16, any::<(u32, u32)>(), time, xattrs, lists);
    all.prop_map(|(kind, mode, owner, mtime, mut xattrs, list)| {
        let mut inode = Inode::new(kind, mode);
        (inode.uid, inode.gid, inode.mtime) = (owner.0 & !1, owner.1 & !1, mtime);
        if !matches!(inode.kind, Kind::File(_) | Kind::Directory) {
            xattrs.retain(|name, _| !name.starts_with("user."));
        }
        match (list, &inode.kind) {
            (None, _) | (_, Kind::Symlink(_)) => {}
            (Some(list), Kind::Directory) => {
                xattrs.insert("system.posix_acl_default".into(), list);
            }
            (Some(list), _) => {
                xattrs.insert("system.posix_acl_access".into(), list);
            }
        }
        inode.xattrs = xattrs.into_iter().map(|(name, value)| (name.into_bytes().into(), value.into())).collect();
        inode
    })
}

/// Trees of up to a few hundred names, some of them hard links, in directories of directories.
pub(super) fn tree(time: impl Strategy<Value = Timestamp>) -> impl Strategy<Value = RootTree> {
    let entry = (any::<proptest::sample::Index>(), name(), inode(time), 0..8_u8);
    vec(entry, 0..150).prop_map(|entries| {
        let mut tree = empty();
        let mut folders = vec![TreePath::root()];
        let mut files: Vec<TreePath> = Vec::new();
        for (folder, name, inode, link) in entries {
            let folder = folder.get(&folders);
            let Ok(path) = TreePath::new([folder.as_bytes(), b"/", &name].concat()) else { continue };
            if tree.id(&path).is_some() || path.as_bytes() == b"lost+found" {
                continue;
            }
            match files.last() {
                Some(target) if link == 0 => tree.link(path, target).expect("it is a file"),
                _ => {
                    if inode.is_directory() {
                        folders.push(path.clone())
                    } else {
                        files.push(path.clone())
                    }
                    tree.insert(path, inode).expect("its folder is one");
                }
            }
        }
        tree
    })
}

/// One or two files whose sizes lie around multiples of a group's blocks, which is also the longest extent, between
/// small ones that move where they begin.
pub(super) fn large() -> impl Strategy<Value = RootTree> {
    let size = (1..3_u64, -2..3_i64, -1..2_i64).prop_map(|(groups, blocks, bytes)| {
        (groups * 32768).saturating_add_signed(blocks).saturating_mul(4096).saturating_add_signed(bytes)
    });
    (vec((size, any::<u16>()), 1..3), vec(0..70_000_u64, 0..20)).prop_map(|(large, small)| {
        let mut tree = RootTree::new(BodySource::new(Pebbles));
        for (number, size) in small.into_iter().enumerate() {
            tree.insert(at(&format!("{}/small-{number}", number % 3)), file(size)).expect("a new name");
        }
        for (number, (size, source)) in large.into_iter().enumerate() {
            let body = Body::contiguous(size, u64::from(source) * 4096);
            tree.insert(at(&format!("{number}/large")), Inode::new(Kind::File(body), 0o600)).expect("a new name");
        }
        tree
    })
}
