//! The names of a tree in their order.

use std::collections::{BTreeMap, btree_map};

use super::inode::InodeId;
use super::path::TreePath;

/// Every name with its inode, in the order of [`TreePath`]; the root is always there.
///
/// Most archives list names in this order already. As long as names are only ever added at the end they are kept in a
/// vector: then a new name is compared with the last one alone, and not with one in every level of a map. The first
/// change elsewhere turns the vector into a map.
#[derive(Debug, Clone)]
pub(crate) enum Names {
    /// Ascending; not empty.
    Sorted(Vec<(TreePath, InodeId)>),
    Map(BTreeMap<TreePath, InodeId>),
}

impl Names {
    /// The root's name alone.
    pub(crate) fn new(root: InodeId) -> Self {
        Names::Sorted(vec![(TreePath::root(), root)])
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Names::Sorted(names) => names.len(),
            Names::Map(names) => names.len(),
        }
    }

    pub(crate) fn get(&self, path: &TreePath) -> Option<InodeId> {
        match self {
            Names::Sorted(names) => {
                let at = names.binary_search_by(|(name, _)| name.cmp(path)).ok()?;
                Some(names[at].1)
            }
            Names::Map(names) => names.get(path).copied(),
        }
    }

    /// Returns the last name, as long as names have only been added in order.
    pub(crate) fn last_added(&self) -> Option<(&TreePath, InodeId)> {
        match self {
            Names::Sorted(names) => names.last().map(|(path, id)| (path, *id)),
            Names::Map(_) => None,
        }
    }

    /// Adds a name with the inode that `make` gives. A name that exists already is not changed: it is given back with its
    /// inode.
    pub(crate) fn add(
        &mut self,
        path: TreePath,
        make: impl FnOnce() -> InodeId,
    ) -> Result<InodeId, (TreePath, InodeId)> {
        if let Names::Sorted(names) = self {
            match names.binary_search_by(|(name, _)| name.cmp(&path)) {
                Ok(at) => return Err((path, names[at].1)),
                Err(at) if at == names.len() => {
                    let id = make();
                    names.push((path, id));
                    return Ok(id);
                }
                Err(_) => {}
            }
        }
        match self.map_mut().entry(path) {
            btree_map::Entry::Vacant(place) => Ok(*place.insert(make())),
            btree_map::Entry::Occupied(place) => Err((place.key().clone(), *place.get())),
        }
    }

    /// Adds a name, or gives an existing one another inode.
    pub(crate) fn set(&mut self, path: TreePath, id: InodeId) {
        if let Names::Sorted(names) = self {
            match names.binary_search_by(|(name, _)| name.cmp(&path)) {
                Ok(at) => return names[at].1 = id,
                Err(at) if at == names.len() => return names.push((path, id)),
                Err(_) => {}
            }
        }
        self.map_mut().insert(path, id);
    }

    /// Adds a name that comes after all others.
    pub(crate) fn push(&mut self, path: TreePath, id: InodeId) {
        match self {
            Names::Sorted(names) => {
                debug_assert!(names.last().is_none_or(|(last, _)| *last < path));
                names.push((path, id));
            }
            Names::Map(names) => drop(names.insert(path, id)),
        }
    }

    pub(crate) fn remove(&mut self, path: &TreePath) {
        self.map_mut().remove(path);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&TreePath, InodeId)> {
        match self {
            Names::Sorted(names) => Either::Sorted(names.iter().map(|(path, id)| (path, *id))),
            Names::Map(names) => Either::Map(names.iter().map(|(path, id)| (path, *id))),
        }
    }

    /// Returns the names from `first` on.
    pub(crate) fn from(&self, first: &TreePath) -> impl Iterator<Item = (&TreePath, InodeId)> {
        match self {
            Names::Sorted(names) => {
                let start = names.partition_point(|(name, _)| name < first);
                Either::Sorted(names[start..].iter().map(|(path, id)| (path, *id)))
            }
            Names::Map(names) => Either::Map(names.range(first..).map(|(path, id)| (path, *id))),
        }
    }

    /// Turns this into a map, if it is not one yet.
    pub(crate) fn map_mut(&mut self) -> &mut BTreeMap<TreePath, InodeId> {
        if let Names::Sorted(names) = self {
            *self = Names::Map(std::mem::take(names).into_iter().collect());
        }
        match self {
            Names::Map(names) => names,
            Names::Sorted(_) => unreachable!("it has just become a map"),
        }
    }
}

/// An iterator over either form.
enum Either<S, M> {
    Sorted(S),
    Map(M),
}

impl<S: Iterator, M: Iterator<Item = S::Item>> Iterator for Either<S, M> {
    type Item = S::Item;

    fn next(&mut self) -> Option<S::Item> {
        match self {
            Either::Sorted(names) => names.next(),
            Either::Map(names) => names.next(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match self {
            Either::Sorted(names) => names.size_hint(),
            Either::Map(names) => names.size_hint(),
        }
    }
}
