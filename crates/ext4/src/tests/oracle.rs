//! Outside programs that judge an image.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Whence, lseek64};
use sha2::{Digest as _, Sha256};
use snug_rootfs::digest::Digest;
use snug_rootfs::tree::{Body, Kind, NAME_MAX, RootTree, Timestamp};
use snug_tests::trees::{Lost, Mounted, compare};
use snug_tests::{have, is_root};
use tempfile::TempDir;

use super::super::NativeExt4;
use crate::size::SizePolicy;
use crate::{Census, Ext4Options};

/// Images up to this size, in bytes, are written with a digest, and read again for it.
const HASHED: u64 = 64 << 20;

/// An image in a temporary folder.
pub(super) struct Image {
    pub census: Census,
    folder: TempDir,
}

impl Image {
    pub(super) fn write(tree: &RootTree, policy: &SizePolicy, options: &Ext4Options) -> anyhow::Result<Image> {
        let folder = tempfile::tempdir()?;
        let (writer, place) = (NativeExt4::new(options)?, folder.path().join("image"));
        // Images of gigabytes are nearly all holes, and hashing those would take most of the tests' time.
        if writer.decide(tree, policy).is_ok_and(|decision| decision.bytes > HASHED) {
            return Ok(Image { census: writer.write(tree, policy, &place, &())?, folder });
        }
        let (census, digest) = writer.write_hashed(tree, policy, &place, &())?;
        assert_eq!(digest, Digest::from(Sha256::digest(std::fs::read(&place)?)), "the digest is not the image's");
        Ok(Image { census, folder })
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// A place for a mount.
    pub(super) fn mount_point(&self) -> PathBuf {
        let place = self.folder.path().join("mounted");
        std::fs::create_dir_all(&place).expect("the folder is ours");
        place
    }

    /// `e2fsck -fn` finds nothing.
    #[track_caller]
    pub(super) fn is_clean(&self) {
        let output = run("e2fsck", &["-fn"], &self.path());
        assert!(output.0, "{}", output.1);
    }
}

/// Runs a program with arguments before the image; returns whether it succeeded, and its output.
pub(super) fn run(program: &str, arguments: &[&str], image: &Path) -> (bool, String) {
    let output = Command::new(program).args(arguments).arg(image).output().expect("it was found before");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// ext4-view, which shares no code with the writer, finds every name with its type, body, mode, owner and time.
pub(super) fn reads_back_by_ext4_view(tree: &RootTree, image: &Image) {
    let filesystem = ext4_view::Ext4::load_from_path(image.path()).expect("ext4-view takes the image");
    let mut names = 0;
    for entry in tree.entries() {
        let path = [b"/", entry.path.as_bytes()].concat();
        let path = ext4_view::Path::try_from(path.as_slice()).expect("a good path");
        let found = filesystem.symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", entry.path));
        let inode = entry.inode;
        assert_eq!(found.mode() & 0o7777, inode.mode, "{}", entry.path);
        assert_eq!((found.uid(), found.gid()), (inode.uid, inode.gid), "{}", entry.path);
        let modified = found.modified();
        assert_eq!(
            (i128::from(modified.seconds()), modified.nanoseconds()),
            (i128::from(inode.mtime.seconds), inode.mtime.nanoseconds),
            "{}",
            entry.path
        );
        use ext4_view::FileType;
        match &inode.kind {
            Kind::Directory => {
                assert!(found.is_dir());
                let entries = filesystem.read_dir(path).expect("a directory");
                names += entries.map(|entry| entry.expect("an entry")).filter(is_a_name).count();
            }
            Kind::File(body) => {
                assert!(filesystem.read(path).expect("a file") == contents(tree, body), "{}", entry.path)
            }
            // ext4-view takes a target for a path, and refuses names that are too long in it.
            Kind::Symlink(target) if target.split(|&byte| byte == b'/').any(|name| name.len() > NAME_MAX) => {}
            Kind::Symlink(target) => {
                assert_eq!(filesystem.read_link(path).expect("a symlink").as_ref(), &**target, "{}", entry.path);
            }
            Kind::CharacterDevice { .. } => assert_eq!(found.file_type(), FileType::CharacterDevice),
            Kind::BlockDevice { .. } => assert_eq!(found.file_type(), FileType::BlockDevice),
            Kind::Fifo => assert_eq!(found.file_type(), FileType::Fifo),
            Kind::Socket => assert_eq!(found.file_type(), FileType::Socket),
        }
    }
    assert_eq!(names, tree.len(), "every name but the root's, and lost+found");
}

fn is_a_name(entry: &ext4_view::DirEntry) -> bool {
    ![&b"."[..], b".."].contains(&entry.file_name().as_ref())
}

/// A body with its holes as zeros.
fn contents(tree: &RootTree, body: &Body) -> Vec<u8> {
    let mut bytes = vec![0; body.size as usize];
    for range in body.extents.as_slice() {
        let slice = &mut bytes[range.offset as usize..][..range.length as usize];
        tree.bodies().read_exact_at(slice, range.source).expect("the source is in memory");
    }
    bytes
}

/// The time in debugfs's raw form, `mtime: 0xSECONDS:EXTRA`, decoded as `inodes.rst` has it.
fn shown_mtime(shown: &str) -> Timestamp {
    let (_, after) = shown.split_once(" mtime: 0x").expect("debugfs shows the time");
    let word = |hex: &str| u32::from_str_radix(hex, 16).expect("debugfs shows hexadecimals");
    let (seconds, extra) = (word(&after[..8]), word(&after[9..17]));
    Timestamp { seconds: i64::from(seconds as i32) + (i64::from(extra & 3) << 32), nanoseconds: extra >> 2 }
}

/// debugfs shows times of all years, links, devices and attributes that ext4-view does not.
pub(super) fn reads_back_by_debugfs(tree: &RootTree, image: &Image) {
    // Inodes are numbered in the order of the tree, from 12 on behind lost+found; a wrong number shows as a wrong inode.
    let first: Vec<_> = tree.entries().filter(|entry| entry.hard_link_to.is_none()).skip(1).collect();
    let values = image.folder.path().join("values");
    std::fs::create_dir_all(&values).expect("the folder is ours");
    let mut commands = String::new();
    for (number, entry) in (12..).zip(&first) {
        commands += &format!("stat <{number}>\n");
        for (at, name) in entry.inode.xattrs.keys().enumerate() {
            let name = std::str::from_utf8(name).expect("the tests' names are text");
            commands += &format!("ea_get -f {}/{number}-{at} <{number}> {name}\n", values.display());
        }
    }
    let script = image.folder.path().join("commands");
    std::fs::write(&script, commands).expect("the folder is ours");
    let script = script.to_str().expect("temporary folders are text");
    let (_, said) = run("debugfs", &["-f", script], &image.path());
    let links = tree.link_counts();
    let inodes = said.split("debugfs: stat ").skip(1);
    assert_eq!(inodes.clone().count(), first.len());
    for ((number, entry), shown) in (12..).zip(&first).zip(inodes) {
        let has = |text: String| assert!(shown.contains(&text), "{}: {text} is not in {shown}", entry.path);
        has(format!("Inode: {number} "));
        assert_eq!(shown_mtime(shown), entry.inode.mtime, "{}", entry.path);
        has(format!("Links: {} ", links[RootTree::slot(entry.id)]));
        if let Kind::CharacterDevice { major, minor } | Kind::BlockDevice { major, minor } = entry.inode.kind {
            has(format!("Device major/minor number: {major:02}:{minor:02} "));
        }
        for (at, (name, value)) in entry.inode.xattrs.iter().enumerate() {
            let found = std::fs::read(values.join(format!("{number}-{at}"))).expect("debugfs wrote it");
            // Of an access control list debugfs gives a form of its own; the kernel is asked for those.
            assert!(
                name.starts_with(b"system.posix_acl") || found == **value,
                "{} {}",
                entry.path,
                name.escape_ascii()
            );
        }
    }
}

/// The kernel mounts the image and finds the whole tree in it, holes included. Skipped, loudly, where this host cannot.
pub(super) fn reads_back_by_the_kernel(tree: &RootTree, image: &Image) {
    if have(&["mount"]) && is_root() {
        let (path, place) = (image.path(), image.mount_point());
        let _mounted = Mounted::new(&path, "ext4", &place);
        compare(tree, &place, Lost::default());
        the_kernel_sees_the_holes(tree, &place);
    }
}

/// The kernel finds data and holes where the tree has them, to the block (`lseek(2)`, SEEK_DATA and SEEK_HOLE).
fn the_kernel_sees_the_holes(tree: &RootTree, place: &Path) {
    for entry in tree.entries() {
        let Kind::File(body) = &entry.inode.kind else { continue };
        let touched = body.extents.as_slice().iter().filter(|range| range.length > 0);
        let touched: BTreeSet<u64> =
            touched.flat_map(|range| range.offset / 4096..(range.offset + range.length).div_ceil(4096)).collect();
        let file = File::open(place.join(OsStr::from_bytes(entry.path.as_bytes()))).expect("a file");
        let (mut found, mut position) = (BTreeSet::new(), 0);
        while position < body.size {
            // Past the last data there is none, which is an error of its own.
            let Ok(data) = lseek64(&file, position as i64, Whence::SeekData) else { break };
            let hole = lseek64(&file, data, Whence::SeekHole).expect("a hole ends every file") as u64;
            found.extend(data as u64 / 4096..hole.div_ceil(4096));
            position = hole;
        }
        assert_eq!(found, touched, "{}", entry.path);
    }
}
