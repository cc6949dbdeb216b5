//! Random trees: clean, and read back the same by every reader at hand.

use proptest::prelude::*;

use super::oracle::{Image, reads_back_by_debugfs, reads_back_by_ext4_view};
use super::trees;
use crate::filesystem::Ext4Options;
use crate::filesystem::testing::{Lost, Mounted, compare, have, is_root};
use crate::size::{Headroom, SizePolicy};

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_reader_reads_the_same_tree(
        tree in trees::tree(),
        journal: bool,
        millionths in prop_oneof![Just(1_000_000_u32), 1_000_000..3_000_000_u32],
        reserved_percent in 0..20_u8,
    ) {
        let policy = SizePolicy { headroom: Headroom { millionths }, ..SizePolicy::default() };
        let options = Ext4Options { journal, reserved_percent, ..Ext4Options::default() };
        let image = Image::write(&tree, &policy, &options).unwrap();
        if have(&["e2fsck"]) {
            image.is_clean();
        }
        reads_back_by_ext4_view(&tree, &image);
        if have(&["debugfs"]) {
            reads_back_by_debugfs(&tree, &image);
        }
        if have(&["mount"]) && is_root() {
            let (path, place) = (image.path(), image.mount_point());
            let _mounted = Mounted::new(&path, "ext4", &place);
            compare(&tree, &place, Lost::default());
        }
    }
}
