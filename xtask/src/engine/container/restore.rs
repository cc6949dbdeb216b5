//! Restores, from the base's tree, what docker's and podman's export loses.
//!
//! Measured on docker 20.10 and podman 4.3: an export has no entry for the root directory; docker keeps no extended
//! attribute but `security.capability`, podman also `user.*`; times before 1970 become 1970; both add files of their own.
//! Holes become zeros, which the reader of the export leaves out again. What the steps did not change gets the base's values back. Changes that steps make to such an
//! attribute cannot be seen in the export; attributes of `[[file]]` are applied after this.
//!
//! One thing cannot be restored, since the export does not tell what a step meant: where it writes to one name of a hard link that the
//! base or an earlier step made, an overlay copies the file, and the other names keep the old one.
//! And one change is lost: docker lays an `/etc/mtab` of its own over every step's, so that only the base's comes back.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use snug_rootfs::regular_file;
use snug_rootfs::tree::{BodySource, Inode, Kind, RootTree, Timestamp, TreePath};
use snug_sandbox::{POLICY_PATH, POLICY_SCRIPT};

use super::{is_device, wants_policy};
use crate::plan::EngineKind;

/// Bytes of a file that are compared at a time.
const BUFFER: u64 = 1 << 20;

/// Files that both engines mount over during a build, and leave as empty files in an `/etc` that they created for it.
const ETC_OF_ENGINES: [&str; 4] = ["hosts", "hostname", "mtab", "resolv.conf"];

pub(super) fn restore(tree: &mut RootTree, base: &RootTree, engine: EngineKind) -> Result<()> {
    remove_additions(tree, base);
    lift_policy(tree, base);
    restore_root(tree, base);
    restore_devices(tree, base);
    restore_lost(tree, base, engine)
}

fn known(path: &str) -> TreePath {
    TreePath::new(path).expect("the paths written here are clean")
}

fn remove_additions(tree: &mut RootTree, base: &RootTree) {
    tree.remove(&known(".dockerenv"));
    let mtab = known("etc/mtab");
    let is_dockers =
        tree.get(&mtab).is_some_and(|inode| matches!(&inode.kind, Kind::Symlink(to) if &**to == b"/proc/mounts"));
    if is_dockers {
        tree.remove(&mtab);
        // A link, since docker leaves a file alone.
        if let (Some(link), Some(place)) = (base.get(&mtab), tree.get(&known("etc")))
            && place.is_directory()
            && matches!(link.kind, Kind::Symlink(_))
        {
            tree.insert(mtab, link.clone()).expect("/etc is a directory and the name is free");
        }
    }
    let etc = known("etc");
    if base.get(&etc).is_none() {
        let of_engines: Vec<TreePath> = ETC_OF_ENGINES.iter().filter_map(|name| etc.join(name.as_bytes())).collect();
        if tree.subtree(&etc).skip(1).all(|(path, _)| of_engines.contains(path)) {
            tree.remove(&etc);
        }
    }
}

/// Removes our `policy-rc.d`, unless a step changed it.
fn lift_policy(tree: &mut RootTree, base: &RootTree) {
    let path = tree.resolve(&known(POLICY_PATH));
    if let Some(path) = path.filter(|_| wants_policy(base))
        && let Ok(Some(text)) = regular_file::read_from_tree(tree, &path, POLICY_SCRIPT.len() as u64)
        && text == POLICY_SCRIPT.as_bytes()
    {
        tree.remove(&path);
    }
}

/// Restores the root directory's attributes; its time only if no entry was created in it or removed.
fn restore_root(tree: &mut RootTree, base: &RootTree) {
    let root = TreePath::root();
    let names = |tree: &RootTree| -> Vec<TreePath> {
        let inside = tree.entries().map(|entry| entry.path);
        inside.filter(|path| path.parent().is_some_and(|parent| parent.is_root())).cloned().collect()
    };
    let mut inode = base.get(&root).cloned().unwrap_or_else(|| Inode::directory(0o755));
    if names(tree) != names(base) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        inode.mtime = Timestamp::from_seconds(now.as_secs() as i64);
    }
    if let Some(there) = tree.get_mut(&root) {
        *there = inode;
    }
}

