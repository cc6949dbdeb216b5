//! A root filesystem in memory: names, inodes, and where each file's content is stored.
//!
//! A [`RootTree`] keeps names and inodes apart, as a filesystem does: a hard link is a second name of the same inode. The
//! first name in sorted order counts as the file and the others as links to it, whatever the order of the archive.
//! Contents are not held in memory: they are ranges of a [`BodySource`] (a tar file, or the spool of a pipe).

use std::collections::HashMap;

use super::adjustments::{Adjustment, Adjustments};
pub use super::body::{BLOCK, Body, BodySource, DataRange, Extents, ReadAt};
pub use super::inode::{Inode, InodeId, Kind, Timestamp, XATTR_NAME_MAX, XATTR_VALUE_MAX, Xattrs};
use super::names::Names;
pub use super::path::{NAME_MAX, PATH_MAX, PathError, TreePath};

/// Why a change to a tree is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// A parent of the path is not a directory.
    #[error("{path} needs {parent} to be a directory, and it is a {kind}")]
    NotADirectory {
        /// The new name.
        path: TreePath,
        /// The parent.
        parent: TreePath,
        /// The parent's type.
        kind: &'static str,
    },
    /// The path names a directory that is not empty, or the root.
    #[error("{path} is already a directory and cannot become a {kind}")]
    DirectoryInTheWay {
        /// The directory.
        path: TreePath,
        /// The type that was to replace it.
        kind: &'static str,
    },
    /// The target of a hard link does not exist, or is the link itself.
    #[error("{path} is a hard link to {target}, which does not exist")]
    DanglingHardLink {
        /// The new name.
        path: TreePath,
        /// The target.
        target: TreePath,
    },
    /// The target of a hard link is a directory.
    #[error("{path} is a hard link to {target}, which is a directory")]
    HardLinkToDirectory {
        /// The new name.
        path: TreePath,
        /// The target.
        target: TreePath,
    },
}

/// What becomes of names that do not exist where a path is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The path leads nowhere.
    Refused,
    /// They are kept as they are, to be made.
    Kept,
}

/// Why a path cannot be followed to a place in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FollowError {
    /// A name does not exist.
    Missing,
    /// More than [`LINKS_MAX`] symlinks (`ELOOP`), or than [`NAMES_MAX`] names in them.
    Loop,
    /// What it leads to is no valid path.
    Path(PathError),
}

/// What a tree had where an entry of an archive was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Replaced {
    /// Nothing.
    Nothing,
    /// A directory, which was replaced by one and kept its entries.
    Directory,
    /// Something else than a directory with entries.
    Name,
    /// A directory with entries, which were lost with it.
    Subtree {
        /// The directory.
        path: TreePath,
        /// The latest of its entries' inodes.
        latest: InodeId,
    },
}

/// One root filesystem: sorted names, the inodes behind them, and the source of the bodies.
///
/// Invariants: the root exists and is a directory; every name's parent exists and is a directory; a directory has
/// exactly one name.
#[derive(Debug, Clone)]
pub struct RootTree {
    names: Names,
    inodes: Vec<Inode>,
    /// By slot: whether the inode was ever given a second name. Slots past the end were not.
    linked: Vec<bool>,
    bodies: BodySource,
    /// The parent of the name that was inserted last, as long as it cannot have been removed: neighbours in an archive
    /// share it.
    last_parent: Option<TreePath>,
    adjustments: Adjustments,
}

/// Symlinks followed for one path before it counts as a loop (`MAXSYMLINKS` of Linux, path_resolution(7)).
const LINKS_MAX: usize = 40;
/// Names looked up for one path, those in the targets of its symlinks included: twice as many as the longest path has, where
/// 40 targets could have 80,000.
const NAMES_MAX: usize = 4096;
/// What the lookup of a name costs beside the bytes of its path, in the time that one byte takes.
const LOOKUP_COST: usize = 64;

fn names_reversed(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|&byte| byte == b'/').rev().map(<[u8]>::to_vec).collect()
}

/// One name of a tree with its inode.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'tree> {
    /// The name.
    pub path: &'tree TreePath,
    /// The id of its inode.
    pub id: InodeId,
    /// Its inode.
    pub inode: &'tree Inode,
    /// The first name in order of the same inode, if this is a later one: the entry is a hard link to it.
    pub hard_link_to: Option<&'tree TreePath>,
}

impl RootTree {
    /// A tree of nothing but the root directory, mode 0755.
    pub fn new(bodies: BodySource) -> Self {
        RootTree {
            names: Names::new(InodeId(0)),
            inodes: vec![Inode::directory(0o755)],
            linked: Vec::new(),
            bodies,
            last_parent: None,
            adjustments: Adjustments::default(),
        }
    }

