//! Trees from whole archives.

use std::fs::File;
use std::io::Read;

use super::end_marker::EndMarker;
use super::error::TarError;
use super::limits::{Budget, Limits};
use super::placement::Placement;
use super::read::Reader;
use super::text_acls::resolve_acls;
use crate::adjustments::Adjustments;
use crate::tree::{BodySource, RootTree};

/// Bytes of the archive between two reports of progress.
const PROGRESS_STEP: u64 = 1 << 20;

/// Reads a tar that can be sought in as a tree: bodies stay where they are, and a look at each of their blocks finds those of
/// [zeros](crate::holes). `progress` is called with the bytes passed since the start.
pub fn read_file(file: File, limits: &Limits, progress: &mut dyn FnMut(u64)) -> Result<RootTree, TarError> {
    let bodies = shared(&file)?;
    let mut budget = Budget::new(limits);
    build(&mut Reader::from_file(file, EndMarker::Required, &mut budget)?, bodies, progress)
}

/// As [`read_file`], with the ranges of data that the archive states: only headers are read. In what
/// [`write()`](super::write()) makes of a tree without blocks of zeros, there are none either.
pub fn read_as_stated(file: File, limits: &Limits, progress: &mut dyn FnMut(u64)) -> Result<RootTree, TarError> {
    let bodies = shared(&file)?;
    let mut budget = Budget::new(limits);
    build(&mut Reader::from_file_as_stated(file, EndMarker::Required, &mut budget)?, bodies, progress)
}

/// Returns the open file once more, to read bodies from.
fn shared(file: &File) -> Result<BodySource, TarError> {
    let file = file.try_clone().map_err(|source| TarError::Read { offset: 0, source })?;
    Ok(BodySource::new(file))
}

/// As [`read_as_stated`], of an archive that was written with [`TarOptions::OWN`](super::TarOptions::OWN).
pub fn read_own(file: File, limits: &Limits, progress: &mut dyn FnMut(u64)) -> Result<RootTree, TarError> {
    let bodies = shared(&file)?;
    let mut budget = Budget::new(limits);
    build(&mut Reader::from_own(file, &mut budget)?, bodies, progress)
}

/// Returns what an archive says was adjusted of its tree, from its first header. It must have been written with
/// [`TarOptions::OWN`](super::TarOptions::OWN).
pub fn own_adjustments(file: File) -> Result<Adjustments, TarError> {
    let mut budget = Budget::new(&Limits::default());
    let mut reader = Reader::from_own(file, &mut budget)?;
    reader.next_entry()?;
    reader.own_adjustments()
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
    drained(Reader::from_stream(input, spool, EndMarker::Required, &mut budget)?, BodySource::new(bodies), progress)
}

/// As [`read_stream`], of an archive that was written with [`TarOptions::OWN`](super::TarOptions::OWN).
pub fn read_own_stream(
    input: impl Read,
    spool: File,
    limits: &Limits,
    progress: &mut dyn FnMut(u64),
) -> Result<RootTree, TarError> {
    let bodies = spool.try_clone().map_err(|source| TarError::Spool { source })?;
    let mut budget = Budget::new(limits);
    let reader = Reader::from_stream(input, spool, EndMarker::Required, &mut budget)?;
    drained(reader.own(), BodySource::new(bodies), progress)
}

/// Makes a tree of a stream, and reads it to its end.
fn drained(mut reader: Reader, bodies: BodySource, progress: &mut dyn FnMut(u64)) -> Result<RootTree, TarError> {
    let tree = build(&mut reader, bodies, progress);
    reader.drain();
    tree
}

/// Applies all entries to an empty tree.
fn build(reader: &mut Reader, bodies: BodySource, progress: &mut dyn FnMut(u64)) -> Result<RootTree, TarError> {
    let mut tree = RootTree::new(bodies);
    let mut placement = Placement::over(&tree);
    let mut reported = 0;
    while let Some(entry) = reader.next_entry()? {
        placement.put(&mut tree, entry, reader.budget())?;
        let offset = reader.offset();
        if offset - reported >= PROGRESS_STEP {
            progress(offset);
            reported = offset;
        }
    }
    reader.hand_over_adjustments(&mut tree)?;
    let resolved = resolve_acls(&mut tree).map_err(|source| TarError::Spool { source })?;
    tree.note_all(resolved);
    progress(reader.offset());
    Ok(tree)
}
