//! What was changed of a tree so that it could be taken or held, told once for each kind: how often, and where first.
//!
//! A tar has names that lead outside the root, a filesystem cannot hold every attribute or time. What can be resolved,
//! moved to the nearest value or left out without breaking the tree is, and is counted here; the caller prints one line for
//! each kind, or refuses the tree before anything is written. What cannot be is an error of its own.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::printable::escaped;

/// A kind of adjustment. The order is the one in which kinds are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Adjustment {
    /// A name begins with `/` and was taken as relative to the root.
    AbsoluteName,
    /// The target of a hard link begins with `/` and was taken as relative to the root.
    AbsoluteLink,
    /// A name has `..` components, which were resolved inside the root.
    ParentInName,
    /// A parent of a name is a symlink to a directory, and the entry was put there.
    BelowSymlink,
    /// A directory with entries was replaced by a later entry of the same archive that is none.
    ReplacedDirectory,
    /// A directory without a name was taken as the root.
    EmptyName,
    /// An entry of an access control list is for a user or group that the tree does not have, and was left out.
    AclAccount,
    /// An access control list is none that the kernel accepts, and was left out.
    AclInvalid,
    /// The filesystem has no access control lists: they were left out.
    AclUnsupported,
    /// An extended attribute has a name that the filesystem cannot hold, and was left out.
    XattrName,
    /// An extended attribute is on a type of inode on which Linux does not show it, and was left out.
    XattrOfType,
    /// An extended attribute has no room in the filesystem, and was left out.
    XattrSize,
    /// A time is outside the filesystem's range, and the nearest one was taken.
    TimeRange,
    /// A time is finer than the filesystem's resolution, and was cut.
    TimeResolution,
    /// A tar or the filesystem's writer has no sockets: they were left out.
    Socket,
}

impl Adjustment {
    /// Returns what was adjusted and how, for one and for many; `filesystem` is what cannot hold it, if not Linux or a tar.
    fn words(self, filesystem: Option<&str>) -> (String, String) {
        let holder = filesystem.unwrap_or("Linux");
        let (what, many, done, done_to_many) = match self {
            Adjustment::AbsoluteName => {
                ("absolute name", "absolute names", "taken as relative to the root".into(), None)
            }
            Adjustment::AbsoluteLink => (
                "absolute hard link target",
                "absolute hard link targets",
                "taken as relative to the root".into(),
                None,
            ),
            Adjustment::ParentInName => ("name with `..`", "names with `..`", "resolved inside the root".into(), None),
            Adjustment::BelowSymlink => (
                "entry below a symlink to a directory",
                "entries below symlinks to directories",
                "put into that directory".into(),
                Some("put into those directories".into()),
            ),
            Adjustment::ReplacedDirectory => (
                "directory with entries",
                "directories with entries",
                "replaced by a later entry that is none".into(),
                Some("replaced by later entries that are none".into()),
            ),
            Adjustment::EmptyName => {
                ("directory without a name", "directories without a name", "taken as the root".into(), None)
            }
            Adjustment::AclAccount => (
                "access control list entry for a user or group that the tree does not have",
                "access control list entries for users or groups that the tree does not have",
                "left out".into(),
                None,
            ),
            Adjustment::AclInvalid => {
                ("invalid access control list", "invalid access control lists", "left out".into(), None)
            }
            Adjustment::AclUnsupported => {
                ("access control list", "access control lists", format!("left out, since {holder} holds none"), None)
            }
            Adjustment::XattrName => (
                "extended attribute",
                "extended attributes",
                format!("left out, since {holder} cannot hold its name"),
                Some(format!("left out, since {holder} cannot hold their names")),
            ),
            Adjustment::XattrOfType => (
                "extended attribute `user.*` of something else than a file or directory",
                "extended attributes `user.*` of something else than a file or directory",
                format!("left out, since {holder} does not show it"),
                Some(format!("left out, since {holder} does not show them")),
            ),
            Adjustment::XattrSize => (
                "extended attribute",
                "extended attributes",
                format!("left out, since {holder} has no room for it"),
                Some(format!("left out, since {holder} has no room for them")),
            ),
            Adjustment::TimeRange => {
                let done = format!("moved to the nearest that {holder} can hold");
                ("modification time", "modification times", done, None)
            }
            Adjustment::TimeResolution => {
                let done = format!("cut to whole seconds, which is all that {holder} holds of");
                ("modification time", "modification times", format!("{done} it"), Some(format!("{done} them")))
            }
            Adjustment::Socket => match filesystem {
                None => {
                    let done = "left out, since tar has no type for";
                    ("socket", "sockets", format!("{done} it"), Some(format!("{done} them")))
                }
                Some(_) => ("socket", "sockets", format!("left out, since nothing writes them to {holder}"), None),
            },
        };
        let done_to_many = done_to_many.unwrap_or_else(|| done.clone());
        (format!("{what} was {done}"), format!("{many} were {done_to_many}"))
    }
}

