//! Compares the expected tree with the tree that an image holds.

use std::collections::BTreeSet;
use std::fmt;

use snug_rootfs::listing::{Content, Listing, Record};
use snug_rootfs::tree::{Inode, Kind, Timestamp, TreePath};

use super::verdict::Finding;

/// A property of an inode that a reader may not be able to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Property {
    Bodies,
    Xattrs,
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Property::Bodies => "contents of files",
            Property::Xattrs => "extended attributes",
        })
    }
}

/// Returns the differences between `found` and `meant`, ordered by path, without those in `unseen` properties.
pub(super) fn differences(meant: &Listing, found: &Listing, unseen: &BTreeSet<Property>) -> Vec<Finding> {
    let mut differences = Vec::new();
    let names: BTreeSet<&TreePath> = meant.records.keys().chain(found.records.keys()).collect();
    for path in names {
        let mut say = |what: String| differences.push(Finding { place: path.to_string(), what });
        match (meant.records.get(path), found.records.get(path)) {
            (Some(meant), None) => say(format!("this {} is missing", meant.inode.kind.noun())),
            (None, Some(found)) => say(format!("this {} does not belong here", found.inode.kind.noun())),
            (Some(meant), Some(found)) => of_records(meant, found, unseen, &mut say),
            (None, None) => {}
        }
    }
    differences
}

fn of_records(meant: &Record, found: &Record, unseen: &BTreeSet<Property>, say: &mut dyn FnMut(String)) {
    if meant.hard_link_to != found.hard_link_to {
        let described = |link: &Option<TreePath>| match link {
            Some(first) => format!("a hard link to {first}"),
            None => "an inode of its own".to_owned(),
        };
        say(format!("{} instead of {}", described(&found.hard_link_to), described(&meant.hard_link_to)));
    }
    of_inodes(&meant.inode, &found.inode, unseen, say);
}

fn of_inodes(meant: &Inode<Content>, found: &Inode<Content>, unseen: &BTreeSet<Property>, say: &mut dyn FnMut(String)) {
    let sees = |property| !unseen.contains(&property);
    of_kinds(&meant.kind, &found.kind, unseen, say);
    if meant.mode != found.mode {
        say(format!("mode {:04o} instead of {:04o}", found.mode, meant.mode));
    }
    if (meant.uid, meant.gid) != (found.uid, found.gid) {
        say(format!("owner {}:{} instead of {}:{}", found.uid, found.gid, meant.uid, meant.gid));
    }
    if meant.mtime != found.mtime {
        say(format!("modified at {} instead of {}", seconds(found.mtime), seconds(meant.mtime)));
    }
    if sees(Property::Xattrs) {
        of_xattrs(meant, found, say);
    }
}

fn of_kinds(meant: &Kind<Content>, found: &Kind<Content>, unseen: &BTreeSet<Property>, say: &mut dyn FnMut(String)) {
    let sees = |property| !unseen.contains(&property);
    match (meant, found) {
        (Kind::File(meant), Kind::File(found)) if meant.size != found.size => {
            say(format!("{} bytes instead of {}", found.size, meant.size));
        }
        (Kind::File(meant), Kind::File(found)) => match (meant.digest, found.digest) {
            (Some(meant), Some(found)) if meant != found => {
                say(format!("its content differs: SHA-256 {found} instead of {meant}"));
            }
            // The expected digest is known, and the reader could not read the file.
            (Some(_), None) if sees(Property::Bodies) => say("its content cannot be read".to_owned()),
            _ => {}
        },
        (Kind::Directory, Kind::Directory) => {}
        (Kind::Symlink(meant), Kind::Symlink(found)) if meant != found => {
            say(format!("it points to {} instead of {}", found.escape_ascii(), meant.escape_ascii()));
        }
        (Kind::CharacterDevice { major: meant_major, minor: meant_minor }, Kind::CharacterDevice { major, minor })
        | (Kind::BlockDevice { major: meant_major, minor: meant_minor }, Kind::BlockDevice { major, minor })
            if (meant_major, meant_minor) != (major, minor) =>
        {
            say(format!("device {major}:{minor} instead of {meant_major}:{meant_minor}"));
        }
        (meant, found) if meant.noun() != found.noun() => {
            say(format!("a {} instead of a {}", found.noun(), meant.noun()));
        }
        _ => {}
    }
}

