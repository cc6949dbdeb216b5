//! What ext4 cannot hold is refused by type before anything is written, and one byte less is taken.

use std::collections::BTreeMap;

use proptest::prelude::*;
use snug_rootfs::tree::{Body, Inode, Kind, RootTree, Timestamp};
use snug_tests::have;

use super::oracle::{Image, reads_back_by_debugfs, reads_back_by_the_kernel};
use super::trees::{at, empty, file};
use crate::Ext4Options;
use crate::size::SizePolicy;
use crate::{Ext4Error, NativeExt4, XattrError};

#[track_caller]
fn refused(path: &str, inode: Inode) -> Ext4Error {
    let mut tree = empty();
    tree.insert(at(path), inode).unwrap();
    NativeExt4::new(&Ext4Options::default()).unwrap().decide(&tree, &SizePolicy::default()).unwrap_err()
}

fn with_xattr(name: &str, length: usize) -> Inode {
    let mut inode = file(1);
    inode.xattrs.insert(name.as_bytes().into(), vec![7; length].into());
    inode
}

#[test]
fn attributes_are_taken_up_to_the_limit() {
    // A block has 4060 bytes for 16 of the entry, 4 of the name and the value.
    let mut tree = empty();
    tree.insert(at("full"), with_xattr("trusted.full", 4040)).unwrap();
    tree.insert(at("inside"), with_xattr("trusted.full", 68)).unwrap();
    tree.insert(at("outside"), with_xattr("trusted.full", 69)).unwrap();
    let image = Image::write(&tree, &SizePolicy::default(), &Ext4Options::default()).unwrap();
    if have(&["e2fsck", "debugfs"]) {
        image.is_clean();
        reads_back_by_debugfs(&tree, &image);
    }
    let error = refused("over", with_xattr("trusted.full", 4041));
    let source = XattrError::TooLarge { bytes: 4064, limit: 4060 };
    assert_eq!(error, Ext4Error::Xattrs { path: at("over"), source });
}

/// Bytes that an attribute takes (kernel documentation, `attributes.rst`): an entry of 16 and the name behind its prefix,
/// and the value, each padded to four.
fn attribute_bytes(name: &str, value: usize) -> usize {
    16 + name.strip_prefix("trusted.").unwrap().len().next_multiple_of(4) + value.next_multiple_of(4)
}

