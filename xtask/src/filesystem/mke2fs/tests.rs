//! Judged by e2fsck, dumpe2fs and the kernel's mount.

use std::path::PathBuf;

use proptest::prelude::*;
use snug_ext4::size::{Headroom, Rule, SizeError};
use snug_rootfs::disk;
use snug_rootfs::tree::{Body, BodySource, Inode, Kind, TreePath};
use snug_tests::trees::{Lost, Mounted, compare, sample_tree};
use snug_tests::{have, is_root};

use super::*;
use crate::report::progress::Progress;

/// Files of this process: root's owners are the image's.
struct Plain(PathBuf, #[expect(dead_code, reason = "holds stand-ins open")] disk::StandIns);

impl MaterialisedTree for Plain {
    fn root(&self) -> &Path {
        &self.0
    }

    fn run(&self, command: &mut Command) -> Result<()> {
        child::run(command, &[]).map(drop)
    }
}

fn materialise(tree: &RootTree, folder: &Path) -> Plain {
    let root = folder.join("root");
    fs::create_dir(&root).unwrap();
    let stand_ins = disk::materialise(tree, &root, |_| {}).unwrap();
    Plain(root, stand_ins)
}

fn write(tree: &RootTree, options: &Ext4Options, policy: &SizePolicy, folder: &Path) -> Result<Census> {
    let _ = fs::remove_dir_all(folder.join("root"));
    let files = materialise(tree, folder);
    let writer = Mke2fsWriter::new(options).unwrap();
    writer.write_materialised(tree, &files, policy, &folder.join("image"), &Progress::hidden().stage("test"))
}

/// e2fsck finds nothing to repair, and dumpe2fs shows what was decided.
#[track_caller]
fn judge(image: &Path, census: &Census, policy: &SizePolicy) {
    let fsck = Command::new("/sbin/e2fsck").arg("-fn").arg(image).output().unwrap();
    assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stdout));
    let said = Command::new("/sbin/dumpe2fs").arg("-h").arg(image).output().unwrap().stdout;
    let said = String::from_utf8_lossy(&said);
    let number = |key: &str| -> u64 {
        let line = said.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("no {key}: {said}"));
        line.trim().parse().unwrap()
    };
    let decision = census.decision.as_ref().unwrap();
    assert_eq!(number("Block count:"), decision.total_blocks);
    assert_eq!(number("Inode count:"), decision.total_inodes);
    let free = number("Free blocks:") - number("Reserved block count:");
    let overhead: u64 = decision.overhead.iter().map(|structure| structure.blocks).sum();
    assert_eq!(free, decision.total_blocks - overhead - decision.data_blocks);
    assert_eq!(decision.free_blocks, policy.headroom.free_for(decision.data_blocks));
    match decision.rule {
        Rule::Content => assert_eq!(free, decision.free_blocks, "{decision:?}"),
        Rule::MinSize => assert!(free >= decision.free_blocks && decision.bytes == policy.min_size),
    }
    assert!(number("Free inodes:") >= decision.free_inodes, "{decision:?}");
    assert_eq!(fs::metadata(image).unwrap().len(), decision.bytes);
    assert_eq!(census.parts.iter().map(|part| part.bytes).sum::<u64>(), census.size);
}

const TOOLS: [&str; 5] = ["mke2fs", "debugfs", "resize2fs", "e2fsck", "dumpe2fs"];

#[test]
fn the_kernel_reads_the_same_tree() {
    if !have(&TOOLS) || !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (image, place) = (folder.path().join("image"), folder.path().join("mounted"));
    fs::create_dir(&place).unwrap();
    let (tree, policy) = (sample_tree(), SizePolicy::default());
    let census = write(&tree, &Ext4Options::default(), &policy, folder.path()).unwrap();
    judge(&image, &census, &policy);
    let mounted = Mounted::new(&image, "ext4", &place);
    compare(&tree, &place, Lost::default());
    drop(mounted);
}

#[test]
fn options_and_policies_end_to_the_block() {
    if !have(&TOOLS) || !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let default = (Ext4Options::default(), SizePolicy::default());
    for (options, policy) in [
        (Ext4Options { journal: false, ..default.0.clone() }, default.1.clone()),
        (Ext4Options { reserved_percent: 5, label: Some("root".into()), ..default.0.clone() }, default.1.clone()),
        (Ext4Options { growth: Some(1 << 40), uuid: Some([7; 16]), ..default.0.clone() }, default.1.clone()),
        (
            Ext4Options { growth: Some(0), ..default.0.clone() },
            SizePolicy { headroom: Headroom::NONE, ..default.1.clone() },
        ),
        (default.0.clone(), SizePolicy { min_size: 200 << 20, free_inodes: Some(5000), ..default.1.clone() }),
        (default.0.clone(), SizePolicy { headroom: Headroom { millionths: 3_500_000 }, ..default.1.clone() }),
    ] {
        let census = write(&sample_tree(), &options, &policy, folder.path()).unwrap();
        judge(&folder.path().join("image"), &census, &policy);
    }
}

