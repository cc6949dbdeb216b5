//! The sample tree that all writers share, through every oracle.

use snug_tests::have;
use snug_tests::trees::sample_tree;

use super::oracle::{Image, reads_back_by_the_kernel};
use crate::Ext4Options;
use crate::size::{Headroom, SizePolicy};

fn policies() -> [SizePolicy; 3] {
    let min_size = 200 << 20;
    [
        SizePolicy::default(),
        SizePolicy { headroom: Headroom::NONE, ..SizePolicy::default() },
        SizePolicy { min_size, ..SizePolicy::default() },
    ]
}

#[test]
fn e2fsck_finds_nothing() {
    if !have(&["e2fsck"]) {
        return;
    }
    for policy in policies() {
        for journal in [false, true] {
            let options = Ext4Options { journal, label: Some("sample".into()), ..Ext4Options::default() };
            Image::write(&sample_tree(), &policy, &options).unwrap().is_clean();
        }
    }
}

#[test]
fn the_kernel_reads_the_same_tree() {
    let tree = sample_tree();
    for policy in policies() {
        let image = Image::write(&tree, &policy, &Ext4Options::default()).unwrap();
        reads_back_by_the_kernel(&tree, &image);
    }
}
