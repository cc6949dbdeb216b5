//! What changed below a root since a moment: the layer of a build step.
//!
//! A [`Snapshot`] notes inode number and time of change (`st_ctime`) of every name, which no program can set. The names that
//! differ later are new, replaced or changed, whatever was done to them: content, mode, owner, attributes, links. They become a
//! tree, and what is gone becomes whiteouts in it, as OCI image-spec 1.1 has them ("Image Layer Filesystem Changeset",
//! layer.md).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::time::{ClockId, clock_gettime};

use super::body::Body;
use super::disk::{self, Found, StandIns};
use super::inode::{Inode, Kind};
use super::layers::{OPAQUE, WHITEOUT};
use super::tree::{RootTree, TreePath};

/// A tick of the clock that files are stamped by, at the slowest (`CONFIG_HZ=100`).
const TICK: Duration = Duration::from_millis(10);
/// Ticks to wait at most: files may have been stamped by a clock that was set back since.
const TICKS: u32 = 5;

/// The state of one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    device: u64,
    inode: u64,
    /// `st_ctime`, in seconds and nanoseconds.
    changed: (i64, i64),
}

impl Mark {
    fn of(about: &fs::Metadata) -> Self {
        Mark { device: about.dev(), inode: about.ino(), changed: (about.ctime(), about.ctime_nsec()) }
    }
}

/// The state of every name below a root at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    marks: BTreeMap<TreePath, Mark>,
}

impl Snapshot {
    /// Takes the state of all files below `root`, without entering other mounts. Nothing may change them meanwhile; what changes
    /// them afterwards is noticed.
    pub fn take(root: &Path) -> Result<Self> {
        let snapshot = Snapshot::of(&disk::find(root)?);
        snapshot.wait_for_the_clock();
        Ok(snapshot)
    }

    fn of(found: &[Found]) -> Self {
        Snapshot { marks: found.iter().map(|found| (found.path.clone(), Mark::of(&found.about))).collect() }
    }

    /// Waits until whatever changes from now on has another time of change than what the snapshot has seen: files are stamped
    /// with the time of the last tick.
    fn wait_for_the_clock(&self) {
        let latest = self.marks.values().map(|mark| mark.changed).max().unwrap_or_default();
        for _ in 0..TICKS {
            let now = clock_gettime(ClockId::CLOCK_REALTIME_COARSE).map(|now| (now.tv_sec(), now.tv_nsec()));
            if now.is_ok_and(|now| now > latest) {
                return;
            }
            thread::sleep(TICK);
        }
    }

    /// Returns what changed below `root` since the snapshot, as the tree of a layer, and takes the state as it is now.
    /// `stand_ins` has what could not be created as a file.
    ///
    /// The tree has every name that is new or differs, the directories above them, and an empty file `.wh.NAME` for each name
    /// that is gone from a directory that still is one. Its contents are read from the files when they are needed: nothing may
    /// change them as long as it is used.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or a name that is new begins with `.wh.`, which no layer can hold.
    pub fn changes(&mut self, root: &Path, stand_ins: &StandIns) -> Result<RootTree> {
        let found = disk::find(root)?;
        let mut wanted = self.differing(&found);
        let now = Snapshot::of(&found);
        let (gone, nameless) = self.gone(&now, &found);
        // What is left in a directory whose lost names no whiteout can state: it hides all of them.
        for directory in &nameless {
            let first = found.partition_point(|found| found.path < *directory);
            let below = found[first..].iter().take_while(|found| found.path.is_within(directory));
            wanted.extend(below.map(|found| found.path.clone()));
        }
        // All names of an inode stand in one layer.
        let inodes: HashSet<(u64, u64)> =
            found.iter().filter(|found| wanted.contains(&found.path)).filter_map(Found::shared_inode).collect();
        if !inodes.is_empty() {
            let shared = found.iter().filter(|found| found.shared_inode().is_some_and(|id| inodes.contains(&id)));
            wanted.extend(shared.map(|found| found.path.clone()));
        }
        // Every archive states the attributes of the root.
        let mut needed = HashSet::from([TreePath::root()]);
        for path in wanted.iter().chain(&gone).chain(&nameless) {
            let mut above = path.parent();
            while let Some(parent) = above {
                above = parent.parent();
                if !needed.insert(parent) {
                    break;
                }
            }
        }
        needed.extend(wanted);
        let mut tree = disk::tree_of(root, found.into_iter().filter(|found| needed.contains(&found.path)), stand_ins)?;
        if let Some(reserved) = reserved_name(&tree) {
            bail!(
                "{reserved} has a name that means something else in the layers of an image\n\
                 hint: `.wh.` at the beginning of a name is reserved there; give the file another one"
            );
        }
        let opaque = nameless.iter().map(|directory| {
            directory.join(OPAQUE).with_context(|| format!("{directory} is too deep for a layer to say what it lost"))
        });
        for whiteout in gone.iter().filter_map(whiteout_of).map(Ok).chain(opaque) {
            let whiteout = whiteout?;
            tree.insert(whiteout, Inode::new(Kind::File(Body::default()), 0))?;
        }
        *self = now;
        self.wait_for_the_clock();
        Ok(tree)
    }

    /// Returns the names that are new or have another mark.
    fn differing(&self, found: &[Found]) -> HashSet<TreePath> {
        let differs = |found: &&Found| self.marks.get(&found.path) != Some(&Mark::of(&found.about));
        found.iter().filter(differs).map(|found| found.path.clone()).collect()
    }

    /// Returns the names that are gone, without those below others that are, or below what is no directory any more; and the
    /// directories of those among them that no whiteout can name.
    fn gone(&self, now: &Snapshot, found: &[Found]) -> (Vec<TreePath>, BTreeSet<TreePath>) {
        let directories: HashSet<&TreePath> =
            found.iter().filter(|found| found.about.is_dir()).map(|found| &found.path).collect();
        let stands = |path: &TreePath| path.parent().is_some_and(|parent| directories.contains(&parent));
        let gone = self.marks.keys().filter(|path| !now.marks.contains_key(*path) && stands(path)).cloned();
        let (gone, nameless): (Vec<_>, Vec<_>) = gone.partition(|path| whiteout_of(path).is_some());
        (gone, nameless.iter().filter_map(TreePath::parent).collect())
    }
}

/// Returns the name that hides another one. Of some there is none: too long ones, and those that would mean something else.
fn whiteout_of(path: &TreePath) -> Option<TreePath> {
    if path.name().starts_with(WHITEOUT) {
        return None;
    }
    path.parent()?.join(&[WHITEOUT, path.name()].concat())
}

/// Returns the first name of the tree that a layer cannot hold.
fn reserved_name(tree: &RootTree) -> Option<&TreePath> {
    tree.entries().map(|entry| entry.path).find(|path| path.name().starts_with(WHITEOUT))
}

#[cfg(test)]
mod tests;
