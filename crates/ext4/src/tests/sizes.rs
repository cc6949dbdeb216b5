//! Exactness: the smallest filesystem, at every border; the same bytes every time.

use sha2::{Digest, Sha256};
use snug_rootfs::tree::{Body, Inode, Kind, RootTree};
use snug_tests::have;
use snug_tests::trees::sample_tree;

use super::oracle::{Image, reads_back_by_the_kernel};
use super::trees::{at, comb, empty, file, zeros};
use crate::Ext4Options;
use crate::NativeExt4;
use crate::size::{Headroom, SizeDecision, SizePolicy};

const FULL: SizePolicy = SizePolicy { min_size: 0, max_size: None, headroom: Headroom::NONE, free_inodes: None };

fn without_journal() -> Ext4Options {
    Ext4Options { journal: false, ..Ext4Options::default() }
}

fn decide(tree: &RootTree, policy: &SizePolicy, options: &Ext4Options) -> SizeDecision {
    NativeExt4::new(options).unwrap().decide(tree, policy).unwrap()
}

/// The fewest blocks that could hold a tree: bodies by the holes they state, packed directories, exact inode tables, and
/// for each group its bitmaps, and no copy or descriptor beyond the first.
fn floor(tree: &RootTree) -> u64 {
    let mut blocks = 2;
    let mut directories = std::collections::BTreeMap::<_, u64>::new();
    for entry in tree.entries() {
        if let Some(parent) = entry.path.parent() {
            *directories.entry(parent).or_default() += 8 + entry.path.name().len().next_multiple_of(4) as u64;
        }
        if entry.hard_link_to.is_some() {
            continue;
        }
        blocks += match &entry.inode.kind {
            Kind::File(Body { extents, .. }) => {
                extents.as_slice().iter().map(|range| range.length.div_ceil(4096)).sum()
            }
            Kind::Symlink(target) => u64::from(target.len() >= 60),
            Kind::Directory => {
                directories.entry(entry.path.clone()).or_default();
                0
            }
            _ => 0,
        };
    }
    blocks += directories.values().map(|bytes| (bytes + 24).div_ceil(4084)).sum::<u64>();
    blocks += (tree.inode_count() as u64 + 10).div_ceil(16);
    blocks + 2 * blocks.div_ceil(32768)
}

#[test]
fn an_exactly_full_filesystem_is_at_most_a_thousandth_above_the_floor() {
    let mut tree = empty();
    for number in 0..20_000_u64 {
        let path = at(&format!("usr/lib/package-{:03}/part-{number:05}.js", number % 500));
        tree.insert(path, file(number * 7919 % 100_000)).unwrap();
    }
    let (decision, floor) = (decide(&tree, &FULL, &without_journal()), floor(&tree));
    println!("{} blocks, the floor is {floor}", decision.total_blocks);
    assert!(decision.total_blocks >= floor);
    assert!((decision.total_blocks - floor) * 1000 <= floor, "{} above {floor}", decision.total_blocks);
}

#[test]
fn a_full_filesystem_has_no_free_block() {
    if !have(&["dumpe2fs"]) {
        return;
    }
    for tree in [sample_tree(), zeros(32_700), zeros(70_000)] {
        let image = Image::write(&tree, &FULL, &without_journal()).unwrap();
        let (_, said) = super::oracle::run("dumpe2fs", &["-h"], &image.path());
        assert!(said.contains("Free blocks:              0\n"), "{said}");
    }
}

#[test]
fn content_up_to_every_group_border_fits_to_the_block() {
    if !have(&["e2fsck"]) {
        return;
    }
    for groups in [1_u64, 2, 3, 16] {
        let border = groups * 32768;
        // Data that fills the groups exactly, then one block less and up to a few more.
        let overhead = decide(&zeros(border - 500), &FULL, &without_journal()).total_blocks - (border - 500);
        for more in [-1_i64, 0, 1, 2, 9, 10] {
            let blocks = (border - overhead).saturating_add_signed(more);
            let image = Image::write(&zeros(blocks), &FULL, &without_journal()).unwrap();
            image.is_clean();
            let size = image.census.size / 4096;
            assert!(size.abs_diff(border.saturating_add_signed(more)) <= 12, "{blocks} blocks of data: {size}");
        }
    }
}

