//! The layers of a container image, merged in memory: nothing of them ever touches the host's filesystem.
//!
//! The whiteouts of a layer hide entries of lower layers and never the layer's own, wherever in the archive they are; then
//! its entries are applied in order, later ones over earlier ones. Hard links are names of inodes, so a link can name a
//! file of a lower layer, and a file that an upper layer replaces under one name keeps its other names.
//!
//! Where an entry is below a symlink, the symlink is followed inside the tree, as engines do that unpack one layer over
//! the other (Podman's vfs driver, umoci): on a root whose `/lib` is a link to `usr/lib`, `lib/x` becomes `usr/lib/x`.
//! Overlay drivers put a new `/lib` over the link instead, with which the system does not start.
//!
//! Source: OCI image-spec 1.1, "Image Layer Filesystem Changeset" (layer.md).

use std::fs::File;
use std::io::{self, Read};

use super::path::PathError;
use super::tar::{self, Budget, Entry, Limits, Policy, Reader, TarError};
use super::tree::{BodySource, Inode, Kind, RootTree, TreeError, TreePath};

/// Prefix of a whiteout; the hidden name follows.
const WHITEOUT: &[u8] = b".wh.";
/// Prefix of the metadata of AUFS, which first wrote layers.
const MARK: &[u8] = b".wh..wh.";
/// The opaque whiteout, which hides all entries of lower layers in its directory. Other names with [`MARK`] mean something
/// to AUFS alone.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Bounds on an image: a million entries, the directories that are only implied included, and 64 GiB of unpacked data.
/// The largest images in use (machine learning with its GPU libraries) have a third of that.
pub const LIMITS: Limits = Limits {
    entries: 1_000_000,
    data_bytes: 64 << 30,
    extended_header_bytes: 1 << 20,
    xattr_bytes: 64 << 10,
    sparse_ranges: 1_000_000,
    metadata_bytes: 1 << 30,
};

