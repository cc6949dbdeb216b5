//! Layers of a container image, merged in tar space: each is a change to the tree below it, and nothing of it ever
//! touches the host's filesystem.
//!
//! A layer's whiteouts hide what lower layers brought, and nothing of the layer itself, wherever in the archive they
//! stand; then its entries are put, in order, the later over the earlier. Hard links are names of inodes, so a link
//! reaches into lower layers, and a file that an upper layer replaces under one name keeps its other names.
//!
//! Where an entry stands below a symlink, the symlink is followed inside the tree, as engines do that unpack one layer
//! over the other (Podman's vfs driver, umoci): on a root whose `/lib` is a link to `usr/lib`, `lib/x` becomes
//! `usr/lib/x`. Overlay drivers put a new `/lib` over the link instead, with which the system does not start.
//!
//! Source: OCI image-spec 1.1, "Image Layer Filesystem Changeset" (layer.md).

use std::fs::File;
use std::io::{self, Read};

use super::path::PathError;
use super::tar::{self, Budget, Entry, Limits, Policy, Reader, TarError};
use super::tree::{BodySource, Inode, Kind, RootTree, TreeError, TreePath};

/// What marks a whiteout; the hidden name follows.
const WHITEOUT: &[u8] = b".wh.";
/// Names of this kind are marks of AUFS, which first wrote layers.
const MARK: &[u8] = b".wh..wh.";
/// The mark that hides all that lower layers have in its directory. The other ones mean something to AUFS alone.
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
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("{0}: a whiteout that hides no name that a directory can hold")]
    BadWhiteout(TreePath),
    #[error("{0}: an opaque whiteout at the root, which would hide every layer below")]
    OpaqueRoot(TreePath),
    #[error("{0} lies below a whiteout, which can hold nothing")]
    BelowWhiteout(TreePath),
    #[error("{path} lies below the symlink {link}, which leads to no directory")]
    LeadsNowhere { path: TreePath, link: TreePath },
    #[error("{0}: with the directories above it the path is too long for the tree")]
    Path(TreePath, #[source] PathError),
    #[error("cannot use a temporary file")]
    Spool(#[from] io::Error),
}

/// The tree of the layers so far.
pub struct Layers {
    tree: RootTree,
    spool: File,
    budget: Budget,
    /// The last directory that was not one by its own name, and where it really is.
    followed: Option<(TreePath, TreePath)>,
}

impl Layers {
    /// No layer yet. `spool`, an empty temporary file, takes in the bodies of all layers.
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

    pub fn finish(self) -> RootTree {
        self.tree
    }

    /// Takes away what a whiteout hides; other entries hide nothing.
    fn hide(&mut self, path: &TreePath) -> Result<(), LayerError> {
        let parent = path.parent().unwrap_or_else(TreePath::root);
        match kind_of(path)? {
            Name::Opaque if parent.is_root() => return Err(LayerError::OpaqueRoot(path.clone())),
            Name::Opaque => {
                // What is not there, or is no directory, has nothing to hide.
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

    /// Where a path really lies once the symlinks in its parents are followed.
    fn place(&mut self, path: &TreePath) -> Result<TreePath, LayerError> {
        let Some(parent) = path.parent() else { return Ok(path.clone()) };
        if self.tree.get(&parent).is_some_and(Inode::is_directory) {
            return Ok(path.clone());
        }
        let real = match &self.followed {
            // Neighbours in an archive share their directory, and nothing between them moved it.
            Some((written, real)) if *written == parent && self.tree.get(real).is_some_and(Inode::is_directory) => {
                real.clone()
            }
            _ => self.follow(&parent, path)?,
        };
        let place = TreePath::new([real.as_bytes(), b"/", path.name()].concat());
        self.followed = Some((parent, real));
        place.map_err(|error| LayerError::Path(path.clone(), error))
    }

    /// The directory `parent` with its symlinks followed; what is not there yet is left as it is written.
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

    /// A file, or whatever is no directory, replaces a directory with all that is in it.
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
    /// AUFS's own, and what is in it.
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
