//! Where results go: files appear whole or not at all, links are followed, devices are overwritten only on demand, and
//! everything else is refused before any work begins. The nodes of these tests are made in temporary folders.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use snug_tests::{Workshop, have, is_root, skip, succeed, xtask};

/// A folder with a small tar of a root filesystem, `t.tar`.
fn folder_with_tar() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = "mkdir -p root/etc; echo hello > root/etc/x; tar -cf t.tar --owner 0 --group 0 -C root .";
    succeed(Command::new("bash").args(["-ec", script]).current_dir(folder.path()));
    folder
}

fn pack(folder: &Path, words: &[&str]) -> Output {
    xtask_in(folder).arg("pack").arg(folder.join("t.tar")).args(words).output().expect("xtask runs")
}

/// The command in `folder`, so that tests name paths as people do.
fn xtask_in(folder: &Path) -> Command {
    let mut command = xtask();
    command.current_dir(folder);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asserts that the command was refused as wrong usage, with `words` in what it said, before it read anything.
#[track_caller]
fn assert_refused(output: &Output, words: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(words.iter().all(|word| said.contains(word)) && said.contains("hint: "), "{words:?}: {said}");
    assert!(!said.contains("read ") && output.stdout.is_empty(), "not before work began: {said}");
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn is_ext4(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes.get(1080..1082) == Some(b"\x53\xef"))
}

/// `mknod NAME TYPE…`
#[track_caller]
fn mknod(path: &Path, kind: &[&str]) {
    succeed(Command::new("mknod").arg(path).args(kind));
}

#[test]
fn nodes_are_neither_replaced_nor_written() {
    let folder = folder_with_tar();
    let at = |name: &str| folder.path().join(name);
    mknod(&at("fifo"), &["p"]);
    fs::create_dir(at("dir")).expect("a folder");
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).expect("a socket");
    symlink("fifo", at("to-fifo")).expect("a link");
    symlink("round", at("round")).expect("a link");
    let mut all = vec![
        ("fifo", "is a named pipe, not a file"),
        ("to-fifo", "is a named pipe, not a file"),
        ("dir", "is a folder, not a file"),
        ("dir/", "names a folder"),
        ("new/", "names a folder"),
        ("socket", "is a socket, not a file"),
        ("round", "leads back to itself"),
    ];
    if is_root() {
        mknod(&at("null"), &["c", "1", "3"]);
        symlink("null", at("to-null")).expect("a link");
        all.extend([("null", "is a character device"), ("to-null", "is a character device")]);
    }
    let before = names(folder.path());
    let kinds = || all.iter().map(|(name, _)| fs::symlink_metadata(at(name)).ok().map(|about| about.mode()));
    let modes: Vec<_> = kinds().collect();
    for (name, why) in &all {
        assert_refused(&pack(folder.path(), &["-o", name]), &[why]);
        assert_refused(&pack(folder.path(), &["-o", "i.ext4", "--contents", name]), &[why]);
        let export = xtask_in(folder.path()).args(["export", "no-such-image", "-o", name]).output();
        assert_refused(&export.expect("xtask runs"), &[why]);
        let sample = xtask_in(folder.path()).args(["bench", "--sample", name]).output();
        assert_refused(&sample.expect("xtask runs"), &[why]);
    }
    assert_eq!(names(folder.path()), before);
    assert_eq!(kinds().collect::<Vec<_>>(), modes);
}

