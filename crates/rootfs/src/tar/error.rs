//! Errors of reading an archive. They name the entry, or the offset where there is no entry yet.

use std::fmt;
use std::io;

use crate::path::escape_bytes;
use crate::tree::{PathError, TreeError, TreePath};

/// Why a tar cannot become a tree. Offsets are bytes from the archive's start.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The input is empty.
    #[error("no data: the input is empty\nhint: did the command that should write the tar fail?")]
    Empty,
    /// The input is compressed.
    #[error(
        "the input is {format}-compressed, not a tar\n\
         hint: decompress it in the pipe: `{command} {sample} | cargo xtask pack - …`"
    )]
    Compressed {
        /// The format.
        format: &'static str,
        /// The command that decompresses it.
        command: &'static str,
        /// A file name for the hint.
        sample: &'static str,
    },
    /// The input is something else.
    #[error("the input is {format}, not a tar\nhint: {hint}")]
    Foreign {
        /// What it is, as in "a cpio archive".
        format: &'static str,
        /// What to do instead.
        hint: &'static str,
    },
    /// The input does not begin with a header.
    #[error(
        "the input is not a tar archive: its first block has no valid header checksum\n\
         hint: `file` tells what it is; tar -C ROOT -c . makes a tar of a folder"
    )]
    NotTar,
    /// A header after the first has a wrong checksum.
    #[error(
        "{after} is followed, at byte {offset}, by a block with a bad checksum: the archive is damaged there, or the \
         entry lies about its size"
    )]
    Checksum {
        /// Bytes from the start of the archive.
        offset: u64,
        /// The entry before it.
        after: EntryName,
    },
    /// The input cannot be read.
    #[error("cannot read the archive at byte {offset}")]
    Read {
        /// Bytes from the start of the archive.
        offset: u64,
        /// What the system reported.
        source: io::Error,
    },
    /// The spool cannot be written.
    #[error("cannot write to the spool of the archive")]
    Spool {
        /// What the system reported.
        source: io::Error,
    },
    /// The input ends inside a header.
    #[error("the archive ends inside the header at byte {offset}")]
    TruncatedHeader {
        /// Bytes from the start of the archive.
        offset: u64,
    },
    /// The input ends inside an entry's data.
    #[error("{entry}: the archive ends {} before the entry's data does", bytes(*missing))]
    Truncated {
        /// The entry.
        entry: EntryName,
        /// Bytes that are missing.
        missing: u64,
    },
    /// The input ends without an end marker.
    #[error(
        "the archive stops after {after}, at byte {offset}, without an end marker (two zero blocks): it is cut short\n\
         hint: did the command that should write it fail half-way?"
    )]
    MissingEnd {
        /// Bytes from the start of the archive.
        offset: u64,
        /// The entry before it.
        after: EntryName,
    },
    /// One zero block is followed by more headers.
    #[error("a lone zero block at byte {offset} is followed by more headers: the archive is damaged there")]
    LoneZeroBlock {
        /// Bytes from the start of the archive.
        offset: u64,
    },
    /// Data follows the end marker.
    #[error(
        "data follows the end of the archive at byte {offset}\n\
         hint: archives that were joined with `cat` must be unpacked one by one"
    )]
    TrailingData {
        /// Bytes from the start of the archive.
        offset: u64,
    },
    /// A name is empty.
    #[error("the header at byte {offset} has an empty name")]
    EmptyName {
        /// Bytes from the start of the archive.
        offset: u64,
    },
    /// A name is no valid path.
    #[error("{entry}: {reason}")]
    Path {
        /// The entry.
        entry: EntryName,
        /// What is wrong.
        reason: PathError,
    },
    /// A hard link's target is no valid path.
    #[error("{entry}: hard link to {target}: {reason}")]
    LinkPath {
        /// The entry.
        entry: EntryName,
        /// The target.
        target: EntryName,
        /// What is wrong.
        reason: PathError,
    },
    /// A name has more `..` components than directories before them.
    #[error(
        "{entry}: the name would leave the root through `..`\n\
         hint: archive a root filesystem relative to its root, as `tar -C ROOT -c .` does"
    )]
    LeavesRoot {
        /// The entry.
        entry: EntryName,
    },
    /// The target of a hard link has more `..` components than directories before them.
    #[error(
        "{entry}: hard link to {target}: the target would leave the root through `..`\n\
         hint: the target of a hard link is the name of another entry, relative to the root and not to the link"
    )]
    LinkLeavesRoot {
        /// The entry.
        entry: EntryName,
        /// The target.
        target: EntryName,
    },
    /// The symlinks above an entry form a loop.
    #[error(
        "{path}: too many symlinks on the way to {above} (ELOOP)\n\
         hint: they lead round in a circle, through more than 40 others, or through thousands of names"
    )]
    SymlinkLoop {
        /// The entry.
        path: TreePath,
        /// Its directory.
        above: TreePath,
    },
    /// The symlinks above an entry lead to something else than a directory.
    #[error("{path} is below a symlink that leads to {place}, and that is a {kind}")]
    BelowNonDirectory {
        /// The entry.
        path: TreePath,
        /// What the symlink leads to.
        place: TreePath,
        /// The type of that.
        kind: &'static str,
    },
    /// Where symlinks lead, an entry's path is invalid.
    #[error("{path}: where the symlinks above it lead, {reason}")]
    PlacePath {
        /// The entry.
        path: TreePath,
        /// What is wrong.
        reason: PathError,
    },
    /// The target of a hard link is no entry so far.
    #[error(
        "{path} is a hard link to {target}, which does not exist\n\
         hint: the file comes before its links; was it left out when the archive was made, or moved behind them?"
    )]
    DanglingHardLink {
        /// The entry.
        path: TreePath,
        /// The target.
        target: TreePath,
    },
    /// An entry does not fit the tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The root is not a directory.
    #[error("{entry}: the root of the archive is a {kind}, not a directory")]
    RootNotDirectory {
        /// The entry.
        entry: EntryName,
        /// The type.
        kind: &'static str,
    },
    /// A hard link to something else than a file carries data.
    #[error("{entry}: hard link to {target} carries data, and that is a {kind}")]
    HardLinkData {
        /// The entry.
        entry: EntryName,
        /// The target.
        target: EntryName,
        /// The type.
        kind: &'static str,
    },
    /// A symlink has no target.
    #[error("{entry}: the symlink has no target")]
    EmptySymlink {
        /// The entry.
        entry: EntryName,
    },
    /// A symlink's target holds a NUL byte.
    #[error("{entry}: the symlink's target holds a NUL byte")]
    NulInSymlink {
        /// The entry.
        entry: EntryName,
    },
    /// A symlink's target is longer than Linux allows.
    #[error("{entry}: the symlink's target is {length} bytes long, more than {max}")]
    SymlinkTooLong {
        /// The entry.
        entry: EntryName,
        /// Length in bytes.
        length: usize,
        /// The limit.
        max: usize,
    },
    /// An entry of a type without data has data.
    #[error("{entry}: a {kind} with {} of data", bytes(*size))]
    UnexpectedData {
        /// The entry.
        entry: EntryName,
        /// The type.
        kind: &'static str,
        /// Size in bytes.
        size: u64,
    },
    /// The archive needs a feature that is not supported.
    #[error("{entry}: {what} are not supported")]
    Unsupported {
        /// The entry.
        entry: EntryName,
        /// What it is.
        what: &'static str,
    },
    /// An entry has an unknown type.
    #[error("{entry}: unknown entry type `{}`", typeflag.escape_ascii())]
    UnknownType {
        /// The entry.
        entry: EntryName,
        /// The type flag.
        typeflag: u8,
    },
    /// A numeric field holds no number.
    #[error("{entry}: the header's {field} is not a number: `{}`", value.escape_ascii())]
    BadNumber {
        /// The entry.
        entry: EntryName,
        /// The field.
        field: &'static str,
        /// The value.
        value: Vec<u8>,
    },
    /// A number is out of range.
    #[error("{entry}: the {field} {value} is out of range")]
    OutOfRange {
        /// The entry.
        entry: EntryName,
        /// The field.
        field: &'static str,
        /// The value.
        value: i128,
    },
    /// An extended header is larger than the limit.
    #[error("the extended header at byte {offset} is {size} bytes long, more than {max}")]
    ExtendedHeaderTooLarge {
        /// Bytes from the start of the archive.
        offset: u64,
        /// Size in bytes.
        size: u64,
        /// The limit.
        max: u64,
    },
    /// An extended header is malformed.
    #[error("the extended header at byte {offset} is malformed: {reason}")]
    BadExtendedHeader {
        /// Bytes from the start of the archive.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// An extended header is the last one of the archive.
    #[error("the extended header at byte {offset} describes no entry")]
    DanglingExtendedHeader {
        /// Bytes from the start of the archive.
        offset: u64,
    },
    /// The map of a sparse file is malformed.
    #[error("{entry}: bad sparse map: {reason}")]
    BadSparseMap {
        /// The entry.
        entry: EntryName,
        /// What is wrong.
        reason: &'static str,
    },
    /// The zeros after the end of the archive do not end.
    #[error(
        "the end of the archive is followed by more than {} GiB of zeros\n\
         hint: give the archive alone, not the disk or device that it was written to",
        max >> 30
    )]
    Padding {
        /// The limit in bytes.
        max: u64,
    },
    /// The archive exceeds one of the [`Limits`](super::Limits).
    #[error("{entry} exceeds the limit of {max} {what}")]
    TooMuch {
        /// The entry.
        entry: EntryName,
        /// What it is.
        what: &'static str,
        /// The limit.
        max: u64,
    },
}

/// A name as the archive has it, safe to print: quoted, control bytes escaped, and very long ones without their middle.
#[derive(Clone, PartialEq, Eq)]
pub struct EntryName(Box<[u8]>);

/// Longest name that an error prints in full, in bytes.
const SHOWN: usize = 160;

impl EntryName {
    /// A name as the archive has it.
    pub fn new(raw: &[u8]) -> Self {
        EntryName(raw.into())
    }

    /// Returns the name as the archive has it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`")?;
        if self.0.len() <= SHOWN {
            escape_bytes(&self.0, f)?;
        } else {
            escape_bytes(&self.0[..SHOWN / 2], f)?;
            f.write_str("…")?;
            escape_bytes(&self.0[self.0.len() - SHOWN / 2..], f)?;
        }
        f.write_str("`")
    }
}

impl fmt::Debug for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `1 byte`, `2 bytes`
fn bytes(count: u64) -> String {
    let ending = if count == 1 { "" } else { "s" };
    format!("{count} byte{ending}")
}
