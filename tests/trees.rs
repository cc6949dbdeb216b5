//! Shared by the tests of the writers: a tree with every feature, and its comparison with a mounted image.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use snug_rootfs::tree::{Body, BodySource, DataRange, Inode, Kind, RootTree, Timestamp, TreePath};

fn at(path: &str) -> TreePath {
    TreePath::new(path).expect("a good path")
}

/// A tree with every feature: set-id modes, owners above 16 bits, hard links, devices, a FIFO, binary xattrs and a capability,
/// long and short symlinks, holes, a name that is not UTF-8, an empty file, a directory of many entries.
pub fn sample_tree() -> RootTree {
    let mut bytes: Vec<u8> =
        (0..300_000_u32).flat_map(|number| (number.wrapping_mul(2_654_435_761)).to_le_bytes()).collect();
    bytes.extend_from_slice(b"hello\n");
    let hello = bytes.len() as u64 - 6;
    let mut tree = RootTree::new(BodySource::new(bytes));
    let mut put = |path: TreePath, kind: Kind, mode: u16, owner: (u32, u32), seconds: i64| {
        let mut inode = Inode::new(kind, mode);
        (inode.uid, inode.gid, inode.mtime) = (owner.0, owner.1, Timestamp::from_seconds(seconds));
        tree.insert(path, inode).expect("the sample is a tree");
    };
    put(TreePath::root(), Kind::Directory, 0o755, (0, 0), 1_700_000_000);
    put(at("bin"), Kind::Directory, 0o755, (0, 0), 1_700_000_001);
    put(at("bin/ping"), Kind::File(Body::contiguous(1_200_000, 0)), 0o755, (0, 0), 1_600_000_000);
    put(at("bin/su"), Kind::File(Body::contiguous(5000, 77)), 0o4755, (0, 0), 1_600_000_001);
    put(at("etc/hello"), Kind::File(Body::contiguous(6, hello)), 0o640, (1000, 70_000), 1_600_000_002);
    put(at("etc/empty"), Kind::File(Body::default()), 0o600, (0, 0), 0);
    put(at("etc/short"), Kind::Symlink(b"../bin/su".as_slice().into()), 0o777, (0, 0), 1_600_000_003);
    put(at("etc/long"), Kind::Symlink(vec![b'x'; 300].into()), 0o777, (33, 33), 1_600_000_004);
    put(at("dev/null"), Kind::CharacterDevice { major: 1, minor: 3 }, 0o666, (0, 0), 1_600_000_005);
    put(at("dev/loop"), Kind::BlockDevice { major: 7, minor: 300 }, 0o660, (0, 6), 1_600_000_006);
    put(at("run/pipe"), Kind::Fifo, 0o620, (5, 5), 1_600_000_007);
    put(at("tmp"), Kind::Directory, 0o1777, (0, 0), 1_600_000_008);
    put(TreePath::new(b"tmp/\xff\xfe name").expect("bytes"), Kind::Fifo, 0o600, (0, 0), 1_600_000_009);
    let holes =
        [DataRange { offset: 8192, length: 4096, source: 0 }, DataRange { offset: 500_000, length: 10, source: 9 }];
    let sparse = Body { size: 1_000_000, extents: holes.into_iter().collect() };
    put(at("var/sparse"), Kind::File(sparse), 0o644, (0, 0), 1_600_000_010);
    for number in 0..400_u64 {
        let path = at(&format!("usr/share/a-name-that-takes-some-room/entry-{number:04}"));
        put(path, Kind::File(Body::contiguous(number * 37 % 6000, number * 11)), 0o644, (0, 0), 1_600_000_011);
    }
    tree.link(at("usr/bin/hello"), &at("etc/hello")).expect("exists");
    tree.link(at("usr/bin/null"), &at("dev/null")).expect("exists");
    // VFS_CAP_REVISION_2, effective, cap_net_raw; with a newline in the value, as a capability may have.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut mark = |path: &str, name: &str, value: &[u8]| {
        tree.get_mut(&at(path)).expect("exists").xattrs.insert(name.as_bytes().into(), value.into());
    };
    mark("bin/ping", "security.capability", &capability);
    mark("etc/hello", "user.note", b"two\nlines\0and a NUL");
    mark("bin", "trusted.overlay.opaque", b"y");
    mark("", "user.root", b"here");
    tree
}

/// An image mounted by the kernel through a loop device, read-only, until dropped.
pub struct Mounted<'path>(&'path Path);

