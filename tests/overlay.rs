//! Read-only roots that can be written to: a small guest of busybox as squashfs, erofs and ext4, plain and sealed with
//! dm-verity, a real Alpine, and a Debian that is logged in to; started by Debian's kernel with an initramfs, and by a
//! microVM's without one. The guest's init finds a writable root, whatever is under it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use snug::check::boot::{
    self, Accelerator, BootError, DEFAULT_BUDGET, Disk, Dmsetup, Guest, Kernel, Machine, dmsetup, kernel_arguments,
    write_initramfs,
};
use snug::manifest::Manifest;
use snug_tests::{have, is_root, succeed, xtask};

use crate::wheels::{microvm_kernel, tar_of_alpine};

/// A base of a static busybox with all its names.
const BASE: &str = r#"
    mkdir -p root/bin root/etc
    cp "$(command -v busybox)" root/bin/busybox
    for name in $(busybox --list); do [ $name = busybox ] || ln -s busybox root/bin/$name; done
    tar --create --file base.tar --owner 0 --group 0 -C root .
"#;

/// The image's own init: says what it sees, and does what an overlay must bear.
const GUEST: &str = r#"#!/bin/sh
# On a root that can be written to, nothing comes before it.
[ -e /proc/mounts ] || mount -t proc proc /proc
echo 1 >/proc/sys/kernel/printk
say() { echo "guest: $*."; }
say "root $(sed -n 's,^[^ ]* / \([^ ]*\) .*,\1,p' /proc/mounts | tail -n 1)"
say "bytes $(stat -f -c '%b * %S' / | { read -r sum; echo $((sum)); })"
say "kept $(cat /kept 2>/dev/null)"
[ -e /etc/lower ] && say "lower there" || say "lower gone"
echo canary >/etc/written && sync && echo 3 >/proc/sys/vm/drop_caches
say "read $(cat /etc/written)"
rm /etc/lower 2>/dev/null
[ ! -e /etc/lower ] && ! ls -A /etc | grep -qx lower && say "removed"
mkdir -p /root/.ssh && chmod 700 /root/.ssh && say "modes $(stat -c %a / /root/.ssh | tr '\n' ' ')"
say "old root $(grep -c -e ' squashfs ' -e ' erofs ' -e ' /run/layer ' /proc/mounts)"
echo yes >/kept
sync
say done
# Ends every machine: the leanest have nothing that could switch them off.
reboot -f
"#;

/// Writes the guest's spec; `base` puts its `base.tar` beside it.
fn write_spec(folder: &Path, base: impl FnOnce(&Path)) {
    let spec = folder.join("images/guest");
    fs::create_dir_all(&spec).expect("a folder");
    base(&spec);
    fs::write(spec.join("own-init"), GUEST).expect("a script");
    let text = r#"
base = { tar = "base.tar" }
init = "own-init"
filesystem = { type = "squashfs", compression = "zstd:3", overlay = "32MiB" }
file = [{ content = "of the image\n", to = "/etc/lower" }]
"#;
    fs::write(spec.join("image.toml"), text).expect("a spec");
}

struct Built {
    image: PathBuf,
    /// Of the kernel command line.
    words: Vec<String>,
}

fn build(folder: &Path, filesystem: &str) -> Built {
    let output = folder.join(format!("out-{filesystem}"));
    succeed(
        xtask()
            .args(["image", "guest", "--filesystem", filesystem, "--images"])
            .arg(folder.join("images"))
            .arg("--output")
            .arg(&output),
    );
    let manifest = Manifest::read(&output.join("guest/manifest.json")).expect("a manifest");
    let words = manifest.verity.as_ref().map(|verity| dmsetup::root_arguments(verity).into()).unwrap_or_default();
    Built { image: output.join("guest").join(&manifest.file), words }
}

/// Starts the image and answers what it said until it ended. A machine that ended before it said a word is started once
/// more: of an image it had seen nothing yet.
fn start(kernel: &Kernel, built: &Built, overlay: Option<&Path>, folder: &Path) -> Result<String, BootError> {
    let (said, result) = start_once(kernel, built, overlay, folder)?;
    if !said.is_empty() {
        return result.map(|()| said);
    }
    eprintln!("SAID NOTHING, and is started once more: {result:?}");
    let (said, result) = start_once(kernel, built, overlay, folder)?;
    result.map(|()| said)
}