/// With these headrooms the filesystem ends before, at and behind the end of its first block group (32768 blocks), and where a
/// second group would be too small.
#[test]
fn borders_of_block_groups_are_crossed_exactly() {
    if !have(&TOOLS) || !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let size = 60 << 20;
    let mut tree = RootTree::new(BodySource::new((0..size).map(|at| (at % 251) as u8 + 1).collect::<Vec<u8>>()));
    let file = Inode::new(Kind::File(Body::contiguous(size, 0)), 0o644);
    tree.insert(TreePath::new("data").unwrap(), file).unwrap();
    let (mut groups, mut sizes) = (Vec::new(), Vec::new());
    for millionths in [2_020_000, 2_060_000, 2_062_000, 2_064_000, 2_066_000, 2_070_000, 2_080_000] {
        let policy = SizePolicy { headroom: Headroom { millionths }, ..SizePolicy::default() };
        let census = write(&tree, &Ext4Options::default(), &policy, folder.path()).unwrap();
        judge(&folder.path().join("image"), &census, &policy);
        let blocks = census.decision.unwrap().total_blocks;
        sizes.push(blocks);
        groups.push(blocks.div_ceil(32768));
    }
    assert_eq!((groups.first(), groups.last()), (Some(&1), Some(&2)), "{sizes:?}");
}

#[test]
fn too_large_is_said_before_anything_is_written() {
    if !have(&TOOLS) || !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let policy = SizePolicy { max_size: Some(1 << 20), ..SizePolicy::default() };
    let error = write(&sample_tree(), &Ext4Options::default(), &policy, folder.path()).unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(SizeError::ExceedsMax { max: 0x10_0000, .. })), "{error:?}");
    assert!(error.to_string().contains("/bin/ping"), "{error}");
    assert!(!folder.path().join("image").exists());
}

#[test]
fn twice_the_same_identity_and_time() {
    if !have(&TOOLS) || !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let head = || {
        write(&sample_tree(), &Ext4Options::default(), &SizePolicy::default(), folder.path()).unwrap();
        let said = Command::new("/sbin/dumpe2fs").arg("-h").arg(folder.path().join("image")).output().unwrap();
        String::from_utf8(said.stdout).unwrap()
    };
    let first = head();
    assert_eq!(first, head());
    assert!(first.contains("Tue Nov 14 22:13:21 2023"), "{first}");
}

#[test]
fn groups_smaller_than_their_bitmaps_are_met_too() {
    if !have(&TOOLS) || !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for millionths in [6_672_663, 6_779_694, 6_993_756, 7_850_006] {
        let headroom = Headroom { millionths };
        let policy = SizePolicy { headroom, free_inodes: Some(33_399), min_size: 30_000_000, max_size: None };
        let census = write(&sample_tree(), &Ext4Options::default(), &policy, folder.path()).unwrap();
        judge(&folder.path().join("image"), &census, &policy);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn any_policy_is_met_to_the_block(
        millionths in 1_000_000..8_000_000_u32, free_inodes in 0..40_000_u64, min_size in 0..40_000_000_u64,
        journal: bool
    ) {
        if !have(&TOOLS) || !is_root() {
            return Ok(());
        }
        let folder = tempfile::tempdir().unwrap();
        let headroom = Headroom { millionths };
        let min_size = min_size.next_multiple_of(BLOCK_SIZE);
        let policy = SizePolicy { headroom, free_inodes: Some(free_inodes), min_size, max_size: None };
        let options = Ext4Options { journal, ..Ext4Options::default() };
        let census = write(&sample_tree(), &options, &policy, folder.path()).unwrap();
        judge(&folder.path().join("image"), &census, &policy);
    }
}

/// The caller has it locked, and has given it a mode.
#[test]
fn the_file_that_is_there_is_filled_and_not_replaced() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    if !is_root() || !have(&["mke2fs", "e2fsck", "dumpe2fs"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    // Longer than what will be written.
    fs::File::create(&image).unwrap().set_len(1 << 30).unwrap();
    fs::set_permissions(&image, fs::Permissions::from_mode(0o640)).unwrap();
    let about = || fs::metadata(&image).map(|about| (about.ino(), about.mode())).unwrap();
    let before = about();
    let policy = SizePolicy::default();
    let census = write(&sample_tree(), &Ext4Options::default(), &policy, folder.path()).unwrap();
    assert_eq!(about(), before);
    judge(&image, &census, &policy);
}
