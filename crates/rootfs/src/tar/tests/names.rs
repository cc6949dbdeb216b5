//! Names that lead elsewhere than they say: taken inside the root and counted. GNU tar with the tree as its root is the judge.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::hostile::{Raw, archive};
use super::identity::{from_file, from_pipe};
use super::oracles::{can_run, run};
use super::*;
use crate::layers::{LIMITS, Layers};

/// One entry: `dir/`, `file=content`, `link->target`, `link=>target` for a hard link.
fn entry(words: &str) -> Raw {
    if let Some((name, target)) = words.split_once("->") {
        Raw::link(b'2', name.as_bytes(), target.as_bytes())
    } else if let Some((name, target)) = words.split_once("=>") {
        Raw::link(b'1', name.as_bytes(), target.as_bytes())
    } else if let Some((name, content)) = words.split_once('=') {
        Raw::file(name.as_bytes(), content.as_bytes())
    } else {
        Raw::new(b'5', words.as_bytes(), b"").set(100, b"0000755\0")
    }
}

fn archive_of(entries: &[&str]) -> Vec<u8> {
    archive(entries.iter().map(|words| entry(words)))
}

/// The tree in the same words, without the root.
fn show(tree: &RootTree) -> Vec<String> {
    let bare = |path: &TreePath| path.to_string().trim_start_matches('/').to_owned();
    let line = |entry: crate::tree::Entry<'_>| match (&entry.inode.kind, entry.hard_link_to) {
        (_, Some(first)) => format!("{}=>{}", bare(entry.path), bare(first)),
        (Kind::Directory, _) => format!("{}/", bare(entry.path)),
        (Kind::File(body), _) => {
            let content = tree.bodies().read_to_vec(body).unwrap();
            format!("{}={}", bare(entry.path), String::from_utf8(content).unwrap())
        }
        (Kind::Symlink(target), _) => format!("{}->{}", bare(entry.path), String::from_utf8_lossy(target)),
        (other, _) => format!("{} is a {}", bare(entry.path), other.noun()),
    };
    tree.entries().skip(1).map(line).collect()
}

/// The same of a folder, without `ORACLE`.
fn show_folder(folder: &Path) -> Vec<String> {
    let list = run(Command::new("tar").arg("-c").arg(format!("--exclude=./{ORACLE}")).arg("-C").arg(folder).arg("."));
    show(&from_file(&list).unwrap())
}

/// Reads an archive as a whole one from a file and from a pipe, and as a layer: the tree and what was adjusted.
#[track_caller]
fn read(bytes: &[u8]) -> (Vec<String>, String) {
    let tree = from_file(bytes).unwrap();
    let told = (show(&tree), tree.adjustments().to_string());
    let piped = from_pipe(bytes).unwrap();
    assert_eq!((show(&piped), piped.adjustments().to_string()), told, "a pipe gives another tree");
    let mut layers = Layers::new(tempfile::tempfile().unwrap(), &LIMITS).unwrap();
    layers.apply(bytes).unwrap();
    let layer = layers.finish().unwrap();
    assert_eq!((show(&layer), layer.adjustments().to_string()), told, "a layer gives another tree");
    told
}

/// The folder in the root that holds GNU tar with its libraries.
const ORACLE: &str = ".oracle";

/// A folder with a GNU tar that can run where it is the root.
fn root_with_gnu_tar() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let place = root.path().join(ORACLE);
    fs::create_dir(&place).unwrap();
    fs::copy("/usr/bin/tar", place.join("tar")).unwrap();
    let libraries = String::from_utf8(run(Command::new("ldd").arg("/usr/bin/tar"))).unwrap();
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let name = Path::new(library).file_name().unwrap();
        // The loader is called by a name of its own.
        let name = if name.as_bytes().starts_with(b"ld-") { "ld.so".as_ref() } else { name };
        fs::copy(library, place.join(name)).unwrap();
    }
    root
}

