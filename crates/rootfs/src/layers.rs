//! The layers of a container image, merged in memory: nothing of them ever touches the host's filesystem.
//!
//! The whiteouts of a layer hide entries of lower layers and never the layer's own, wherever in the archive they are; then
//! its entries are applied in order, later ones over earlier ones. Hard links are names of inodes, so a link can name a
//! file of a lower layer, and a file that an upper layer replaces under one name keeps its other names.
//!
//! Entries go where those of any archive go ([`tar`](super::tar)). Where one is below a symlink, that is followed inside the
//! tree, as engines do that unpack one layer over the other (Podman's vfs driver, umoci). Overlay drivers put a new `/lib` over
//! a link to `usr/lib` instead, with which the system does not start.
//!
//! Source: OCI image-spec 1.1, "Image Layer Filesystem Changeset" (layer.md).

use std::fs::File;
use std::io::{self, Read};

use super::body::FileChain;
use super::tar::{Budget, EndMarker, Entry, Limits, Placement, Reader, TarError, resolve_acls};
use super::tree::{BodySource, Missing, RootTree, TreePath};

/// Prefix of a whiteout; the hidden name follows.
pub(crate) const WHITEOUT: &[u8] = b".wh.";
/// Prefix of the metadata of AUFS, which first wrote layers.
const MARK: &[u8] = b".wh..wh.";
/// The opaque whiteout, which hides all entries of lower layers in its directory. Other names with [`MARK`] mean something
/// to AUFS alone.
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";

/// Bounds on an image: a million entries, the directories that are only implied included, and 64 GiB of unpacked data.
/// The largest images in use (machine learning with its GPU libraries) have a third of that.
pub const LIMITS: Limits = Limits {
    entries: 1_000_000,
    data_bytes: 64 << 30,
    extended_header_bytes: 16 << 20,
    sparse_ranges: 1_000_000,
    metadata_bytes: 1 << 30,
    followed_bytes: 16 << 30,
};

/// Why a layer is refused.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The layer is no valid archive.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A whiteout hides no valid name.
    #[error("{0}: a whiteout that hides no name that a directory can hold")]
    BadWhiteout(TreePath),
    /// An opaque whiteout is at the root.
    #[error("{0}: an opaque whiteout at the root, which would hide every layer below")]
    OpaqueRoot(TreePath),
    /// An entry is below a whiteout.
    #[error("{0} is below a whiteout, which holds nothing")]
    BelowWhiteout(TreePath),
    /// The temporary file for contents cannot be used.
    #[error("cannot use a temporary file")]
    Spool(#[from] io::Error),
}

/// The tree of the layers that were applied so far.
pub struct Layers {
    merged: Merged,
    spool: File,
}

impl Layers {
    /// No layer yet. The contents of all layers are appended to `spool`, an empty temporary file.
    pub fn new(spool: File, limits: &Limits) -> Result<Self, LayerError> {
        let tree = RootTree::new(BodySource::new(spool.try_clone()?));
        Ok(Layers { merged: Merged { tree, budget: Budget::new(limits), own: false }, spool })
    }

    /// Applies a layer, an uncompressed tar, to the ones before. The input is read to its end, whatever happens.
    pub fn apply(&mut self, layer: impl Read) -> Result<(), LayerError> {
        let merged = &mut self.merged;
        let mut reader = Reader::from_stream(layer, self.spool.try_clone()?, EndMarker::Optional, &mut merged.budget)?;
        let entries = reader.by_ref().collect::<Result<Vec<Entry>, TarError>>();
        reader.drain();
        merged.tree.note_all(reader.take_adjustments());
        drop(reader);
        merged.merge(entries?)
    }

    /// Returns the merged tree.
    ///
    /// # Errors
    ///
    /// The accounts of the tree, by which names in access control lists are looked up, cannot be read from the temporary file.
    pub fn finish(self) -> Result<RootTree, LayerError> {
        self.merged.finish()
    }
}