/// Why a layer is refused.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The layer is no valid archive.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry does not fit the tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A whiteout hides no valid name.
    #[error("{0}: a whiteout that hides no name that a directory can hold")]
    BadWhiteout(TreePath),
    /// An opaque whiteout is at the root.
    #[error("{0}: an opaque whiteout at the root, which would hide every layer below")]
    OpaqueRoot(TreePath),
    /// An entry is below a whiteout.
    #[error("{0} is below a whiteout, which holds nothing")]
    BelowWhiteout(TreePath),
    /// An entry is below a symlink that leads to no directory.
    #[error("{path} is below the symlink {link}, which leads to no directory")]
    LeadsNowhere {
        /// The entry.
        path: TreePath,
        /// The symlink.
        link: TreePath,
    },
    /// An entry's path is invalid once symlinks are followed.
    #[error("{0}: with the directories above it the path is too long for the tree")]
    Path(TreePath, #[source] PathError),
    /// The temporary file for contents cannot be used.
    #[error("cannot use a temporary file")]
    Spool(#[from] io::Error),
}

/// The tree of the layers that were applied so far.
pub struct Layers {
    tree: RootTree,
    spool: File,
    budget: Budget,
    /// The last parent that was reached by a symlink, and the directory to which it led.
    followed: Option<(TreePath, TreePath)>,
}

impl Layers {
    /// No layer yet. The contents of all layers are appended to `spool`, an empty temporary file.
    pub fn new(spool: File, limits: &Limits) -> Result<Self, LayerError> {
        let tree = RootTree::new(BodySource::new(spool.try_clone()?));
        Ok(Layers { tree, spool, budget: Budget::new(limits), followed: None })
    }

    /// Applies a layer, an uncompressed tar, to the ones before. The input is read to its end, whatever happens.
    pub fn apply(&mut self, layer: impl Read) -> Result<(), LayerError> {
        let mut reader = Reader::from_stream(layer, self.spool.try_clone()?, Policy::LAYER, &mut self.budget)?;
        let entries = reader.by_ref().collect::<Result<Vec<Entry>, TarError>>();
        reader.drain();
        drop(reader);
        self.merge(entries?)
    }

    fn merge(&mut self, entries: Vec<Entry>) -> Result<(), LayerError> {
        self.followed = None;
        for entry in &entries {
            self.hide(entry.path())?;
        }
        self.followed = None;
        for entry in entries {
            if kind_of(entry.path())? == Name::Plain {
                self.put(entry)?;
            }
        }
        Ok(())
    }

    /// Returns the merged tree.
    pub fn finish(self) -> RootTree {
        self.tree
    }

    /// Removes what a whiteout hides; other entries hide nothing.
    fn hide(&mut self, path: &TreePath) -> Result<(), LayerError> {
        let parent = path.parent().unwrap_or_else(TreePath::root);
        match kind_of(path)? {
            Name::Opaque if parent.is_root() => return Err(LayerError::OpaqueRoot(path.clone())),
            Name::Opaque => {
                // A missing directory has nothing to hide.
                let Some(directory) = self.tree.resolve(&parent) else { return Ok(()) };
                let hidden: Vec<TreePath> =
                    self.tree.subtree(&directory).skip(1).map(|(path, _)| path.clone()).collect();
                for path in &hidden {
                    self.tree.remove(path);
                }
            }
            Name::Whiteout => {
                let hidden = &path.name()[WHITEOUT.len()..];
                if matches!(hidden, b"" | b"." | b"..") {
                    return Err(LayerError::BadWhiteout(path.clone()));
                }
                if let Some(hidden) = self.tree.resolve(&parent).and_then(|parent| parent.join(hidden)) {
                    self.tree.remove(&hidden);
                }
            }
            Name::Plain | Name::Mark => {}
        }
        Ok(())
    }

    /// Applies an entry that is no whiteout.
    fn put(&mut self, entry: Entry) -> Result<(), LayerError> {
        let written = entry.path().clone();
        let path = self.place(&written)?;
        let slots = self.tree.inode_slots();
        match entry {
            Entry::Inode { inode, .. } => {
                if !inode.is_directory() {
                    self.make_way(&path);
                }
                self.tree.insert(path, inode)?;
            }
            Entry::HardLink { target, body, .. } => {
                let target = self.place(&target)?;
                self.make_way(&path);
                self.tree.link(path, &target)?;
                if let Some(body) = body {
                    tar::set_link_body(&mut self.tree, &written, &target, body)?;
                }
            }
        }
        // Of the new inodes one may be the entry's own.
        let implied = self.tree.inode_slots().saturating_sub(slots + 1);
        Ok(self.budget.charge_implied(implied, written.as_bytes())?)
    }

    /// Returns the path once the symlinks in its parents are followed.
    fn place(&mut self, path: &TreePath) -> Result<TreePath, LayerError> {
        let Some(parent) = path.parent() else { return Ok(path.clone()) };
        if self.tree.get(&parent).is_some_and(Inode::is_directory) {
            return Ok(path.clone());
        }
        let real = match &self.followed {
            // Neighbours in an archive share their directory, which cannot have moved between them.
            Some((written, real)) if *written == parent && self.tree.get(real).is_some_and(Inode::is_directory) => {
                real.clone()
            }
            _ => self.follow(&parent, path)?,
        };
        let place = TreePath::new([real.as_bytes(), b"/", path.name()].concat());
        self.followed = Some((parent, real));
        place.map_err(|error| LayerError::Path(path.clone(), error))
    }

    /// Follows the symlinks in the directory `parent`; components that do not exist yet are kept.
    fn follow(&self, parent: &TreePath, path: &TreePath) -> Result<TreePath, LayerError> {
        let mut here = TreePath::root();
        for name in parent.components() {
            let too_long = |error| LayerError::Path(path.clone(), error);
            let next = TreePath::new([here.as_bytes(), b"/", name].concat()).map_err(too_long)?;
            here = match self.tree.get(&next).map(|inode| &inode.kind) {
                Some(Kind::Symlink(_)) => {
                    let real = self.tree.resolve(&next);
                    let directory = real.filter(|real| self.tree.get(real).is_some_and(Inode::is_directory));
                    directory.ok_or_else(|| LayerError::LeadsNowhere { path: path.clone(), link: next })?
                }
                _ => next,
            };
        }
        Ok(here)
    }

    /// Removes a directory that an entry of another type replaces, with all that is in it.
    fn make_way(&mut self, path: &TreePath) {
        if self.tree.get(path).is_some_and(Inode::is_directory) {
            self.tree.remove(path);
        }
    }
}

/// What a name means in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Plain,
    Whiteout,
    Opaque,
    /// Metadata of AUFS, and what is below it.
    Mark,
}

fn kind_of(path: &TreePath) -> Result<Name, LayerError> {
    let mut above = path.components().peekable();
    while let Some(name) = above.next() {
        let last = above.peek().is_none();
        if name == OPAQUE && last {
            return Ok(Name::Opaque);
        }
        if name.starts_with(MARK) {
            return Ok(Name::Mark);
        }
        if name.starts_with(WHITEOUT) {
            return if last { Ok(Name::Whiteout) } else { Err(LayerError::BelowWhiteout(path.clone())) };
        }
    }
    Ok(Name::Plain)
}

#[cfg(test)]
mod tests;
