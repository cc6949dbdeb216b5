//! GNU tar, Python's tarfile, cpio, bsdtar and the kernel as judges of what we read and write.

use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::identity::{from_file, to_bytes};
use super::*;

/// A capability set as the kernel accepts it (`struct vfs_cap_data`, revision 2), with a newline and NULs in it.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// Are the tools and the rights there? Says loudly when not, and fails where skipping is forbidden.
pub(super) fn can_run(tools: &[&str]) -> bool {
    let has = |tool: &&&str| {
        Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
    };
    let mut missing: Vec<&str> = tools.iter().filter(has).copied().collect();
    if !nix::unistd::geteuid().is_root() {
        missing.push("root's rights");
    }
    if missing.is_empty() {
        return true;
    }
    let forbidden = std::env::var_os("SNUG_TESTS_NO_SKIP").is_some();
    assert!(!forbidden, "missing: {missing:?}");
    eprintln!("SKIPPED: missing {missing:?}");
    false
}

pub(super) fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn set_mtime(path: &Path, seconds: i64, nanos: i64) {
    use nix::sys::stat::{UtimensatFlags, utimensat};
    let time = nix::sys::time::TimeSpec::new(seconds, nanos);
    utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink).unwrap();
}

/// A folder with everything that V7 tars can carry.
fn plain_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("usr/lib")).unwrap();
    fs::write(at("usr/lib/libc.so"), vec![7; 70_000]).unwrap();
    fs::write(at("usr/empty"), b"").unwrap();
    fs::hard_link(at("usr/lib/libc.so"), at("usr/a-link")).unwrap();
    symlink("/usr/lib", at("lib")).unwrap();
    fs::set_permissions(at("usr/lib/libc.so"), fs::Permissions::from_mode(0o4711)).unwrap();
    std::os::unix::fs::chown(at("usr/empty"), Some(1000), Some(65534)).unwrap();
    for name in ["usr/lib/libc.so", "usr/empty", "usr/lib", "usr", "lib", ""] {
        set_mtime(&at(name), 1_600_000_000, 0);
    }
    folder
}

/// A folder with all that GNU and pax archives can carry; times of whole seconds.
fn full_folder() -> tempfile::TempDir {
    let folder = plain_folder();
    let at = |name: &[u8]| folder.path().join(OsStr::from_bytes(name));
    let long = [&b"0123456789/".repeat(30)[..], &[b'n'; 255]].concat();
    fs::create_dir_all(at(&long).parent().unwrap()).unwrap();
    fs::write(at(&long), b"long").unwrap();
    symlink(OsStr::from_bytes(&[b't'; 300]), at(b"long-target")).unwrap();
    fs::hard_link(at(&long), at(b"z-link-to-long")).unwrap();
    fs::write(at(b"caf\xe9\nx"), b"latin").unwrap();
    std::os::unix::fs::chown(at(b"caf\xe9\nx"), Some(4_000_000_000), Some(3_000_000)).unwrap();
    let device = |name: &[u8], kind, major, minor| {
        mknod(&at(name), kind, Mode::from_bits_truncate(0o640), makedev(major, minor)).unwrap();
    };
    device(b"null", SFlag::S_IFCHR, 1, 3);
    device(b"vda", SFlag::S_IFBLK, 254, 300_000);
    device(b"fifo", SFlag::S_IFIFO, 0, 0);
    // More data ranges than a header, or one extension block, holds.
    let holes = fs::File::create(at(b"holes")).unwrap();
    for n in 1..40_u64 {
        std::os::unix::fs::FileExt::write_all_at(&holes, &[n as u8; 4096], n * 100_000 / 4096 * 4096).unwrap();
    }
    holes.set_len(50_000_000).unwrap();
    fs::File::create(at(b"one-hole")).unwrap().set_len(1 << 20).unwrap();
    // Parents come after what is in them.
    for path in paths_of(folder.path()).iter().rev() {
        set_mtime(&at(path.as_bytes()), 1_700_000_000, 0);
    }
    set_mtime(&at(b"usr/empty"), -1_000_000_000, 0);
    folder
}

