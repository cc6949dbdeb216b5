//! Files that strangers wrote, or may have: a base, a step or a user can put a FIFO, a device, a symlink to one, or terabytes
//! where a small file is expected.
//!
//! What is opened here is a regular file: opening waits for nobody (a FIFO has no writer), and what was opened is looked at,
//! not the name. What is read here has a bound, so that neither `/dev/zero` nor a sparse file of 40 GB takes the memory.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::tree::{Kind, RootTree, TreePath};

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum RegularFileError {
    /// It cannot be opened or read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("it is a {0}, not a regular file")]
    NotRegular(&'static str),
    /// It is larger than what is expected there; the limit in bytes.
    #[error("it has more than {}, the most that is read of such a file", in_words(*.0))]
    TooLarge(u64),
}

impl From<RegularFileError> for io::Error {
    fn from(error: RegularFileError) -> Self {
        match error {
            RegularFileError::Io(error) => error,
            other => io::Error::new(io::ErrorKind::InvalidInput, other),
        }
    }
}

/// What opening a file never does: wait for the other end of a FIFO, or make a terminal that of the session.
const NO_WAITING: OFlag = OFlag::O_NONBLOCK.union(OFlag::O_NOCTTY);

/// Opens a regular file that the user names; symlinks to it are followed.
///
/// # Errors
///
/// It cannot be opened, or is of another type.
pub fn open(path: &Path) -> Result<File, RegularFileError> {
    let (file, about) = open_any(path)?;
    if about.is_file() { Ok(file) } else { Err(RegularFileError::NotRegular(noun(&about))) }
}

/// As [`open`]; a block device is as good as a file, since it has an end.
///
/// # Errors
///
/// As [`open`].
pub fn open_finite(path: &Path) -> Result<File, RegularFileError> {
    let (file, about) = open_any(path)?;
    let is_finite = about.is_file() || about.file_type().is_block_device();
    if is_finite { Ok(file) } else { Err(RegularFileError::NotRegular(noun(&about))) }
}

/// Reads a regular file of at most `max` bytes that the user names; symlinks to it are followed.
///
/// # Errors
///
/// As [`open`], and [`RegularFileError::TooLarge`].
pub fn read(path: &Path, max: u64) -> Result<Vec<u8>, RegularFileError> {
    read_bounded(open(path)?, max)
}

/// Reads a regular file of at most `max` bytes in a folder that programs of strangers wrote to: a symlink in its place is
/// refused.
///
/// # Errors
///
/// As [`read`].
pub fn read_at(folder: impl AsFd, name: &Path, max: u64) -> Result<Vec<u8>, RegularFileError> {
    let flags = NO_WAITING | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = File::from(openat(folder, name, flags, Mode::empty()).map_err(io::Error::from)?);
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(RegularFileError::NotRegular(noun(&about)));
    }
    read_bounded(file, max)
}

/// Reads a file of a tree that `path` names, or leads to through symlinks inside the tree. `None` if that is no regular file.
///
/// # Errors
///
/// It cannot be read, or has more than `max` bytes, holes included.
pub fn read_from_tree(tree: &RootTree, path: &TreePath, max: u64) -> Result<Option<Vec<u8>>, RegularFileError> {
    let inode = tree.resolve(path).and_then(|path| tree.get(&path));
    match inode.map(|inode| &inode.kind) {
        Some(Kind::File(body)) if body.size > max => Err(RegularFileError::TooLarge(max)),
        Some(Kind::File(body)) => Ok(Some(tree.bodies().read_to_vec(body)?)),
        _ => Ok(None),
    }
}

fn open_any(path: &Path) -> io::Result<(File, Metadata)> {
    let file = OpenOptions::new().read(true).custom_flags(NO_WAITING.bits()).open(path)?;
    let about = file.metadata()?;
    Ok((file, about))
}

fn read_bounded(file: File, max: u64) -> Result<Vec<u8>, RegularFileError> {
    let mut bytes = Vec::new();
    // What grows meanwhile is bounded, too.
    file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max { Err(RegularFileError::TooLarge(max)) } else { Ok(bytes) }
}

/// A limit for people: whole MiB as such.
fn in_words(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    if bytes > 0 && bytes.is_multiple_of(MIB) { format!("{} MiB", bytes / MIB) } else { format!("{bytes} bytes") }
}

fn noun(about: &Metadata) -> &'static str {
    let kind = about.file_type();
    match () {
        () if kind.is_dir() => "directory",
        () if kind.is_fifo() => "FIFO",
        () if kind.is_socket() => "socket",
        () if kind.is_char_device() => "character device",
        () if kind.is_block_device() => "block device",
        () => "file of another type",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::unistd::mkfifo;

    use super::*;
    use crate::tree::{Body, BodySource, Inode};

    #[test]
    fn only_regular_files_within_their_bound_are_read_and_nothing_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "1234").unwrap();
        symlink("file", at("link")).unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
        File::create(at("sparse")).unwrap().set_len(40 << 30).unwrap();
        let said = |result: Result<Vec<u8>, RegularFileError>| match result {
            Ok(bytes) => String::from_utf8(bytes).unwrap(),
            Err(error) => error.to_string(),
        };
        let fifo = "it is a FIFO, not a regular file";
        let zero = "it is a character device, not a regular file";
        assert_eq!(said(read(&at("file"), 4)), "1234");
        assert_eq!(said(read(&at("link"), 4)), "1234");
        assert_eq!(said(read(&at("file"), 3)), "it has more than 3 bytes, the most that is read of such a file");
        assert!(matches!(read(&at("sparse"), 1 << 20), Err(RegularFileError::TooLarge(_))));
        assert_eq!(said(read(&at("zero"), 4)), zero);
        assert_eq!(said(read(&at("fifo"), 4)), fifo);
        assert_eq!(said(read(folder.path(), 4)), "it is a directory, not a regular file");
        let inside = File::open(folder.path()).unwrap();
        let read_at = |name: &str| super::read_at(&inside, Path::new(name), 4);
        assert_eq!(said(read_at("file")), "1234");
        assert_eq!(said(read_at("fifo")), fifo);
        assert!(matches!(read_at("link"), Err(RegularFileError::Io(_))));
        assert!(open(&at("fifo")).is_err() && open_finite(&at("zero")).is_err() && open_finite(&at("file")).is_ok());
        assert_eq!(read(&at("absent"), 4).unwrap_err().to_string(), "No such file or directory (os error 2)");
    }

    #[test]
    fn a_sparse_file_of_a_tree_is_too_large_before_it_takes_memory() {
        let mut tree = RootTree::new(BodySource::new(Vec::new()));
        let path = TreePath::new("etc/passwd").unwrap();
        let body = Body { size: i64::MAX as u64, ..Body::default() };
        tree.insert(path.clone(), Inode::new(Kind::File(body), 0o644)).unwrap();
        assert!(matches!(read_from_tree(&tree, &path, 16 << 20), Err(RegularFileError::TooLarge(_))));
        tree.insert(path.clone(), Inode::new(Kind::Fifo, 0o644)).unwrap();
        assert!(read_from_tree(&tree, &path, 16 << 20).unwrap().is_none());
    }
}