/// Puts device nodes back where steps left the empty file that stood in for one.
fn restore_devices(tree: &mut RootTree, base: &RootTree) {
    for entry in base.entries().filter(|entry| is_device(&entry.inode.kind)) {
        if let Some(there) = tree.get_mut(entry.path)
            && matches!(&there.kind, Kind::File(body) if body.size == 0)
        {
            there.kind = entry.inode.kind.clone();
        }
    }
}

fn restore_lost(tree: &mut RootTree, base: &RootTree, engine: EngineKind) -> Result<()> {
    for entry in base.entries().filter(|entry| !entry.path.is_root()) {
        let lost: Vec<_> = entry.inode.xattrs.iter().filter(|(name, _)| !is_carried(engine, name)).collect();
        let before_1970 = entry.inode.mtime.seconds < 0;
        if lost.is_empty() && !before_1970 {
            continue;
        }
        let Some(there) = tree.get(entry.path) else { continue };
        if !same(&there.kind, tree.bodies(), &entry.inode.kind, base.bodies())? {
            continue;
        }
        let Some(there) = tree.get_mut(entry.path) else { continue };
        there.xattrs.extend(lost.into_iter().map(|(name, value)| (name.clone(), value.clone())));
        if before_1970 && there.mtime.seconds == 0 {
            there.mtime = entry.inode.mtime;
        }
    }
    Ok(())
}

/// Whether the engine's import and export keep this attribute. If so, one that is missing was removed by a step.
fn is_carried(engine: EngineKind, name: &[u8]) -> bool {
    name == b"security.capability" || (engine == EngineKind::Podman && name.starts_with(b"user."))
}

