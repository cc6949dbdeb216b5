//! What every end-to-end test needs: the built command, tools that may be missing, folders that go away.

pub mod trees;
mod workshop;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, OnceLock};

pub use workshop::{Workshop, number_of_its_own};

/// An address at which nothing answers: that of `discard`, which no system of today serves. A port that was free a moment ago
/// may be somebody's by now; a port below 1024 is given to nobody who asks for any.
pub const CLOSED: &str = "127.0.0.1:9";

/// The workspace's root.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ stands in the workspace")
}

/// The command under test, started in the workspace, with nobody's colours and no runner that reads it. `cargo xtask test` hands its own path over in `SNUG_XTASK`; a bare
/// `cargo test` builds it first.
pub fn xtask() -> Command {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    let binary = BINARY.get_or_init(|| match std::env::var_os("SNUG_XTASK") {
        Some(path) => PathBuf::from(path),
        None => build_xtask(),
    });
    let mut command = Command::new(binary);
    command.current_dir(workspace()).env_remove("SNUG_XTASK").env_remove("GITHUB_ACTIONS").env("NO_COLOR", "1");
    command
}

fn build_xtask() -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["build", "--package", "snug", "--bin", "xtask", "--profile", "xtask", "--message-format", "json"])
        .current_dir(workspace())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .expect("cargo names the executable it built")
}

/// Runs a command to its end and panics with all that it said unless it succeeded.
#[track_caller]
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n--- stdout\n{}\n--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// The openclaw image, as with [`image`].
#[track_caller]
pub fn openclaw_image() -> Option<PathBuf> {
    image("openclaw")
}

/// An image of this workspace as ext4, built by the real command where it is not up to date. Where this host cannot
/// build it, the test must return, as with [`have`].
#[track_caller]
pub fn image(name: &str) -> Option<PathBuf> {
    if !have(&["mmdebstrap", "newuidmap"]) {
        return None;
    }
    static BUILT: Mutex<BTreeMap<String, Arc<OnceLock<PathBuf>>>> = Mutex::new(BTreeMap::new());
    let built = BUILT.lock().expect("nothing fails under it").entry(name.to_owned()).or_default().clone();
    // A test that wants the same image waits for it, one that wants another does not.
    let image = built.get_or_init(|| {
        let output = succeed(xtask().args(["image", name, "--json"]));
        let about: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON on standard output");
        PathBuf::from(about["images"][0]["image"].as_str().expect("the image's path"))
    });
    Some(image.clone())
}

/// Writes `base.tar` into `folder`: a base of nothing but a static busybox, so that a build takes no time.
#[track_caller]
pub fn busybox_base(folder: &Path) {
    let script = r#"
        mkdir -p root/bin root/etc root/usr/sbin
        cp "$(command -v busybox)" root/bin/busybox
        for name in sh echo cat ls mknod mount env ln chmod mkdir seq sleep sed test wc cp dd true false; do
            ln -s busybox root/bin/$name
        done
        echo root:x:0:0::/root:/bin/sh > root/etc/passwd
        tar -cf base.tar --owner 0 --group 0 -C root .
    "#;
    succeed(Command::new("bash").args(["-ec", script]).current_dir(folder));
}

/// Returns whether all of `tools` are on PATH (sbin included). If not, the test must return: this prints why, and fails
/// instead where `SNUG_TESTS_NO_SKIP` is set, as `cargo xtask test --setup` does after installing all of them.
#[track_caller]
pub fn have(tools: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).collect();
    let missing: Vec<&str> =
        tools.iter().copied().filter(|tool| !folders.iter().any(|folder| folder.join(tool).is_file())).collect();
    missing.is_empty() || skip(&format!("needs {}", missing.join(", ")))
}

/// Returns whether this is root. If not, the test must return, as with [`have`].
#[track_caller]
pub fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().expect("id runs");
    output.stdout == b"0\n" || skip("needs root")
}

/// Prints that a test is skipped, and returns `false`; fails where nothing may be skipped.
#[track_caller]
pub fn skip(why: &str) -> bool {
    let place = std::panic::Location::caller();
    assert!(std::env::var_os("SNUG_TESTS_NO_SKIP").is_none(), "skipped where nothing may be: {why}");
    eprintln!("SKIPPED {place}: {why}");
    false
}

/// An image mounted by the kernel until it is dropped; needs root.
pub struct Mounted {
    folder: tempfile::TempDir,
}

impl Mounted {
    #[track_caller]
    pub fn read_only(image: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        succeed(Command::new("mount").args(["-o", "ro,loop"]).arg(image).arg(folder.path()));
        Mounted { folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: something else on the machine may look into a new mount for a moment.
        let _ = Command::new("umount").arg("--lazy").arg(self.folder.path()).status();
    }
}

/// SHA-256 over all that GNU tar sees of a tree: names, content, modes, owners, times, links, devices and extended
/// attributes. Without ext4's own lost+found.
#[track_caller]
pub fn tree_digest(root: &Path) -> String {
    tree_digest_without(root, &[])
}

/// As [`tree_digest`], without some paths: `./etc/hostname`.
#[track_caller]
pub fn tree_digest_without(root: &Path, paths: &[&str]) -> String {
    let script = "set -o pipefail; root=$1; shift; \
                  tar --create --file - --format pax --pax-option delete=atime,delete=ctime --sort name --numeric-owner \
                  --xattrs --xattrs-include '*' --anchored --exclude ./lost+found \"${@/#/--exclude=}\" -C \"$root\" . \
                  | sha256sum";
    let output = succeed(Command::new("bash").args(["-c", script, "digest"]).arg(root).args(paths));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