#[test]
fn every_size_around_group_and_descriptor_borders_is_a_filesystem() {
    if !have(&["e2fsck"]) {
        return;
    }
    let tree = sample_tree();
    // 64 groups fill a block of descriptors; 160 are 20 GiB.
    for groups in [1_u64, 2, 3, 4, 16, 17, 64, 65, 128, 160] {
        for more in [-1_i64, 0, 1, 2] {
            let blocks = (groups * 32768).saturating_add_signed(more);
            let policy = SizePolicy { min_size: blocks * 4096, ..SizePolicy::default() };
            let image = Image::write(&tree, &policy, &Ext4Options::default()).unwrap();
            image.is_clean();
            let excess = image.census.size / 4096 - blocks;
            // A last group must at least hold its copy of superblock and descriptors.
            assert!(excess <= 70, "{blocks}: {excess} more");
        }
    }
}

#[test]
fn a_size_above_the_smallest_is_refused_by_max_size() {
    let tree = zeros(1000);
    let needed = decide(&tree, &FULL, &without_journal()).bytes;
    let with = |max_size| SizePolicy { max_size: Some(max_size), ..FULL };
    let writer = NativeExt4::new(&without_journal()).unwrap();
    assert!(writer.decide(&tree, &with(needed)).is_ok());
    let error = writer.decide(&tree, &with(needed - 1)).unwrap_err();
    assert!(error.to_string().contains("max-size"), "{error}");
}

