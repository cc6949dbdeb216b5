//! Random steps on real files: the layers of what each changed, stacked, are the tree as it is walked whole.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use proptest::prelude::*;

use super::*;
use crate::layers::{Lowest, stack};
use crate::tar::{self, Limits, TarOptions};

/// What a build step may do to files, as root or not. Names are of a few letters, so that they meet.
#[derive(Debug, Clone)]
enum Deed {
    Write(Name, u8),
    Append(Name),
    MakeDirectory(Name),
    Remove(Name),
    Rename(Name, Name),
    Link(Name, Name),
    Symlink(Name, Name),
    Fifo(Name),
    Mode(Name, u16),
    Attribute(Name, u8),
    Touch(Name, i64),
}

type Name = Vec<u8>;

fn name() -> impl Strategy<Value = Name> {
    prop::collection::vec(prop::sample::select(&b"abc"[..]), 1..4)
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        4 => (name(), any::<u8>()).prop_map(|(name, byte)| Deed::Write(name, byte)),
        2 => name().prop_map(Deed::Append),
        4 => name().prop_map(Deed::MakeDirectory),
        3 => name().prop_map(Deed::Remove),
        4 => (name(), name()).prop_map(|(from, to)| Deed::Rename(from, to)),
        3 => (name(), name()).prop_map(|(from, to)| Deed::Link(from, to)),
        2 => (name(), name()).prop_map(|(target, at)| Deed::Symlink(target, at)),
        1 => name().prop_map(Deed::Fifo),
        1 => (name(), 0o500..0o1000_u16).prop_map(|(name, mode)| Deed::Mode(name, mode)),
        1 => (name(), any::<u8>()).prop_map(|(name, value)| Deed::Attribute(name, value)),
        1 => (name(), 0..1_000_000_i64).prop_map(|(name, time)| Deed::Touch(name, time)),
    ]
}

/// Does it; what cannot be done is left undone.
fn act(root: &Path, deed: &Deed) {
    let at = |name: &Name| -> PathBuf {
        root.join(name.iter().map(|&letter| char::from(letter).to_string()).collect::<Vec<_>>().join("/"))
    };
    let is_link = |path: &Path| path.symlink_metadata().is_ok_and(|about| about.is_symlink());
    let _: Result<(), std::io::Error> = match deed {
        // Through a symlink one would leave the root.
        Deed::Write(name, _) | Deed::Append(name) | Deed::Mode(name, _) if is_link(&at(name)) => Ok(()),
        Deed::Write(name, byte) if !at(name).symlink_metadata().is_ok_and(|about| !about.is_file()) => {
            fs::write(at(name), vec![*byte; usize::from(*byte) * 40])
        }
        Deed::Append(name) if at(name).is_file() => {
            OpenOptions::new().append(true).open(at(name)).and_then(|mut file| file.write_all(b"more"))
        }
        Deed::Write(..) | Deed::Append(_) => Ok(()),
        Deed::MakeDirectory(name) => fs::create_dir(at(name)),
        Deed::Remove(name) => fs::remove_file(at(name)).or_else(|_| fs::remove_dir_all(at(name))),
        Deed::Rename(from, to) => fs::rename(at(from), at(to)),
        Deed::Link(from, to) => fs::hard_link(at(from), at(to)),
        Deed::Symlink(target, name) => {
            symlink(target.iter().map(|&byte| char::from(byte)).collect::<String>(), at(name))
        }
        Deed::Fifo(name) => mkfifo(&at(name), Mode::S_IRUSR).map_err(Into::into),
        Deed::Mode(name, mode) => fs::set_permissions(at(name), fs::Permissions::from_mode(u32::from(*mode) | 0o700)),
        Deed::Attribute(name, value) => xattr::set(at(name), "user.note", &[*value]),
        Deed::Touch(name, time) => {
            let time = nix::sys::time::TimeSpec::new(*time, 7);
            nix::sys::stat::utimensat(
                nix::fcntl::AT_FDCWD,
                &at(name),
                &time,
                &time,
                nix::sys::stat::UtimensatFlags::NoFollowSymlink,
            )
            .map_err(Into::into)
        }
    };
}

fn stored(tree: &RootTree) -> File {
    let mut file = tempfile::tempfile().unwrap();
    tar::write(tree, &mut file, TarOptions::OWN, &mut |_| {}).unwrap();
    file
}

