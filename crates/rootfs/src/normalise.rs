//! Removes from a tree what building it left behind, so that every engine gives the same one.

use std::collections::BTreeSet;

use super::glob::{self, Glob};
use super::tree::{Inode, Kind, RootTree, Timestamp, TreePath};

/// Options of [`normalise`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Normalise<'a> {
    /// Content of `/etc/hostname`; `localhost` where it is `None`.
    pub hostname: Option<&'a str>,
    /// `SOURCE_DATE_EPOCH`: no time of the tree is later. Seconds since 1970.
    pub clamp_mtime: Option<i64>,
    /// Directories in which the build has changed something beside the steps; those that the tree does not have are ignored.
    pub changed: &'a [TreePath],
}

/// Directories that the kernel or `/init` fills at boot, with their modes: they are kept, empty.
const EMPTIED: [(&str, u16); 5] = [("dev", 0o755), ("proc", 0o555), ("run", 0o755), ("sys", 0o555), ("tmp", 0o1777)];

/// Leftovers of container engines, package managers and `openssh-server`'s postinst.
const LEFTOVERS: [&str; 29] = [
    "/.dockerenv",
    // Every machine generates its own keys.
    "/etc/ssh/ssh_host_*",
    // Locks, and backups of the account files that differ from build to build.
    "/etc/.pwd.lock",
    "/etc/passwd-",
    "/etc/group-",
    "/etc/shadow-",
    "/etc/gshadow-",
    "/etc/subuid-",
    "/etc/subgid-",
    "/var/lib/dpkg/lock*",
    "/var/lib/dpkg/triggers/Lock",
    "/var/cache/apt/archives/lock",
    "/var/lib/dpkg/*-old",
    "/var/cache/debconf/*-old",
    // Caches that the package manager fetches or computes again.
    "/var/lib/apt/lists/*",
    "/var/cache/apt/archives/**/*.deb",
    "/var/cache/apt/pkgcache.bin",
    "/var/cache/apt/srcpkgcache.bin",
    "/var/cache/apk/*",
    "/lib/apk/db/lock",
    "/usr/lib/apk/db/lock",
    // Holds inode numbers and times of the machine that built it.
    "/var/cache/ldconfig/aux-cache",
    // Logs of the build.
    "/var/log/apt/*",
    "/var/log/dpkg.log*",
    "/var/log/alternatives.log*",
    "/var/log/bootstrap.log",
    "/var/log/fontconfig.log",
    "/var/log/apk.log",
    "/run/.containerenv",
];

/// Normalises a tree the same way for every engine (docs/architecture.md, "What every engine leaves behind"):
///
/// - leftovers of engines and package managers are removed; `dev`, `proc`, `run`, `sys` and `tmp` are kept as empty
///   directories, or as a symlink if they are one;
/// - where there is an `/etc`, its `hosts`, `hostname`, `resolv.conf` and `machine-id` are written anew: engines bind
///   their own over them during a build, and leave anything from nothing to the host's;
/// - times are cut to whole seconds and none is later than [`Normalise::clamp_mtime`];
/// - what was written, and every directory in which something was removed or added or the build
///   [changed](Normalise::changed) something, gets one time: the clamp, or else the newest time of any file or symlink that
///   was there before and is kept.
///
/// It is idempotent.
pub fn normalise(tree: &mut RootTree, options: &Normalise<'_>) {
    let mut touched: BTreeSet<TreePath> = options.changed.iter().cloned().collect();
    remove_leftovers(tree, &mut touched);
    empty_runtime_directories(tree, &mut touched);
    let written = if tree.get(&known("etc")).is_some_and(Inode::is_directory) {
        touched.insert(known("etc"));
        write_identity(tree, options.hostname)
    } else {
        Vec::new()
    };
    set_times(tree, options.clamp_mtime, &written, &touched);
}

fn known(path: &str) -> TreePath {
    TreePath::new(path).expect("the paths written here are clean")
}