/// Unpacks an archive with the folder as the root of the process. Absolute names are taken, and symlinks made at once.
fn unpack(root: &Path, bytes: &[u8]) -> std::process::Output {
    let place = format!("/{ORACLE}");
    let mut child = Command::new("chroot")
        .arg(root)
        .args([&format!("{place}/ld.so"), "--library-path", &place, &format!("{place}/tar")])
        .args(["-xPf", "-", "--numeric-owner"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    child.wait_with_output().unwrap()
}

/// What GNU tar takes, with its tree.
const TAKEN: &[&[&str]] = &[
    &["/etc/", "/etc/hosts=1", "//usr/./bin/env=2"],
    &["a=data", "b=>/a", "c=>.//a"],
    &["usr/", "usr/lib/", "lib->usr/lib", "lib/x=1", "lib/y/", "lib/y/z=2", "lib/p/q=3"],
    &["usr/lib/", "lib->/usr/lib", "lib/x=1"],
    &["usr/lib/", "q/", "q/lib->../usr/lib", "q/lib/x=1"],
    &["usr/lib/", "q/", "q/lib->../../../usr/lib", "q/lib/x=1", "b=>q/lib/x"],
    &["usr/lib64/", "usr/lib->lib64", "lib->usr/lib", "lib/x=1", "usr/lib/y=2"],
    &["usr/lib/x=1", "lib->usr/lib", "b=>lib/x", "c->lib/x", "d=>c"],
    &["usr/lib/x=1", "lib->usr/lib", "lib/x=>usr/lib/x"],
    &["a=1", "a=>./a", "b=>a", "b=>a"],
    // The last of a name wins.
    &["a=1", "./a=2", "b=>a", "a=3"],
    &["usr/lib/y=1", "lib->usr/lib", "lib/", "lib/x=1"],
    &["d/", "d->e", "e/", "d/x=1"],
    &["a->b", "b/", "a=now a file"],
    // A symlink that changes its target between two entries of its directory.
    &["d/", "e/", "l->d", "l/x=1", "l->e", "l/y=2"],
    &["d/", "e/", "l->m", "m->d", "l/x=1", "m->e", "l/y=2"],
    &["/", "a=1"],
    &["", "a=1"],
];

#[test]
fn what_gnu_tar_takes_with_the_tree_as_its_root_is_taken_as_it_does() {
    if !can_run(&["tar", "ldd", "chroot"]) {
        return;
    }
    let root = root_with_gnu_tar();
    for entries in TAKEN {
        let bytes = archive_of(entries);
        let output = unpack(root.path(), &bytes);
        assert!(output.status.success(), "{entries:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(read(&bytes).0, show_folder(root.path()), "{entries:?}");
        for entry in fs::read_dir(root.path()).unwrap().map(Result::unwrap).filter(|entry| entry.file_name() != ORACLE)
        {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
        }
    }
}

/// What GNU tar leaves out with an error, and others take.
#[test]
fn only_what_would_leave_the_root_is_refused() {
    let gives = |entries: &[&str], expected: &[&str]| {
        assert_eq!(read(&archive_of(entries)).0, expected, "{entries:?}");
    };
    // By the text, as container engines clean names.
    gives(&["a/", "a/../b=1", "a/x/../c=2", "./q/.//../r/"], &["a/", "a/c=2", "b=1", "r/"]);
    gives(
        &["usr/lib/", "lib->usr/lib", "lib/../x=1", "y=>lib/../x"],
        &["lib->usr/lib", "usr/", "usr/lib/", "x=1", "y=>x"],
    );
    gives(&["a/.."], &[]);
    // A directory that does not exist yet, as containerd and umoci make it.
    gives(&["var/run->/run", "var/run/x=1"], &["run/", "run/x=1", "var/", "var/run->/run"]);
    gives(&["l->../../gone/../new", "l/x=1"], &["l->../../gone/../new", "new/", "new/x=1"]);
    // The symlink replaces itself, by way of itself.
    gives(&["e/", "l->.", "l/x=1", "l/l->e", "l/y=2"], &["e/", "e/y=2", "l->e", "x=1"]);
    // As one layer over the other.
    gives(&["d/x=1", "d/s/y=2", "d->e"], &["d->e"]);
    gives(&["f=1", "d/x=1", "d=>f"], &["d=1", "f=>d"]);
    gives(&["d/x=1", "d=2"], &["d=2"]);
}

#[test]
fn what_is_taken_otherwise_is_counted_with_the_first_example() {
    let adjusted = |entries: &[&str]| read(&archive_of(entries)).1;
    let mut table = String::new();
    for entries in [
        &["/etc/hosts=1", "/etc/passwd=2", "b=>/etc/hosts"][..],
        &["a/", "a/../b=1", "c=>a/../b"],
        &["/a/../b=1"],
        &["usr/lib/", "lib->/usr/lib", "lib/x=1", "lib/y=2", "b=>lib/x"],
        &["d/x=1", "d->e"],
        &["", "a=1"],
    ] {
        table += &format!("{entries:?}\n    {}\n", adjusted(entries).replace('\n', "\n    "));
    }
    insta::assert_snapshot!(table);
    // What is usual is not told.
    for entries in [&["./", "./a//b=1", "c=>./a/b", "c=2", "c=>c"][..], &["d/", "d->e", "d/"]] {
        assert_eq!(adjusted(entries), "");
    }
}

/// What an upper layer replaces is no loss.
#[test]
fn layers_tell_what_they_lose_of_their_own() {
    let told = |layers: &[&[&str]]| {
        let mut merged = Layers::new(tempfile::tempfile().unwrap(), &LIMITS).unwrap();
        for entries in layers {
            merged.apply(archive_of(entries).as_slice()).unwrap();
        }
        merged.finish().unwrap().adjustments().to_string()
    };
    assert_eq!(told(&[&["d/", "d/x=1"], &["d->e"]]), "");
    assert_eq!(
        told(&[&["d/", "d/x=1"], &["d/y=1", "d->e"]]),
        "1 directory with entries was replaced by a later entry that is none: /d"
    );
    assert_eq!(told(&[&["/a=1"], &["/b=1"]]), "2 absolute names were taken as relative to the root; the first is `/a`");
}

/// Entries among few names, so that they meet.
fn entries() -> impl Strategy<Value = Vec<String>> {
    let name = "(\\.?/)?[abc](/[abc]){0,2}";
    let target = "/?(\\.\\./){0,2}[abc](/[abc])?";
    let entry = prop_oneof![
        name.prop_map(|name| format!("{name}=1")),
        name.prop_map(|name| format!("{name}/")),
        (name, target).prop_map(|(name, target)| format!("{name}->{target}")),
        (name, "/?[abc](/[abc]){0,2}").prop_map(|(name, target)| format!("{name}=>{target}")),
    ];
    prop::collection::vec(entry, 1..12)
}

proptest! {
    /// A tree holds together whatever was put into it, and is the same by every way.
    #[test]
    fn every_tree_holds_together(entries in entries()) {
        let entries: Vec<&str> = entries.iter().map(String::as_str).collect();
        let bytes = archive_of(&entries);
        if let Ok(tree) = from_file(&bytes) {
            for entry in tree.entries().skip(1) {
                let parent = entry.path.parent().unwrap();
                prop_assert!(tree.get(&parent).is_some_and(Inode::is_directory), "{} in {entries:?}", entry.path);
            }
            let (again, _) = read(&bytes);
            prop_assert_eq!(show(&tree), again);
        }
    }
}

/// Random archives, as far as GNU tar takes them whole.
#[test]
fn what_gnu_tar_takes_of_random_archives_is_taken_as_it_does() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    const ARCHIVES: usize = 100;
    if !can_run(&["tar", "ldd", "chroot"]) {
        return;
    }
    let root = root_with_gnu_tar();
    let mut runner = TestRunner::deterministic();
    let mut taken = 0;
    for _ in 0..ARCHIVES {
        let entries = entries().new_tree(&mut runner).unwrap().current();
        let entries: Vec<&str> = entries.iter().map(String::as_str).collect();
        let bytes = archive_of(&entries);
        if unpack(root.path(), &bytes).status.success() {
            taken += 1;
            assert_eq!(read(&bytes).0, show_folder(root.path()), "{entries:?}");
        }
        for entry in fs::read_dir(root.path()).unwrap().map(Result::unwrap).filter(|entry| entry.file_name() != ORACLE)
        {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
        }
    }
    assert!(taken >= ARCHIVES / 10, "GNU tar took only {taken}");
}