/// Returns a number that `dumpe2fs -h` has said.
fn shown(said: &str, name: &str) -> u64 {
    let line = said.lines().find(|line| line.starts_with(name)).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn headroom_leaves_free_blocks_and_inodes() {
    if !have(&["dumpe2fs", "e2fsck"]) {
        return;
    }
    let mut tree = zeros(5000);
    for number in 0..3000 {
        tree.insert(at(&format!("empty/{number}")), Inode::new(Kind::Fifo, 0o600)).unwrap();
    }
    let policy = SizePolicy { free_inodes: Some(4000), ..SizePolicy::default() };
    let image = Image::write(&tree, &policy, &Ext4Options { reserved_percent: 5, ..without_journal() }).unwrap();
    image.is_clean();
    let decision = image.census.decision.clone().unwrap();
    let (_, said) = super::oracle::run("dumpe2fs", &["-h"], &image.path());
    let shown = |name: &str| shown(&said, name);
    let reserved = decision.total_blocks * 5 / 100;
    assert_eq!(shown("Reserved block count:"), reserved);
    assert_eq!(shown("Free blocks:"), decision.free_blocks + reserved);
    assert!((4000..4032).contains(&shown("Free inodes:")), "{said}");
    assert_eq!(image.census.parts.iter().map(|part| part.bytes).sum::<u64>(), image.census.size);
}

#[test]
fn trees_of_small_things_fit_to_the_block() {
    if !have(&["dumpe2fs", "e2fsck"]) {
        return;
    }
    let trees = [Kind::Fifo, Kind::Symlink(b"/nix/store/target"[..].into()), Kind::Directory].map(|kind| {
        let mut tree = empty();
        for number in 0..35_000 {
            let path = at(&format!("{:02}/{number}", number % 90));
            tree.insert(path, Inode::new(kind.clone(), 0o755)).unwrap();
        }
        tree.insert(at("large"), file(3 << 20)).unwrap();
        tree
    });
    for (number, tree) in trees.iter().enumerate() {
        for (policy, journal) in [(FULL, false), (SizePolicy::default(), true)] {
            let options = Ext4Options { journal, ..Ext4Options::default() };
            let image = Image::write(tree, &policy, &options).unwrap();
            image.is_clean();
            let decision = image.census.decision.clone().unwrap();
            let (_, said) = super::oracle::run("dumpe2fs", &["-h"], &image.path());
            let shown = |name: &str| shown(&said, name);
            // Groups grow by eight blocks, and a last one holds at least its copy of the superblock.
            let unused = shown("Free blocks:") - decision.free_blocks;
            assert!(unused < 8, "{unused} blocks have no purpose: {decision:?}: {said}");
            assert_eq!(shown("Blocks per group:"), u64::from(decision.blocks_per_group));
            // Half of it is inode tables, unless every inode has a block of its own.
            let tables = (decision.inodes + decision.free_inodes).div_ceil(16);
            assert!(decision.total_blocks < 3 * tables || number == 2, "{decision:?}");
            if number == 0 && policy == FULL {
                reads_back_by_the_kernel(tree, &image);
            }
        }
    }
}

#[test]
fn the_same_tree_is_the_same_bytes() {
    let digest = |image: &Image| Sha256::digest(std::fs::read(image.path()).unwrap());
    let write = || Image::write(&sample_tree(), &SizePolicy::default(), &Ext4Options::default()).unwrap();
    let first = digest(&write());
    assert_eq!(first, digest(&write()));
    let other = Ext4Options { label: Some("other".into()), ..Ext4Options::default() };
    assert_ne!(first, digest(&Image::write(&sample_tree(), &SizePolicy::default(), &other).unwrap()));
}

#[test]
fn extent_trees_of_every_depth_are_clean() {
    if !have(&["e2fsck"]) {
        return;
    }
    let mut tree = empty();
    for count in [4, 5, 340, 341, 1360, 1361, 3000] {
        tree.insert(at(&format!("comb-{count}")), comb(count)).unwrap();
    }
    let image = Image::write(&tree, &FULL, &without_journal()).unwrap();
    image.is_clean();
    super::oracle::reads_back_by_ext4_view(&tree, &image);
}

#[test]
fn a_directory_of_fifty_thousand_is_clean_and_every_name_is_found() {
    if !have(&["e2fsck", "debugfs"]) {
        return;
    }
    let mut tree = empty();
    let name = |number: u32| format!("{number:0width$}", width = 1 + (number as usize * 13) % 240);
    for number in 0..50_000 {
        tree.insert(at(&format!("many/{}-{number}", name(number))), Inode::new(Kind::Fifo, 0o600)).ok();
    }
    let image = Image::write(&tree, &FULL, &without_journal()).unwrap();
    image.is_clean();
    // htree_dump walks the index and the leaves under it.
    let (_, said) = super::oracle::run("debugfs", &["-R", "htree_dump /many"], &image.path());
    assert!(said.contains("Indirect levels: 1"), "{said}");
    // Every name is looked up through the index by the kernel.
    reads_back_by_the_kernel(&tree, &image);
}

#[test]
fn the_smallest_contents_have_images() {
    if !have(&["e2fsck", "dumpe2fs"]) {
        return;
    }
    // 64 KiB are 16 blocks.
    for blocks in [0, 1, 15, 16, 17] {
        for (policy, options) in [(FULL, without_journal()), (SizePolicy::default(), Ext4Options::default())] {
            let tree = zeros(blocks);
            let image = Image::write(&tree, &policy, &options).unwrap();
            image.is_clean();
            let (success, said) = super::oracle::run("dumpe2fs", &[], &image.path());
            let count = format!("Block count:              {}\n", image.census.size / 4096);
            assert!(success && said.contains(&count), "{said}");
            super::oracle::reads_back_by_ext4_view(&tree, &image);
            reads_back_by_the_kernel(&tree, &image);
        }
    }
}

#[test]
fn content_up_to_the_border_of_descriptors_and_of_twenty_gigabytes_fits_to_the_block() {
    if !have(&["e2fsck"]) {
        return;
    }
    // A block of descriptors tells of 64 groups; 160 groups are 20 GiB.
    for (groups, more) in [(64, -1), (64, 0), (64, 1), (128, 1), (160, 0)] {
        let border: u64 = groups * 32768;
        let overhead = decide(&zeros(border - 5000), &FULL, &without_journal()).total_blocks - (border - 5000);
        let blocks = (border - overhead).saturating_add_signed(more);
        let image = Image::write(&zeros(blocks), &FULL, &without_journal()).unwrap();
        image.is_clean();
        let size = image.census.size / 4096;
        assert!(size.abs_diff(border.saturating_add_signed(more)) <= 70, "{blocks} blocks of data: {size}");
    }
}
