//! What stands at a path that is to be written, its links followed.

use std::fs::{self, Metadata};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::error::Failure;

/// Links of a path that the kernel follows before it gives up with ELOOP (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// What stands at a path, or at the end of the symlinks there.
#[derive(Debug)]
pub(super) enum Place {
    /// Nothing, in a folder that exists.
    New(PathBuf),
    /// A regular file.
    File(PathBuf, Metadata),
    BlockDevice(PathBuf),
    /// An open file of this process, by its number: `/dev/stdout` and its like.
    Open(RawFd),
    /// What is never written to, by what it is.
    Special(&'static str),
}

impl Place {
    /// Looks at what stands at `named`. Fails with wrong usage where nothing can stand there.
    pub(super) fn find(named: &Path) -> Result<Self> {
        let refuse = |why: String| Err(anyhow::Error::new(Failure::Usage(why)));
        let mut path = named.to_path_buf();
        for _ in 0..MAX_LINKS {
            if names_folder(&path) {
                return refuse(format!("{} names a folder, not a file\nhint: name a file in it", named.display()));
            }
            if let Some(open) = open_file(&path) {
                return Ok(Place::Open(open));
            }
            match fs::symlink_metadata(&path) {
                Ok(about) if about.is_symlink() => {
                    let target = fs::read_link(&path).with_context(|| format!("cannot read {}", path.display()))?;
                    path = path.parent().unwrap_or(Path::new("")).join(target);
                }
                Ok(about) => return Ok(Place::of(path, about)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Place::new(path, named),
                Err(error) => {
                    return refuse(format!(
                        "{} cannot be written: {error}\nhint: choose another name",
                        named.display()
                    ));
                }
            }
        }
        refuse(format!("{} is a symlink that leads back to itself\nhint: choose another name", named.display()))
    }

    fn of(path: PathBuf, about: Metadata) -> Self {
        let kind = about.file_type();
        match () {
            () if kind.is_file() => Place::File(path, about),
            () if kind.is_block_device() => Place::BlockDevice(path),
            () if kind.is_char_device() => Place::Special("a character device"),
            () if kind.is_fifo() => Place::Special("a named pipe"),
            () if kind.is_socket() => Place::Special("a socket"),
            () if kind.is_dir() => Place::Special("a folder"),
            () => Place::Special("no file"),
        }
    }

    fn new(path: PathBuf, named: &Path) -> Result<Self> {
        let folder = folder_of(&path);
        let said = if path == named { String::new() } else { format!(", where {} leads,", named.display()) };
        match fs::metadata(&folder) {
            Ok(about) if about.is_dir() => Ok(Place::New(path)),
            Ok(_) => {
                bail!(Failure::Usage(format!("{}{said} is no folder\nhint: choose another name", folder.display())))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(Failure::Usage(format!(
                "the folder {}{said} does not exist\nhint: mkdir -p {}",
                folder.display(),
                for_shell(&folder)
            ))),
            Err(error) => {
                Err(anyhow::Error::new(error).context(format!("cannot look at the folder {}", folder.display())))
            }
        }
    }
}

/// Whether the path can only name a folder: it ends in a slash or a dot, or is empty.
fn names_folder(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    let last = bytes.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    matches!(last, b"" | b"." | b"..")
}

/// The number of the open file that a path in `/proc/self/fd` names, itself or by another name for it.
fn open_file(path: &Path) -> Option<RawFd> {
    let number = path.file_name()?.to_str()?.parse().ok()?;
    let folder = folder_of(path).canonicalize().ok()?;
    let own = Path::new("/proc").join(std::process::id().to_string());
    (folder.starts_with(own) && folder.ends_with("fd")).then_some(number)
}

/// Returns the folder that a path is in.
pub(super) fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// The path as a shell takes it for one word.
pub fn for_shell(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |character: char| character.is_alphanumeric() || "/._-+=:@,%".contains(character);
    match text.chars().all(plain) && !text.is_empty() {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_to_what_is_or_will_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "").unwrap();
        fs::create_dir(at("below")).unwrap();
        symlink("../file", at("below/link")).unwrap();
        symlink("below/link", at("to-link")).unwrap();
        assert!(matches!(Place::find(&at("to-link")), Ok(Place::File(path, _)) if path.ends_with("below/../file")));
        symlink("below/new", at("dangling")).unwrap();
        assert!(matches!(Place::find(&at("dangling")), Ok(Place::New(path)) if path == at("below/new")));
        symlink("/proc/self/fd/2", at("errors")).unwrap();
        assert!(matches!(Place::find(&at("errors")), Ok(Place::Open(2))));
        assert!(matches!(Place::find(&at("below")), Ok(Place::Special("a folder"))));
        symlink("round", at("round")).unwrap();
        symlink("missing/new", at("nowhere")).unwrap();
        for (name, why) in [
            ("round", "leads back to itself"),
            ("below/", "names a folder"),
            ("new/", "names a folder"),
            ("missing/new", "does not exist\nhint: mkdir -p /"),
            ("nowhere", "nowhere leads, does not exist\nhint: mkdir -p /"),
            ("file/new", "cannot be written"),
        ] {
            let error = Place::find(&at(name)).unwrap_err().to_string();
            assert!(error.contains(why), "{name}: {error}");
        }
    }

    #[test]
    fn a_path_is_one_word_for_a_shell() {
        assert_eq!(for_shell("a/b-c.d".as_ref()), "a/b-c.d");
        assert_eq!(for_shell("it's here".as_ref()), r"'it'\''s here'");
    }
}
