//! What a filesystem cannot hold is left out or moved to the nearest, told once for each kind, and refused under `--strict`:
//! one tar of everything at the limits goes into every type, and the kernel says what has become of it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use snug_tests::{Mounted, Workshop, have, is_root, succeed, xtask};

/// Writes the tar, by Python's own `tarfile`: attributes as macOS, btrfs and Lustre have them, times of all years, attributes
/// without room, access control lists with names, of which the tree's accounts, last in the archive, know one.
const TAR: &str = r#"
import io, sys, tarfile
archive = tarfile.open(sys.argv[1], "w", format=tarfile.PAX_FORMAT)
def add(name, mtime="1000", kind=tarfile.REGTYPE, body=b"", mode=0o644, target="", **records):
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname, info.size = kind, mode, target, len(body)
    info.pax_headers = {"mtime": mtime, **{key.replace("__", "."): value for key, value in records.items()}}
    archive.addfile(info, io.BytesIO(body))
add(".", kind=tarfile.DIRTYPE, mode=0o755)
add("foreign", LIBARCHIVE__xattr__com__apple__provenance="AQIA", SCHILY__xattr__btrfs__compression="zstd",
    SCHILY__xattr__lustre__lov="x", SCHILY__xattr__user__kept="1", SCHILY__xattr__security__selinux="a:b:c:d")
add("large", SCHILY__xattr__user__large="v" * 50000, SCHILY__xattr__user__small="1")
add("huge", SCHILY__xattr__com__apple__ResourceFork="v" * 3000000, SCHILY__xattr__user__small="1")
add("link", kind=tarfile.SYMTYPE, mode=0o777, target="x", SCHILY__xattr__user__note="1", SCHILY__xattr__trusted__note="1")
add("of-1800", mtime="-5364662400")
add("of-2200", mtime="7258118400")
add("of-2600", mtime="19880899200")
add("nanoseconds", mtime="1000.123456789")
add("before-1970", mtime="-1000.5")
add("acl", mode=0o664, SCHILY__acl__access="user::rw-\nuser:joe:rw-\nuser:nobody-here:r--\ngroup::r--\nmask::rw-\nother::---\n")
add("acl-numbered", mode=0o664, SCHILY__acl__access="user::rw-,user:max:rw-:77,group::r--,mask::rw-,other::---")
add("etc", kind=tarfile.DIRTYPE, mode=0o755)
add("etc/passwd", body=b"root:x:0:0::/root:/bin/sh\njoe:x:1234:1234::/:/bin/sh\n")
archive.close()
"#;

fn tar(folder: &Path) -> PathBuf {
    let tar = folder.join("limits.tar");
    succeed(Command::new("python3").args(["-c", TAR]).arg(&tar));
    tar
}

fn pack(tar: &Path, image: &Path, more: &[&str]) -> Output {
    xtask().arg("pack").arg(tar).arg("-o").arg(image).args(more).output().expect("xtask runs")
}

fn warnings(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    said.lines().filter(|line| line.starts_with("warning: ")).map(|line| format!("{line}\n")).collect()
}

/// A name, its time, mode and attributes, as the kernel shows them.
fn shown(root: &Path) -> String {
    let mut shown = String::new();
    let names = fs::read_dir(root).expect("a directory").map(|entry| entry.expect("an entry").path());
    let mut names: Vec<PathBuf> =
        names.filter(|path| !path.ends_with("lost+found") && !path.ends_with("etc")).collect();
    names.sort();
    for path in names {
        let about = fs::symlink_metadata(&path).expect("it exists");
        let name = path.file_name().expect("a name").display();
        shown += &format!("{name} {:03o} {}.{:09}", about.mode() & 0o777, about.mtime(), about.mtime_nsec());
        let attributes: BTreeMap<String, usize> = xattr::list(&path)
            .expect("attributes")
            .map(|key| (key.display().to_string(), xattr::get(&path, &key).expect("a value").expect("a value").len()))
            .collect();
        for (key, length) in attributes {
            shown += &format!(" {key}({length})");
        }
        shown.push('\n');
    }
    shown
}

