//! `pack`: tars from files and pipes become images, and hostile tars are refused.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use snug_tests::{Mounted, have, is_root, skip, succeed, tree_digest, xtask};

/// A small root packed by GNU tar, with long names, hard links, holes and extended attributes.
fn sample(folder: &Path) -> std::path::PathBuf {
    let script = r#"
        mkdir -p root/etc root/bin root/var/empty
        echo 127.0.0.1 localhost > root/etc/hosts
        ln root/etc/hosts root/etc/again
        ln -s ../etc/hosts root/bin/link
        mkfifo root/var/fifo
        truncate -s 1M root/var/sparse; echo end >> root/var/sparse
        for n in $(seq 300); do echo $n > "root/var/empty/file with a longer name $n"; done
        chmod 4755 root/bin
        setfattr -n user.note -v "a note" root/etc/hosts
        # tar2sqfs knows whole seconds only.
        find root -exec touch --no-dereference -d 2001-02-03T04:05:06Z {} +
        tar --create --file root.tar --format pax --sparse --xattrs --sort name --numeric-owner \
            --owner 0 --group 0 --pax-option delete=atime,delete=ctime -C root .
    "#;
    succeed(Command::new("bash").args(["-ec", script]).current_dir(folder));
    folder.join("root.tar")
}

fn pack(input: &Path, output: &Path, more: &[&str]) -> Output {
    xtask().arg("pack").arg(input).arg("-o").arg(output).args(more).output().expect("xtask runs")
}