/// Whether two inodes have the same type and content.
fn same(ours: &Kind, our_bodies: &BodySource, theirs: &Kind, their_bodies: &BodySource) -> Result<bool> {
    let (ours, theirs) = match (ours, theirs) {
        (Kind::File(ours), Kind::File(theirs)) => (ours, theirs),
        _ => return Ok(ours == theirs),
    };
    if ours.size != theirs.size {
        return Ok(false);
    }
    let (mut left, mut right) = (Vec::new(), Vec::new());
    // Where neither has data, both are zeros.
    for run in ours.runs().chain(theirs.runs()) {
        let mut at = run.start;
        while at < run.end {
            let length = usize::try_from(BUFFER.min(run.end - at))?;
            left.resize(length, 0);
            right.resize(length, 0);
            our_bodies.read_body_at(&mut left, ours, at)?;
            their_bodies.read_body_at(&mut right, theirs, at)?;
            if left != right {
                return Ok(false);
            }
            at += length as u64;
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use snug_rootfs::tree::{Body, DataRange};

    use super::*;

    /// `name`, content, attribute, seconds.
    type File = (&'static str, &'static str, Option<(&'static str, &'static str)>, i64);

    fn tree(files: &[File]) -> RootTree {
        let mut tree = RootTree::new(BodySource::new(Vec::new()));
        for (name, content, xattr, seconds) in files {
            let mut inode = Inode::new(Kind::File(tree.add_body(content.as_bytes())), 0o644);
            inode.mtime = Timestamp::from_seconds(*seconds);
            inode.xattrs.extend(xattr.map(|(name, value)| (name.as_bytes().into(), value.as_bytes().into())));
            tree.insert(known(name), inode).unwrap();
        }
        tree
    }

    fn xattr(tree: &RootTree, name: &str) -> Vec<String> {
        let names = tree.get(&known(name)).unwrap().xattrs.keys();
        names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    }

    #[test]
    fn what_steps_left_alone_gets_its_attributes_back_and_nothing_else_does() {
        let mut base = tree(&[
            ("srv/kept", "same", Some(("user.note", "1")), -5),
            ("srv/changed", "before", Some(("user.note", "1")), -5),
            ("srv/able", "same", Some(("security.capability", "x")), 9),
            ("srv/gone", "same", Some(("user.note", "1")), 9),
        ]);
        for name in ["srv/tape", "srv/written"] {
            base.insert(known(name), Inode::new(Kind::CharacterDevice { major: 9, minor: 1 }, 0o600)).unwrap();
        }
        let exported = tree(&[
            ("srv/kept", "same", None, 0),
            ("srv/changed", "after!", None, 7),
            ("srv/able", "same", None, 9),
            ("srv/tape", "", None, 9),
            ("srv/written", "by a step", None, 9),
            (".dockerenv", "", None, 9),
            ("etc/hosts", "", None, 9),
        ]);
        let mut docker = exported.clone();
        restore(&mut docker, &base, EngineKind::Docker).unwrap();
        assert_eq!(xattr(&docker, "srv/kept"), ["user.note"]);
        let kind = |name: &str| docker.get(&known(name)).unwrap().kind.noun();
        assert_eq!((kind("srv/tape"), kind("srv/written")), ("character device", "file"));
        assert_eq!(docker.get(&known("srv/kept")).unwrap().mtime.seconds, -5);
        assert_eq!(docker.get(&known("srv/changed")).unwrap().mtime.seconds, 7);
        assert!(xattr(&docker, "srv/changed").is_empty());
        // docker carries capabilities: a step took this one away.
        assert!(xattr(&docker, "srv/able").is_empty());
        assert!(docker.get(&known(".dockerenv")).is_none() && docker.get(&known("etc")).is_none());
        let mut podman = exported;
        restore(&mut podman, &base, EngineKind::Podman).unwrap();
        assert!(xattr(&podman, "srv/kept").is_empty());
    }

    #[test]
    fn dockers_mtab_makes_way_for_the_bases() {
        let link = |target: &str| Inode::new(Kind::Symlink(target.as_bytes().into()), 0o777);
        let with = |target: &str| {
            let mut tree = tree(&[("etc/passwd", "", None, 1)]);
            tree.insert(known("etc/mtab"), link(target)).unwrap();
            tree
        };
        let restored = |base: &RootTree| {
            let mut tree = with("/proc/mounts");
            restore(&mut tree, base, EngineKind::Docker).unwrap();
            tree.get(&known("etc/mtab")).map(|inode| inode.kind.clone())
        };
        assert_eq!(restored(&with("../proc/mounts")), Some(link("../proc/mounts").kind));
        assert_eq!(restored(&tree(&[("etc/passwd", "", None, 1)])), None);
    }

    #[test]
    fn the_root_is_the_bases_and_young_only_where_something_was_made_in_it() {
        let mut base = tree(&[("a/x", "", None, 1)]);
        let root = base.get_mut(&TreePath::root()).unwrap();
        (root.mode, root.mtime) = (0o711, Timestamp::from_seconds(11));
        let mut same = tree(&[("a/x", "", None, 1), ("a/y", "", None, 1)]);
        restore(&mut same, &base, EngineKind::Docker).unwrap();
        let root = same.get(&TreePath::root()).unwrap();
        assert_eq!((root.mode, root.mtime.seconds), (0o711, 11));
        let mut more = tree(&[("a/x", "", None, 1), ("b/y", "", None, 1)]);
        restore(&mut more, &base, EngineKind::Docker).unwrap();
        assert!(more.get(&TreePath::root()).unwrap().mtime.seconds > 11);
    }

    #[test]
    fn contents_are_the_same_however_their_holes_are_stated() {
        let extents = Some(DataRange { offset: 1 << 40, length: 4, source: 4 }).into_iter().collect();
        let sparse = |size| Kind::File(Body { size, extents });
        let sparse: [Kind; 2] = {
            let size = (1 << 40) + 4;
            let one = sparse(size);
            [one.clone(), one]
        };
        let (tail, other) = (BodySource::new(b"....tail".to_vec()), BodySource::new(b"....tale".to_vec()));
        assert!(same(&sparse[0], &tail, &sparse[1], &tail).unwrap());
        assert!(!same(&sparse[0], &tail, &sparse[1], &other).unwrap());
        let hole = Kind::File(Body { size: (1 << 40) + 4, ..Body::default() });
        assert!(!same(&hole, &tail, &sparse[1], &tail).unwrap() && !same(&sparse[0], &tail, &hole, &tail).unwrap());
        let content = [vec![0; 4096], b"tail".to_vec()].concat();
        let extents = Some(DataRange { offset: 4096, length: 4, source: 4 }).into_iter().collect();
        let stated = Kind::File(Body { size: 4100, extents });
        let plain = Kind::File(Body::contiguous(4100, 0));
        assert!(same(&plain, &BodySource::new(content), &stated, &tail).unwrap());
    }
}