/// What the machine said, and whether it came to its end as it should.
fn start_once(
    kernel: &Kernel,
    built: &Built,
    overlay: Option<&Path>,
    folder: &Path,
) -> Result<(String, Result<(), BootError>), BootError> {
    let initramfs = write_initramfs(kernel, folder).expect("an initramfs");
    let mut disks = vec![Disk::discarding_writes(&built.image)];
    let mut words = built.words.clone();
    if let Some(overlay) = overlay {
        disks.push(Disk::keeping_writes(overlay));
        words.push("overlay=/dev/vdb".to_owned());
    }
    let mut guest = Guest::start(&Machine {
        kernel: &kernel.image,
        initramfs: initramfs.as_deref(),
        disks: &disks,
        arguments: &kernel_arguments(kernel, &words),
        accelerator: Accelerator::Tcg,
        log: &folder.join("serial.log"),
        budget: 3 * DEFAULT_BUDGET,
    })?;
    let seen = guest.wait_for("guest: done");
    guest.wait_for_end()?;
    Ok((guest.console().to_owned(), seen.map(drop)))
}

#[track_caller]
fn must_say(said: &str, lines: &[&str]) {
    for line in lines {
        assert!(said.contains(&format!("guest: {line}.")), "no {line:?} in\n{said}");
    }
}

const WRITES: [&str; 4] = ["read canary", "removed", "modes 755 700 ", "old root 0"];

