//! The root filesystem in memory: names, inodes, and where each file's body lies.
//!
//! A [`RootTree`] keeps names and inodes apart, as a filesystem does: a hard link is a second name of the same inode,
//! and which name is "the" file is decided by sorting, never by the order in which a stream happened to name them.
//! Bodies are not held in memory: they are ranges of a [`BodySource`] (a tar file, or the spool of a pipe).

use std::collections::HashMap;

pub use super::body::{Body, BodySource, DataRange, Extents, ReadAt, Relocation};
pub use super::inode::{Inode, InodeId, Kind, Timestamp};
use super::names::Names;
pub use super::path::{NAME_MAX, PATH_MAX, PathError, TreePath};

/// Why a change to a tree is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    #[error("{path} needs {parent} to be a directory, and it is a {kind}")]
    NotADirectory { path: TreePath, parent: TreePath, kind: &'static str },
    #[error("{path} is already a directory and cannot become a {kind}")]
    DirectoryInTheWay { path: TreePath, kind: &'static str },
    #[error("{path} is a hard link to {target}, which does not exist")]
    DanglingHardLink { path: TreePath, target: TreePath },
    #[error("{path} is a hard link to {target}, which is a directory")]
    HardLinkToDirectory { path: TreePath, target: TreePath },
}

/// One root filesystem: sorted names, the inodes behind them, and the source of the bodies.
///
/// Invariants: the root exists and is a directory; every name's parent exists and is a directory; a directory has
/// exactly one name.
#[derive(Debug, Clone)]
pub struct RootTree {
    names: Names,
    inodes: Vec<Inode>,
    /// By slot: has it been given a second name? Slots behind the end have not.
    linked: Vec<bool>,
    bodies: BodySource,
    /// The parent of the last name that was put in, as long as nothing can have taken it away: in a tar, neighbours
    /// share it.
    last_parent: Option<TreePath>,
}

/// Symlinks followed for one path before it counts as a loop (`MAXSYMLINKS` of Linux, path_resolution(7)).
const LINKS_MAX: usize = 40;

fn names_reversed(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|&byte| byte == b'/').rev().map(<[u8]>::to_vec).collect()
}

/// One name, as [`RootTree::entries`] walks them.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'tree> {
    pub path: &'tree TreePath,
    pub id: InodeId,
    pub inode: &'tree Inode,
    /// The first name in order of this inode, when this is a later one: this entry is a hard link to it.
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
        }
    }

    pub fn bodies(&self) -> &BodySource {
        &self.bodies
    }

    /// Keeps a small content of the tool's own in memory and answers a body for it.
    pub fn add_body(&mut self, content: &[u8]) -> Body {
        Body::contiguous(content.len() as u64, self.bodies.add_bytes(content))
    }

    /// Number of names, the root and hard links included.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Is there nothing but the root?
    pub fn is_empty(&self) -> bool {
        self.len() == 1
    }

    /// Upper bound of [`InodeId`]s, for tables indexed by them.
    pub fn inode_slots(&self) -> usize {
        self.inodes.len()
    }

    /// Number of inodes that have a name.
    pub fn inode_count(&self) -> usize {
        self.entries().filter(|entry| entry.hard_link_to.is_none()).count()
    }

    pub fn get(&self, path: &TreePath) -> Option<&Inode> {
        self.names.get(path).map(|id| self.inode(id))
    }

    pub fn get_mut(&mut self, path: &TreePath) -> Option<&mut Inode> {
        self.last_parent = None;
        let id = self.names.get(path)?;
        Some(&mut self.inodes[id.0 as usize])
    }

    pub fn id(&self, path: &TreePath) -> Option<InodeId> {
        self.names.get(path)
    }

    /// Every inode, those included that have lost their names.
    pub fn inodes_mut(&mut self) -> impl Iterator<Item = &mut Inode> {
        self.last_parent = None;
        self.inodes.iter_mut()
    }

    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.0 as usize]
    }

    /// Index of an inode for tables of [`Self::inode_slots`] rows.
    pub fn slot(id: InodeId) -> usize {
        id.0 as usize
    }

    /// Every name in order: the root first, each directory before what is in it, hard links resolved to their first
    /// name.
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

    /// Names below `path` and `path` itself, in order.
    pub fn subtree(&self, path: &TreePath) -> impl Iterator<Item = (&TreePath, InodeId)> {
        self.names.from(path).take_while(move |(name, _)| name.is_within(path))
    }

    /// `st_nlink` of every inode by slot: names for files, 2 + subdirectories for directories, 0 without a name.
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

    /// Puts an inode at `path` under a name of its own. Missing parents become directories of root's, mode 0755. What
    /// stood there is replaced, as a later tar entry replaces an earlier one; a directory onto a directory keeps the
    /// entries and takes the new attributes.
    pub fn insert(&mut self, path: TreePath, inode: Inode) -> Result<InodeId, TreeError> {
        if self.comes_next(&path) {
            let id = add_inode(&mut self.inodes, inode);
            self.names.push(path, id);
            return Ok(id);
        }
        self.make_parents(&path)?;
        match self.names.add(path, || next_id(&self.inodes)) {
            Ok(id) => {
                self.inodes.push(inode);
                Ok(id)
            }
            Err((path, id)) => self.replace(path, id, inode),
        }
    }

    /// Whether `path` comes after all names and its parent is a directory of the tree, as far as the last name alone can
    /// tell.
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

    /// Puts an inode where `path` already names `id`.
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

    /// Remembers that `id` has, or will have, more than one name.
    fn mark_linked(&mut self, id: InodeId) {
        let slot = id.0 as usize;
        if self.linked.len() <= slot {
            self.linked.resize(slot + 1, false);
        }
        self.linked[slot] = true;
    }

    /// Makes `path` a further name of what `target` names.
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

    /// Takes `path` and all below it away; the root keeps itself. Answers how many names went.
    pub fn remove(&mut self, path: &TreePath) -> usize {
        self.last_parent = None;
        let doomed: Vec<TreePath> =
            self.subtree(path).map(|(name, _)| name.clone()).filter(|name| !name.is_root()).collect();
        for name in &doomed {
            self.names.remove(name);
        }
        doomed.len()
    }

    /// The path at which `path` really lies once every symlink on its way, the last included, is followed inside the
    /// tree; `None` if nothing is there or links go in circles.
    pub fn resolve(&self, path: &TreePath) -> Option<TreePath> {
        let mut pending: Vec<Vec<u8>> = names_reversed(path.as_bytes());
        let mut here = TreePath::root();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => here = here.parent().unwrap_or_else(TreePath::root),
                _ => {
                    let next = here.join(&name)?;
                    match &self.get(&next)?.kind {
                        Kind::Symlink(target) => {
                            links += 1;
                            if links > LINKS_MAX {
                                return None;
                            }
                            if target.first() == Some(&b'/') {
                                here = TreePath::root();
                            }
                            pending.extend(names_reversed(target));
                        }
                        _ => here = next,
                    }
                }
            }
        }
        Some(here)
    }

    /// `path` with the symlinks in its parents followed, as far as they exist: where a new entry is to be put.
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

/// The time an image is said to be made, in seconds since the epoch: `SOURCE_DATE_EPOCH` where it is set, or else the
/// newest modification time of the tree. Never the time of the build.
pub fn image_time(tree: &RootTree) -> i64 {
    Timestamp::source_date_epoch()
        .unwrap_or_else(|| tree.names.iter().map(|(_, id)| tree.inode(id).mtime.seconds).max().unwrap_or(0))
}

#[cfg(test)]
mod tests;
