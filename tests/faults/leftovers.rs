//! What a killed run left, whatever it is, is in nobody's way.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use snug_tests::{Workshop, have, is_root, succeed, xtask};

use super::disks::SmallDisk;

/// Bytes of a disk for a cache: folders in memory are quickly made and removed.
const DISK: u64 = 1 << 30;
/// Deeper than a recursion, the descriptors of a process and the longest path allow.
const DEPTH: usize = 30_000;

fn nest(folder: &Path) {
    fs::create_dir(folder).expect("a folder");
    let mut at = File::open(folder).expect("a folder").into();
    for _ in 0..DEPTH {
        mkdirat(&at, "d", Mode::S_IRWXU).expect("a folder");
        at = openat(&at, "d", OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).expect("a folder");
    }
}

fn clean(workshop: &Workshop, caches: &[&str]) -> Command {
    let mut command = xtask();
    command.arg("clean").args(caches).arg("--output").arg(workshop.path("out"));
    command.env("XDG_CACHE_HOME", workshop.path("cache"));
    command
}

#[test]
fn folders_nested_however_deep_are_removed_by_the_next_run() {
    if !is_root() || !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    let _disk = SmallDisk::mount(workshop.path("cache"), DISK);
    workshop.spec("made", "run = [\"true\"]");
    assert!(workshop.build("made").status.success());
    let work = workshop.path("cache/snug/work");
    nest(&work.join("killed.image"));
    workshop.spec("made", "run = [\"echo\"]");
    let output = workshop.build("made");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(workshop.names("cache/snug/work"), [""; 0]);
    nest(&work.join("killed.clean"));
    nest(&workshop.path("cache/snug/tools"));
    succeed(&mut clean(&workshop, &["tools"]));
    assert_eq!(workshop.names("cache/snug/work"), [""; 0]);
    assert!(!workshop.path("cache/snug/tools").exists());
}

#[test]
fn what_cannot_be_removed_is_said_once_and_others_work() {
    if !is_root() || !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    for name in ["one", "two"] {
        workshop.spec(name, "run = [\"true\"]");
    }
    succeed(&mut workshop.xtask(&["image", "one"]));
    let stuck = SmallDisk::mount(workshop.path("cache/snug/work/stuck.one/root"), DISK);
    let other = workshop.path("cache/snug/work/killed.other");
    fs::create_dir(&other).expect("a folder");
    let output = succeed(&mut workshop.xtask(&["image", "one", "two"]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.matches("warning: what a killed run left cannot be removed: ").count(), 1, "{said}");
    assert!(
        said.contains("stuck.one") && said.contains("hint: it only takes space; remove it as root: rm -rf "),
        "{said}"
    );
    assert!(!other.exists());

    // All else is cleaned, and the exit code tells.
    let output = clean(&workshop, &["trees"]).output().expect("xtask runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot be removed"), "{said}");
    assert_eq!(workshop.names("cache/snug/trees"), [""; 0]);
    drop(stuck);
    succeed(&mut clean(&workshop, &[]));
    assert_eq!(workshop.names("cache/snug/work"), [""; 0]);
}
