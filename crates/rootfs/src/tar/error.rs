//! Why an archive is refused, naming the entry, or the place where there is no entry yet.

use std::fmt;
use std::io;

use crate::path::escape_bytes;
use crate::tree::{PathError, TreeError};

/// Why a tar cannot become a tree. Offsets are bytes from the archive's start.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("no data: the input is empty\nhint: did the command that should write the tar fail?")]
    Empty,
    #[error(
        "the input is {format}-compressed, not a tar\n\
         hint: decompress it in the pipe: `{command} {sample} | cargo xtask pack - …`"
    )]
    Compressed { format: &'static str, command: &'static str, sample: &'static str },
    #[error("the input is not a tar archive: its first block has no valid header checksum")]
    NotTar,
    #[error(
        "{after} is followed, at byte {offset}, by a block with a bad checksum: the archive is damaged there, or the \
         entry lies about its size"
    )]
    Checksum { offset: u64, after: EntryName },
    #[error("cannot read the archive at byte {offset}")]
    Read { offset: u64, source: io::Error },
    #[error("cannot write to the spool of the archive")]
    Spool { source: io::Error },
    #[error("the archive ends inside the header at byte {offset}")]
    TruncatedHeader { offset: u64 },
    #[error("{entry}: the archive ends {missing} bytes before the entry's data does")]
    Truncated { entry: EntryName, missing: u64 },
    #[error(
        "the archive stops after {after}, at byte {offset}, without an end marker (two zero blocks): it is cut short\n\
         hint: did the command that should write it fail half-way?"
    )]
    MissingEnd { offset: u64, after: EntryName },
    #[error("a lone zero block at byte {offset} is followed by more headers: the archive is damaged there")]
    LoneZeroBlock { offset: u64 },
    #[error(
        "data follows the end of the archive at byte {offset}\n\
         hint: archives that were joined with `cat` must be unpacked one by one"
    )]
    TrailingData { offset: u64 },
    #[error("the header at byte {offset} has an empty name")]
    EmptyName { offset: u64 },
    #[error("{entry}: {reason}")]
    Path { entry: EntryName, reason: PathError },
    #[error("{entry}: hard link to {target}: {reason}")]
    LinkPath { entry: EntryName, target: EntryName, reason: PathError },
    #[error(
        "{entry}: the name is absolute\n\
         hint: archive a root filesystem relative to its root, as `tar -C ROOT -c .` does"
    )]
    AbsoluteName { entry: EntryName },
    #[error("{entry}: hard link to the absolute name {target}")]
    AbsoluteLink { entry: EntryName, target: EntryName },
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("{entry}: the root of the archive is a {kind}, not a directory")]
    RootNotDirectory { entry: EntryName, kind: &'static str },
    #[error("{entry}: hard link to itself")]
    HardLinkToItself { entry: EntryName },
    #[error("{entry}: hard link to {target} carries data, and that is a {kind}")]
    HardLinkData { entry: EntryName, target: EntryName, kind: &'static str },
    #[error("{entry}: the symlink has no target")]
    EmptySymlink { entry: EntryName },
    #[error("{entry}: the symlink's target holds a NUL byte")]
    NulInSymlink { entry: EntryName },
    #[error("{entry}: the symlink's target is {length} bytes long, more than {max}")]
    SymlinkTooLong { entry: EntryName, length: usize, max: usize },
    #[error("{entry}: a {kind} with {size} bytes of data")]
    UnexpectedData { entry: EntryName, kind: &'static str, size: u64 },
    #[error("{entry}: {what} are not supported")]
    Unsupported { entry: EntryName, what: &'static str },
    #[error("{entry}: unknown entry type `{}`", typeflag.escape_ascii())]
    UnknownType { entry: EntryName, typeflag: u8 },
    #[error("{entry}: the header's {field} is not a number: `{}`", value.escape_ascii())]
    BadNumber { entry: EntryName, field: &'static str, value: Vec<u8> },
    #[error("{entry}: the {field} {value} is out of range")]
    OutOfRange { entry: EntryName, field: &'static str, value: i128 },
    #[error("the extended header at byte {offset} is {size} bytes long, more than {max}")]
    ExtendedHeaderTooLarge { offset: u64, size: u64, max: u64 },
    #[error("the extended header at byte {offset} is malformed: {reason}")]
    BadExtendedHeader { offset: u64, reason: &'static str },
    #[error("the extended header at byte {offset} describes no entry")]
    DanglingExtendedHeader { offset: u64 },
    #[error("{entry}: extended attribute {name}: {reason}")]
    BadXattr { entry: EntryName, name: EntryName, reason: &'static str },
    #[error("{entry}: extended attribute {name} is {length} bytes long, more than {max}")]
    XattrTooLarge { entry: EntryName, name: EntryName, length: usize, max: usize },
    #[error("{entry}: bad sparse map: {reason}")]
    BadSparseMap { entry: EntryName, reason: &'static str },
    #[error("{entry} exceeds the limit of {max} {what}")]
    TooMuch { entry: EntryName, what: &'static str, max: u64 },
}

/// A name as the archive writes it, safe to print: quoted, control bytes escaped, the middle of a very long one left
/// out.
#[derive(Clone, PartialEq, Eq)]
pub struct EntryName(Box<[u8]>);

/// Longest name that an error prints in full, in bytes.
const SHOWN: usize = 160;

impl EntryName {
    pub fn new(raw: &[u8]) -> Self {
        EntryName(raw.into())
    }

    /// The name's own bytes.
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
