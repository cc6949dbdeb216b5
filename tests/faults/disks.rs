//! Disks that are full, and disks that fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use snug_tests::{Workshop, skip, succeed};

use super::arena::{Arena, Count, NAME};
use super::traces::Random;

/// Bytes of a disk on which everything has space.
const PLENTY: u64 = 1 << 30;
/// Bytes that a build takes at most beside what is there: the unpacked tree and its tar in the cache, an image.
const NEEDED: u64 = 10 << 20;

/// A tmpfs, until it is dropped.
pub(super) struct SmallDisk(pub(super) PathBuf);

impl SmallDisk {
    #[track_caller]
    pub(super) fn mount(at: PathBuf, bytes: u64) -> Self {
        fs::create_dir_all(&at).expect("a folder");
        succeed(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(&at));
        SmallDisk(at)
    }

    #[track_caller]
    pub(super) fn resize(&self, bytes: u64) {
        succeed(Command::new("mount").args(["-o", &format!("remount,size={bytes}")]).arg(&self.0));
    }

    /// Returns the bytes that files take on it.
    fn used(&self) -> u64 {
        let about = nix::sys::statvfs::statvfs(&self.0).expect("a filesystem");
        (about.blocks() - about.blocks_free()) * about.fragment_size()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Builds with `times` sizes of what is free on the disk of the cache, and on that of the results.
pub(super) fn fill(times: usize, random: &mut Random) -> Vec<(&'static str, Count)> {
    let mut counts = Vec::new();
    for (title, folder) in [("full disk of the cache", "cache"), ("full disk of the results", "out")] {
        let mut disk = None;
        let mount = |workshop: &Workshop| disk = Some(SmallDisk::mount(workshop.path(folder), PLENTY));
        let arena = Arena::with("", mount);
        let disk = disk.expect("a disk");
        let mut count = Count::default();
        for turn in 0..times {
            arena.choose((turn + 1) % 2, "");
            let free = random.below(NEEDED);
            disk.resize(disk.used() + free);
            let output = arena.output(&["image", NAME]);
            let what = format!("{title}, {free} bytes free ({})", output.status);
            count.add(arena.judge(&what, || disk.resize(PLENTY)));
        }
        counts.push((title, count));
    }
    counts
}

/// Changes of a build's end.
const LAST: u64 = 24;

/// A disk that fails on demand, over a folder beside it, until it is dropped.
struct FailingDisk {
    at: PathBuf,
    server: Child,
}

impl FailingDisk {
    fn mount(at: PathBuf) -> Self {
        let behind = at.with_extension("behind");
        for folder in [&at, &behind] {
            fs::create_dir_all(folder).expect("a folder");
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("failing_disk.py");
        // Debian's own has Debian's modules.
        let server = Command::new("/usr/bin/python3").arg(script).arg(&behind).arg(&at).stderr(Stdio::null()).spawn();
        let disk = FailingDisk { at, server: server.expect("python3") };
        let is_there = || disk.control().is_file();
        assert!(
            (0..200).any(|_| is_there() || {
                thread::sleep(Duration::from_millis(50));
                false
            }),
            "no disk"
        );
        disk
    }

    fn control(&self) -> PathBuf {
        self.at.join(".fail-after")
    }

    fn tell(&self, words: &str) {
        fs::write(self.control(), words).expect("told");
    }

    /// Returns how many changes were made so far.
    fn changes(&self) -> u64 {
        fs::read_to_string(self.control()).expect("a number").trim().parse().expect("a number")
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Whether Debian's Python has what the disk is made with.
fn can_fail() -> bool {
    ["fusepy", "fuse"].iter().any(|module| {
        let output = Command::new("/usr/bin/python3").args(["-c", &format!("from {module} import FUSE")]).output();
        output.is_ok_and(|output| output.status.success())
    })
}

/// Builds on disks that fail after `times` numbers of changes, that of the cache and that of the results.
pub(super) fn fail(times: usize, random: &mut Random) -> Vec<(&'static str, Count)> {
    if !can_fail() {
        skip("needs python3-fusepy");
        return Vec::new();
    }
    let mut counts = Vec::new();
    for (title, folder) in [("failing disk of the cache", "cache"), ("failing disk of the results", "out")] {
        let mut disk = None;
        let arena = Arena::with("", |workshop| disk = Some(FailingDisk::mount(workshop.path(folder))));
        let disk = disk.expect("a disk");
        let before = disk.changes();
        arena.choose(1, "");
        let mut count = arena.judge("no fault", || {});
        let changes = disk.changes() - before;
        count.faults = 0;
        for turn in 0..times {
            arena.choose(turn % 2, "");
            // Every other moment is one of the last, in which the results are put in place.
            let earliest = if turn % 2 == 0 { 0 } else { changes.saturating_sub(LAST) };
            let after = earliest + random.below(changes - earliest + 1);
            let all = ["", " all"][random.below(2) as usize];
            disk.tell(&format!("{after}{all}"));
            let output = arena.output(&["image", NAME]);
            disk.tell("never");
            let what = format!("{title} after {after} of {changes} changes{all} ({})", output.status);
            count.add(arena.judge(&what, || {}));
        }
        counts.push((title, count));
    }
    counts
}