fn stacked(files: &[File]) -> RootTree {
    let mut files = files.iter().map(|file| file.try_clone().unwrap());
    let lowest = Lowest { file: files.next().unwrap(), own: true };
    stack(lowest, files.collect(), &Limits::default()).unwrap()
}

/// All that the tree is, in one archive.
fn bytes(tree: &RootTree) -> Vec<u8> {
    let mut bytes = Vec::new();
    tar::write(tree, &mut bytes, TarOptions::OWN, &mut |_| {}).unwrap();
    bytes
}

fn names(tree: &RootTree) -> Vec<String> {
    tree.entries().map(|entry| format!("{} {:?}", entry.path, entry.hard_link_to)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn the_layers_of_random_steps_are_the_tree_as_it_is_walked(
        steps in prop::collection::vec(prop::collection::vec(deed(), 1..12), 1..6),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let (root, stand_ins) = (folder.path(), StandIns::default());
        steps[0].iter().for_each(|deed| act(root, deed));
        let mut layers = vec![stored(&disk::walk(root, &stand_ins).unwrap())];
        let mut snapshot = Snapshot::take(root).unwrap();
        for step in &steps[1..] {
            step.iter().for_each(|deed| act(root, deed));
            layers.push(stored(&snapshot.changes(root, &stand_ins).unwrap()));
            let merged = stacked(&layers);
            let whole = disk::walk(root, &stand_ins).unwrap();
            prop_assert_eq!(names(&merged), names(&whole));
            prop_assert!(bytes(&merged) == bytes(&whole));
        }
    }
}

/// What a step left, layer by layer.
fn layer(root: &Path, snapshot: &mut Snapshot) -> Vec<String> {
    let tree = snapshot.changes(root, &StandIns::default()).unwrap();
    tree.entries().skip(1).map(|entry| entry.path.to_string()).collect()
}

#[test]
fn a_layer_has_what_changed_and_the_directories_above_it() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::create_dir_all(root.join("etc/deep")).unwrap();
    for name in ["etc/a", "etc/b", "etc/deep/c", "etc/deep/d"] {
        fs::write(root.join(name), name).unwrap();
    }
    fs::hard_link(root.join("etc/b"), root.join("etc/deep/also-b")).unwrap();
    let mut snapshot = Snapshot::take(root).unwrap();
    assert_eq!(layer(root, &mut snapshot), [""; 0]);
    // Written in place, at once after the snapshot, with the same length.
    OpenOptions::new().write(true).open(root.join("etc/deep/c")).unwrap().write_all(b"ETC").unwrap();
    assert_eq!(layer(root, &mut snapshot), ["/etc", "/etc/deep", "/etc/deep/c"]);
    fs::remove_file(root.join("etc/deep/d")).unwrap();
    assert_eq!(layer(root, &mut snapshot), ["/etc", "/etc/deep", "/etc/deep/.wh.d"]);
    // All names of an inode, and one whiteout for a directory.
    fs::set_permissions(root.join("etc/b"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(layer(root, &mut snapshot), ["/etc", "/etc/b", "/etc/deep", "/etc/deep/also-b"]);
    fs::remove_dir_all(root.join("etc/deep")).unwrap();
    assert_eq!(layer(root, &mut snapshot), ["/etc", "/etc/.wh.deep", "/etc/b"]);
}

#[test]
fn a_name_too_long_for_a_whiteout_is_hidden_by_its_directory() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let long = "n".repeat(255);
    for directory in ["", "d"] {
        fs::create_dir_all(root.join(directory)).unwrap();
        fs::write(root.join(directory).join(&long), "gone").unwrap();
        fs::write(root.join(directory).join("kept"), "kept").unwrap();
    }
    let base = stored(&disk::walk(root, &StandIns::default()).unwrap());
    let mut snapshot = Snapshot::take(root).unwrap();
    fs::remove_file(root.join(&long)).unwrap();
    fs::remove_file(root.join("d").join(&long)).unwrap();
    let changes = stored(&snapshot.changes(root, &StandIns::default()).unwrap());
    let merged = stacked(&[base, changes]);
    assert!(bytes(&merged) == bytes(&disk::walk(root, &StandIns::default()).unwrap()));
}

#[test]
fn a_new_name_that_is_a_whiteout_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut snapshot = Snapshot::take(folder.path()).unwrap();
    fs::write(folder.path().join(".wh.x"), "").unwrap();
    let error = snapshot.changes(folder.path(), &StandIns::default()).unwrap_err().to_string();
    assert!(error.starts_with("/.wh.x has a name") && error.contains("hint: "), "{error}");
}