/// A tree that layers are merged into, and what they may use.
struct Merged {
    tree: RootTree,
    budget: Budget,
    /// Whether the layers are of our own making, where the root may be opaque: its entries are all in the layer.
    own: bool,
}

impl Merged {
    fn merge(&mut self, entries: Vec<Entry>) -> Result<(), LayerError> {
        for entry in &entries {
            self.hide(entry.path())?;
        }
        let mut placement = Placement::over(&self.tree);
        for entry in entries {
            if kind_of(entry.path())? == Name::Plain {
                placement.put(&mut self.tree, entry, &mut self.budget)?;
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<RootTree, LayerError> {
        let resolved = resolve_acls(&mut self.tree)?;
        self.tree.note_all(resolved);
        Ok(self.tree)
    }

    /// Removes what a whiteout hides; other entries hide nothing.
    fn hide(&mut self, path: &TreePath) -> Result<(), LayerError> {
        let parent = path.parent().unwrap_or_else(TreePath::root);
        match kind_of(path)? {
            Name::Opaque if parent.is_root() && !self.own => return Err(LayerError::OpaqueRoot(path.clone())),
            Name::Opaque => {
                // A missing directory has nothing to hide.
                let Some(directory) = self.follow(&parent)? else { return Ok(()) };
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
                if let Some(hidden) = self.follow(&parent)?.and_then(|parent| parent.join(hidden)) {
                    self.tree.remove(&hidden);
                }
            }
            Name::Plain | Name::Mark => {}
        }
        Ok(())
    }

    /// Returns the directory in which a whiteout hides something.
    fn follow(&mut self, directory: &TreePath) -> Result<Option<TreePath>, TarError> {
        Ok(self.budget.follow(&self.tree, directory, Missing::Refused)?.ok())
    }
}

/// The archive that layers stand on.
#[derive(Debug)]
pub struct Lowest {
    /// An uncompressed tar.
    pub file: File,
    /// Whether it was written with [`TarOptions::OWN`](super::tar::TarOptions::OWN).
    pub own: bool,
}

/// Merges an archive with layers over it, the lowest first, which are archives of our own, written with
/// [`TarOptions::OWN`](super::tar::TarOptions::OWN). Contents stay in the files, which must not change as long as the tree is
/// used.
///
/// Names of the lowest are taken as they are: there is nothing that they could hide.
pub fn stack(lowest: Lowest, layers: Vec<File>, limits: &Limits) -> Result<RootTree, LayerError> {
    let mut chain = FileChain::default();
    let _: u64 = chain.add(lowest.file.try_clone()?)?;
    let starts = layers.iter().map(|layer| chain.add(layer.try_clone()?)).collect::<io::Result<Vec<u64>>>()?;
    let tree = RootTree::new(BodySource::new(chain));
    let mut merged = Merged { tree, budget: Budget::new(limits), own: true };
    let mut reader = match lowest.own {
        true => Reader::from_own(lowest.file, &mut merged.budget)?,
        false => Reader::from_file(lowest.file, EndMarker::Required, &mut merged.budget)?,
    };
    let mut placement = Placement::over(&merged.tree);
    while let Some(entry) = reader.next_entry()? {
        placement.put(&mut merged.tree, entry, reader.budget())?;
    }
    reader.hand_over_adjustments(&mut merged.tree)?;
    drop(reader);
    // By the accounts of this archive, as steps saw it: those of the layers may be others.
    let resolved = resolve_acls(&mut merged.tree)?;
    merged.tree.note_all(resolved);
    for (layer, start) in layers.into_iter().zip(starts) {
        // A file that many layers have again takes no more memory for that.
        merged.budget = Budget::new(limits);
        // A step's files may have blocks of zeros, which are no data.
        let mut reader = Reader::from_file(layer, EndMarker::Required, &mut merged.budget)?.own();
        let mut entries = reader.by_ref().collect::<Result<Vec<Entry>, TarError>>()?;
        reader.hand_over_adjustments(&mut merged.tree)?;
        drop(reader);
        entries.iter_mut().for_each(|entry| entry.move_body(start));
        merged.merge(entries)?;
    }
    Ok(merged.tree)
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
