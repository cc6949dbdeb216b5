//! Users and groups of a root filesystem: by number, or by the names that its `/etc/passwd` and `/etc/group` give them
//! (passwd(5), group(5)).

use std::collections::BTreeMap;
use std::io;

use serde::Serialize;

use super::regular_file::{self, RegularFileError};
use super::tree::{RootTree, TreePath};

/// Bytes of the largest `/etc/passwd` or `/etc/group` that is read: a hundred thousand accounts have less than half of that.
const FILE_MAX: u64 = 16 << 20;

/// A user or a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Account {
    /// By number.
    Id(u32),
    /// By name, to be looked up in the image's `/etc/passwd` or `/etc/group`.
    Name(String),
}

/// User and group of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Owner {
    /// The user.
    pub user: Account,
    /// The group.
    pub group: Account,
}

impl Owner {
    /// Returns uid and gid, if both are given by number.
    pub fn ids(&self) -> Option<(u32, u32)> {
        match (&self.user, &self.group) {
            (Account::Id(uid), Account::Id(gid)) => Some((*uid, *gid)),
            _ => None,
        }
    }
}

/// A name that the image's accounts do not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownAccount {
    /// Not in `/etc/passwd`.
    #[error("the image has no user `{0}`")]
    User(String),
    /// Not in `/etc/group`.
    #[error("the image has no group `{0}`")]
    Group(String),
}

/// The accounts of one root filesystem.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    users: BTreeMap<String, u32>,
    groups: BTreeMap<String, u32>,
}

impl Accounts {
    /// Reads `/etc/passwd` and `/etc/group` of `tree`, which may be symlinks in it. A file that is missing, or larger than
    /// any real one, has no accounts, and lines that are not of the files' format are passed over.
    pub fn read(tree: &RootTree) -> io::Result<Self> {
        Self::read_some(tree, |_| true)
    }

    /// As [`Self::read`], with those users and groups only whose names are `wanted`: files that strangers wrote may have
    /// millions.
    pub(crate) fn read_some(tree: &RootTree, wanted: impl Fn(&str) -> bool) -> io::Result<Self> {
        let ids = |path: &str| -> io::Result<BTreeMap<String, u32>> {
            let path = TreePath::new(path).expect("the paths written here are clean");
            let text = match regular_file::read_from_tree(tree, &path, FILE_MAX) {
                Err(RegularFileError::Io(error)) => return Err(error),
                text => text.unwrap_or_default().unwrap_or_default(),
            };
            // Both files begin with name, password and number. Of two lines with one name the first counts, as in getpwnam(3).
            let mut ids = BTreeMap::new();
            for line in text.split(|&byte| byte == b'\n') {
                let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
                let mut fields = line.split(':');
                if let Some((name, Ok(id))) = fields.next().zip(fields.nth(1).map(str::parse))
                    && wanted(name)
                {
                    ids.entry(name.to_owned()).or_insert(id);
                }
            }
            Ok(ids)
        };
        Ok(Accounts { users: ids("etc/passwd")?, groups: ids("etc/group")? })
    }

    /// Returns the number of a user.
    pub fn user(&self, name: &str) -> Option<u32> {
        self.users.get(name).copied()
    }

    /// Returns the number of a group.
    pub fn group(&self, name: &str) -> Option<u32> {
        self.groups.get(name).copied()
    }

    /// Returns uid and gid of `owner`.
    pub fn ids(&self, owner: &Owner) -> Result<(u32, u32), UnknownAccount> {
        let find = |account: &Account, ids: &BTreeMap<String, u32>, unknown: fn(String) -> UnknownAccount| match account
        {
            Account::Id(id) => Ok(*id),
            Account::Name(name) => ids.get(name).copied().ok_or_else(|| unknown(name.clone())),
        };
        let uid = find(&owner.user, &self.users, UnknownAccount::User)?;
        let gid = find(&owner.group, &self.groups, UnknownAccount::Group)?;
        Ok((uid, gid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{BodySource, Inode, Kind};

    #[test]
    fn names_are_looked_up_in_the_images_own_files() {
        let mut tree = RootTree::new(BodySource::new(Vec::new()));
        for (path, text) in [
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1001::/home/node:/bin/sh\nbroken\nodd:x:-1:\n"),
            ("etc/group", "root:x:0:\ntty:x:5:node\n"),
        ] {
            let body = tree.add_body(text.as_bytes());
            tree.insert(TreePath::new(path).unwrap(), Inode::new(Kind::File(body), 0o644)).unwrap();
        }
        let accounts = Accounts::read(&tree).unwrap();
        let name = |name: &str| Account::Name(name.into());
        let ids = |user, group| accounts.ids(&Owner { user, group });
        assert_eq!(ids(name("node"), name("tty")), Ok((1000, 5)));
        assert_eq!(ids(Account::Id(7), name("tty")), Ok((7, 5)));
        assert_eq!(ids(name("tty"), name("tty")), Err(UnknownAccount::User("tty".into())));
        assert_eq!(ids(name("root"), name("node")), Err(UnknownAccount::Group("node".into())));
        assert_eq!(ids(name("odd"), Account::Id(0)), Err(UnknownAccount::User("odd".into())));
        let some = Accounts::read_some(&tree, |name| name == "node").unwrap();
        assert_eq!((some.user("node"), some.user("root"), some.group("root")), (Some(1000), None, None));
        // `/etc/passwd` of NixOS and of images with a read-only `/etc` is a symlink.
        let etc = TreePath::new("etc/passwd").unwrap();
        let passwd = tree.get(&etc).unwrap().clone();
        tree.insert(TreePath::new("usr/share/passwd").unwrap(), passwd).unwrap();
        tree.insert(etc, Inode::new(Kind::Symlink(b"../usr/share/passwd".as_slice().into()), 0o777)).unwrap();
        assert_eq!(Accounts::read(&tree).unwrap().user("node"), Some(1000));
        let empty = Accounts::read(&RootTree::new(BodySource::new(Vec::new()))).unwrap();
        assert!(empty.ids(&Owner { user: name("root"), group: Account::Id(0) }).is_err());
    }
}