#[test]
fn links_are_followed_and_files_keep_their_permissions() {
    let folder = folder_with_tar();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("elsewhere")).expect("a folder");
    fs::write(at("elsewhere/old.ext4"), "old").expect("a file");
    fs::set_permissions(at("elsewhere/old.ext4"), Permissions::from_mode(0o600)).expect("a mode");
    symlink("elsewhere/old.ext4", at("link")).expect("a link");
    symlink("elsewhere/new.ext4", at("dangling")).expect("a link");
    symlink("dangling", at("chain")).expect("a link");
    symlink("nowhere/new.ext4", at("lost")).expect("a link");
    succeed(xtask_in(folder.path()).args(["pack", "t.tar", "-o", "link", "--contents", "chain"]));
    assert!(at("link").is_symlink() && at("dangling").is_symlink() && at("chain").is_symlink());
    assert!(is_ext4(&at("elsewhere/old.ext4")));
    assert_eq!(fs::metadata(at("elsewhere/old.ext4")).expect("a file").mode() & 0o7777, 0o600);
    assert!(fs::read_to_string(at("elsewhere/new.ext4")).expect("a list").starts_with("#mtree"));
    assert_refused(&pack(folder.path(), &["-o", "lost"]), &["nowhere", "does not exist", "hint: mkdir -p nowhere"]);
    // A new tar that cannot be read leaves the old image.
    let before = fs::read(at("elsewhere/old.ext4")).expect("an image");
    fs::write(at("t.tar"), "no tar").expect("a file");
    assert_eq!(pack(folder.path(), &["-o", "link"]).status.code(), Some(1));
    assert!(fs::read(at("elsewhere/old.ext4")).expect("an image") == before);
    assert_eq!(names(&at("elsewhere")), ["new.ext4", "old.ext4"]);
}

#[test]
fn a_folder_is_not_made_in_passing_and_long_and_odd_names_are_written() {
    let folder = folder_with_tar();
    for words in [&["-o", "a/b/i.ext4"][..], &["-o", "i.ext4", "--contents", "a/b/list"]] {
        assert_refused(&pack(folder.path(), words), &["the folder a/b does not exist", "hint: mkdir -p a/b"]);
    }
    assert_refused(&pack(folder.path(), &["-o", "t.tar/i.ext4"]), &["cannot be written"]);
    assert_refused(&pack(folder.path(), &["-o", &"x".repeat(256)]), &["name too long"]);
    assert_eq!(names(folder.path()), ["root", "t.tar"]);
    // 255 bytes are the longest name of Linux's filesystems.
    let long = format!("{}.ext4", "x".repeat(250));
    let odd = OsStr::from_bytes(b"\xff\xfe \n.ext4");
    for name in [OsStr::new(&long), odd] {
        let mut command = xtask_in(folder.path());
        let output = succeed(command.args(["pack", "t.tar", "--json", "-o"]).arg(name));
        let about: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON on standard output");
        assert_eq!(about["image"].as_str(), Some(&*name.to_string_lossy()));
        assert!(is_ext4(&folder.path().join(name)));
    }
    assert_eq!(names(folder.path()).len(), 4, "{:?}", names(folder.path()));
}