    /// Returns what was taken otherwise than the archive has it when this tree was read.
    pub fn adjustments(&self) -> &Adjustments {
        &self.adjustments
    }

    /// Adds what was adjusted of the tree that this one was made from; first examples are those of that.
    pub fn inherit_adjustments(&mut self, earlier: Adjustments) {
        let later = std::mem::replace(&mut self.adjustments, earlier);
        self.adjustments.extend(later);
    }

    /// Counts something that is taken otherwise than the archive has it; `first` describes the first of a kind.
    pub(crate) fn note(&mut self, kind: Adjustment, first: impl FnOnce() -> String) {
        self.adjustments.note(kind, first);
    }

    /// Adds what the archive's reader took otherwise than it is written.
    pub(crate) fn note_all(&mut self, adjustments: Adjustments) {
        self.adjustments.extend(adjustments);
    }

    /// Returns the source of the files' contents.
    pub fn bodies(&self) -> &BodySource {
        &self.bodies
    }

    /// Keeps a small file's content in memory and returns its body.
    pub fn add_body(&mut self, content: &[u8]) -> Body {
        Body::contiguous(content.len() as u64, self.bodies.add_bytes(content))
    }

    /// Returns the number of names, the root and hard links included.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is nothing but the root.
    pub fn is_empty(&self) -> bool {
        self.len() == 1
    }

    /// Returns the number of rows of a table indexed by [`Self::slot`].
    pub fn inode_slots(&self) -> usize {
        self.inodes.len()
    }

    /// Returns the number of inodes that have a name.
    pub fn inode_count(&self) -> usize {
        self.entries().filter(|entry| entry.hard_link_to.is_none()).count()
    }

    /// Returns the inode that `path` names.
    pub fn get(&self, path: &TreePath) -> Option<&Inode> {
        self.names.get(path).map(|id| self.inode(id))
    }

    /// Returns the inode that `path` names, to change it for all its names. A directory must stay one.
    pub fn get_mut(&mut self, path: &TreePath) -> Option<&mut Inode> {
        self.last_parent = None;
        let id = self.names.get(path)?;
        Some(&mut self.inodes[id.0 as usize])
    }

    /// Returns the id of the inode that `path` names.
    pub fn id(&self, path: &TreePath) -> Option<InodeId> {
        self.names.get(path)
    }

    /// Returns every inode, including those without a name any more. A directory must stay one.
    pub fn inodes_mut(&mut self) -> impl Iterator<Item = &mut Inode> {
        self.last_parent = None;
        self.inodes.iter_mut()
    }

