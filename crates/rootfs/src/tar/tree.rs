//! Trees from whole archives.

use std::fs::File;
use std::io::Read;

use super::error::{EntryName, TarError};
use super::limits::{Budget, Limits};
use super::policy::Policy;
use super::read::{Entry, Reader};
use crate::tree::{Body, BodySource, Kind, RootTree, TreePath};

/// Bytes of the archive between two reports of progress.
const PROGRESS_STEP: u64 = 1 << 20;

/// Reads a tar that can be sought in as a tree: only headers are read, and bodies stay where they are. `progress` is
/// called with the bytes passed since the start.
pub fn read_file(file: File, limits: &Limits, progress: &mut dyn FnMut(u64)) -> Result<RootTree, TarError> {
    let bodies = file.try_clone().map_err(|source| TarError::Read { offset: 0, source })?;
    let mut budget = Budget::new(limits);
    build(&mut Reader::from_file(file, Policy::STRICT, &mut budget)?, BodySource::new(bodies), progress)
}

/// Reads a tar from a pipe as a tree. Bodies are appended to `spool`, a temporary file that the tree then reads from.
/// Whatever happens, the input is read to its end, so that the program that writes it ends by itself and reports how it
/// went. `progress` is called with the bytes read since the start.
pub fn read_stream(
    input: impl Read,
    spool: File,
    limits: &Limits,
    progress: &mut dyn FnMut(u64),
) -> Result<RootTree, TarError> {
    let bodies = spool.try_clone().map_err(|source| TarError::Spool { source })?;
    let mut budget = Budget::new(limits);
    let mut reader = Reader::from_stream(input, spool, Policy::STRICT, &mut budget)?;
    let tree = build(&mut reader, BodySource::new(bodies), progress);
    reader.drain();
    tree
}

/// Applies all entries to an empty tree.
fn build(reader: &mut Reader, bodies: BodySource, progress: &mut dyn FnMut(u64)) -> Result<RootTree, TarError> {
    let mut tree = RootTree::new(bodies);
    let mut reported = 0;
    while let Some(entry) = reader.next_entry()? {
        let slots = tree.inode_slots();
        match entry {
            Entry::Inode { path, inode } => {
                tree.insert(path, inode)?;
                // Of the new inodes one may be the entry's own.
                reader.charge_implied(tree.inode_slots().saturating_sub(slots + 1))?;
            }
            Entry::HardLink { path, target, body } => {
                tree.link(path.clone(), &target)?;
                reader.charge_implied(tree.inode_slots() - slots)?;
                if let Some(body) = body {
                    set_link_body(&mut tree, &path, &target, body)?;
                }
            }
        }
        let offset = reader.offset();
        if offset - reported >= PROGRESS_STEP {
            progress(offset);
            reported = offset;
        }
    }
    progress(reader.offset());
    Ok(tree)
}

/// Gives the file that `path` and `target` name the content that came with its hard link `path`.
pub(crate) fn set_link_body(
    tree: &mut RootTree,
    path: &TreePath,
    target: &TreePath,
    body: Body,
) -> Result<(), TarError> {
    match tree.get_mut(target).map(|inode| &mut inode.kind) {
        Some(Kind::File(old)) => {
            *old = body;
            Ok(())
        }
        other => {
            let kind = other.map_or("nothing", |kind| kind.noun());
            let (entry, target) = (EntryName::new(path.as_bytes()), EntryName::new(target.as_bytes()));
            Err(TarError::HardLinkData { entry, target, kind })
        }
    }
}
