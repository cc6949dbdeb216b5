//! What of the machine a run of the tool could leave behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use snug_tests::Workshop;

/// The kernel ends a pid namespace at once, but not before `wait` returns: looks, and the pause between two.
const LOOKS: usize = 100;
const PAUSE: Duration = Duration::from_millis(50);

/// Mounts, loop devices, processes of the tool or of its steps, files of the workshop.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Traces {
    pub(super) mounts: BTreeSet<String>,
    pub(super) loop_devices: BTreeSet<String>,
    pub(super) processes: BTreeSet<String>,
    pub(super) files: BTreeSet<PathBuf>,
}

impl Traces {
    pub(super) fn find(workshop: &Workshop) -> Self {
        let root = workshop.path("");
        let words = root.display().to_string();
        let words = words.trim_end_matches('/');
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        // Place and type: options change with the size.
        let mount = |line: &str| line.split(' ').skip(1).take(2).collect::<Vec<_>>().join(" ");
        let mounts = mounts.lines().filter(|line| line.contains(words)).map(mount).collect();
        let backing = entries(Path::new("/sys/block")).map(|device| device.join("loop/backing_file"));
        let loop_devices = backing
            .filter(|file| fs::read_to_string(file).is_ok_and(|file| file.contains(words)))
            .map(|file| file.display().to_string())
            .collect();
        let processes = entries(Path::new("/proc"))
            .filter(|process| {
                // Steps and everything around them have the step's marker in their environment or words.
                let read = |name: &str| fs::read(process.join(name)).unwrap_or_default();
                [read("cmdline"), read("environ")].iter().any(|text| contains(text, words.as_bytes()))
            })
            .map(|process| process.display().to_string())
            .collect();
        let mut files = BTreeSet::new();
        collect(&root, &mut files);
        Traces { mounts, loop_devices, processes, files }
    }

    /// Waits until nothing but files is left that was not there before. Returns whether it came to that.
    pub(super) fn run_down(&self, workshop: &Workshop) -> bool {
        (0..LOOKS).any(|_| {
            let now = Traces { files: self.files.clone(), ..Traces::find(workshop) };
            now == *self || {
                thread::sleep(PAUSE);
                false
            }
        })
    }
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

fn collect(folder: &Path, files: &mut BTreeSet<PathBuf>) {
    // What a failing disk shows is listed there, and what it has removed while it was open is its own.
    let counts = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // QEMU makes a file for the writes that it discards, and removes its name at once: the kill of a machine that starts
        // may come between. It is empty then.
        let is_of_qemu = name.starts_with("vl.") && path.metadata().is_ok_and(|about| about.len() == 0);
        !name.ends_with(".behind") && !name.starts_with(".fuse_hidden") && !is_of_qemu
    };
    for path in entries(folder).filter(counts) {
        if path.symlink_metadata().is_ok_and(|about| about.is_dir()) {
            collect(&path, files);
        }
        files.insert(without_digests(path));
    }
}

/// The path of a layer by its key alone: one that is made again has other times in it, and so another digest in its name.
fn without_digests(path: PathBuf) -> PathBuf {
    let is_layer = path.parent().and_then(Path::file_name).is_some_and(|folder| folder == "layers");
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match name.split_once('-').zip(path.extension()) {
        Some(((key, _), ending)) if is_layer => path.with_file_name(key).with_extension(ending),
        _ => path,
    }
}

/// Pseudo-random numbers from a seed (xorshift, Marsaglia 2003), so that a failure can be repeated.
pub(super) struct Random(u64);

impl Random {
    /// From `SNUG_SEED`, else from the clock; prints which.
    pub(super) fn of_this_run() -> Self {
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_nanos() as u64;
        let seed = std::env::var("SNUG_SEED").ok().map_or(now | 1, |seed| seed.parse().expect("SNUG_SEED is a number"));
        eprintln!("seed {seed}: SNUG_SEED={seed} makes the same choices");
        Random(seed)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}