#[test]
fn no_input_is_overwritten() {
    let folder = folder_with_tar();
    let at = |name: &str| folder.path().join(name);
    let tar = fs::read(at("t.tar")).expect("the tar");
    symlink("t.tar", at("link")).expect("a link");
    fs::hard_link(at("t.tar"), at("again")).expect("a link");
    for name in ["link", "again"] {
        assert_refused(&pack(folder.path(), &["-o", name]), &["is the tar that is packed"]);
    }
    for name in ["t.tar", "link", "again"] {
        let words = ["-o", "i.ext4", "--contents", name];
        assert_refused(
            &pack(folder.path(), &words),
            &[if name == "t.tar" { "a tar" } else { "is the tar that is packed" }],
        );
    }
    let mut piped = xtask_in(folder.path());
    piped.args(["pack", "-", "-o", "again"]).stdin(File::open(at("t.tar")).expect("the tar"));
    assert_refused(&piped.output().expect("xtask runs"), &["is the tar that is packed"]);
    for (image, list) in [("i", "i"), ("i", "./i"), ("old", "old")] {
        fs::write(at("old"), "").expect("a file");
        assert_refused(&pack(folder.path(), &["-o", image, "--contents", list]), &["hint: "]);
    }
    assert!(fs::read(at("t.tar")).expect("the tar") == tar);

    if !have(&["busybox"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("small", "");
    let base = fs::read(workshop.path("base.tar")).expect("the base");
    for (output, what) in [("base.tar", "is the base of small"), ("images/small/image.toml", "")] {
        let refused = workshop.xtask(&["export", "small"]).arg("-o").arg(workshop.path(output)).output();
        assert_refused(&refused.expect("xtask runs"), &[what]);
    }
    assert!(fs::read(workshop.path("base.tar")).expect("the base") == base);
}

#[test]
fn a_name_promises_what_is_in_the_file() {
    let folder = folder_with_tar();
    for (words, expected) in [
        (&["-o", "x.qcow2"][..], "qemu-img convert -f raw -O qcow2 x.ext4 x.qcow2"),
        (&["-o", "x.VMDK"], "hint: -o x.ext4"),
        (&["-o", "x.iso"], "hint: -o x.ext4"),
        (&["-o", "x.tar"], "hint: -o x.ext4"),
        (&["-o", "x.tgz"], "hint: -o x.ext4"),
        (&["-o", "x.ext4.zst"], "hint: -o x.ext4, then zstd x.ext4"),
        (&["-o", "x.erofs", "--filesystem", "ext4"], "or --filesystem erofs"),
        (&["-o", "x.ext4", "--filesystem", "squashfs+verity"], "or --filesystem ext4"),
        (&["-o", "x.ext4", "--contents", "x.json"], "--contents x.mtree"),
    ] {
        assert_refused(&pack(folder.path(), words), &[expected, "its name promises"]);
    }
    for name in ["x.ext4", "x.qcow2", "x.zip", "x.tar.lzo"] {
        let output = xtask_in(folder.path()).args(["export", "no-such-image", "-o", name]).output();
        assert_refused(&output.expect("xtask runs"), &["its name promises"]);
    }
    let output = xtask_in(folder.path()).args(["image", "no-such-image", "--output", "x.ext4"]).output();
    assert_refused(&output.expect("xtask runs"), &["a folder for every image"]);
    assert_eq!(names(folder.path()), ["root", "t.tar"]);
    for name in ["x", "x.img", "x.raw", "x.unknown"] {
        succeed(xtask_in(folder.path()).args(["pack", "t.tar", "-o", name]));
        assert!(is_ext4(&folder.path().join(name)), "{name}");
    }
}

#[test]
fn a_list_goes_to_standard_output_and_an_image_does_not() {
    let folder = folder_with_tar();
    let output = succeed(xtask_in(folder.path()).args(["pack", "t.tar", "-o", "i.ext4", "--contents", "-"]));
    let list = String::from_utf8(output.stdout.clone()).expect("text");
    assert!(list.starts_with("#mtree") && list.contains("./etc/x") && !list.contains("sha256 "), "{list}");
    assert!(said(&output).contains("i.ext4: ext4, "), "{}", said(&output));
    let again = succeed(xtask_in(folder.path()).args(["pack", "t.tar", "-o", "i.ext4", "--contents", "/dev/stdout"]));
    assert!(again.stdout == output.stdout);
    assert_refused(&pack(folder.path(), &["-o", "i.ext4", "--contents", "-", "--json"]), &["--json"]);
    assert_refused(&pack(folder.path(), &["-o", "i.ext4", "--contents", "/dev/fd/1", "--json"]), &["--json"]);
    for name in ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/2"] {
        assert_refused(&pack(folder.path(), &["-o", name]), &["is a stream, and an image"]);
    }
    assert_refused(&pack(folder.path(), &["-o", "i.ext4", "--contents", "/dev/fd/77"]), &["is not open for writing"]);
    assert!(!folder.path().join("-").exists());
}

#[test]
fn an_export_is_streamed_or_compressed_as_its_name_says() {
    if !have(&["busybox", "gzip", "zstd", "xz", "bzip2"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("small", "");
    let plain = succeed(workshop.xtask(&["export", "small", "-o", "-"]).stdout(Stdio::piped())).stdout;
    assert!(plain.len() > 10_240 && plain.len().is_multiple_of(512));
    for name in ["/dev/stdout", "/proc/self/fd/1"] {
        assert!(succeed(&mut workshop.xtask(&["export", "small", "-o", name])).stdout == plain, "{name}");
        // Redirected to a file.
        let file = workshop.path("redirected");
        let mut command = workshop.xtask(&["export", "small", "-o", name]);
        succeed(command.stdout(File::create(&file).expect("a file")));
        assert!(fs::read(&file).expect("a tar") == plain, "{name}");
    }
    let other = workshop.path("third");
    let mut shell = Command::new("bash");
    shell.args(["-c", "exec 3> \"$0\"; exec \"$@\""]).arg(&other);
    let command = workshop.xtask(&["export", "small", "-o", "/dev/fd/3"]);
    shell.arg(command.get_program()).args(command.get_args()).current_dir(snug_tests::workspace());
    for (name, value) in command.get_envs() {
        value.map(|value| shell.env(name, value));
    }
    succeed(&mut shell);
    assert!(fs::read(&other).expect("a tar") == plain);

    // What was written to a pipe is told, and what only its reader knows is not.
    let words = ["export", "small", "-o", "/proc/self/fd/3", "--json"];
    let pipe = shell_with_pipe(&workshop, &words);
    assert_eq!(pipe["size-bytes"].as_u64(), Some(plain.len() as u64));
    let packed = workshop.path("link.tar.gz");
    symlink("/proc/self/fd/3", &packed).expect("a link");
    let pipe = shell_with_pipe(&workshop, &["export", "small", "-o", packed.to_str().expect("UTF-8"), "--json"]);
    assert!(pipe["tar"].is_string() && pipe["size-bytes"].is_null(), "{pipe}");

    let run = |name: &str| {
        let file = workshop.path(name);
        let output = succeed(workshop.xtask(&["export", "small", "--json"]).arg("-o").arg(&file));
        let about: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON on standard output");
        assert_eq!(about["size-bytes"].as_u64(), Some(fs::metadata(&file).expect("a file").len()));
        fs::read(&file).expect("a file")
    };
    assert!(run("x.tar") == plain);
    for (name, unpack) in
        [("x.tar.gz", "gzip"), ("x.tgz", "gzip"), ("x.tar.zst", "zstd"), ("x.tar.xz", "xz"), ("x.tar.bz2", "bzip2")]
    {
        let packed = run(name);
        assert!(packed.len() < plain.len() && run(name) == packed, "{name} is not the same again");
        let unpacked = succeed(Command::new(unpack).arg("-dc").arg(workshop.path(name)).stdin(Stdio::null()));
        assert!(unpacked.stdout == plain, "{name}");
    }
    let json = workshop.xtask(&["export", "small", "-o", "-", "--json"]).output().expect("xtask runs");
    assert_refused(&json, &["--json and the tar"]);
    let json = workshop.xtask(&["export", "small", "-o", "x.ext4"]).output().expect("xtask runs");
    assert_refused(&json, &["cargo xtask pack - -o x.ext4"]);
    // What is written into the results goes where a link there leads.
    workshop.build("small");
    let (image, kept) = (workshop.image("small"), workshop.path("kept.ext4"));
    fs::rename(&image, &kept).expect("moved");
    symlink(&kept, &image).expect("a link");
    workshop.spec("small", "hostname = \"other\"");
    let output = workshop.build("small");
    assert!(output.status.success(), "{}", said(&output));
    assert!(image.is_symlink() && is_ext4(&kept));
    // The disk of a machine is no other file either.
    let before = fs::read(&kept).expect("an image");
    let again = workshop.path("again.ext4");
    fs::hard_link(&kept, &again).expect("a link");
    for (file, why) in [
        (&image, "is the image small itself"),
        (&again, "is the image small itself"),
        (&workshop.path("disk.qcow2"), "its name promises a qcow2 disk"),
        (&workshop.path("missing/disk.ext4"), "does not exist"),
        (&workshop.path("images"), "is a folder, not a file"),
        (&PathBuf::from("/dev/null"), "is a character device"),
    ] {
        let mut command = workshop.xtask(&["boot", "small", "--ssh"]);
        let output = command.arg("--persist").arg(file).args(["--", "true"]).output().expect("xtask runs");
        assert_refused(&output, &[why]);
    }
    assert!(fs::read(&kept).expect("an image") == before);
}

/// Runs xtask with a pipe as its open file 3, and returns the JSON that it prints.
#[track_caller]
fn shell_with_pipe(workshop: &Workshop, words: &[&str]) -> serde_json::Value {
    let command = workshop.xtask(words);
    let mut shell = Command::new("bash");
    shell.args(["-c", "exec 3> >(cat >/dev/null); exec \"$0\" \"$@\""]).arg(command.get_program());
    shell.args(command.get_args()).current_dir(snug_tests::workspace());
    for (name, value) in command.get_envs() {
        value.map(|value| shell.env(name, value));
    }
    serde_json::from_slice(&succeed(&mut shell).stdout).expect("JSON on standard output")
}

/// A loop device on a file, by a node in a folder of ours.
struct Loop {
    device: String,
    node: PathBuf,
}

impl Loop {
    fn new(folder: &Path, name: &str, bytes: usize) -> Option<Self> {
        let back = folder.join(format!("{name}.back"));
        fs::write(&back, vec![0xff; bytes]).expect("a file");
        let output = Command::new("losetup").args(["-f", "--show"]).arg(&back).output().ok()?;
        if !output.status.success() {
            skip("needs loop devices");
            return None;
        }
        let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let number = fs::metadata(&device).expect("a device").rdev();
        let node = folder.join(name);
        let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
        mknod(&node, &["b", &major.to_string(), &minor.to_string()]);
        Some(Loop { device, node })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
    }
}

#[test]
fn a_block_device_is_overwritten_when_that_is_asked_for_and_possible() {
    if !is_root() || !have(&["losetup", "e2fsck", "mount"]) {
        return;
    }
    let folder = folder_with_tar();
    let at = |name: &str| folder.path().join(name);
    let Some(device) = Loop::new(folder.path(), "disk", 16 << 20) else { return };
    let Some(small) = Loop::new(folder.path(), "small", 64 << 10) else { return };
    let untouched = |name: &str| fs::read(at(name)).expect("the file behind it").iter().all(|&byte| byte == 0xff);

    assert_refused(&pack(folder.path(), &["-o", "disk"]), &["is a block device", "--force"]);
    assert_refused(&pack(folder.path(), &["-o", "i.ext4", "--force", "--contents", "disk"]), &["is a block device"]);
    let export = xtask_in(folder.path()).args(["export", "no-such-image", "-o", "disk"]).output();
    assert_refused(&export.expect("xtask runs"), &["is a block device"]);
    // Its size is known once the image is.
    fs::write(at("list"), "of another image").expect("a list");
    for list in ["list", "-"] {
        let output = pack(folder.path(), &["-o", "small", "--force", "--contents", list]);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains("nothing was written to it"), "{}", said(&output));
        // No list describes an image that is not there.
        assert_eq!(output.stdout, b"");
        assert_eq!(fs::read_to_string(at("list")).expect("the list"), "of another image");
    }
    assert!(untouched("disk.back") && untouched("small.back"));

    // The image has holes: where it has none of its own bytes, the device must not keep the old ones.
    succeed(xtask_in(folder.path()).args(["pack", "t.tar", "-o", "i.ext4", "--min-size", "8MiB"]));
    let image = fs::read(at("i.ext4")).expect("an image");
    assert!(fs::metadata(at("i.ext4")).expect("an image").blocks() * 512 < image.len() as u64);
    symlink("disk", at("link")).expect("a link");
    succeed(xtask_in(folder.path()).args(["pack", "t.tar", "-o", "link", "--force", "--min-size", "8MiB"]));
    assert!(fs::symlink_metadata(&device.node).expect("a node").file_type().is_block_device());
    let written = fs::read(at("disk.back")).expect("the file behind it");
    assert!(written[..image.len()] == image[..], "the device does not hold the image");
    assert!(written[image.len()..].iter().all(|&byte| byte == 0xff), "what lies behind the image was changed");
    succeed(Command::new("e2fsck").arg("-fn").arg(&device.node));
    assert_eq!(names(folder.path()).iter().filter(|name| name.contains("partial")).count(), 0);

    let place = at("mounted");
    fs::create_dir(&place).expect("a folder");
    succeed(Command::new("mount").args(["-t", "ext4", "-o", "ro"]).arg(&device.node).arg(&place));
    let output = pack(folder.path(), &["-o", "disk", "--force"]);
    succeed(Command::new("umount").arg(&place));
    assert_refused(&output, &["is in use: it is mounted at "]);
    assert!(fs::read(at("disk.back")).expect("the file behind it")[..image.len()] == image[..]);
    drop(small);
}