#[test]
fn every_type_holds_what_it_can_and_tells_the_rest_once_a_kind() {
    if !have(&["python3", "e2fsck", "tar2sqfs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tar = tar(folder.path());
    let may_mount = have(&["mount"]) && is_root();
    for kind in ["ext4", "squashfs", "erofs"] {
        let image = folder.path().join(format!("image.{kind}"));
        let strict = pack(&tar, &image, &["--strict"]);
        assert_eq!(strict.status.code(), Some(1), "{strict:?}");
        assert!(!image.exists(), "something was written");
        let output = pack(&tar, &image, &["--json"]);
        assert!(output.status.success(), "{output:?}");
        insta::assert_snapshot!(format!("{kind}_warnings"), warnings(&output));
        // What is told is data, too, and is what `--strict` refuses.
        let about: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let adjustments = about["census"]["adjustments"].as_array().expect("a list");
        assert_eq!(adjustments.len(), warnings(&output).lines().count(), "{about}");
        let refused = String::from_utf8_lossy(&strict.stderr);
        for warning in warnings(&output).lines() {
            assert!(refused.contains(warning.trim_start_matches("warning: ")), "{refused}");
        }
        assert!(refused.contains("hint: "), "{refused}");
        if kind == "ext4" {
            succeed(Command::new("e2fsck").arg("-fn").arg(&image));
        }
        if may_mount {
            let mounted = Mounted::read_only(&image);
            insta::assert_snapshot!(format!("{kind}_as_the_kernel_shows_it"), shown(mounted.path()));
            if kind != "squashfs" {
                let acl = xattr::get(mounted.path().join("acl"), "system.posix_acl_access").expect("it can be read");
                // Entries of eight bytes after four: owner, then the one named user that the tree has.
                let acl = acl.expect("a list");
                assert_eq!(acl[16..20], 1234_u32.to_le_bytes(), "{acl:?}");
                assert_eq!(acl.len(), 4 + 5 * 8);
            }
        }
    }
}

#[test]
fn a_tree_within_the_limits_is_neither_told_nor_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script =
        "mkdir -p root/etc; echo x >root/etc/x; touch -d @1000 root/etc/x root/etc root; tar -cf t.tar -C root .";
    succeed(Command::new("bash").args(["-ec", script]).current_dir(folder.path()));
    let output = pack(&folder.path().join("t.tar"), &folder.path().join("image.ext4"), &["--strict", "--json"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(warnings(&output), "");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("adjustments"));
}

/// The lists as GNU tar and bsdtar write them, with the names of the machine that packs.
#[test]
fn lists_that_gnu_tar_and_bsdtar_write_with_names_are_the_same_in_the_image() {
    if !is_root() || !have(&["tar", "bsdtar", "setfacl", "getfacl", "mount"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = "mkdir -p root/etc root/d; echo x >root/f; printf 'root:x:0:0::/:/bin/sh\\ndaemon:x:4321:1::/:/bin/sh\\n' >root/etc/passwd
        printf 'root:x:0:\\nadm:x:4:\\n' >root/etc/group
        setfacl -m u:daemon:rw,g:adm:r,u:7777:r root/f; setfacl -d -m u:daemon:rwx root/d
        touch -d @1000 root/f root/d root/etc/* root/etc root
        tar --acls --format=posix -cf gnu.tar -C root .; bsdtar --acls --format pax -cf bsd.tar -C root .";
    succeed(Command::new("bash").args(["-ec", script]).current_dir(folder.path()));
    // GNU tar writes names alone, which the tree explains; bsdtar numbers, too, which are those of the files.
    for (tar, daemon) in [("gnu.tar", "user:4321:rw-"), ("bsd.tar", "user:1:rw-")] {
        let image = folder.path().join("image.ext4");
        let output = pack(&folder.path().join(tar), &image, &["--strict"]);
        assert!(output.status.success(), "{output:?}");
        let mounted = Mounted::read_only(&image);
        let output = succeed(Command::new("getfacl").args(["-n", "f", "d"]).current_dir(mounted.path()));
        let said = String::from_utf8_lossy(&output.stdout);
        for line in [daemon, "user:7777:r--", "group:4:r--"] {
            assert!(said.lines().any(|found| found == line), "{tar}: {line} in {said}");
        }
        assert!(said.contains("default:user:"), "{tar}: {said}");
    }
}

/// Leaves one socket where it reaches the image, one that the spec excludes, and one where no file stays. The link leads syslogd
/// there, which makes its socket at `/dev/log` only.
const LEAVE_SOCKETS: &str = "for name in /var/left /var/excluded /run/gone; do rm -f /dev/log; ln -s $name /dev/log; \
    /bin/busybox syslogd -n & while ! test -S $name; do sleep 0.1; done; done";

/// What was adjusted when a base was read, and of what steps left, belongs to the tree, for every image that is made of it.
#[test]
fn a_tree_from_the_cache_is_told_and_refused_as_when_it_was_made() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    let script = "mkdir root/var; ln -s busybox root/bin/rm; tar -cPf odd.tar --transform 's,^./bin/busybox$,/bin/busybox,' \
        --owner 0 --group 0 -C root .";
    succeed(Command::new("bash").args(["-ec", script]).current_dir(workshop.path("")));
    let base = format!("base = {{ tar = \"{}\" }}", workshop.path("odd.tar").display());
    let rest = format!("filesystem = \"ext4\"\nexclude = [\"/var/excluded\"]\nrun = ['{LEAVE_SOCKETS}']");
    workshop.write_spec("parent", &format!("{base}\n{rest}\n"));
    workshop.write_spec("child", "base = { image = \"parent\" }\nfilesystem = \"ext4\"\nrun = [\"true\"]\n");
    let run = |words: &[&str]| {
        let output = workshop.xtask(words).output().expect("xtask runs");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), warnings(&output), stderr)
    };
    let manifest = || fs::read_to_string(workshop.path("out/child/manifest.json")).expect("a manifest");
    let told = "warning: child: 1 absolute name was taken as relative to the root: `/bin/busybox`\n\
                warning: child: 1 socket was left out, since tar has no type for it: /var/left\n";

    // A cold cache: what is known before any step runs is refused then.
    let (status, _, said) = run(&["image", "child", "--strict"]);
    assert!(status == Some(1) && said.contains("`/bin/busybox`") && !said.contains("syslogd"), "{said}");
    let (status, cold, said) = run(&["image", "child"]);
    assert_eq!((status, cold.as_str()), (Some(0), told), "{said}");
    let first = manifest();
    assert!(first.contains("\"absolute-name\"") && first.contains("\"socket\""), "{first}");

    fs::remove_dir_all(workshop.path("out")).expect("the images");
    let (status, warm, said) = run(&["image", "child"]);
    assert_eq!((status, warm.as_str()), (Some(0), told), "{said}");
    assert!(!said.contains("collect the tree"), "it was not in the cache: {said}");
    assert!(manifest() == first, "another manifest from the cache: {}", manifest());

    let tar = workshop.path("child.tar").display().to_string();
    for words in [&["image", "child", "--strict"][..], &["export", "child", "--output", &tar, "--strict"]] {
        let (status, _, said) = run(words);
        let refused = told.lines().all(|line| said.contains(line.trim_start_matches("warning: child: ")));
        assert!(status == Some(1) && refused, "{words:?}: {said}");
    }
    assert!(!Path::new(&tar).exists(), "something was written");
    assert_eq!(run(&["export", "child", "--output", &tar]).1, told);
    // No record of ours for others.
    assert!(!fs::read(&tar).expect("a tar").windows(5).any(|bytes| bytes == b"SNUG."));
}