/// What can be seen of a tree from outside, holes read as zeros, one line a name.
fn facts_of_tree(tree: &RootTree, xattrs: bool) -> Vec<String> {
    let links = tree.link_counts();
    let line = |entry: crate::tree::Entry<'_>| {
        let inode = entry.inode;
        let what = match &inode.kind {
            Kind::File(body) => {
                let mut content = vec![0; body.size as usize];
                for range in body.extents.as_slice() {
                    let part = &mut content[range.offset as usize..(range.offset + range.length) as usize];
                    tree.bodies().read_exact_at(part, range.source).unwrap();
                }
                let links = links[RootTree::slot(entry.id)];
                format!("file {} {:x} links {links}", body.size, hash(&content))
            }
            Kind::Symlink(target) => format!("symlink {}", target.escape_ascii()),
            Kind::CharacterDevice { major, minor } => format!("character {major}:{minor}"),
            Kind::BlockDevice { major, minor } => format!("block {major}:{minor}"),
            other => other.noun().to_string(),
        };
        let names = inode.xattrs.iter().filter(|_| xattrs);
        let names: Vec<String> = names.map(|(k, v)| format!("{}={}", k.escape_ascii(), v.escape_ascii())).collect();
        let Timestamp { seconds, nanoseconds } = inode.mtime;
        format!("{} {what} {:o} {} {} {seconds}.{nanoseconds} {names:?}", entry.path, inode.mode, inode.uid, inode.gid)
    };
    tree.entries().map(line).collect()
}

/// All that is in a folder, sorted as a tree is.
fn paths_of(folder: &Path) -> Vec<TreePath> {
    let mut paths = vec![TreePath::root()];
    let mut pending: Vec<PathBuf> = vec![folder.into()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap().map(io::Result::unwrap) {
            let relative = entry.path().strip_prefix(folder).unwrap().as_os_str().as_bytes().to_vec();
            paths.push(TreePath::new(relative).unwrap());
            if entry.file_type().unwrap().is_dir() {
                pending.push(entry.path());
            }
        }
    }
    paths.sort();
    paths
}

/// The same of a folder, asked from the kernel.
fn facts_of_folder(folder: &Path, xattrs: bool) -> Vec<String> {
    let line = |path: &TreePath| {
        let full = folder.join(OsStr::from_bytes(path.as_bytes()));
        let stat = fs::symlink_metadata(&full).unwrap();
        let kind = stat.file_type();
        let (major, minor) = (nix::sys::stat::major(stat.rdev()), nix::sys::stat::minor(stat.rdev()));
        let what = if kind.is_file() {
            format!("file {} {:x} links {}", stat.size(), hash(&fs::read(&full).unwrap()), stat.nlink())
        } else if kind.is_symlink() {
            format!("symlink {}", fs::read_link(&full).unwrap().as_os_str().as_bytes().escape_ascii())
        } else if kind.is_char_device() {
            format!("character {major}:{minor}")
        } else if kind.is_block_device() {
            format!("block {major}:{minor}")
        } else {
            if kind.is_dir() { "directory" } else { "FIFO" }.to_string()
        };
        let mut names = Vec::new();
        for name in xattr::list(&full).unwrap().filter(|_| xattrs) {
            let value = xattr::get(&full, &name).unwrap().unwrap();
            names.push(format!("{}={}", name.as_bytes().escape_ascii(), value.escape_ascii()));
        }
        names.sort();
        let (mode, seconds, nanos) = (stat.mode() & 0o7777, stat.mtime(), stat.mtime_nsec());
        format!("{path} {what} {mode:o} {} {} {seconds}.{nanos} {names:?}", stat.uid(), stat.gid())
    };
    paths_of(folder).iter().map(line).collect()
}

fn hash(content: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}