    /// Returns the inode with this id, to change it for all its names. A directory must stay one.
    pub(crate) fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        self.last_parent = None;
        &mut self.inodes[id.0 as usize]
    }

    /// Returns the inode with this id.
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.0 as usize]
    }

    /// Returns the row of an inode in a table of [`Self::inode_slots`] rows.
    pub fn slot(id: InodeId) -> usize {
        id.0 as usize
    }

    /// Returns every name in order: the root first, each directory directly before its content.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        let mut first: HashMap<InodeId, &TreePath> = HashMap::new();
        self.names.iter().map(move |(path, id)| {
            let mut hard_link_to = None;
            if self.linked.get(id.0 as usize) == Some(&true) {
                hard_link_to = first.get(&id).copied();
                first.entry(id).or_insert(path);
            }
            Entry { path, id, inode: self.inode(id), hard_link_to }
        })
    }

    /// Returns `path` and all names below it, in order.
    pub fn subtree(&self, path: &TreePath) -> impl Iterator<Item = (&TreePath, InodeId)> {
        self.names.from(path).take_while(move |(name, _)| name.is_within(path))
    }

    /// Returns `st_nlink` of every inode by slot: names for files, 2 + subdirectories for directories, 0 without a name.
    pub fn link_counts(&self) -> Vec<u32> {
        let mut counts = vec![0; self.inodes.len()];
        // The directories above a name, by depth.
        let mut above: Vec<InodeId> = Vec::new();
        for (path, id) in self.names.iter() {
            if self.inode(id).is_directory() {
                counts[id.0 as usize] += 2;
                above.truncate(path.depth());
                if let Some(parent) = above.last() {
                    counts[parent.0 as usize] += 1;
                }
                above.push(id);
            } else {
                counts[id.0 as usize] += 1;
            }
        }
        counts
    }

    /// Names a new inode `path`. Missing parents become directories of root's, mode 0755. An existing inode loses this name,
    /// as a later tar entry replaces an earlier one; a directory that replaces a directory keeps its entries.
    pub fn insert(&mut self, path: TreePath, inode: Inode) -> Result<InodeId, TreeError> {
        match self.add(path, inode)? {
            Ok(id) => Ok(id),
            Err((path, id, inode)) => self.replace(path, id, inode),
        }
    }

    /// Names a new inode `path`, as [`Self::insert`] does. What is no directory replaces even a directory with entries.
    pub(crate) fn overlay(&mut self, path: TreePath, inode: Inode) -> Result<Replaced, TreeError> {
        let (path, id, inode) = match self.add(path, inode)? {
            Ok(_) => return Ok(Replaced::Nothing),
            Err(there) => there,
        };
        let replaced = match (self.inode(id).is_directory(), inode.is_directory()) {
            (true, true) => Replaced::Directory,
            (true, false) => self.clear(&path),
            (false, _) => Replaced::Name,
        };
        self.replace(path, id, inode)?;
        Ok(replaced)
    }

    /// Removes what is below the directory `path`.
    pub(crate) fn clear(&mut self, path: &TreePath) -> Replaced {
        let below: Vec<(TreePath, InodeId)> = self.subtree(path).skip(1).map(|(path, id)| (path.clone(), id)).collect();
        let Some(latest) = below.iter().map(|(_, id)| *id).max() else { return Replaced::Name };
        self.last_parent = None;
        for (path, _) in &below {
            self.names.remove(path);
        }
        Replaced::Subtree { path: path.clone(), latest }
    }

    /// Names a new inode `path`, unless it names one already, which is given back with both.
    fn add(&mut self, path: TreePath, inode: Inode) -> Result<Result<InodeId, (TreePath, InodeId, Inode)>, TreeError> {
        if self.comes_next(&path) {
            let id = add_inode(&mut self.inodes, inode);
            self.names.push(path, id);
            return Ok(Ok(id));
        }
        self.make_parents(&path)?;
        match self.names.add(path, || next_id(&self.inodes)) {
            Ok(id) => {
                self.inodes.push(inode);
                Ok(Ok(id))
            }
            Err((path, id)) => Ok(Err((path, id, inode))),
        }
    }

    /// Whether the parent of `path` is a directory of the tree, or `path` the root.
    pub(crate) fn has_parent(&self, path: &TreePath) -> bool {
        if self.comes_next(path) {
            return true;
        }
        let Some(parent) = path.parent_bytes() else { return true };
        self.last_parent.as_ref().is_some_and(|last| last.as_bytes() == parent)
            || path.parent().and_then(|parent| self.get(&parent)).is_some_and(Inode::is_directory)
    }

    /// Whether `path` comes after all names and its parent is a directory of the tree. Only the last name is looked at:
    /// `true` is certain, `false` is not.
    fn comes_next(&self, path: &TreePath) -> bool {
        let (Some(parent), Some((last, id))) = (path.parent_bytes(), self.names.last_added()) else {
            return false;
        };
        // What has names below it is a directory; only the last name itself may be something else.
        let has_parent = match last.as_bytes().strip_prefix(parent) {
            Some([]) => self.inode(id).is_directory(),
            Some(below) => parent.is_empty() || below[0] == b'/',
            None => false,
        };
        has_parent && path.cmp_behind(last, parent.len()).is_gt()
    }

    /// Names a new inode `path`, which names `id` so far.
    fn replace(&mut self, path: TreePath, id: InodeId, inode: Inode) -> Result<InodeId, TreeError> {
        let old = &mut self.inodes[id.0 as usize];
        if old.is_directory() && inode.is_directory() {
            *old = inode;
            return Ok(id);
        }
        if old.is_directory() && self.subtree(&path).nth(1).is_some() || path.is_root() {
            return Err(TreeError::DirectoryInTheWay { path, kind: inode.kind.noun() });
        }
        self.last_parent = None;
        let id = add_inode(&mut self.inodes, inode);
        self.names.set(path, id);
        Ok(id)
    }

    /// Records that `id` has more than one name.
    fn mark_linked(&mut self, id: InodeId) {
        let slot = id.0 as usize;
        if self.linked.len() <= slot {
            self.linked.resize(slot + 1, false);
        }
        self.linked[slot] = true;
    }

    /// Makes `path` a further name of the inode that `target` names.
    pub fn link(&mut self, path: TreePath, target: &TreePath) -> Result<(), TreeError> {
        let dangling = || TreeError::DanglingHardLink { path: path.clone(), target: target.clone() };
        let id = self.id(target).filter(|_| *target != path).ok_or_else(dangling)?;
        if self.inode(id).is_directory() {
            return Err(TreeError::HardLinkToDirectory { path, target: target.clone() });
        }
        if self.comes_next(&path) {
            self.names.push(path, id);
            self.mark_linked(id);
            return Ok(());
        }
        self.make_parents(&path)?;
        if self.get(&path).is_some_and(Inode::is_directory) {
            return Err(TreeError::DirectoryInTheWay { path, kind: "hard link" });
        }
        self.names.set(path, id);
        self.mark_linked(id);
        Ok(())
    }

    /// Removes `path` and all names below it, but not the root itself. Returns how many names were removed.
    pub fn remove(&mut self, path: &TreePath) -> usize {
        self.last_parent = None;
        let doomed: Vec<TreePath> =
            self.subtree(path).map(|(name, _)| name.clone()).filter(|name| !name.is_root()).collect();
        for name in &doomed {
            self.names.remove(name);
        }
        doomed.len()
    }

    /// Follows all symlinks in `path`, including the last component, inside the tree. Returns the path of what it leads to;
    /// `None` if that does not exist or the symlinks form a loop.
    pub fn resolve(&self, path: &TreePath) -> Option<TreePath> {
        self.follow(path, Missing::Refused, &mut 0).ok()
    }

    /// Follows all symlinks in `path` inside the tree, as a process does whose root it is: an absolute target begins at the
    /// root, and `..` does not lead above it. What that took is added to `work`, in bytes of the paths looked up.
    pub(crate) fn follow(&self, path: &TreePath, missing: Missing, work: &mut u64) -> Result<TreePath, FollowError> {
        let mut pending: Vec<Vec<u8>> = names_reversed(path.as_bytes());
        let mut here = TreePath::root();
        let (mut links, mut names) = (0, 0);
        while let Some(name) = pending.pop() {
            names += 1;
            if names > NAMES_MAX {
                return Err(FollowError::Loop);
            }
            *work += (here.as_bytes().len() + LOOKUP_COST) as u64;
            let next = match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    here = here.parent().unwrap_or_else(TreePath::root);
                    continue;
                }
                name => TreePath::new([here.as_bytes(), b"/", name].concat()).map_err(FollowError::Path)?,
            };
            match self.get(&next).map(|inode| &inode.kind) {
                Some(Kind::Symlink(target)) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(FollowError::Loop);
                    }
                    if target.first() == Some(&b'/') {
                        here = TreePath::root();
                    }
                    pending.extend(names_reversed(target));
                }
                None if missing == Missing::Refused => return Err(FollowError::Missing),
                _ => here = next,
            }
        }
        Ok(here)
    }

    /// Follows the symlinks in the parents of `path`. Returns the path of an entry created there; `path` itself where the
    /// parents do not exist.
    pub fn resolve_parent(&self, path: &TreePath) -> TreePath {
        let resolved =
            path.parent().and_then(|parent| self.resolve(&parent)).and_then(|parent| parent.join(path.name()));
        resolved.unwrap_or_else(|| path.clone())
    }

    fn make_parents(&mut self, path: &TreePath) -> Result<(), TreeError> {
        if self.last_parent.as_ref().map(TreePath::as_bytes) == path.parent_bytes() {
            return Ok(());
        }
        let mut missing = Vec::new();
        let mut next = path.parent();
        while let Some(parent) = next {
            match self.get(&parent) {
                Some(inode) if inode.is_directory() => break,
                Some(inode) => {
                    return Err(TreeError::NotADirectory { path: path.clone(), kind: inode.kind.noun(), parent });
                }
                None => {
                    next = parent.parent();
                    missing.push(parent);
                }
            }
        }
        let made: Vec<_> =
            missing.into_iter().map(|parent| (parent, add_inode(&mut self.inodes, Inode::directory(0o755)))).collect();
        for (parent, id) in made.into_iter().rev() {
            self.names.set(parent, id);
        }
        self.last_parent = path.parent();
        Ok(())
    }
}

/// The id of the next inode.
fn next_id(inodes: &[Inode]) -> InodeId {
    InodeId(u32::try_from(inodes.len()).expect("readers bound the number of entries"))
}

fn add_inode(inodes: &mut Vec<Inode>, inode: Inode) -> InodeId {
    let id = next_id(inodes);
    inodes.push(inode);
    id
}

/// Returns the creation time of an image, in seconds since the epoch: `SOURCE_DATE_EPOCH` where it is set, or else the newest
/// modification time of the tree. Never the time of the build.
pub fn image_time(tree: &RootTree) -> i64 {
    Timestamp::source_date_epoch()
        .unwrap_or_else(|| tree.names.iter().map(|(_, id)| tree.inode(id).mtime.seconds).max().unwrap_or(0))
}

#[cfg(test)]
mod tests;