fn remove(tree: &mut RootTree, path: &TreePath, touched: &mut BTreeSet<TreePath>) {
    if tree.remove(path) > 0 {
        touched.extend(path.parent());
    }
}

fn remove_leftovers(tree: &mut RootTree, touched: &mut BTreeSet<TreePath>) {
    let globs = LEFTOVERS.map(|glob| Glob::new(glob).expect("the patterns written here are valid"));
    for path in glob::matched(tree, &globs).0 {
        remove(tree, &path, touched);
    }
    // A symlink to /etc/machine-id is right; a copy would give every machine the same identity.
    let dbus = known("var/lib/dbus/machine-id");
    if tree.get(&dbus).is_some_and(|inode| !matches!(inode.kind, Kind::Symlink(_))) {
        remove(tree, &dbus, touched);
    }
}

fn empty_runtime_directories(tree: &mut RootTree, touched: &mut BTreeSet<TreePath>) {
    for (name, mode) in EMPTIED {
        let path = known(name);
        match tree.get(&path).map(|inode| &inode.kind) {
            Some(Kind::Symlink(_)) => continue,
            Some(Kind::Directory) => {
                let children: Vec<TreePath> = tree.subtree(&path).skip(1).map(|(child, _)| child.clone()).collect();
                for child in children {
                    tree.remove(&child);
                }
            }
            Some(_) => remove(tree, &path, touched),
            None => {}
        }
        if tree.get(&path).is_none() {
            let made = tree.insert(path.clone(), Inode::directory(mode));
            made.expect("the root is a directory and the name is free");
            touched.insert(TreePath::root());
        }
        if let Some(directory) = tree.get_mut(&path) {
            (directory.mode, directory.uid, directory.gid) = (mode, 0, 0);
        }
        touched.insert(path);
    }
}

/// Writes the files that identify a machine. Returns their paths.
fn write_identity(tree: &mut RootTree, hostname: Option<&str>) -> Vec<TreePath> {
    let mut hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_string();
    if let Some(name) = hostname {
        // Debian's convention: the machine's own name resolves without a network.
        hosts.push_str(&format!("127.0.1.1\t{name}\n"));
    }
    let hostname = format!("{}\n", hostname.unwrap_or("localhost"));
    // systemd replaces an empty machine-id at first boot; it is read-only, as systemd makes it.
    let files = [
        ("etc/hosts", hosts.as_str(), 0o644),
        ("etc/hostname", hostname.as_str(), 0o644),
        ("etc/resolv.conf", "", 0o644),
        ("etc/machine-id", "", 0o444),
    ];
    let mut written = Vec::new();
    for (name, content, mode) in files {
        let path = known(name);
        let body = tree.add_body(content.as_bytes());
        tree.remove(&path);
        let made = tree.insert(path.clone(), Inode::new(Kind::File(body), mode));
        made.expect("/etc is a directory and the name is free");
        written.push(path);
    }
    written
}