#[track_caller]
fn assert_same(judge: &str, theirs: &[String], ours: &[String]) {
    for (theirs, ours) in theirs.iter().zip(ours) {
        assert_eq!(theirs, ours, "{judge}");
    }
    assert_eq!(theirs.len(), ours.len(), "{judge}");
}

#[test]
fn every_format_of_gnu_tar_is_read_as_the_folder_is() {
    if !can_run(&["tar"]) {
        return;
    }
    let pack = |folder: &Path, arguments: &[&str]| {
        let tar = run(Command::new("tar").args(arguments).args(["--numeric-owner", "-c", "-C"]).arg(folder).arg("."));
        from_file(&tar).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    };
    let plain = plain_folder();
    for format in ["--format=v7", "--format=ustar"] {
        let tree = pack(plain.path(), &[format]);
        assert_same(format, &facts_of_folder(plain.path(), false), &facts_of_tree(&tree, false));
    }
    let full = full_folder();
    let posix = "--format=posix";
    for arguments in [
        &["--format=gnu"][..],
        &["--format=gnu", "-S"],
        &["--format=oldgnu", "-S"],
        &[posix],
        &[posix, "-S", "--sparse-version=0.0"],
        &[posix, "-S", "--sparse-version=0.1"],
        &[posix, "-S", "--sparse-version=1.0"],
    ] {
        let tree = pack(full.path(), arguments);
        assert_same(&format!("{arguments:?}"), &facts_of_folder(full.path(), false), &facts_of_tree(&tree, false));
        let holes = tree.get(&TreePath::new("one-hole").unwrap()).unwrap();
        let Kind::File(body) = &holes.kind else { panic!("{holes:?}") };
        assert_eq!(body.extents.as_slice(), [], "{arguments:?}: zeros are a hole, with and without -S");
    }
    decorate(full.path());
    let tree = pack(full.path(), &[posix, "-S", "--xattrs", "--xattrs-include=*"]);
    assert_same("GNU tar with attributes", &facts_of_folder(full.path(), true), &facts_of_tree(&tree, true));
}

/// Nanoseconds and extended attributes, which only pax archives carry.
fn decorate(folder: &Path) {
    xattr::set(folder.join("usr/empty"), "security.capability", CAPABILITY).unwrap();
    xattr::set(folder.join("usr/empty"), "user.a=b%3D", b"\0=\n\xff").unwrap();
    xattr::set(folder.join("usr"), "trusted.empty", b"").unwrap();
    set_mtime(&folder.join("usr/lib/libc.so"), -2, 750_000_001);
    set_mtime(&folder.join("usr"), 1 << 33, 999_999_999);
}

#[test]
fn archives_of_bsdtar_cpio_and_python_are_read_as_the_folder_is() {
    let full = full_folder_if(can_run(&["bsdtar"]));
    if let Some(full) = full {
        decorate(full.path());
        // bsdtar writes the seconds and nanoseconds of times before 1970 side by side, which is another number.
        set_mtime(&full.path().join("usr/lib/libc.so"), 2, 750_000_001);
        for format in ["pax", "gnutar"] {
            let bytes = run(Command::new("bsdtar")
                .args(["--format", format, "--numeric-owner", "-cC"])
                .arg(full.path())
                .arg("."));
            let tree = from_file(&bytes).unwrap();
            // bsdtar's gnutar has neither attributes nor times before 1970 or below a second.
            if format == "pax" {
                assert_same("bsdtar", &facts_of_folder(full.path(), true), &facts_of_tree(&tree, true));
            }
            assert!(tree.len() > 20);
        }
    }
    if can_run(&["cpio"]) {
        let plain = plain_folder();
        let script = "find . | LC_ALL=C sort | cpio --quiet -o -H ustar";
        let bytes = run(Command::new("sh").args(["-c", script]).current_dir(plain.path()));
        assert_same("cpio", &facts_of_folder(plain.path(), false), &facts_of_tree(&from_file(&bytes).unwrap(), false));
    }
    let full = full_folder_if(can_run(&["python3"]));
    if let Some(full) = full {
        for format in ["PAX", "GNU"] {
            let script = format!(
                "import sys, tarfile\n\
                 with tarfile.open(fileobj=sys.stdout.buffer, mode='w|', format=tarfile.{format}_FORMAT) as tar: tar.add('.')"
            );
            let bytes = run(Command::new("python3").args(["-c", &script]).current_dir(full.path()));
            let tree = from_file(&bytes).unwrap();
            assert_same(format, &facts_of_folder(full.path(), false), &facts_of_tree(&tree, false));
        }
    }
}

