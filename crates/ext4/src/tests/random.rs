//! Random trees: clean, and read back the same by every reader at hand.

use std::io::Seek;

use proptest::prelude::*;
use snug_rootfs::tar::{self, TarOptions};
use snug_rootfs::tree::{Body, BodySource, Inode, Kind, RootTree};
use snug_tests::have;

use super::oracle::{Image, reads_back_by_debugfs, reads_back_by_ext4_view, reads_back_by_the_kernel, run};
use super::trees;
use crate::Ext4Options;
use crate::size::{Headroom, SizePolicy};

fn policies() -> impl Strategy<Value = SizePolicy> {
    // More inodes than a whole group has make smaller ones.
    let free_inodes = prop_oneof![2 => Just(None), 1 => (20_000..300_000_u64).prop_map(Some)];
    let millionths = prop_oneof![Just(1_000_000_u32), 1_000_000..3_000_000_u32];
    (millionths, free_inodes).prop_map(|(millionths, free_inodes)| SizePolicy {
        headroom: Headroom { millionths },
        free_inodes,
        ..SizePolicy::default()
    })
}

fn options() -> impl Strategy<Value = Ext4Options> {
    let growth = prop_oneof![2 => Just(None), 1 => (0..1_u64 << 38).prop_map(Some), 1 => Just(Some(0))];
    (any::<bool>(), 0..20_u8, growth).prop_map(|(journal, reserved_percent, growth)| Ext4Options {
        journal,
        reserved_percent,
        growth,
        ..Ext4Options::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ext4_view_reads_the_same_tree(
        tree in trees::tree(trees::plain_time()), policy in policies(), options in options()
    ) {
        reads_back_by_ext4_view(&tree, &Image::write(&tree, &policy, &options).unwrap());
    }

    #[test]
    fn e2fsck_debugfs_and_the_kernel_read_the_same_tree(
        tree in trees::tree(trees::any_time()), policy in policies(), options in options()
    ) {
        let image = Image::write(&tree, &policy, &options).unwrap();
        if have(&["e2fsck", "debugfs"]) {
            image.is_clean();
            reads_back_by_debugfs(&tree, &image);
        }
        reads_back_by_the_kernel(&tree, &image);
    }
}

/// A tree of two files of these blocks of zeros and data.
fn runs(runs: &[(bool, usize)], end: usize) -> RootTree {
    let content: Vec<u8> = runs.iter().flat_map(|(data, blocks)| vec![u8::from(*data); blocks * 4096]).collect();
    let content = [content, vec![0; end]].concat();
    let size = content.len() as u64;
    let mut tree = RootTree::new(BodySource::new(content));
    for name in ["one", "two"] {
        let file = Inode::new(Kind::File(Body::contiguous(size, 0)), 0o644);
        tree.insert(trees::at(name), file).expect("a new name");
    }
    tree
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// As with `mke2fs -d`, and whichever way a tar comes and states its holes.
    #[test]
    fn blocks_of_zeros_are_not_allocated(
        pieces in proptest::collection::vec((any::<bool>(), 1..40_usize), 1..30), end in 0..5000_usize
    ) {
        let written = runs(&pieces, end);
        let policy = SizePolicy { headroom: Headroom::NONE, ..SizePolicy::default() };
        let images = [TarOptions::PLAIN, TarOptions::FAITHFUL].into_iter().flat_map(|form| {
            let mut archive = tempfile::tempfile().unwrap();
            tar::write(&written, &archive, form, &mut |_| {}).unwrap();
            archive.rewind().unwrap();
            let (limits, spool) = (tar::Limits::default(), tempfile::tempfile().unwrap());
            let piped = tar::read_stream(&mut archive, spool, &limits, &mut |_| {}).unwrap();
            [piped, tar::read_file(archive, &limits, &mut |_| {}).unwrap()]
        });
        let images: Vec<(RootTree, Image)> = images
            .map(|tree| {
                let image = Image::write(&tree, &policy, &Ext4Options::default()).unwrap();
                (tree, image)
            })
            .collect();
        let bytes = std::fs::read(images[0].1.path()).unwrap();
        for (tree, image) in &images {
            prop_assert!(std::fs::read(image.path()).unwrap() == bytes);
            reads_back_by_ext4_view(&written, image);
            reads_back_by_the_kernel(tree, image);
        }
        if have(&["e2fsck", "debugfs"]) {
            images[0].1.is_clean();
            let (_, said) = run("debugfs", &["-R", "stat /two"], &images[0].1.path());
            let count = said.split_once("Blockcount: ").and_then(|(_, rest)| rest.split_whitespace().next());
            let data: usize = pieces.iter().filter(|(data, _)| *data).map(|(_, blocks)| blocks).sum();
            // In units of 512 bytes; a block more where the extents do not fit into the inode.
            let count: usize = count.expect("debugfs counts").parse().unwrap();
            prop_assert!((data * 8..=data * 8 + 8).contains(&count), "{count} for {data} blocks");
        }
    }
}

proptest! {
    // Few, because they are large: up to a gigabyte each, most of which is zeros and takes no room here.
    #![proptest_config(ProptestConfig { cases: 4, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn files_across_group_and_extent_borders_read_back(
        tree in trees::large(), policy in policies(), options in options()
    ) {
        let image = Image::write(&tree, &policy, &options).unwrap();
        if have(&["e2fsck"]) {
            image.is_clean();
        }
        reads_back_by_ext4_view(&tree, &image);
        reads_back_by_the_kernel(&tree, &image);
    }
}