fn of_xattrs(meant: &Inode<Content>, found: &Inode<Content>, say: &mut dyn FnMut(String)) {
    let names: BTreeSet<&Box<[u8]>> = meant.xattrs.keys().chain(found.xattrs.keys()).collect();
    for name in names {
        let shown = name.escape_ascii();
        match (meant.xattrs.get(name), found.xattrs.get(name)) {
            (Some(_), None) => say(format!("the extended attribute {shown} is missing")),
            (None, Some(_)) => say(format!("the extended attribute {shown} does not belong here")),
            (meant, found) if meant != found => say(format!("the extended attribute {shown} has another value")),
            _ => {}
        }
    }
}

fn seconds(time: Timestamp) -> String {
    match time.nanoseconds {
        0 => format!("@{}", time.seconds),
        nanoseconds => format!("@{}.{nanoseconds:09}", time.seconds),
    }
}

#[cfg(test)]
mod tests {
    use snug_rootfs::digest::ContentDigest;

    use super::*;

    fn listing(records: &[(&str, Record)]) -> Listing {
        let records = records.iter().map(|(path, record)| (TreePath::new(path).unwrap(), record.clone())).collect();
        Listing { records }
    }

    fn file(size: u64, digest: u8) -> Record {
        Record::new(Kind::File(Content { size, digest: Some(ContentDigest::Whole([digest; 32])) }), 0o644)
    }

    #[test]
    fn every_kind_of_difference_is_named() {
        let symlink = |target: &str| Record::new(Kind::Symlink(target.as_bytes().into()), 0o777);
        let device = |minor| Record::new(Kind::CharacterDevice { major: 1, minor }, 0o600);
        let with = |change: &dyn Fn(&mut Record)| {
            let mut record = file(1, 1);
            change(&mut record);
            record
        };
        let xattr = |name: &str, value: &str| {
            let (name, value) = (name.as_bytes().into(), value.as_bytes().into());
            with(&|record| drop(record.inode.xattrs.insert(Box::clone(&name), Box::clone(&value))))
        };
        let meant = listing(&[
            ("a-content", file(1, 1)),
            ("a-size", file(1, 1)),
            ("gone", symlink("x")),
            ("device", device(3)),
            ("kind", file(1, 1)),
            ("link", symlink("x")),
            ("mode", file(1, 1)),
            ("names", with(&|record| record.hard_link_to = TreePath::new("mode").ok())),
            ("owner", file(1, 1)),
            ("same", file(1, 1)),
            ("time", file(1, 1)),
            ("unread", file(1, 1)),
            ("xattr", xattr("user.a", "1")),
            ("xattr-value", xattr("user.a", "1")),
        ]);
        let found = listing(&[
            ("a-content", file(1, 2)),
            ("a-size", file(2, 1)),
            ("device", device(4)),
            ("kind", device(3)),
            ("link", symlink("y")),
            ("mode", with(&|record| record.inode.mode = 0o4755)),
            ("names", file(1, 1)),
            ("new", symlink("x")),
            ("owner", with(&|record| record.inode.gid = 7)),
            ("same", file(1, 1)),
            ("time", with(&|record| record.inode.mtime = Timestamp { seconds: -1, nanoseconds: 5 })),
            ("unread", with(&|record| record.inode.kind = Kind::File(Content { size: 1, digest: None }))),
            ("xattr", xattr("user.b", "1")),
            ("xattr-value", xattr("user.a", "2")),
        ]);
        let all = differences(&meant, &found, &BTreeSet::new());
        insta::assert_snapshot!(all.iter().map(Finding::to_string).collect::<Vec<_>>().join("\n"));
        let unseen = [Property::Xattrs, Property::Bodies];
        let left = differences(&meant, &found, &unseen.into());
        insta::assert_snapshot!(left.iter().map(|left| left.place.as_str()).collect::<Vec<_>>().join(" "), @"/a-content /a-size /device /gone /kind /kind /link /mode /names /new /owner /time");
        assert_eq!(differences(&meant, &meant, &BTreeSet::new()), []);
    }
}