impl<'path> Mounted<'path> {
    pub fn new(image: &Path, kind: &str, place: &'path Path) -> Self {
        // Replaying the journal of an ext4 would write to it.
        let options = if kind == "ext4" { "ro,loop,noload" } else { "ro,loop" };
        let status = Command::new("mount").args(["-t", kind, "-o", options]).args([image, place]).status();
        assert!(status.expect("mount runs").success());
        Mounted(place)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        unmount(self.0);
    }
}

/// Unmounts, waiting for as long as the mount is busy. Tests run side by side in one process: a program that another one
/// starts has this one's open files, too, between fork and exec, which takes long on a busy machine.
pub fn unmount(place: &Path) {
    const PAUSE: Duration = Duration::from_millis(100);
    let gone = (0..600).any(|_| {
        let done = Command::new("umount").arg(place).stderr(Stdio::null()).status();
        done.expect("umount runs").success() || {
            std::thread::sleep(PAUSE);
            false
        }
    });
    assert!(gone || std::thread::panicking(), "{} stays mounted", place.display());
}

/// What a filesystem or a writer does not keep, and is not compared.
#[derive(Default)]
pub struct Lost {
    /// Modification time and xattrs of the root.
    pub root: bool,
    /// Link counts of directories: tar2sqfs counts every entry, not only the subdirectories.
    pub directory_links: bool,
}

/// Panics unless the filesystem mounted at `place` is `tree` in names, types, modes, owners, links, times,
/// xattrs, contents and devices, except for what is `lost`.
pub fn compare(tree: &RootTree, place: &Path, lost: Lost) {
    let links = tree.link_counts();
    let mut inode_numbers = BTreeMap::new();
    for entry in tree.entries() {
        let path = place.join(OsStr::from_bytes(entry.path.as_bytes()));
        let found = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", entry.path));
        let (inode, name) = (entry.inode, entry.path);
        assert_eq!(found.mode() & 0o7777, u32::from(inode.mode), "{name}");
        assert_eq!((found.uid(), found.gid()), (inode.uid, inode.gid), "{name}");
        if !(lost.directory_links && inode.is_directory()) {
            let lost_and_found = u64::from(entry.path.is_root() && place.join("lost+found").is_dir());
            assert_eq!(found.nlink() - lost_and_found, u64::from(links[RootTree::slot(entry.id)]), "{name}");
        }
        assert_eq!(*inode_numbers.entry(entry.id).or_insert(found.ino()), found.ino(), "{name}");
        if !(lost.root && entry.path.is_root()) {
            let mtime = (found.mtime(), found.mtime_nsec());
            assert_eq!(mtime, (inode.mtime.seconds, inode.mtime.nanoseconds.into()), "{name}");
            let xattrs: BTreeMap<Box<[u8]>, Box<[u8]>> = xattr::list(&path)
                .expect("xattrs can be listed")
                .map(|key| (key.as_bytes().into(), xattr::get(&path, &key).unwrap().unwrap().into()))
                .collect();
            assert_eq!(xattrs, inode.xattrs, "{name}");
        }
        let device = |major: u32, minor: u32| nix::sys::stat::makedev(major.into(), minor.into());
        match &inode.kind {
            Kind::Directory => assert!(found.is_dir()),
            Kind::File(body) => {
                let mut expected = vec![0; body.size as usize];
                for range in body.extents.as_slice() {
                    let slice = &mut expected[range.offset as usize..][..range.length as usize];
                    tree.bodies().read_exact_at(slice, range.source).unwrap();
                }
                assert!(fs::read(&path).unwrap() == expected, "{name}");
            }
            Kind::Symlink(target) => {
                assert_eq!(fs::read_link(&path).unwrap().as_os_str().as_bytes(), &**target, "{name}");
            }
            Kind::CharacterDevice { major, minor } => {
                assert!(found.file_type().is_char_device() && found.rdev() == device(*major, *minor), "{name}");
            }
            Kind::BlockDevice { major, minor } => {
                assert!(found.file_type().is_block_device() && found.rdev() == device(*major, *minor), "{name}");
            }
            Kind::Fifo => assert!(found.file_type().is_fifo(), "{name}"),
            Kind::Socket => assert!(found.file_type().is_socket(), "{name}"),
        }
    }
    let mut count = 0;
    count_names(place, &mut count);
    assert_eq!(count, tree.len() - 1, "the image has names that the tree has not");
}

fn count_names(folder: &Path, count: &mut usize) {
    for entry in fs::read_dir(folder).expect("a directory").map(|entry| entry.expect("an entry")) {
        if entry.file_name() != "lost+found" {
            *count += 1;
        }
        if entry.file_type().expect("has a type").is_dir() {
            count_names(&entry.path(), count);
        }
    }
}
