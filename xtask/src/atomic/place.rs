//! What stands at a path that is to be written, its links followed.

use std::fs::{self, Metadata};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::unistd::geteuid;

use crate::error::Failure;
use crate::report::shell;

/// Links of a path that the kernel follows before it gives up with ELOOP (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// The bits of a folder that everybody may write to and where only owners may remove: `/tmp` and its like.
const STICKY_AND_WRITABLE_BY_ALL: u32 = 0o1002;

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
        let mut exists = false;
        for _ in 0..MAX_LINKS {
            if names_folder(&path) {
                return refuse(format!("{} names a folder, not a file\nhint: name a file in it", named.display()));
            }
            if is_in_own_files(&path) {
                return match number(&path) {
                    Some(number) => Ok(Place::Open(number)),
                    None => refuse(format!(
                        "{} is no open file\nhint: name a file, or an open one by its number",
                        named.display()
                    )),
                };
            }
            match fs::symlink_metadata(&path) {
                Ok(about) if about.is_symlink() => {
                    if is_of_a_stranger(&path, &about) {
                        return refuse(format!(
                            "{} is a symlink that another user put into a folder that all can write to\n\
                             hint: choose another name",
                            path.display()
                        ));
                    }
                    // The kernel may refuse to follow it for reasons of its own.
                    match fs::metadata(&path) {
                        Ok(_) => exists = true,
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => break,
                        Err(error) => {
                            return refuse(format!(
                                "{} cannot be written: {error}\nhint: choose another name",
                                named.display()
                            ));
                        }
                    }
                    let target = fs::read_link(&path).with_context(|| format!("cannot read {}", path.display()))?;
                    path = path.parent().unwrap_or(Path::new("")).join(target);
                }
                Ok(about) => return Ok(Place::of(path, about)),
                // A link of the kernel's own, whose text is no path: what it leads to has no name.
                Err(error) if error.kind() == io::ErrorKind::NotFound && exists => {
                    return refuse(format!(
                        "{} is an open file of another process\nhint: choose another name",
                        named.display()
                    ));
                }
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
                shell::path(&folder)
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

/// Whether a path is in `/proc/self/fd`, by this or by another name for it.
fn is_in_own_files(path: &Path) -> bool {
    let Ok(folder) = folder_of(path).canonicalize() else { return false };
    let own = Path::new("/proc").join(std::process::id().to_string());
    folder.starts_with(own) && folder.ends_with("fd")
}

/// The number of an open file that is the last word of a path, written as the kernel writes it: digits without zeros before
/// them.
fn number(path: &Path) -> Option<RawFd> {
    let word = path.file_name()?.to_str()?;
    let number: RawFd = word.parse().ok()?;
    (number >= 0 && number.to_string() == word).then_some(number)
}

/// Whether a symlink is one that the kernel does not follow under `fs.protected_symlinks` (proc_sys_fs(5)), not even for root:
/// in a folder that everybody may write to, of neither this user nor the folder's owner. Distributions have this on, the kernel
/// by itself has not.
fn is_of_a_stranger(link: &Path, about: &Metadata) -> bool {
    let Ok(folder) = fs::metadata(folder_of(link)) else { return false };
    folder.mode() & STICKY_AND_WRITABLE_BY_ALL == STICKY_AND_WRITABLE_BY_ALL
        && about.uid() != geteuid().as_raw()
        && about.uid() != folder.uid()
}

/// Returns the folder that a path is in.
pub(super) fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};

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
    fn only_numbers_of_open_files_name_one() {
        for name in ["-1", "+1", "01", "1x", "", "99999999999", "-", "new"] {
            let path = format!("/proc/self/fd/{name}");
            let error = Place::find(path.as_ref()).unwrap_err().to_string();
            assert!(error.contains("is no open file") || name.is_empty(), "{name}: {error}");
        }
        assert!(matches!(Place::find("/dev/fd/0".as_ref()), Ok(Place::Open(0))));
        // A pipe and a removed file of another process: their links lead to no path.
        let folder = tempfile::tempdir().unwrap();
        let gone = folder.path().join("gone");
        let mut other = std::process::Command::new("cat");
        other.stdin(std::process::Stdio::piped()).stdout(fs::File::create(&gone).unwrap());
        let mut other = other.spawn().unwrap();
        fs::remove_file(&gone).unwrap();
        for number in [0, 1] {
            let error = Place::find(format!("/proc/{}/fd/{number}", other.id()).as_ref()).unwrap_err().to_string();
            assert!(error.contains("is an open file of another process"), "{error}");
        }
        drop(other.stdin.take());
        other.wait().unwrap();
    }

    #[test]
    fn links_of_strangers_in_a_folder_of_all_are_not_followed() {
        if !snug_tests::is_root() {
            return;
        }
        /// No user of this machine.
        const STRANGER: u32 = 54321;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "").unwrap();
        let all = at("all");
        fs::create_dir(&all).unwrap();
        fs::set_permissions(&all, fs::Permissions::from_mode(0o1777)).unwrap();
        for (name, target) in [("to-file", "../file"), ("to-new", "../new")] {
            let link = all.join(name);
            symlink(target, &link).unwrap();
            assert!(matches!(Place::find(&link), Ok(Place::File(..) | Place::New(_))), "{name}");
            lchown(&link, Some(STRANGER), None).unwrap();
            symlink(&link, at(name)).unwrap();
            for path in [&link, &at(name)] {
                let error = Place::find(path).unwrap_err().to_string();
                assert!(error.contains("is a symlink that another user put into a folder"), "{error}");
            }
            // The folder's owner may have links there.
            chown(&all, Some(STRANGER), None).unwrap();
            assert!(matches!(Place::find(&link), Ok(Place::File(..) | Place::New(_))), "{name}");
            chown(&all, Some(0), None).unwrap();
        }
        // Where not all may write, it is a link like any other.
        fs::set_permissions(&all, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(Place::find(&all.join("to-file")), Ok(Place::File(..))));
    }
}