/// One kind of adjustment: how often, and where first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adjusted {
    /// The kind.
    pub kind: Adjustment,
    /// The type of filesystem whose limit it is; `None` where that of Linux, or the tar, is the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<String>,
    /// How often.
    pub count: u64,
    /// The first example, for people: a path, with a detail.
    pub first: String,
}

/// One plain sentence without a full stop.
impl fmt::Display for Adjusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (one, many) = self.kind.words(self.filesystem.as_deref());
        let first = escaped(&self.first);
        match self.count {
            1 => write!(f, "1 {one}: {first}"),
            count => write!(f, "{count} {many}; the first is {first}"),
        }
    }
}

/// All adjustments of one tree, by kind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Adjustments {
    /// Ordered by kind and filesystem.
    kinds: Vec<Adjusted>,
}

impl Adjustments {
    /// Counts one adjustment that a tar was the reason for. `first` is called for the first of its kind only, and describes
    /// it: a path, with a detail.
    pub fn note(&mut self, kind: Adjustment, first: impl FnOnce() -> String) {
        self.count(kind, None, first);
    }

    /// As [`Self::note`], where the limits of this type of filesystem are the reason.
    pub fn note_for(&mut self, filesystem: &str, kind: Adjustment, first: impl FnOnce() -> String) {
        self.count(kind, Some(filesystem), first);
    }

    fn count(&mut self, kind: Adjustment, filesystem: Option<&str>, first: impl FnOnce() -> String) {
        let key = (kind, filesystem);
        match self.kinds.binary_search_by(|known| (known.kind, known.filesystem.as_deref()).cmp(&key)) {
            Ok(at) => self.kinds[at].count += 1,
            Err(at) => {
                let adjusted = Adjusted { kind, filesystem: filesystem.map(Into::into), count: 1, first: first() };
                self.kinds.insert(at, adjusted);
            }
        }
    }

    /// Adds those of a later step; first examples are those of `self` where both have one.
    pub fn extend(&mut self, later: Adjustments) {
        for adjusted in later.kinds {
            let Adjusted { kind, filesystem, count, first } = adjusted;
            let key = (kind, filesystem.as_deref());
            match self.kinds.binary_search_by(|known| (known.kind, known.filesystem.as_deref()).cmp(&key)) {
                Ok(at) => self.kinds[at].count += count,
                Err(at) => self.kinds.insert(at, Adjusted { kind, filesystem, count, first }),
            }
        }
    }

    /// Whether nothing was adjusted.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// Returns every kind that there is, in order: one line for people each.
    pub fn iter(&self) -> impl Iterator<Item = &Adjusted> {
        self.kinds.iter()
    }
}