/// Whether the attributes can be divided between the 88 bytes of the inode and the 4060 of the block.
fn there_is_room(attributes: &BTreeMap<String, usize>) -> bool {
    let sizes: Vec<usize> = attributes.iter().map(|(name, value)| attribute_bytes(name, *value)).collect();
    (0..1_u32 << sizes.len()).any(|inside| {
        let sum = |wanted| (0..sizes.len()).filter(|at| (inside >> at & 1 == 1) == wanted).map(|at| sizes[at]).sum();
        let (inode, block): (usize, usize) = (sum(true), sum(false));
        inode <= 88 && block <= 4060
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Random attributes, the last of them as long as there is room, and then one byte longer.
    #[test]
    fn attributes_fill_inode_and_block_to_the_byte(
        mut attributes in prop::collection::btree_map("trusted\\.[a-y]{1,40}", 0..500_usize, 0..7)
    ) {
        const LAST: &str = "trusted.z";
        let longest = (0..4100).rev().find(|&length| {
            attributes.insert(LAST.into(), length);
            there_is_room(&attributes)
        });
        let longest = longest.expect("seven attributes of 500 bytes leave room");
        let inode = |length: usize| {
            let mut inode = file(1);
            for (name, value) in &attributes {
                let length = if name == LAST { length } else { *value };
                inode.xattrs.insert(name.as_bytes().into(), vec![7; length].into());
            }
            inode
        };
        let mut tree = empty();
        tree.insert(at("full"), inode(longest)).unwrap();
        let image = Image::write(&tree, &SizePolicy::default(), &Ext4Options::default()).unwrap();
        if have(&["e2fsck", "debugfs"]) {
            image.is_clean();
            reads_back_by_debugfs(&tree, &image);
        }
        reads_back_by_the_kernel(&tree, &image);
        match refused("over", inode(longest + 1)) {
            Ext4Error::Xattrs { path, source: XattrError::TooLarge { bytes, limit } } => {
                prop_assert_eq!((path, limit), (at("over"), 4060));
                prop_assert!(bytes > limit, "{} bytes", bytes);
            }
            other => prop_assert!(false, "{}", other),
        }
    }
}

#[test]
fn directories_may_be_as_deep_as_paths_are_long() {
    let mut tree = empty();
    // Short of `PATH_MAX` by what leads to the mount.
    let deep = vec!["directory"; 400].join("/");
    tree.insert(at(&format!("{deep}/file")), file(5000)).unwrap();
    let image = Image::write(&tree, &SizePolicy::default(), &Ext4Options::default()).unwrap();
    if have(&["e2fsck"]) {
        image.is_clean();
    }
    reads_back_by_the_kernel(&tree, &image);
}

#[test]
fn equal_attributes_share_blocks_up_to_the_kernels_limit() {
    if !have(&["e2fsck", "debugfs"]) {
        return;
    }
    let mut tree = empty();
    for number in 0..2500 {
        tree.insert(at(&format!("file-{number}")), with_xattr("user.same", 1000)).unwrap();
    }
    let image = Image::write(&tree, &SizePolicy::default(), &Ext4Options::default()).unwrap();
    image.is_clean();
    let blocks = image.census.parts.iter().find(|part| part.name == "extended attributes").unwrap().bytes / 4096;
    assert_eq!(blocks, 3);
}

#[test]
fn what_inodes_cannot_hold_is_refused_by_type() {
    let late = |seconds| Inode { mtime: Timestamp::from_seconds(seconds), ..file(1) };
    assert!(matches!(refused("old", late(-(1 << 31) - 1)), Ext4Error::TimeOutOfRange { .. }));
    assert!(matches!(refused("new", late((1 << 34) - (1 << 31))), Ext4Error::TimeOutOfRange { .. }));
    let symlink = |length| Inode::new(Kind::Symlink(vec![b'x'; length].into()), 0o777);
    assert!(matches!(refused("long", symlink(4096)), Ext4Error::SymlinkTarget { length: 4096, .. }));
    assert!(matches!(refused("none", symlink(0)), Ext4Error::SymlinkTarget { length: 0, .. }));
    let device = Inode::new(Kind::CharacterDevice { major: 1 << 12, minor: 0 }, 0o600);
    assert!(matches!(refused("device", device), Ext4Error::DeviceNumber { major: 4096, .. }));
    let huge = Inode::new(Kind::File(Body { size: 1 << 44, ..Body::default() }), 0o600);
    assert!(matches!(refused("huge", huge), Ext4Error::FileTooLarge { .. }));
    assert!(matches!(refused("lost+found", file(1)), Ext4Error::LostFound { kind: "file" }));
}

#[test]
fn hard_links_end_at_the_kernels_limit() {
    let links = |count: u32| -> RootTree {
        let mut tree = empty();
        tree.insert(at("f/0"), file(1)).unwrap();
        (1..count).for_each(|number| tree.link(at(&format!("f/{number}")), &at("f/0")).unwrap());
        tree
    };
    let decide =
        |tree: &RootTree| NativeExt4::new(&Ext4Options::default()).unwrap().decide(tree, &SizePolicy::default());
    assert!(decide(&links(65_000)).is_ok());
    assert!(matches!(decide(&links(65_001)), Err(Ext4Error::TooManyLinks { links: 65_001, .. })));
}

#[test]
fn a_tree_may_have_a_lost_and_found_and_too_many_subdirectories_for_a_count() {
    if !have(&["e2fsck"]) {
        return;
    }
    let mut tree = empty();
    tree.insert(at("lost+found/#12"), file(5000)).unwrap();
    (0..65_100).for_each(|number| {
        tree.insert(at(&format!("d/{number}")), Inode::directory(0o755)).unwrap();
    });
    let image = Image::write(&tree, &SizePolicy::default(), &Ext4Options::default()).unwrap();
    image.is_clean();
}

#[test]
fn options_are_checked() {
    let label = |text: &str| NativeExt4::new(&Ext4Options { label: Some(text.into()), ..Ext4Options::default() });
    assert!(label("sixteen bytes ok").is_ok());
    assert_eq!(label("seventeen bytes !").unwrap_err(), Ext4Error::LabelTooLong { length: 17, limit: 16 });
    let growth = Ext4Options { growth: Some(1 << 50), ..Ext4Options::default() };
    let error = NativeExt4::new(&growth).unwrap().decide(&empty(), &SizePolicy::default()).unwrap_err();
    assert!(matches!(error, Ext4Error::Growth { .. }));
}
