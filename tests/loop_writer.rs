//! `writer = "loop"`: needs root, is as exact as the others, and leaves nothing mounted however it ends.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use snug_tests::{have, is_root, succeed, xtask};

/// A user that owns nothing.
const NOBODY: &str = "65534";
/// How often to look, every [`PAUSE`], whether the kernel has released the loop devices.
const PATIENCE: usize = 600;
const PAUSE: Duration = Duration::from_millis(10);

/// Backing files of loop devices below `folder`.
fn attached(folder: &Path) -> Vec<String> {
    let devices = fs::read_dir("/sys/block").expect("/sys").filter_map(Result::ok);
    devices
        .filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok())
        .filter(|file| file.contains(folder.to_str().expect("temporary folders are text")))
        .collect()
}

fn nothing_is_attached(folder: &Path) -> bool {
    (0..PATIENCE).any(|_| {
        attached(folder).is_empty() || {
            std::thread::sleep(PAUSE);
            false
        }
    })
}

/// Many files, so that unpacking them takes a while.
fn large_tar(folder: &Path) -> std::path::PathBuf {
    let script = "import tarfile\n\
                  with tarfile.open('large.tar', 'w') as archive:\n\
                  \x20   for number in range(40000):\n\
                  \x20       archive.addfile(tarfile.TarInfo(f'{number % 100}/{number}'))\n";
    succeed(Command::new("python3").args(["-c", script]).current_dir(folder));
    folder.join("large.tar")
}

fn start(tar: &Path, image: &Path) -> Child {
    let mut command = xtask();
    command.arg("pack").arg(tar).arg("-o").arg(image).args(["--writer", "loop"]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("xtask runs")
}

#[test]
fn however_the_loop_writer_ends_nothing_stays_mounted() {
    if !is_root() || !have(&["python3", "mount", "tar", "mke2fs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tar = large_tar(folder.path());
    let image = folder.path().join("rootfs.ext4");
    fs::write(&image, "the last good image").expect("the folder is ours");
    for signal in ["KILL", "INT", "TERM"] {
        let mut running = start(&tar, &image);
        while attached(folder.path()).is_empty() {
            assert!(running.try_wait().expect("a child").is_none(), "it ended before it was seen to mount anything");
            std::thread::sleep(PAUSE);
        }
        succeed(Command::new("kill").args([format!("-{signal}"), running.id().to_string()]));
        running.wait().expect("a child");
        assert!(nothing_is_attached(folder.path()), "{signal}: {:?}", attached(folder.path()));
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        assert!(!mounts.contains(folder.path().to_str().expect("text")), "{signal}: {mounts}");
        assert_eq!(fs::read(&image).expect("the image"), b"the last good image", "{signal}");
    }
}

#[test]
fn what_the_kernel_refuses_is_an_error_and_not_a_loss() {
    if !is_root() || !have(&["python3", "mount", "tar", "mke2fs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    // The kernel refuses a capability of three bytes.
    let script = "import tarfile\n\
                  info = tarfile.TarInfo('ping')\n\
                  info.pax_headers = {'SCHILY.xattr.security.capability': 'abc'}\n\
                  with tarfile.open('bad.tar', 'w', format=tarfile.PAX_FORMAT) as archive:\n\
                  \x20   archive.addfile(info)\n";
    succeed(Command::new("python3").args(["-c", script]).current_dir(folder.path()));
    let (tar, image) = (folder.path().join("bad.tar"), folder.path().join("rootfs.ext4"));
    let output = xtask().arg("pack").arg(&tar).arg("-o").arg(&image).args(["--writer", "loop"]).output();
    let output = output.expect("xtask runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("security.capability") && said.contains("ping"), "{said}");
    assert!(!image.exists() && nothing_is_attached(folder.path()));
}

#[test]
fn the_loop_writer_is_exact_too() {
    if !is_root() || !have(&["mount", "tar", "mke2fs", "dumpe2fs", "e2fsck"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = "mkdir root; for n in $(seq 900); do seq $n >root/$n; done; tar -cf root.tar -C root .";
    succeed(Command::new("bash").args(["-ec", script]).current_dir(folder.path()));
    let image = folder.path().join("rootfs.ext4");
    let mut pack = xtask();
    pack.arg("pack").arg(folder.path().join("root.tar")).arg("-o").arg(&image);
    let output = succeed(pack.args(["--writer", "loop", "--json"]));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let decision = &said["census"]["decision"];
    succeed(Command::new("e2fsck").arg("-fn").arg(&image));
    let shown = succeed(Command::new("dumpe2fs").arg("-h").arg(&image)).stdout;
    let shown = String::from_utf8_lossy(&shown).replace(' ', "");
    let number = |key: &str| -> Option<u64> { shown.lines().find_map(|line| line.strip_prefix(key)?.parse().ok()) };
    assert_eq!(number("Freeblocks:"), decision["free-blocks"].as_u64(), "{decision:#} {shown}");
    assert_eq!(number("Blockcount:"), decision["total-blocks"].as_u64(), "{decision:#} {shown}");
    assert!(number("Freeinodes:") >= decision["free-inodes"].as_u64(), "{decision:#} {shown}");
}

#[test]
fn the_loop_writer_is_for_root() {
    if !is_root() || !have(&["setpriv", "tar"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tar = folder.path().join("empty.tar");
    succeed(Command::new("tar").arg("-cf").arg(&tar).args(["--files-from", "/dev/null"]));
    // Where nobody can go: the workspace may be in a private folder.
    let tool = folder.path().join("xtask");
    fs::copy(xtask().get_program(), &tool).expect("the tool can be copied");
    succeed(Command::new("chmod").args(["-R", "a+rX"]).arg(folder.path()));
    let image = folder.path().join("rootfs.ext4");
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"]).arg(&tool).arg("pack").arg(&tar);
    let output = command.arg("-o").arg(&image).args(["--writer", "loop"]).output().expect("setpriv runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("only root may do") && said.contains("hint: "), "{said}");
    assert!(!image.exists());
}