/// One line for each kind.
impl fmt::Display for Adjustments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, adjusted) in self.kinds.iter().enumerate() {
            let separator = if at == 0 { "" } else { "\n" };
            write!(f, "{separator}{adjusted}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Adjustment; 15] = [
        Adjustment::AbsoluteName,
        Adjustment::AbsoluteLink,
        Adjustment::ParentInName,
        Adjustment::BelowSymlink,
        Adjustment::ReplacedDirectory,
        Adjustment::EmptyName,
        Adjustment::AclAccount,
        Adjustment::AclInvalid,
        Adjustment::AclUnsupported,
        Adjustment::XattrName,
        Adjustment::XattrOfType,
        Adjustment::XattrSize,
        Adjustment::TimeRange,
        Adjustment::TimeResolution,
        Adjustment::Socket,
    ];

    #[test]
    fn every_kind_is_told_once_with_a_count_and_the_first_example() {
        let mut adjustments = Adjustments::default();
        for kind in ALL.into_iter().rev() {
            adjustments.note_for("ext4", kind, || "/first".into());
        }
        for kind in ALL {
            for _ in 0..2 {
                adjustments.note(kind, || "/of the tar".into());
            }
        }
        insta::assert_snapshot!(adjustments, @r"
        2 absolute names were taken as relative to the root; the first is /of the tar
        1 absolute name was taken as relative to the root: /first
        2 absolute hard link targets were taken as relative to the root; the first is /of the tar
        1 absolute hard link target was taken as relative to the root: /first
        2 names with `..` were resolved inside the root; the first is /of the tar
        1 name with `..` was resolved inside the root: /first
        2 entries below symlinks to directories were put into those directories; the first is /of the tar
        1 entry below a symlink to a directory was put into that directory: /first
        2 directories with entries were replaced by later entries that are none; the first is /of the tar
        1 directory with entries was replaced by a later entry that is none: /first
        2 directories without a name were taken as the root; the first is /of the tar
        1 directory without a name was taken as the root: /first
        2 access control list entries for users or groups that the tree does not have were left out; the first is /of the tar
        1 access control list entry for a user or group that the tree does not have was left out: /first
        2 invalid access control lists were left out; the first is /of the tar
        1 invalid access control list was left out: /first
        2 access control lists were left out, since Linux holds none; the first is /of the tar
        1 access control list was left out, since ext4 holds none: /first
        2 extended attributes were left out, since Linux cannot hold their names; the first is /of the tar
        1 extended attribute was left out, since ext4 cannot hold its name: /first
        2 extended attributes `user.*` of something else than a file or directory were left out, since Linux does not show them; the first is /of the tar
        1 extended attribute `user.*` of something else than a file or directory was left out, since ext4 does not show it: /first
        2 extended attributes were left out, since Linux has no room for them; the first is /of the tar
        1 extended attribute was left out, since ext4 has no room for it: /first
        2 modification times were moved to the nearest that Linux can hold; the first is /of the tar
        1 modification time was moved to the nearest that ext4 can hold: /first
        2 modification times were cut to whole seconds, which is all that Linux holds of them; the first is /of the tar
        1 modification time was cut to whole seconds, which is all that ext4 holds of it: /first
        2 sockets were left out, since tar has no type for them; the first is /of the tar
        1 socket was left out, since nothing writes them to ext4: /first
        ");
        let json = serde_json::to_string(&adjustments).expect("it has no maps");
        assert_eq!(serde_json::from_str::<Adjustments>(&json).expect("its own form"), adjustments);
    }

    #[test]
    fn what_is_added_later_keeps_the_first_example() {
        let once = |first: &str| {
            let mut adjustments = Adjustments::default();
            adjustments.note(Adjustment::AbsoluteName, || first.into());
            adjustments
        };
        let mut both = once("/a");
        both.extend(once("/b"));
        insta::assert_snapshot!(both, @"2 absolute names were taken as relative to the root; the first is /a");
        assert!(!both.is_empty() && Adjustments::default().is_empty());
    }
}
