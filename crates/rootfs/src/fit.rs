//! What a filesystem can hold, as data, and bringing a tree within it.
//!
//! [`fit`] leaves out what the filesystem cannot hold and moves times to the nearest that it can, and counts each kind
//! ([`Adjustments`]). What cannot be left out without breaking the tree is an error ([`Unfit`]) that names the path. Both are
//! known before anything is written. All of it is decided from the tree and the limits alone, so that the same tree always
//! loses the same.

use std::cmp::Reverse;
use std::ops::RangeInclusive;

use super::acl::{self, Acl};
use super::adjustments::{Adjustment, Adjustments};
use super::tar::EntryName;
use super::tree::{Inode, InodeId, Kind, RootTree, Timestamp, TreePath, XATTR_NAME_MAX, XATTR_VALUE_MAX, Xattrs};

/// The namespace that the kernel shows of files and directories only (`xattr_permission` in `fs/xattr.c`).
const USER: &[u8] = b"user.";

/// What a type of filesystem, and the program that writes it, can hold of a tree.
#[derive(Debug, Clone)]
pub struct FilesystemLimits {
    /// The type, for messages: `ext4`.
    pub name: &'static str,
    /// Modification times, in seconds since 1970.
    pub times: RangeInclusive<i64>,
    /// From this second on times have nanoseconds; earlier ones have whole seconds only.
    pub nanoseconds_since: i64,
    /// Beginnings of the names of extended attributes, access control lists aside.
    pub xattr_namespaces: &'static [&'static [u8]],
    /// Whether extended attributes of one inode, each within Linux's own limits, fit together. Without some of them they always
    /// do where they did with them.
    pub xattrs_fit: fn(&Xattrs) -> bool,
    /// Whether there are POSIX access control lists.
    pub acls: bool,
    /// Whether there are sockets.
    pub sockets: bool,
    /// Bytes of the largest file.
    pub file_bytes: u64,
    /// Names of one inode that is no directory.
    pub links: u32,
    /// Bytes of all holes together, where they are written out as zeros on the way.
    pub hole_bytes: u64,
}

/// Bytes of all holes of a tree together that are written out as zeros, for programs that read no sparse tar: what takes a
/// quarter of an hour at the 300 MB/s of tar2sqfs. A file of 8 EiB, which takes nothing to make, would never end.
pub const HOLES_WRITTEN_OUT_MAX: u64 = 256 << 30;

/// Why a tree cannot be brought within the limits of a filesystem.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// A file is too large.
    #[error(
        "{path}: a file of {size} bytes is larger than the {limit} that {filesystem} can hold\n\
         hint: make it smaller, or leave it out of the tree"
    )]
    File {
        /// The file.
        path: TreePath,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
        /// The type of filesystem.
        filesystem: &'static str,
    },
    /// The holes of the tree are too large to be written out.
    #[error(
        "{path}: holes of {holes} bytes, all up to this file together, are more than the {limit} that are written out as zeros \
         for {program}\n\
         hint: leave such files out of the tree (`exclude` in a spec), or write ext4, which has holes"
    )]
    Holes {
        /// The file with which the limit is exceeded.
        path: TreePath,
        /// Bytes of holes so far.
        holes: u64,
        /// The limit in bytes.
        limit: u64,
        /// What reads the zeros.
        program: &'static str,
    },
    /// An inode has too many names.
    #[error(
        "{path}: {links} hard links are more than the {limit} that {filesystem} can hold\n\
         hint: make some of them files of their own, or write squashfs or erofs, which hold 2^32 - 1"
    )]
    Links {
        /// The first name of the inode.
        path: TreePath,
        /// The number of its names.
        links: u32,
        /// The limit.
        limit: u32,
        /// The type of filesystem.
        filesystem: &'static str,
    },
}