#[test]
fn a_read_only_root_can_be_written_to_and_a_sealed_one_that_was_changed_does_not_start() {
    if !have(&["qemu-system-x86_64", "apt-get", "dpkg-deb", "mmdebstrap", "newuidmap", "tar2sqfs", "busybox"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path();
    write_spec(folder, |spec| {
        succeed(Command::new("bash").args(["-ec", BASE]).current_dir(spec));
    });
    let mut kernel = crate::boot::debians_kernel();
    kernel.initramfs.as_mut().expect("Debian's takes one").dmsetup = Some(dmsetup());

    // In memory, bounded by the spec; forgotten with the machine.
    let sealed = build(folder, "squashfs+verity");
    let said = start(&kernel, &sealed, None, folder).unwrap_or_else(|error| panic!("{error}"));
    must_say(&said, &["root overlay", &format!("bytes {}", 32 << 20), "kept ", "lower there"]);
    must_say(&said, &WRITES);
    assert!(said.contains("first-stage: root squashfs under an overlay on tmpfs"), "{said}");

    // On a disk: what the first machine did, the second finds.
    let erofs = build(folder, "erofs");
    let disk = folder.join("overlay.ext4");
    boot::empty_disk(&disk, 64 << 20).expect("a disk");
    let said = start(&kernel, &erofs, Some(&disk), folder).unwrap_or_else(|error| panic!("{error}"));
    must_say(&said, &["root overlay", "kept ", "lower there"]);
    must_say(&said, &WRITES);
    let said = start(&kernel, &erofs, Some(&disk), folder).unwrap_or_else(|error| panic!("{error}"));
    must_say(&said, &["root overlay", "kept yes", "lower gone", "read canary"]);

    // ext4 is written to as it is; under dm-verity it cannot be.
    let ext4 = build(folder, "ext4+verity");
    let said = start(&kernel, &ext4, None, folder).unwrap_or_else(|error| panic!("{error}"));
    must_say(&said, &["root overlay", "lower there"]);
    must_say(&said, &WRITES);
    let plain = Built { image: ext4.image.clone(), words: Vec::new() };
    let said = start(&kernel, &plain, None, folder).unwrap_or_else(|error| panic!("{error}"));
    must_say(&said, &["root ext4", "lower there", "read canary", "removed"]);

    // A byte of the filesystem's superblock: its last check time, which nothing but dm-verity looks at.
    const LAST_CHECK: u64 = 1024 + 0x40;
    let mut byte = [0];
    let file = File::options().read(true).write(true).open(&ext4.image).expect("an image");
    file.read_exact_at(&mut byte, LAST_CHECK).expect("a superblock");
    file.write_all_at(&[byte[0] ^ 1], LAST_CHECK).expect("written");
    let error = start(&kernel, &ext4, None, folder).expect_err("it was changed");
    assert!(matches!(error, BootError::Ended { .. }), "{error}");
    // The kernel's words on the end of its first process are longer than the tail that an error shows.
    let said = fs::read_to_string(folder.join("serial.log")).expect("a log");
    assert!(said.contains("cannot mount /dev/dm-0") && !said.contains("guest:"), "{said}");
}

/// Whoever starts the machine names a disk, and has prepared one that would be obeyed: an init of its own in the place of the
/// image's.
#[test]
fn an_overlay_in_memory_only_takes_no_disk_whatever_the_command_line_says() {
    if !have(&["qemu-system-x86_64", "apt-get", "dpkg-deb", "mmdebstrap", "newuidmap", "tar2sqfs", "busybox"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path();
    write_spec(folder, |spec| {
        succeed(Command::new("bash").args(["-ec", BASE]).current_dir(spec));
    });
    let disk = folder.join("hostile.ext4");
    let make = r#"
        mkdir -p disk/upper/usr/lib/snug disk/work
        printf '#!/bin/sh\necho "guest: of another disk."\necho "guest: done."\nreboot -f\n' >disk/upper/usr/lib/snug/init
        chmod 755 disk/upper/usr/lib/snug/init
        truncate -s 64M hostile.ext4
        mkfs.ext4 -q -d disk hostile.ext4
    "#;
    succeed(Command::new("bash").args(["-ec", make]).current_dir(folder).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"));
    let mut kernel = crate::boot::debians_kernel();
    kernel.initramfs.as_mut().expect("Debian's takes one").dmsetup = Some(dmsetup());

    let open = build(folder, "squashfs+verity");
    let said = start(&kernel, &open, Some(&disk), folder).unwrap_or_else(|error| panic!("{error}"));
    must_say(&said, &["of another disk"]);

    let spec = folder.join("images/guest/image.toml");
    let text = fs::read_to_string(&spec).expect("a spec").replace("\"32MiB\"", "\"32MiB\", overlay-device = false");
    fs::write(&spec, text).expect("a spec");
    let before = fs::read(&disk).expect("a disk");
    let closed = build(folder, "squashfs+verity");
    let said = start(&kernel, &closed, Some(&disk), folder).unwrap_or_else(|error| panic!("{error}"));
    assert!(said.contains("first-stage: overlay=/dev/vdb is left out") && !said.contains("of another disk"), "{said}");
    must_say(&said, &["root overlay", &format!("bytes {}", 32 << 20), "kept ", "lower there"]);
    must_say(&said, &WRITES);
    assert!(fs::read(&disk).expect("a disk") == before, "the disk was written to");

    // `boot --persist` could keep nothing.
    let mut boot = xtask();
    boot.args(["boot", "guest", "--print", "--persist"]).arg(folder.join("kept.ext4")).arg("--images");
    let output = boot.arg(folder.join("images")).arg("--output").arg(folder.join("out-squashfs+verity")).output();
    let output = output.expect("xtask runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("overlay in memory only") && said.contains("hint: leave --persist out"), "{said}");
}

#[test]
fn alpine_takes_an_overlay_under_debians_kernel_and_under_a_microvms_without_an_initramfs() {
    let tools =
        ["qemu-system-x86_64", "apt-get", "dpkg-deb", "mmdebstrap", "newuidmap", "tar2sqfs", "python3", "qemu-img"];
    if !have(&tools) || !is_root() || !cfg!(target_arch = "x86_64") {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path();
    write_spec(folder, |spec| {
        fs::rename(tar_of_alpine(folder), spec.join("base.tar")).expect("a base");
    });
    let (debians, microvms) = (crate::boot::debians_kernel(), microvm_kernel(folder));
    let [ext4, squashfs, erofs] = ["ext4", "squashfs", "erofs"].map(|kind| build(folder, kind));
    let start = |kernel: &Kernel, built: &Built, overlay: Option<&Path>| {
        let said = start(kernel, built, overlay, folder).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(said.contains("initramfs: modules"), kernel.initramfs.is_some(), "{said}");
        said
    };
    for (kernel, below) in [(&debians, &squashfs), (&debians, &erofs), (&microvms, &erofs)] {
        let said = start(kernel, below, None);
        must_say(&said, &["root overlay", "kept ", "lower there"]);
        must_say(&said, &WRITES);
    }
    for kernel in [&debians, &microvms] {
        let said = start(kernel, &ext4, None);
        must_say(&said, &["root ext4", "kept ", "lower there", "read canary", "removed"]);
    }
    // On a disk, which the one kernel hands over to the other.
    let disk = folder.join("overlay.ext4");
    boot::empty_disk(&disk, 64 << 20).expect("a disk");
    must_say(&start(&microvms, &erofs, Some(&disk)), &["root overlay", "kept ", "lower there", "removed"]);
    must_say(&start(&debians, &erofs, Some(&disk)), &["root overlay", "kept yes", "lower gone", "read canary"]);
}

/// By the command that a person would use: log in, the spec's own checks, files written and removed, host keys, and an
/// overlay on a disk over two boots.
#[test]
fn debian_passes_its_checks_under_debians_kernel_and_under_a_microvms_without_an_initramfs() {
    let tools = ["qemu-system-x86_64", "apt-get", "dpkg-deb", "ssh", "mmdebstrap", "newuidmap", "tar2sqfs", "python3"];
    if !have(&tools) || !cfg!(target_arch = "x86_64") {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path();
    let microvms = microvm_kernel(folder);
    for (filesystem, own_kernel) in [("squashfs", false), ("erofs", true), ("ext4", true)] {
        let output = folder.join(filesystem);
        succeed(xtask().args(["image", "debian-ssh-key", "--filesystem", filesystem, "--output"]).arg(&output));
        let mut check = xtask();
        check.args(["check", "debian-ssh-key", "--quick", "--boot", "--accel", "tcg", "--json", "--output"]);
        check.arg(&output);
        if own_kernel {
            check.arg("--kernel").arg(&microvms.image);
        }
        let reports: Value = serde_json::from_slice(&succeed(&mut check).stdout).expect("JSON");
        let log = fs::read_to_string(output.join("debian-ssh-key/boot.log")).expect("a serial console");
        let first_stage = match filesystem {
            "ext4" => "init: root writable".to_owned(),
            below => format!("first-stage: root {below} under an overlay on tmpfs"),
        };
        assert!(log.contains(&first_stage), "{log}");
        assert_eq!(log.contains("initramfs: modules"), !own_kernel, "{log}");
        let checks = reports["images"][0]["checks"].as_array().expect("checks");
        let state = checks.iter().find(|check| check["question"] == "state").expect("the last of the checks");
        let said = state["said"].as_str().expect("words");
        assert!(said.contains("what is removed stays away") && said.contains("have their own host keys"), "{said}");
        assert_eq!(said.contains("an overlay on a disk survives"), filesystem != "ext4", "{said}");
    }
}

/// By the command, as a test has no cache of its own to hand over.
fn dmsetup() -> Dmsetup {
    let output = succeed(xtask().args(["tools", "trixie", "dmsetup"]));
    Dmsetup::at(Path::new(String::from_utf8(output.stdout).expect("a path").trim_end()))
}

#[test]
fn a_kernel_that_is_too_old_for_what_the_image_is_made_of_is_refused_when_planning() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let spec = folder.path().join("young");
    fs::create_dir_all(&spec).expect("a folder");
    let text = r#"
base = { debian = "trixie" }
filesystem = { type = "erofs", compression = "zstd:15" }
[boot]
kernel = "6.1"
"#;
    fs::write(spec.join("image.toml"), text).expect("a spec");
    let output = xtask().args(["image", "young", "--dry-run", "--images"]).arg(folder.path()).output().expect("runs");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    let why = "the guest's kernel 6.1 does not know erofs compressed with zstd: Linux has it since 6.10";
    assert!(said.contains(why), "{said}");
    // lz4hc, which squashfs's spec does not name, is what every kernel from 5.17 on reads.
    let fine = text.replace("zstd:15", "lz4hc:12");
    fs::write(spec.join("image.toml"), fine).expect("a spec");
    let output = succeed(xtask().args(["image", "young", "--dry-run", "--json", "--images"]).arg(folder.path()));
    let about: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(about["images"][0]["filesystem"]["type"], "erofs");
}
