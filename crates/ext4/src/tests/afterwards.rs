//! What is done to an image after it was written: growing, repairing, filling, adding a journal.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use snug_tests::trees::{sample_tree, unmount};
use snug_tests::{have, is_root};

use super::oracle::{Image, reads_back_by_ext4_view, run};
use crate::Ext4Options;
use crate::size::{Headroom, SizePolicy};

#[track_caller]
fn succeed(program: &str, arguments: &[&str], image: &Path) -> String {
    let (success, said) = run(program, arguments, image);
    assert!(success, "{program} {arguments:?}: {said}");
    said
}

fn images() -> Vec<Image> {
    let full = SizePolicy { headroom: Headroom::NONE, ..SizePolicy::default() };
    let large = SizePolicy { min_size: (128 << 20) + 40 * 4096, ..SizePolicy::default() };
    // In smaller groups, since whole ones have fewer inodes.
    let dense = |free_inodes| SizePolicy { free_inodes: Some(free_inodes), ..SizePolicy::default() };
    [(full, false), (SizePolicy::default(), true), (large, true), (dense(40_000), false), (dense(400_000), true)]
        .iter()
        .map(|(policy, journal)| {
            let options = Ext4Options { journal: *journal, ..Ext4Options::default() };
            Image::write(&sample_tree(), policy, &options).unwrap()
        })
        .collect()
}

/// Lengthens the image file to four times its size, over more than two groups.
fn lengthen(image: &Image) {
    let file = fs::File::options().write(true).open(image.path()).unwrap();
    file.set_len((4 * image.census.size).max(300 << 20)).unwrap();
}

#[test]
fn resize2fs_grows_it_offline() {
    if !have(&["e2fsck", "resize2fs"]) {
        return;
    }
    for image in images() {
        lengthen(&image);
        succeed("resize2fs", &["-f"], &image.path());
        image.is_clean();
        reads_back_by_ext4_view(&sample_tree(), &image);
    }
}

#[test]
fn directories_can_be_optimised_and_a_journal_added() {
    if !have(&["e2fsck", "tune2fs"]) {
        return;
    }
    for image in images() {
        let (_, said) = run("e2fsck", &["-fyD"], &image.path());
        assert!(!said.contains("Fix"), "{said}");
        image.is_clean();
        reads_back_by_ext4_view(&sample_tree(), &image);
    }
    let roomy = SizePolicy { min_size: 32 << 20, ..SizePolicy::default() };
    let options = Ext4Options { journal: false, ..Ext4Options::default() };
    let image = Image::write(&sample_tree(), &roomy, &options).unwrap();
    succeed("tune2fs", &["-j"], &image.path());
    image.is_clean();
}

#[test]
fn the_uuid_can_be_changed() {
    if !have(&["e2fsck", "tune2fs"]) {
        return;
    }
    for image in images() {
        succeed("tune2fs", &["-U", "01234567-89ab-4def-8123-456789abcdef"], &image.path());
        image.is_clean();
    }
}

/// Mounted for writing until dropped.
struct Writable<'place>(&'place Path);

impl<'place> Writable<'place> {
    fn new(image: &Path, place: &'place Path) -> Self {
        let status = Command::new("mount").args(["-t", "ext4", "-o", "loop"]).args([image, place]).status().unwrap();
        assert!(status.success());
        Writable(place)
    }
}

impl Drop for Writable<'_> {
    fn drop(&mut self) {
        unmount(self.0);
    }
}

/// Online growth asks for CAP_SYS_RESOURCE, which root in a container may lack. No setup can install it, so that its
/// lack is said and never held against a host.
fn may_resize() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    let capabilities = u64::from_str_radix(effective.trim(), 16).unwrap();
    let may = capabilities >> CAP_SYS_RESOURCE & 1 == 1;
    if !may {
        eprintln!("SKIPPED growing while mounted: root lacks CAP_SYS_RESOURCE here");
    }
    may
}

#[test]
fn the_kernel_grows_it_while_mounted() {
    if !have(&["e2fsck", "resize2fs", "mount", "findmnt"]) || !is_root() || !may_resize() {
        return;
    }
    for image in images() {
        lengthen(&image);
        let (path, place) = (image.path(), image.mount_point());
        let mounted = Writable::new(&path, &place);
        let source = Command::new("findmnt").args(["-no", "SOURCE"]).arg(&place).output().unwrap();
        let device = String::from_utf8(source.stdout).unwrap();
        succeed("resize2fs", &[], Path::new(device.trim()));
        drop(mounted);
        image.is_clean();
        reads_back_by_ext4_view(&sample_tree(), &image);
    }
}

#[test]
fn the_kernel_fills_it_to_the_last_block_and_empties_it() {
    if !have(&["e2fsck", "mount"]) || !is_root() {
        return;
    }
    for image in images() {
        let (path, place) = (image.path(), image.mount_point());
        let mounted = Writable::new(&path, &place);
        // Nobody compares the times of lost+found.
        let filler = place.join("lost+found/filler");
        fs::create_dir(&filler).ok();
        let mut written = 0;
        for number in 0.. {
            let Ok(mut file) = fs::File::create(filler.join(number.to_string())) else { break };
            match file.write_all(&[7; 100_000]) {
                Ok(()) => written += 1,
                Err(_) => break,
            }
        }
        println!("{written} files");
        drop(mounted);
        image.is_clean();
        let mounted = Writable::new(&path, &place);
        fs::remove_dir_all(&filler).ok();
        drop(mounted);
        image.is_clean();
        reads_back_by_ext4_view(&sample_tree(), &image);
    }
}

/// Numbers of the blocks in which two images differ.
fn differing_blocks(one: &[u8], other: &[u8]) -> Vec<usize> {
    assert_eq!(one.len(), other.len());
    one.chunks(4096).zip(other.chunks(4096)).enumerate().filter(|(_, (a, b))| a != b).map(|(block, _)| block).collect()
}

#[test]
fn the_first_mount_writes_only_what_every_mount_writes() {
    if !have(&["e2fsck", "mount", "debugfs"]) || !is_root() {
        return;
    }
    // Lazy initialisation starts within ten seconds of a mount (`EXT4_DEF_LI_MAX_START_DELAY`, and as much again).
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(11);
    let images = images();
    let before: Vec<Vec<u8>> = images.iter().map(|image| fs::read(image.path()).unwrap()).collect();
    let places: Vec<_> = images.iter().map(|image| (image.path(), image.mount_point())).collect();
    let mounts: Vec<_> = places.iter().map(|(path, place)| Writable::new(path, place)).collect();
    std::thread::sleep(PATIENCE);
    drop(mounts);
    for (image, before) in images.iter().zip(before) {
        let after = fs::read(image.path()).unwrap();
        let (_, said) = run("debugfs", &["-R", "blocks <8>"], &image.path());
        let journal: Vec<usize> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let written = differing_blocks(&before, &after);
        // The superblock has the time of the mount.
        let unexpected: Vec<_> = written.iter().filter(|block| **block != 0 && !journal.contains(block)).collect();
        assert!(written.contains(&0) && unexpected.is_empty(), "{written:?}");
    }
}