/// Brings `tree` within `limits`. Returns what it took. Doing it twice changes nothing more.
///
/// # Errors
///
/// [`Unfit`], where something cannot be left out; the tree is unchanged then.
pub fn fit(tree: &mut RootTree, limits: &FilesystemLimits) -> Result<Adjustments, Unfit> {
    let mut fitter = Fitter { limits, adjustments: Adjustments::default() };
    let links = tree.link_counts();
    let mut changes: Vec<(InodeId, Timestamp, Option<Xattrs>)> = Vec::new();
    let mut sockets = Vec::new();
    check_holes(tree, limits.hole_bytes, limits.name)?;
    for entry in tree.entries() {
        if entry.inode.kind == Kind::Socket && !limits.sockets {
            fitter.note(Adjustment::Socket, || entry.path.to_string());
            sockets.push(entry.path.clone());
            continue;
        }
        if entry.hard_link_to.is_some() {
            continue;
        }
        fitter.check(entry.path, entry.inode, links[RootTree::slot(entry.id)])?;
        let time = fitter.time(entry.path, entry.inode.mtime);
        let xattrs = fitter.xattrs(entry.path, entry.inode);
        if time != entry.inode.mtime || xattrs.is_some() {
            changes.push((entry.id, time, xattrs));
        }
    }
    for (id, time, xattrs) in changes {
        let inode = tree.inode_mut(id);
        inode.mtime = time;
        if let Some(xattrs) = xattrs {
            let left_out = inode.xattrs.get(acl::ACCESS).filter(|_| !xattrs.contains_key(acl::ACCESS));
            // Else the owning group would get what the list grants to others by name.
            if let Some(acl) = left_out.and_then(|value| Acl::from_xattr(value)) {
                inode.set_permissions(acl.mode_without());
            }
            inode.xattrs = xattrs;
        }
    }
    for path in &sockets {
        tree.remove(path);
    }
    Ok(fitter.adjustments)
}

/// Checks that the holes of `tree` have no more than `limit` bytes together, before `program` is given them as zeros.
///
/// # Errors
///
/// [`Unfit::Holes`].
pub fn check_holes(tree: &RootTree, limit: u64, program: &'static str) -> Result<(), Unfit> {
    let mut holes = 0_u64;
    for entry in tree.entries().filter(|entry| entry.hard_link_to.is_none()) {
        if let Kind::File(body) = &entry.inode.kind {
            holes = holes.saturating_add(body.hole_bytes());
            if holes > limit {
                return Err(Unfit::Holes { path: entry.path.clone(), holes, limit, program });
            }
        }
    }
    Ok(())
}

/// Leaves out the sockets of `tree`, and counts them in its [adjustments](RootTree::adjustments): no tar holds them, and a
/// program makes its own when it starts.
pub fn leave_out_sockets(tree: &mut RootTree) {
    let sockets = tree.entries().filter(|entry| entry.inode.kind == Kind::Socket);
    let sockets: Vec<TreePath> = sockets.map(|entry| entry.path.clone()).collect();
    for path in &sockets {
        tree.note(Adjustment::Socket, || path.to_string());
        tree.remove(path);
    }
}

struct Fitter<'a> {
    limits: &'a FilesystemLimits,
    adjustments: Adjustments,
}

