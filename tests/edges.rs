//! Edge cases of root filesystems go through `pack` unchanged: attributes with newlines, access
//! control lists, years from 1905 to 2100, holes, large directories, devices, owners above 31 bits. Tars are made by
//! Python, GNU tar and bsdtar; the images are read by the kernel, by debugfs and by ext4-view.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use ext4_view::{Ext4, FileType};
use sha2::{Digest, Sha256};
use snug_tests::{Mounted, have, is_root, skip, succeed, xtask};

/// One name as `edges.py` states it. Bytes stand in it as Latin-1.
#[derive(serde::Deserialize)]
struct Fact {
    path: String,
    /// The type flag of tar: `0` a file, `2` a symlink, `3` and `4` devices, `5` a directory, `6` a FIFO.
    kind: char,
    mode: u32,
    uid: u32,
    gid: u32,
    seconds: i64,
    nanoseconds: u32,
    size: u64,
    sha256: String,
    target: String,
    major: u64,
    minor: u64,
    links: u64,
    xattrs: BTreeMap<String, String>,
}

fn bytes(latin: &str) -> Vec<u8> {
    latin.chars().map(|char| u8::try_from(u32::from(char)).expect("Latin-1")).collect()
}

impl Fact {
    fn path(&self) -> PathBuf {
        OsStr::from_bytes(&bytes(&self.path)).into()
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes of the sparse files, in places that are no multiples of a block.
const HOLES: &str = "truncate -s 9M $1; printf one | dd of=$1 bs=1 seek=1000001 conv=notrunc status=none; \
                     printf two | dd of=$1 bs=1 seek=5000000 conv=notrunc status=none; touch -d @1500000000 $1";

/// The archive of `edges.py`, to which GNU tar has added a file with holes in its own format and one in each of pax's.
fn edge_tar(folder: &Path) -> (PathBuf, Vec<Fact>) {
    let (tar, facts) = (folder.join("edges.tar"), folder.join("facts.json"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("edges.py");
    succeed(Command::new("python3").arg(script).args([&tar, &facts]));
    for (name, format) in [
        ("holes-gnu", &["--format=gnu"][..]),
        ("holes-0.0", &["--format=posix", "--sparse-version=0.0"]),
        ("holes-0.1", &["--format=posix", "--sparse-version=0.1"]),
        ("holes-1.0", &["--format=posix", "--sparse-version=1.0"]),
    ] {
        succeed(Command::new("bash").args(["-ec", HOLES, "holes", name]).current_dir(folder));
        let mut append = Command::new("tar");
        append.args(format).args(["--sparse", "--owner=7", "--group=7", "--mode=640", "--append", "--file"]);
        succeed(append.arg(&tar).arg(name).current_dir(folder));
    }
    let mut facts: Vec<Fact> = serde_json::from_slice(&fs::read(facts).expect("facts")).expect("JSON");
    let body = fs::read(folder.join("holes-gnu")).expect("the file with holes");
    let digest = sha256(&body);
    facts.extend(["holes-gnu", "holes-0.0", "holes-0.1", "holes-1.0"].map(|path| Fact {
        path: path.into(),
        kind: '0',
        mode: 0o640,
        uid: 7,
        gid: 7,
        seconds: 1_500_000_000,
        nanoseconds: 0,
        size: body.len() as u64,
        sha256: digest.clone(),
        target: String::new(),
        major: 0,
        minor: 0,
        links: 1,
        xattrs: BTreeMap::new(),
    }));
    (tar, facts)
}

#[test]
fn the_edges_survive_pack() {
    if !have(&["python3", "tar", "e2fsck", "debugfs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (tar, facts) = edge_tar(folder.path());
    let image = folder.path().join("edges.ext4");
    let may_mount = is_root() && have(&["mount"]);
    // As the kernel itself writes it, the image must pass the same judges: then they are no easier than it.
    for writer in ["native", "loop"].into_iter().filter(|writer| *writer == "native" || may_mount) {
        let mut pack = xtask();
        // mke2fs would make the root in 2100 otherwise, a time that ext4-view refuses.
        pack.arg("pack")
            .arg(&tar)
            .arg("-o")
            .arg(&image)
            .args(["--writer", writer])
            .env("SOURCE_DATE_EPOCH", "1700000000");
        succeed(&mut pack);
        succeed(Command::new("e2fsck").arg("-fn").arg(&image));
        by_ext4_view(&facts, &image);
        by_debugfs(&facts, &image, folder.path());
        if may_mount {
            by_the_kernel(&facts, Mounted::read_only(&image).path());
        }
    }
}

fn by_the_kernel(facts: &[Fact], root: &Path) {
    for fact in facts {
        let path = root.join(fact.path());
        let found = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", fact.path));
        let name = &fact.path;
        assert_eq!(found.mode() & 0o7777, fact.mode, "{name}");
        assert_eq!((found.uid(), found.gid()), (fact.uid, fact.gid), "{name}");
        assert_eq!((found.mtime(), found.mtime_nsec()), (fact.seconds, fact.nanoseconds.into()), "{name}");
        let xattrs: BTreeMap<Vec<u8>, Vec<u8>> = xattr::list(&path)
            .expect("attributes")
            .map(|key| (key.as_bytes().to_vec(), xattr::get(&path, &key).expect("an attribute").expect("a value")))
            .collect();
        let expected = fact.xattrs.iter().map(|(key, value)| (bytes(key), bytes(value))).collect();
        assert_eq!(xattrs, expected, "{name}");
        let kind = found.file_type();
        let device = (found.rdev() >> 8 & 0xfff, found.rdev() & 0xff | found.rdev() >> 12 & 0xfff00);
        match fact.kind {
            '0' => {
                let body = fs::read(&path).expect("a file");
                assert_eq!((body.len() as u64, sha256(&body)), (fact.size, fact.sha256.clone()), "{name}");
                if name.starts_with("holes") {
                    // Two blocks of 4096 bytes hold data; stat counts in units of 512.
                    assert_eq!(found.blocks(), 16, "{name}");
                }
            }
            '2' => assert_eq!(fs::read_link(&path).expect("a symlink").as_os_str().as_bytes(), bytes(&fact.target)),
            '3' => assert!(kind.is_char_device() && device == (fact.major, fact.minor), "{name}: {device:?}"),
            '4' => assert!(kind.is_block_device() && device == (fact.major, fact.minor), "{name}: {device:?}"),
            '5' => assert!(kind.is_dir(), "{name}"),
            '6' => assert!(kind.is_fifo(), "{name}"),
            other => panic!("{name} is of type {other}"),
        }
        if fact.kind != '5' {
            assert_eq!(found.nlink(), fact.links, "{name}");
        }
    }
    let inode = |name: &str| fs::symlink_metadata(root.join(name)).expect("a file").ino();
    assert_eq!(inode("bin/ping"), inode("bin/ping-again"));
    assert_eq!(fs::read_dir(root.join("many")).expect("a directory").count(), 3000);
}

fn by_ext4_view(facts: &[Fact], image: &Path) {
    let filesystem = Ext4::load_from_path(image).expect("ext4-view takes the image");
    // ext4-view refuses times whose lower 32 bits are negative: before the epoch, and from 2038 on.
    for fact in facts.iter().filter(|fact| fact.seconds as i32 >= 0) {
        let full = [b"/", &bytes(&fact.path)[..]].concat();
        let path = ext4_view::Path::try_from(full.as_slice()).expect("a good path");
        let name = &fact.path;
        let found = filesystem.symlink_metadata(path).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(u32::from(found.mode() & 0o7777), fact.mode, "{name}");
        assert_eq!((found.uid(), found.gid()), (fact.uid, fact.gid), "{name}");
        let modified = found.modified();
        let modified = (i128::from(modified.seconds()), modified.nanoseconds());
        assert_eq!(modified, (fact.seconds.into(), fact.nanoseconds), "{name}");
        match fact.kind {
            '0' => assert_eq!(sha256(&filesystem.read(path).expect("a file")), fact.sha256, "{name}"),
            '2' => {
                let target = filesystem.read_link(path).expect("a symlink");
                assert_eq!(target.as_ref(), bytes(&fact.target), "{name}");
            }
            '3' => assert_eq!(found.file_type(), FileType::CharacterDevice, "{name}"),
            '4' => assert_eq!(found.file_type(), FileType::BlockDevice, "{name}"),
            '5' => assert_eq!(found.file_type(), FileType::Directory, "{name}"),
            '6' => assert_eq!(found.file_type(), FileType::Fifo, "{name}"),
            other => panic!("{name} is of type {other}"),
        }
    }
    let many = filesystem.read_dir("/many").expect("a directory");
    let names: BTreeSet<Vec<u8>> = many
        .map(|entry| entry.expect("an entry").file_name().as_ref().to_vec())
        .filter(|name| name[0] != b'.')
        .collect();
    assert_eq!(names.len(), 3000);
}

/// Asks debugfs for what ext4-view does not show: times of all years, links, devices and attributes. Its commands are
/// lines of text, so that names which are none are left to the others.
fn by_debugfs(facts: &[Fact], image: &Path, folder: &Path) {
    let text: Vec<&Fact> = facts.iter().filter(|fact| fact.path.is_ascii()).collect();
    assert!(text.len() >= facts.len() - 1);
    let mut commands = String::new();
    for (number, fact) in text.iter().enumerate() {
        commands += &format!("stat \"/{}\"\n", fact.path);
        for (at, key) in fact.xattrs.keys().enumerate() {
            commands += &format!("ea_get -f {}/value-{number}-{at} \"/{}\" {key}\n", folder.display(), fact.path);
        }
    }
    let script = folder.join("commands");
    fs::write(&script, commands).expect("the folder is ours");
    let output = succeed(Command::new("debugfs").arg("-f").arg(&script).arg(image));
    let said = String::from_utf8_lossy(&output.stdout);
    let shown: Vec<&str> = said.split("debugfs: stat ").skip(1).collect();
    assert_eq!(shown.len(), text.len(), "{said}");
    for (number, (fact, shown)) in text.iter().zip(&shown).enumerate() {
        let name = &fact.path;
        assert_eq!(shown_mtime(shown), (fact.seconds, fact.nanoseconds), "{name}");
        if fact.kind != '5' {
            assert!(shown.contains(&format!("Links: {} ", fact.links)), "{name}: {shown}");
        }
        if matches!(fact.kind, '3' | '4') {
            let device = format!("Device major/minor number: {:02}:{:02} ", fact.major, fact.minor);
            assert!(shown.contains(&device), "{name}: {shown}");
        }
        for (at, (key, value)) in fact.xattrs.iter().enumerate() {
            let found = fs::read(folder.join(format!("value-{number}-{at}"))).expect("debugfs wrote it");
            // The superblock's form of an access control list is shorter than the kernel's interface.
            if !key.starts_with("system.posix_acl") {
                assert_eq!(found, bytes(value), "{name} {key}");
            }
        }
    }
}

/// The time in debugfs's raw form, `mtime: 0xSECONDS:EXTRA` (kernel documentation, `inodes.rst`, "Inode Timestamps").
fn shown_mtime(shown: &str) -> (i64, u32) {
    let (_, after) = shown.split_once(" mtime: 0x").unwrap_or_else(|| panic!("no time in {shown}"));
    let word = |hex: &str| u32::from_str_radix(hex, 16).expect("debugfs shows hexadecimals");
    let (seconds, extra) = (word(&after[..8]), word(&after[9..17]));
    (i64::from(seconds as i32) + (i64::from(extra & 3) << 32), extra >> 2)
}

/// A real folder with everything at the edges.
const FOLDER: &str = r#"
    mkdir -p root/bin root/dev root/etc/inherited root/many
    cd root
    printf ping >bin/ping; chmod 4755 bin/ping; ln bin/ping bin/ping-again
    setfattr -n security.capability -v 0x010000020020000a000000000000000000000000 bin/ping
    printf x >etc/binary; setfattr -n user.binary -v 0x0a0a00ff0a3137206d74696d653d310a etc/binary
    setfattr -n trusted.empty etc/binary
    printf x >etc/shared; setfacl -m u:1234:rwx,g:70000:rx etc/shared
    setfacl -d -m u:1234:rwx etc/inherited
    ln -s "$(printf 'd%.0s' $(seq 4000))" etc/far
    printf x >$'etc/caf\351\n\377'
    truncate -s 9M etc/holes; printf one | dd of=etc/holes bs=1 seek=5000001 conv=notrunc status=none
    chown 4000000000:4000000001 etc/holes
    mknod dev/null c 1 3; mknod dev/vda b 254 300000; mkfifo dev/initctl
    for number in $(seq 1000 3999); do printf $number >many/$number-$(printf 'm%.0s' $(seq 195)); done
    find . -exec touch --no-dereference -d @1600000000 {} +
    touch -d '1905-06-19 12:00:00Z' etc/binary; touch -d '2100-01-01 12:00:00Z' etc/shared; touch -d @-5 bin/ping
"#;

/// One line for each name with all that GNU find sees of it, then content and attributes.
const LISTING: &str = r#"
    cd "$1"
    find . -path ./lost+found -prune -o -printf '%p|%y|%m|%U|%G|%T@|%l|' \( -type d -printf 'd\n' -o -printf '%s|%n\n' \) | sort
    find . -type c -exec stat -c '%n %t %T' {} + -o -type b -exec stat -c '%n %t %T' {} + | sort
    find . -type f -print0 | sort -z | xargs -0 sha256sum
    find . -path ./lost+found -prune -o -print0 | sort -z | xargs -0 getfattr --no-dereference --absolute-names -d -m - -e hex --
    stat -c %b etc/holes
"#;

fn listing(root: &Path) -> Vec<String> {
    let output = succeed(Command::new("bash").args(["-ec", LISTING, "listing"]).arg(root).env("LC_ALL", "C"));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn what_gnu_tar_and_bsdtar_keep_of_a_folder_the_image_keeps() {
    if !is_root() || !have(&["tar", "bsdtar", "setfattr", "getfattr", "setfacl", "mount"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let made = Command::new("bash").args(["-ec", FOLDER]).current_dir(folder.path()).output().expect("bash runs");
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr).into_owned();
        skip(&format!("the temporary folder cannot hold the edges: {said}"));
        return;
    }
    let root = folder.path().join("root");
    let expected = listing(&root);
    let image = folder.path().join("image.ext4");
    for (program, arguments) in [
        ("tar", "--create --format=posix --sparse --sparse-version=1.0 --xattrs --xattrs-include=* --file"),
        ("tar", "--create --format=posix --sparse --sparse-version=0.1 --xattrs --xattrs-include=* --acls --file"),
        ("bsdtar", "--create --format pax --xattrs --acls --file"),
    ] {
        let tar = folder.path().join("root.tar");
        succeed(Command::new(program).args(arguments.split(' ')).arg(&tar).arg("-C").arg(&root).arg("."));
        succeed(xtask().arg("pack").stdin(File::open(&tar).expect("the tar")).arg("-").arg("-o").arg(&image));
        succeed(Command::new("e2fsck").arg("-fn").arg(&image));
        let found = listing(Mounted::read_only(&image).path());
        let (expected, found) = (BTreeSet::from_iter(&expected), BTreeSet::from_iter(&found));
        let lost: Vec<_> = expected.difference(&found).collect();
        let new: Vec<_> = found.difference(&expected).collect();
        assert!(lost.is_empty() && new.is_empty(), "{program} {arguments}: lost {lost:#?}, new {new:#?}");
    }
}