#[test]
fn a_file_and_a_pipe_give_the_same_bytes_and_the_kernel_sees_the_same_tree() {
    if !is_root() || !have(&["e2fsck", "setfattr", "tar2sqfs", "mke2fs", "resize2fs", "debugfs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tar = sample(folder.path());
    let unpacked = folder.path().join("unpacked");
    fs::create_dir(&unpacked).expect("a folder");
    succeed(Command::new("tar").args(["-xpf"]).arg(&tar).args(["--xattrs", "-C"]).arg(&unpacked));
    let expected = tree_digest(&unpacked);

    let image = folder.path().join("file.ext4");
    succeed(xtask().arg("pack").arg(&tar).arg("-o").arg(&image));
    let piped = folder.path().join("pipe.ext4");
    // `docker export` writes into a pipe just so.
    let stream =
        Command::new("cat").arg(&tar).stdout(Stdio::piped()).spawn().expect("cat runs").stdout.expect("a pipe");
    succeed(xtask().args(["pack", "-", "-o"]).arg(&piped).stdin(stream));
    assert!(fs::read(&image).expect("an image") == fs::read(&piped).expect("an image"), "the images differ");
    succeed(Command::new("e2fsck").arg("-fn").arg(&image));
    assert_eq!(tree_digest(Mounted::read_only(&image).path()), expected);

    let squashfs = folder.path().join("image.squashfs");
    succeed(xtask().arg("pack").arg(&tar).arg("-o").arg(&squashfs));
    assert_eq!(tree_digest(Mounted::read_only(&squashfs).path()), expected);
}

#[test]
fn exactly_full_is_exactly_full() {
    if !have(&["dumpe2fs", "setfattr"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tar = sample(folder.path());
    let image = folder.path().join("full.ext4");
    succeed(xtask().arg("pack").arg(&tar).arg("-o").arg(&image).args(["--headroom", "1.0", "--no-journal"]));
    let output = succeed(Command::new("dumpe2fs").arg("-h").arg(&image));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.lines().any(|line| line.replace(' ', "") == "Freeblocks:0"), "{said}");
}

#[test]
fn a_damaged_tar_gives_an_error_and_leaves_the_good_image() {
    if !have(&["setfattr"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tar = sample(folder.path());
    let image = folder.path().join("rootfs.ext4");
    succeed(xtask().arg("pack").arg(&tar).arg("-o").arg(&image));
    let good = fs::read(&image).expect("an image");
    let whole = fs::read(&tar).expect("the tar");

    let mut damaged = whole.clone();
    damaged[150] ^= 1;
    let hostile = folder.path().join("hostile.tar");
    for (bytes, said) in [
        (&damaged[..], "checksum"),
        (&whole[..whole.len() / 2], ""),
        (&b""[..], ""),
        (&[0x28, 0xb5, 0x2f, 0xfd, 0, 0][..], "zstd -dc"),
    ] {
        fs::write(&hostile, bytes).expect("a tar");
        for piped in [false, true] {
            let output = match piped {
                false => pack(&hostile, &image, &[]),
                true => {
                    let input = Stdio::from(File::open(&hostile).expect("the tar"));
                    let mut command = xtask();
                    command.args(["pack", "-", "-o"]).arg(&image).stdin(input);
                    command.output().expect("xtask runs")
                }
            };
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(errors.contains("error: ") && errors.contains(said), "{errors}");
            assert!(fs::read(&image).expect("the good image") == good, "the good image was touched");
        }
    }
    let left: Vec<_> = fs::read_dir(folder.path())
        .expect("the folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .filter(|name| name.contains("partial"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_full_disk_is_told_and_costs_nothing() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let small = folder.path().join("small");
    fs::create_dir(&small).expect("a folder");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4M", "tmpfs"]).arg(&small).status();
    if !mounted.is_ok_and(|status| status.success()) {
        skip("needs to mount a tmpfs");
        return;
    }
    let tar = folder.path().join("large.tar");
    let script = "mkdir root; head -c 8M /dev/urandom > root/noise; tar -cf large.tar -C root .";
    succeed(Command::new("bash").args(["-ec", script]).current_dir(folder.path()));
    let output = pack(&tar, &small.join("rootfs.ext4"), &[]);
    let left = fs::read_dir(&small).expect("the folder").count();
    // Lazily, as in [`Mounted`].
    succeed(Command::new("umount").arg("--lazy").arg(&small));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("is full") && said.contains("hint: "), "{said}");
    assert_eq!(left, 0);
}

#[test]
fn what_exceeds_max_size_names_what_is_large() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = "mkdir -p root/opt; head -c 3M /dev/zero | tr '\\0' x > root/opt/large; tar -cf t.tar -C root .";
    succeed(Command::new("bash").args(["-ec", script]).current_dir(folder.path()));
    let image = folder.path().join("rootfs.ext4");
    let output = pack(&folder.path().join("t.tar"), &image, &["--max-size", "2MiB"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("max-size") && said.contains("/opt/large"), "{said}");
    assert!(!image.exists());
}

/// The tar does not exist: nothing was read where the numbers are named.
#[test]
fn numbers_that_cannot_be_meant_are_refused_in_plain_words_before_anything_is_read() {
    let refused = |words: &[&str], expected: &str| {
        let output = xtask().args(words).output().expect("xtask runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(expected), "{words:?}: {said}");
    };
    let pack = ["pack", "/no/such/tar", "-o", "/no/such/folder/image.ext4"];
    let with = |more: &[&'static str]| [&pack[..], more].concat();
    refused(&with(&["--headroom", "40"]), "it is a factor, not a percentage");
    refused(
        &with(&["--min-size", "2GiB", "--max-size", "1GiB"]),
        "--min-size (2.00 GiB) is above --max-size (1.00 GiB)",
    );
    refused(&["image", "openclaw", "--jobs", "0"], "the number of images to build at a time, at least 1");
}

#[test]
fn an_archive_of_a_container_image_is_named_and_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = "mkdir -p save layer/etc; touch save/manifest.json save/oci-layout save/index.json layer/etc/.wh.passwd; \
                  tar -cf save.tar -C save .; tar -cf layer.tar -C layer .";
    succeed(Command::new("bash").args(["-ec", script]).current_dir(folder.path()));
    let image = folder.path().join("image.ext4");
    for (name, expected) in
        [("save.tar", "an image as `docker save` writes it"), ("layer.tar", "with whiteouts (/etc/.wh.passwd)")]
    {
        let output = pack(&folder.path().join(name), &image, &[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(expected) && said.contains("hint: docker create"), "{said}");
        assert!(!image.exists());
    }
}

/// Each is taken by GNU tar or by container engines; all of them in one archive, each told once.
#[test]
fn names_that_lead_elsewhere_are_taken_inside_the_root_and_told() {
    if !have(&["python3", "debugfs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = r#"
import io, sys, tarfile
def write(path, *entries):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, link, data in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.size, entry.mode = kind, link, len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
file = lambda name, data=b"x": (name, tarfile.REGTYPE, "", data)
write("odd.tar", ("usr/lib", tarfile.DIRTYPE, "", b""), ("lib", tarfile.SYMTYPE, "usr/lib", b""), file("/etc/hosts"),
    ("etc/again", tarfile.LNKTYPE, "/etc/hosts", b""), file("lib/one"), file("lib/two"), file("etc/../top"))
write("above.tar", file("etc/../../top"))
write("later.tar", ("b", tarfile.LNKTYPE, "a", b""), file("a"))
"#;
    succeed(Command::new("python3").args(["-c", script]).current_dir(folder.path()));
    let image = folder.path().join("rootfs.ext4");
    let output = pack(&folder.path().join("odd.tar"), &image, &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let warnings: Vec<&str> = said.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert_eq!(
        warnings,
        [
            "warning: 1 absolute name was taken as relative to the root: `/etc/hosts`",
            "warning: 1 absolute hard link target was taken as relative to the root: `etc/again`, hard link to `/etc/hosts`",
            "warning: 1 name with `..` was resolved inside the root: `etc/../top`",
            "warning: 2 entries below symlinks to directories were put into those directories; the first is /lib/one, put to /usr/lib/one",
        ]
    );
    let inode = |path: &str| {
        let output = succeed(Command::new("debugfs").args(["-R", &format!("stat {path}")]).arg(&image));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.split_whitespace().nth(1).unwrap_or_else(|| panic!("{path}: {said}")).to_owned()
    };
    assert_eq!(inode("/etc/again"), inode("/etc/hosts"));
    for path in ["/usr/lib/one", "/usr/lib/two", "/top"] {
        inode(path);
    }
    for (name, expected) in [("above.tar", "would leave the root"), ("later.tar", "which does not exist")] {
        let output = pack(&folder.path().join(name), &image, &[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(expected) && said.contains("hint: "), "{said}");
    }
}

/// The hints are followed as they stand: every command in them is one that works.
#[test]
fn what_is_no_tar_is_named_with_the_command_that_makes_one() {
    if !have(&["gzip", "zstd", "xz", "bzip2", "bsdtar", "cpio"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    let script = "mkdir -p root/etc; echo hello > root/etc/hosts; tar -cf 'a b.tar' -C root .; \
                  gzip -k 'a b.tar'; zstd -q 'a b.tar'; xz -k 'a b.tar'; bzip2 -k 'a b.tar'; \
                  (cd root; find . | cpio --quiet -o -H newc) > a.cpio";
    succeed(Command::new("bash").args(["-ec", script]).current_dir(folder.path()));
    let image = at("image.ext4");
    succeed(xtask().arg("pack").arg(at("a b.tar")).arg("-o").arg(&image));
    let expected = fs::read(&image).expect("an image");
    for (name, format) in [
        ("a b.tar.gz", "is gzip-compressed, not a tar"),
        ("a b.tar.zst", "is zstd-compressed, not a tar"),
        ("a b.tar.xz", "is xz-compressed, not a tar"),
        ("a b.tar.bz2", "is bzip2-compressed, not a tar"),
        ("root", "is a folder, not a tar"),
    ] {
        let output = pack(&at(name), &at("hinted.ext4"), &[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(format), "{said}");
        let hint = said.lines().find_map(|line| line.strip_prefix("hint: ")).expect("a hint");
        let program = xtask().get_program().to_string_lossy().into_owned();
        let followed = format!("set -o pipefail; {}", hint.replace("cargo xtask", &program));
        succeed(Command::new("bash").args(["-c", &followed]).current_dir(snug_tests::workspace()));
        // A folder has other times.
        assert!(name == "root" || fs::read(at("hinted.ext4")).expect("an image") == expected, "{hint}");
        fs::remove_file(at("hinted.ext4")).expect("an image");
    }
    for (name, what) in [("a.cpio", "a cpio archive"), ("image.ext4", "an ext2, ext3 or ext4 image")] {
        let output = pack(&at(name), &at("hinted.ext4"), &[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(&format!("the input is {what}, not a tar\nhint: ")), "{said}");
        assert!(!at("hinted.ext4").exists());
    }
    // A member may be named as other files begin.
    let script = "cd root; echo x > BZhello; tar -cf ../named.tar BZhello";
    succeed(Command::new("bash").args(["-ec", script]).current_dir(folder.path()));
    succeed(xtask().arg("pack").arg(at("named.tar")).arg("-o").arg(&image));
}