impl Fitter<'_> {
    fn note(&mut self, kind: Adjustment, first: impl FnOnce() -> String) {
        self.adjustments.note_for(self.limits.name, kind, first);
    }

    fn check(&self, path: &TreePath, inode: &Inode, links: u32) -> Result<(), Unfit> {
        let FilesystemLimits { name: filesystem, file_bytes, links: most, .. } = *self.limits;
        match &inode.kind {
            Kind::File(body) if body.size > file_bytes => {
                Err(Unfit::File { path: path.clone(), size: body.size, limit: file_bytes, filesystem })
            }
            kind if *kind != Kind::Directory && links > most => {
                Err(Unfit::Links { path: path.clone(), links, limit: most, filesystem })
            }
            _ => Ok(()),
        }
    }

    fn time(&mut self, path: &TreePath, time: Timestamp) -> Timestamp {
        let (first, last) = (*self.limits.times.start(), *self.limits.times.end());
        if time.seconds < first || time.seconds > last {
            self.note(Adjustment::TimeRange, || format!("{path}, of @{}", time.seconds));
            return Timestamp::from_seconds(time.seconds.clamp(first, last));
        }
        if time.nanoseconds > 0 && time.seconds < self.limits.nanoseconds_since {
            self.note(Adjustment::TimeResolution, || format!("{path}, of @{}.{:09}", time.seconds, time.nanoseconds));
            return Timestamp::from_seconds(time.seconds);
        }
        time
    }

    /// Returns the attributes that can be kept; `None` if these are all.
    fn xattrs(&mut self, path: &TreePath, inode: &Inode) -> Option<Xattrs> {
        if inode.xattrs.is_empty() {
            return None;
        }
        let mut kept = Xattrs::new();
        for (name, value) in &inode.xattrs {
            match self.refusal(inode, name, value) {
                None => drop(kept.insert(name.clone(), value.clone())),
                Some((kind, by_linux)) => {
                    let first = || example(name, path);
                    match by_linux {
                        true => self.adjustments.note(kind, first),
                        false => self.note(kind, first),
                    }
                }
            }
        }
        if !(self.limits.xattrs_fit)(&kept) {
            kept = self.smallest(path, kept);
        }
        (kept.len() < inode.xattrs.len()).then_some(kept)
    }

    /// Returns those of too many attributes that have room together. The largest are left out first: the small ones are those
    /// that a machine depends on (capabilities, labels), and most are kept. An archive may have a million of them.
    fn smallest(&mut self, path: &TreePath, xattrs: Xattrs) -> Xattrs {
        let mut largest_first = Vec::from_iter(xattrs);
        // Of equal ones the first by name.
        largest_first.sort_by_key(|(name, value)| Reverse(name.len() + value.len()));
        let without = |count: usize| -> Xattrs { largest_first[count..].iter().cloned().collect() };
        // Fewer attributes never take more room: how many are left out can be searched for.
        let (mut too_few, mut enough) = (0, largest_first.len());
        while enough - too_few > 1 {
            let half = too_few + (enough - too_few) / 2;
            match (self.limits.xattrs_fit)(&without(half)) {
                true => enough = half,
                false => too_few = half,
            }
        }
        for (name, _) in &largest_first[..enough] {
            self.note(Adjustment::XattrSize, || example(name, path));
        }
        without(enough)
    }

    /// Returns why an attribute cannot be kept, if that does not depend on the others, and whether it is a limit of Linux.
    fn refusal(&self, inode: &Inode, name: &[u8], value: &[u8]) -> Option<(Adjustment, bool)> {
        if name.len() > XATTR_NAME_MAX || name.contains(&0) {
            return Some((Adjustment::XattrName, true));
        }
        if value.len() > XATTR_VALUE_MAX {
            return Some((Adjustment::XattrSize, true));
        }
        if name == acl::ACCESS || name == acl::DEFAULT {
            let takes = match inode.kind {
                Kind::Symlink(_) => false,
                Kind::Directory => true,
                _ => name == acl::ACCESS,
            };
            return if !self.limits.acls {
                Some((Adjustment::AclUnsupported, false))
            } else if !takes || Acl::from_xattr(value).is_none() {
                Some((Adjustment::AclInvalid, true))
            } else {
                None
            };
        }
        let known = |namespace: &&[u8]| name.len() > namespace.len() && name.starts_with(namespace);
        if !self.limits.xattr_namespaces.iter().any(known) {
            return Some((Adjustment::XattrName, false));
        }
        if name.starts_with(USER) && !matches!(inode.kind, Kind::File(_) | Kind::Directory) {
            return Some((Adjustment::XattrOfType, true));
        }
        None
    }
}