fn full_folder_if(wanted: bool) -> Option<tempfile::TempDir> {
    wanted.then(full_folder)
}

#[test]
fn gnu_tar_unpacks_our_archive_to_the_same_tree() {
    if !can_run(&["tar"]) {
        return;
    }
    let source = full_folder();
    decorate(source.path());
    let pack = ["--format=posix", "-S", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-c", "-C"];
    let tree = from_file(&run(Command::new("tar").args(pack).arg(source.path()).arg("."))).unwrap();
    let archive = tempfile::NamedTempFile::new().unwrap();
    write(&tree, archive.as_file(), TarOptions::FAITHFUL, &mut |_| {}).unwrap();
    let target = tempfile::tempdir().unwrap();
    let unpack = [
        "-xp",
        "--warning=no-timestamp",
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
        "--delay-directory-restore",
        "-C",
    ];
    let output = Command::new("tar").args(unpack).arg(target.path()).arg("-f").arg(archive.path()).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_same("GNU tar", &facts_of_folder(target.path(), true), &facts_of_tree(&tree, true));
    let blocks = |name: &str| fs::metadata(target.path().join(name)).unwrap().blocks();
    assert_eq!(blocks("one-hole"), 0, "holes stay holes");
}

#[test]
fn python_lists_our_archive_as_the_tree_is() {
    if !can_run(&["python3"]) {
        return;
    }
    let source = full_folder();
    let tar = run(Command::new("tar").args(["--format=posix", "-S", "-c", "-C"]).arg(source.path()).arg("."));
    let tree = from_file(&tar).unwrap();
    let script = "import os, sys, tarfile\n\
        for m in tarfile.open(sys.argv[1]):\n    \
            print(os.fsencode(m.name).hex(), m.type.decode(), oct(m.mode), m.uid, m.gid, int(m.mtime // 1), os.fsencode(m.linkname).hex(), m.size if m.isreg() else 0)";
    for options in [TarOptions::FAITHFUL, TarOptions::PLAIN] {
        let archive = tempfile::NamedTempFile::new().unwrap();
        fs::write(archive.path(), to_bytes(&tree, options)).unwrap();
        let listed = run(Command::new("python3").args(["-c", script]).arg(archive.path()));
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let ours = tree.entries().map(|entry| {
            let inode = entry.inode;
            let (kind, link, size): (_, &[u8], _) = match (&inode.kind, entry.hard_link_to) {
                (_, Some(first)) => (1, first.as_bytes(), 0),
                (Kind::File(body), _) => (0, b"", body.size),
                (Kind::Symlink(target), _) => (2, target, 0),
                (Kind::CharacterDevice { .. }, _) => (3, b"", 0),
                (Kind::BlockDevice { .. }, _) => (4, b"", 0),
                (Kind::Directory, _) => (5, b"", 0),
                _ => (6, b"", 0),
            };
            let name = if entry.path.is_root() { b"." } else { entry.path.as_bytes() };
            let (mode, seconds) = (inode.mode, inode.mtime.seconds);
            format!("{} {kind} 0o{mode:o} {} {} {seconds} {} {size}", hex(name), inode.uid, inode.gid, hex(link))
        });
        let theirs: Vec<String> = String::from_utf8(listed).unwrap().lines().map(str::to_string).collect();
        assert_same("Python", &theirs, &ours.collect::<Vec<_>>());
    }
}
