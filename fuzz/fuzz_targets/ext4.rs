//! Any tar that can be read becomes an ext4 that holds it, or a typed error: as large as it was decided to be, the same
//! bytes twice, clean for e2fsck, and with every name and body where another reader finds them.
//!
//! The first byte of the input chooses options, the rest is the tar.

#![no_main]

mod seal;

use std::cell::OnceCell;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use ext4_view::Ext4;
use libfuzzer_sys::fuzz_target;
use snug_ext4::size::{Headroom, SizePolicy};
use snug_ext4::{Census, Ext4Error, Ext4Options, NativeExt4};
use snug_rootfs::tar::{Limits, read_file};
use snug_rootfs::tree::{Body, Kind, RootTree};
use tempfile::TempDir;

use seal::seal;

/// Trees with more data, holes included, are left out: a few bytes of input can state any size.
const MAX_BYTES: u64 = 1 << 20;
/// One input of this many goes through programs of their own, which take a hundred times longer.
const SAMPLE: u64 = 64;

thread_local! {
    static PLACE: OnceCell<(TempDir, File)> = const { OnceCell::new() };
}

/// FNV-1a, to take samples by.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fuzz_target!(|input: &[u8]| {
    let Some((&choice, tar)) = input.split_first() else { return };
    let mut bytes = tar.to_vec();
    seal(&mut bytes);
    PLACE.with(|place| {
        let (folder, file) = place.get_or_init(|| {
            // In memory where there is such a place.
            let shared = Path::new("/dev/shm");
            let folder = if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() };
            (folder.expect("a temporary folder"), tempfile::tempfile().expect("a temporary file"))
        });
        let mut file = file.try_clone().expect("a descriptor");
        file.set_len(0).expect("a file can be emptied");
        file.seek(SeekFrom::Start(0)).expect("a file has a start");
        file.write_all(&bytes).expect("a file can be written");
        pack(choice, file, folder.path(), hash(input));
    });
});

/// `hash` is that of the whole input.
fn pack(choice: u8, archive: File, folder: &Path, hash: u64) {
    let sampled = hash % SAMPLE == 0;
    let limits = Limits { entries: 3_000, metadata_bytes: 4 << 20, sparse_ranges: 2_000, ..Limits::default() };
    let Ok(mut tree) = read_file(archive, &limits, &mut |_| {}) else { return };
    let size = |kind: &Kind| if let Kind::File(body) = kind { body.size } else { 0 };
    if tree
        .entries()
        .try_fold(0_u64, |sum, entry| sum.checked_add(size(&entry.inode.kind)))
        .is_none_or(|sum| sum > MAX_BYTES)
    {
        return;
    }
    // ext4-view refuses times whose lower 32 bits are negative.
    let plain_times = choice & 1 == 0;
    if plain_times {
        for inode in tree.inodes_mut() {
            inode.mtime.seconds &= i64::from(i32::MAX);
        }
    }
    let options = Ext4Options {
        journal: choice & 2 != 0,
        reserved_percent: choice >> 6,
        growth: (choice & 4 != 0).then_some(0),
        ..Ext4Options::default()
    };
    let headroom = if choice & 8 == 0 { Headroom::NONE } else { Headroom::DEFAULT };
    // More inodes than a whole group has make smaller groups; how many decides where they end.
    let dense = 30_000 + hash / SAMPLE % 150_000;
    let free_inodes = (choice & 16 != 0).then_some(if choice & 32 == 0 { 100 } else { dense });
    let policy = SizePolicy { headroom, free_inodes, ..SizePolicy::default() };

    let image = folder.join("image");
    let Some(census) = write(&tree, &options, &policy, &image) else { return };
    let decision = census.decision.as_ref().expect("ext4 has a size that was decided");
    assert_eq!(fs::metadata(&image).expect("an image").len(), decision.bytes);
    assert_eq!(census.size, decision.bytes);
    assert_eq!(census.parts.iter().map(|part| part.bytes).sum::<u64>(), census.size);
    if plain_times {
        is_read_back(&tree, &image);
    }
    if sampled {
        let again = folder.join("again");
        write(&tree, &options, &policy, &again).expect("it was written before");
        assert!(fs::read(&image).expect("an image") == fs::read(&again).expect("an image"), "two images of one tree");
        let checked = Command::new("e2fsck").arg("-fn").arg(&image).stdin(Stdio::null()).output();
        let checked = checked.expect("e2fsck is installed");
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    }
}

/// `None` where the tree cannot be ext4, which the error must say by its type.
fn write(tree: &RootTree, options: &Ext4Options, policy: &SizePolicy, image: &Path) -> Option<Census> {
    match NativeExt4::new(options).expect("good options").write(tree, policy, image, &()) {
        Ok(census) => Some(census),
        Err(error) => {
            assert!(error.downcast_ref::<Ext4Error>().is_some(), "{error:#}");
            None
        }
    }
}

fn is_read_back(tree: &RootTree, image: &Path) {
    let filesystem = Ext4::load_from_path(image).expect("ext4-view takes the image");
    for entry in tree.entries() {
        let path = [b"/", entry.path.as_bytes()].concat();
        let path = ext4_view::Path::try_from(path.as_slice()).expect("a good path");
        let found = filesystem.symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", entry.path));
        let inode = entry.inode;
        assert_eq!(found.mode() & 0o7777, inode.mode, "{}", entry.path);
        assert_eq!((found.uid(), found.gid()), (inode.uid, inode.gid), "{}", entry.path);
        if let Kind::File(body) = &inode.kind {
            assert!(filesystem.read(path).expect("a file") == contents(tree, body), "{}", entry.path);
        }
    }
}

/// A body with its holes as zeros.
fn contents(tree: &RootTree, body: &Body) -> Vec<u8> {
    let mut bytes = vec![0; body.size as usize];
    for range in body.extents.as_slice() {
        let slice = &mut bytes[range.offset as usize..][..range.length as usize];
        tree.bodies().read_exact_at(slice, range.source).expect("the archive is there");
    }
    bytes
}