fn set_times(tree: &mut RootTree, clamp: Option<i64>, written: &[TreePath], touched: &BTreeSet<TreePath>) {
    let original = tree
        .entries()
        .filter(|entry| matches!(entry.inode.kind, Kind::File(_) | Kind::Symlink(_)) && !written.contains(entry.path));
    let newest = original.map(|entry| entry.inode.mtime.seconds).max();
    let time = clamp.or(newest).unwrap_or(0);
    for inode in tree.inodes_mut() {
        inode.mtime = Timestamp::from_seconds(inode.mtime.seconds.min(clamp.unwrap_or(i64::MAX)));
    }
    for path in written.iter().chain(touched) {
        if let Some(inode) = tree.get_mut(path) {
            inode.mtime = Timestamp::from_seconds(time);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::{Body, BodySource};
    use super::*;

    fn tree(names: &[&str]) -> RootTree {
        let mut tree = RootTree::new(BodySource::new(Vec::new()));
        for (name, seconds) in names.iter().zip(1000..) {
            let mut inode = match name.strip_suffix('/') {
                Some(_) => Inode::directory(0o700),
                None => Inode::new(Kind::File(Body::default()), 0o644),
            };
            inode.mtime = Timestamp { seconds, nanoseconds: 5 };
            tree.insert(known(name), inode).unwrap();
        }
        tree
    }

    fn show(tree: &RootTree) -> String {
        let line = |entry: super::super::tree::Entry<'_>| {
            let mut content = String::new();
            if let Kind::File(body) = &entry.inode.kind {
                for range in body.extents.as_slice() {
                    let mut bytes = vec![0; range.length as usize];
                    tree.bodies().read_exact_at(&mut bytes, range.source).unwrap();
                    content = format!(" {:?}", String::from_utf8(bytes).unwrap());
                }
            }
            let Timestamp { seconds, nanoseconds } = entry.inode.mtime;
            format!("{:04o} {seconds}.{nanoseconds} {}{content}", entry.inode.mode, entry.path)
        };
        tree.entries().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn what_engines_leave_behind_is_gone() {
        let mut tree = tree(&[
            ".dockerenv",
            "bin/sh",
            "dev/console",
            "etc/.pwd.lock",
            "etc/hosts",
            "etc/passwd",
            "etc/passwd-",
            "etc/ssh/ssh_host_rsa_key.pub",
            "etc/ssh/sshd_config",
            "proc/1/status",
            "run/.containerenv",
            "tmp/x/",
            "var/cache/apt/archives/partial/",
            "var/cache/apt/archives/a.deb",
            "var/lib/apt/lists/partial/",
            "var/lib/apt/lists/archive_Release",
            "var/lib/dbus/machine-id",
            "var/lib/dpkg/status",
            "var/lib/dpkg/status-old",
            "var/log/apt/term.log",
            "var/log/dpkg.log",
            "var/log/wtmp",
        ]);
        normalise(&mut tree, &Normalise { hostname: Some("claw"), ..Normalise::default() });
        let once = show(&tree);
        insta::assert_snapshot!(once);
        normalise(&mut tree, &Normalise { hostname: Some("claw"), ..Normalise::default() });
        assert_eq!(show(&tree), once);
    }

    #[test]
    fn no_time_is_later_than_the_clamp() {
        let mut tree = tree(&["a", "b", "etc/hosts"]);
        normalise(&mut tree, &Normalise { clamp_mtime: Some(1000), ..Normalise::default() });
        assert!(tree.entries().all(|entry| entry.inode.mtime <= Timestamp::from_seconds(1000)), "{}", show(&tree));
        assert!(show(&tree).contains(r#"/etc/hostname "localhost\n""#));
    }

    #[test]
    fn directories_that_the_build_changed_get_the_newest_time_of_a_file() {
        let mut tree = tree(&["old", "new", "changed/", "kept/", "etc/"]);
        normalise(&mut tree, &Normalise { changed: &[known("changed"), known("missing")], ..Normalise::default() });
        let time = |path: &str| tree.get(&known(path)).unwrap().mtime.seconds;
        assert_eq!((time("changed"), time("kept"), time("etc")), (1001, 1003, 1001));
    }

    #[test]
    fn a_tree_without_etc_gets_none_and_a_symlink_is_left_alone() {
        let mut tree = tree(&["tmp"]);
        tree.insert(known("run"), Inode::new(Kind::Symlink(b"var/run".as_slice().into()), 0o777)).unwrap();
        normalise(&mut tree, &Normalise::default());
        let names: Vec<String> =
            tree.entries().map(|entry| format!("{} {}", entry.path, entry.inode.kind.noun())).collect();
        assert_eq!(
            names,
            ["/ directory", "/dev directory", "/proc directory", "/run symlink", "/sys directory", "/tmp directory"]
        );
    }
}
