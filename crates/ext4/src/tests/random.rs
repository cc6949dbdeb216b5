//! Random trees: clean, and read back the same by every reader at hand.

use proptest::prelude::*;
use snug_tests::have;

use super::oracle::{Image, reads_back_by_debugfs, reads_back_by_ext4_view, reads_back_by_the_kernel};
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