/// Describes an attribute.
fn example(name: &[u8], path: &TreePath) -> String {
    format!("{} of {path}", EntryName::new(name))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::tree::{Body, BodySource};
    use super::*;

    /// Room for the bytes of one large attribute, and for few small ones.
    const SMALL: FilesystemLimits = FilesystemLimits {
        hole_bytes: u64::MAX,
        name: "smallfs",
        times: 0..=1000,
        nanoseconds_since: 500,
        xattr_namespaces: &[b"user.", b"security."],
        xattrs_fit: |xattrs| xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() <= 100,
        acls: true,
        sockets: true,
        file_bytes: 10,
        links: 2,
    };

    fn tree() -> RootTree {
        RootTree::new(BodySource::new(Vec::new()))
    }

    fn path(text: &str) -> TreePath {
        TreePath::new(text).unwrap()
    }

    fn file() -> Inode {
        Inode::new(Kind::File(Body::default()), 0o644)
    }

    fn with(mut inode: Inode, xattrs: &[(&str, &[u8])]) -> Inode {
        inode.xattrs = xattrs.iter().map(|(name, value)| (name.as_bytes().into(), (*value).into())).collect();
        inode
    }

    fn names(tree: &RootTree, of: &str) -> Vec<String> {
        tree.get(&path(of)).unwrap().xattrs.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    }

    /// A valid list: version 2; owner rw, owning group r, others r.
    const ACL: &[u8] =
        b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x04\0\x04\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";

    #[test]
    fn holes_that_would_be_written_out_are_bounded_and_others_are_not() {
        let mut tree = RootTree::new(BodySource::new(Vec::new()));
        for name in ["first", "second"] {
            let hole = Kind::File(Body { size: 300, ..Body::default() });
            tree.insert(TreePath::new(name).unwrap(), Inode::new(hole, 0o644)).unwrap();
        }
        let limits = |hole_bytes| FilesystemLimits { hole_bytes, file_bytes: 1000, ..SMALL };
        assert!(fit(&mut tree, &limits(600)).is_ok());
        let error = fit(&mut tree, &limits(599)).unwrap_err().to_string();
        assert!(error.starts_with("/second: holes of 600 bytes") && error.contains("\nhint: "), "{error}");
    }

    #[test]
    fn a_tree_within_the_limits_stays_as_it_is() {
        let mut tree = tree();
        let mut inode = with(file(), &[("user.a", b"1"), ("system.posix_acl_access", ACL)]);
        inode.mtime = Timestamp { seconds: 500, nanoseconds: 1 };
        tree.insert(path("f"), inode.clone()).unwrap();
        tree.insert(path("socket"), Inode::new(Kind::Socket, 0o600)).unwrap();
        assert_eq!(fit(&mut tree, &SMALL), Ok(Adjustments::default()));
        assert_eq!(tree.get(&path("f")), Some(&inode));
        assert_eq!(tree.len(), 3);
    }

    #[test]
    fn what_cannot_be_held_is_left_out_moved_or_cut_and_told_once_a_kind() {
        let mut tree = tree();
        let long = format!("user.{}", "n".repeat(251));
        let attributes: &[(&str, &[u8])] = &[
            ("com.apple.provenance", b"1"),
            ("btrfs.compression", b"zstd"),
            ("user.", b"no name"),
            (&long, b"too long"),
            ("system.nfs4_acl", b""),
            ("system.posix_acl_access", b"damaged"),
            ("system.posix_acl_default", ACL),
            ("user.large", &[b'v'; 90]),
            ("user.larger", &[b'v'; 91]),
            ("user.huge", &[b'v'; XATTR_VALUE_MAX + 1]),
            ("security.capability", b"small"),
        ];
        for (name, seconds, nanoseconds) in
            [("a", -1, 999_999_999), ("b", 1001, 0), ("c", 499, 1), ("d", i64::MAX, 7), ("e", 1000, 1)]
        {
            let mut inode = with(file(), attributes);
            inode.mtime = Timestamp { seconds, nanoseconds };
            tree.insert(path(name), inode).unwrap();
        }
        tree.link(path("z"), &path("a")).unwrap();
        let link = Inode::new(Kind::Symlink(b"a".as_slice().into()), 0o777);
        let on_link: &[(&str, &[u8])] =
            &[("user.note", b""), ("security.selinux", b"x"), ("system.posix_acl_access", ACL)];
        tree.insert(path("link"), with(link, on_link)).unwrap();
        tree.insert(path("socket"), Inode::new(Kind::Socket, 0o600)).unwrap();
        let limits = FilesystemLimits { sockets: false, ..SMALL };
        let told = fit(&mut tree, &limits).unwrap();
        insta::assert_snapshot!(told, @r"
        11 invalid access control lists were left out; the first is `system.posix_acl_access` of /a
        5 extended attributes were left out, since Linux cannot hold their names; the first is `user.nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn…nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn` of /a
        20 extended attributes were left out, since smallfs cannot hold their names; the first is `btrfs.compression` of /a
        1 extended attribute `user.*` of something else than a file or directory was left out, since Linux does not show it: `user.note` of /link
        5 extended attributes were left out, since Linux has no room for them; the first is `user.huge` of /a
        10 extended attributes were left out, since smallfs has no room for them; the first is `user.larger` of /a
        3 modification times were moved to the nearest that smallfs can hold; the first is /a, of @-1
        1 modification time was cut to whole seconds, which is all that smallfs holds of it: /c, of @499.000000001
        1 socket was left out, since nothing writes them to smallfs: /socket
        ");
        assert_eq!(names(&tree, "a"), ["security.capability"]);
        assert_eq!(names(&tree, "link"), ["security.selinux"]);
        assert_eq!(tree.get(&path("link")).unwrap().mode, 0o777);
        let times: Vec<Timestamp> = ["a", "b", "c", "d", "e"].map(|name| tree.get(&path(name)).unwrap().mtime).to_vec();
        let cut = [0, 1000, 499, 1000].map(Timestamp::from_seconds);
        assert_eq!(times[..4], cut);
        assert_eq!(times[4], Timestamp { seconds: 1000, nanoseconds: 1 });
        assert!(tree.get(&path("socket")).is_none());
        // Doing it again changes nothing.
        assert_eq!(fit(&mut tree, &limits), Ok(Adjustments::default()));
    }

    #[test]
    fn how_many_attributes_are_left_out_is_found_in_few_attempts() {
        static ATTEMPTS: AtomicUsize = AtomicUsize::new(0);
        let limits = FilesystemLimits {
            xattrs_fit: |xattrs| {
                ATTEMPTS.fetch_add(1, Ordering::Relaxed);
                (SMALL.xattrs_fit)(xattrs)
            },
            ..SMALL
        };
        let mut tree = tree();
        let mut inode = file();
        inode.xattrs = (0..5000).map(|number| (format!("user.{number:05}").into_bytes().into(), [].into())).collect();
        tree.insert(path("f"), inode).unwrap();
        let told = fit(&mut tree, &limits).unwrap();
        // Ten bytes each: of equal ones those with the first names go.
        assert_eq!(
            told.iter().map(|told| (told.count, told.first.as_str())).next(),
            Some((4990, "`user.00000` of /f"))
        );
        assert_eq!(names(&tree, "f"), (4990..5000).map(|number| format!("user.{number:05}")).collect::<Vec<_>>());
        assert!(ATTEMPTS.load(Ordering::Relaxed) <= 15);
    }

    #[test]
    fn without_access_control_lists_they_are_told_as_such() {
        let mut tree = tree();
        let xattrs: &[(&str, &[u8])] = &[("system.posix_acl_access", ACL), ("system.posix_acl_default", ACL)];
        tree.insert(path("d"), with(Inode::directory(0o2764), xattrs)).unwrap();
        let told = fit(&mut tree, &FilesystemLimits { acls: false, ..SMALL }).unwrap();
        insta::assert_snapshot!(told, @"2 access control lists were left out, since smallfs holds none; the first is `system.posix_acl_access` of /d");
        assert!(names(&tree, "d").is_empty());
        // The group's bits were the mask of the list.
        assert_eq!(tree.get(&path("d")).unwrap().mode, 0o2644);
    }

    #[test]
    fn what_cannot_be_left_out_is_an_error_and_changes_nothing() {
        let mut tree = tree();
        tree.insert(path("a"), with(file(), &[("com.apple.x", b"")])).unwrap();
        tree.insert(path("large"), Inode::new(Kind::File(Body { size: 11, ..Body::default() }), 0o644)).unwrap();
        insta::assert_snapshot!(fit(&mut tree, &SMALL).unwrap_err(), @r"
        /large: a file of 11 bytes is larger than the 10 that smallfs can hold
        hint: make it smaller, or leave it out of the tree
        ");
        assert_eq!(names(&tree, "a"), ["com.apple.x"]);
        tree.remove(&path("large"));
        tree.link(path("b"), &path("a")).unwrap();
        tree.link(path("c"), &path("a")).unwrap();
        insta::assert_snapshot!(fit(&mut tree, &SMALL).unwrap_err(), @r"
        /a: 3 hard links are more than the 2 that smallfs can hold
        hint: make some of them files of their own, or write squashfs or erofs, which hold 2^32 - 1
        ");
    }
}
