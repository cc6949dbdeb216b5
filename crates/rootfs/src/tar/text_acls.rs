//! Access control lists that an archive has as text and that name users or groups: kept as text until the whole tree is read,
//! since its `/etc/passwd` and `/etc/group`, which say what the names mean, may come last.

use std::collections::BTreeSet;
use std::io;

use super::error::EntryName;
use crate::accounts::Accounts;
use crate::acl::{self, TextAcl};
use crate::adjustments::{Adjustment, Adjustments};
use crate::tree::RootTree;

/// The records of pax headers, star's, that have lists as text.
pub(super) const ACCESS_RECORD: &[u8] = b"SCHILY.acl.access";
pub(super) const DEFAULT_RECORD: &[u8] = b"SCHILY.acl.default";

/// Returns the name under which the text of a list is kept among an inode's attributes until it is resolved: that of its
/// record, which no attribute of Linux has. `name` is the attribute of the list itself.
pub(super) fn pending(name: &[u8]) -> &'static [u8] {
    if name == acl::DEFAULT { DEFAULT_RECORD } else { ACCESS_RECORD }
}

/// Gives all lists that were kept as text the numbers that the tree's own accounts give their names. Returns what it took:
/// entries for accounts that the tree does not have are left out.
///
/// # Errors
///
/// An error of reading `/etc/passwd` or `/etc/group` from the tree.
pub(crate) fn resolve_acls(tree: &mut RootTree) -> io::Result<Adjustments> {
    let mut adjustments = Adjustments::default();
    let mut found = Vec::new();
    let mut names = BTreeSet::new();
    for entry in tree.entries().filter(|entry| entry.hard_link_to.is_none() && !entry.inode.xattrs.is_empty()) {
        for (record, name) in [(ACCESS_RECORD, acl::ACCESS), (DEFAULT_RECORD, acl::DEFAULT)] {
            let Some(text) = entry.inode.xattrs.get(record) else { continue };
            found.push((entry.path.clone(), entry.id, record, name));
            if let Ok(text) = TextAcl::parse(text) {
                names.extend(text.names().map(|name| String::from_utf8_lossy(name).into_owned()));
            }
        }
    }
    if found.is_empty() {
        return Ok(adjustments);
    }
    let accounts = Accounts::read_some(tree, |name| names.contains(name))?;
    for (path, id, record, name) in found {
        let xattrs = &mut tree.inode_mut(id).xattrs;
        let Some(text) = xattrs.remove(record) else { continue };
        match TextAcl::parse(&text) {
            Ok(text) => {
                let unknown = |who| adjustments.note(Adjustment::AclAccount, || format!("`{who}` of {path}"));
                let value = text.resolved(&accounts, unknown).to_xattr();
                xattrs.insert(name.into(), value.into());
            }
            Err(reason) => {
                adjustments.note(Adjustment::AclInvalid, || format!("{} of {path}: {reason}", EntryName::new(record)));
            }
        }
    }
    Ok(adjustments)
}
