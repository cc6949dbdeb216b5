//! Files and folders of the host that go into an image: which of their entries are taken, and the hash of those.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base16ct::lower::encode_string as hex;
use nix::fcntl::OFlag;
use sha2::{Digest as _, Sha256};
use snug_rootfs::digest::{self, Digest};

/// One entry that an image takes of a file or folder of the host.
#[derive(Debug, PartialEq, Eq)]
pub struct SourceEntry {
    /// Path below the file or folder that was named; empty for that itself.
    pub below: PathBuf,
    /// Where the entry is on the host.
    pub path: PathBuf,
    pub content: SourceContent,
}

#[derive(Debug, PartialEq, Eq)]
pub enum SourceContent {
    Directory,
    Symlink(Box<[u8]>),
    /// Of a file's mode only this bit is taken: the others depend on the umask of the checkout.
    File {
        executable: bool,
        sha256: Digest,
    },
}

/// A file or folder of the host as it was when the build was planned: what the tree gets is this, or the build fails.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// As the spec names it.
    pub path: PathBuf,
    /// All that an image takes of it, directories before what is in them and names in order.
    pub entries: Vec<SourceEntry>,
}

impl Source {
    /// Lists and hashes the file or folder `top`.
    ///
    /// `top` may be a symlink to it; symlinks below it are taken as such. Other types of file are an error.
    pub fn read(top: &Path) -> Result<Self> {
        Ok(Source { path: top.to_path_buf(), entries: entries(top)? })
    }

    /// Returns the SHA-256, as hex, of all that an image takes of it: names, contents, and whether files are executable.
    pub(super) fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for SourceEntry { below, path: _, content } in &self.entries {
            hash.update(below.as_os_str().as_bytes());
            match content {
                SourceContent::Directory => hash.update(b"\0directory\n"),
                SourceContent::Symlink(target) => {
                    hash.update(b"\0link ");
                    hash.update(target);
                    hash.update(b"\n");
                }
                SourceContent::File { executable, sha256 } => {
                    hash.update(format!("\0file {executable} {}\n", hex(sha256)));
                }
            }
        }
        hex(&hash.finalize())
    }
}

fn entries(top: &Path) -> Result<Vec<SourceEntry>> {
    let real = fs::canonicalize(top).with_context(|| format!("cannot find {}", top.display()))?;
    let mut found = Vec::new();
    let mut pending = vec![(PathBuf::new(), real)];
    while let Some((below, path)) = pending.pop() {
        let cannot_read = || format!("cannot read {}", path.display());
        let about = fs::symlink_metadata(&path).with_context(cannot_read)?;
        let content = if about.is_dir() {
            let names = fs::read_dir(&path).and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
            let mut names: Vec<_> = names.with_context(cannot_read)?;
            names.sort();
            pending.extend(names.iter().rev().map(|name| (below.join(name), path.join(name))));
            SourceContent::Directory
        } else if about.is_symlink() {
            let target = fs::read_link(&path).with_context(cannot_read)?;
            SourceContent::Symlink(target.as_os_str().as_bytes().into())
        } else if about.is_file() {
            // The mode and the content of one file, whatever takes its name meanwhile.
            let file = open(&path).with_context(cannot_read)?;
            let executable = file.metadata().with_context(cannot_read)?.permissions().mode() & 0o100 != 0;
            SourceContent::File { executable, sha256: digest::of_reader(file, &mut |_| {}).with_context(cannot_read)? }
        } else {
            bail!("{} is neither a file nor a folder nor a symlink", path.display());
        };
        found.push(SourceEntry { below, path, content });
    }
    Ok(found)
}

/// Opens a file of a source, which is no symlink, without waiting for what has become a pipe.
pub fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    let file = options.read(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits()).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no file any more")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    #[test]
    fn folders_are_taken_in_order_and_links_in_them_as_links() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("top/b")).unwrap();
        fs::write(at("top/b/run"), "x").unwrap();
        fs::set_permissions(at("top/b/run"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(at("top/b-a"), "").unwrap();
        symlink("/nowhere", at("top/a")).unwrap();
        symlink("top", at("link")).unwrap();
        let found = entries(&at("link")).unwrap();
        let sha256 = |text: &str| Sha256::digest(text).into();
        let hash = |top: &Path| anyhow::Ok(Source::read(top)?.sha256());
        let shown: Vec<_> = found.iter().map(|entry| (entry.below.to_str().unwrap(), &entry.content)).collect();
        let link = SourceContent::Symlink(b"/nowhere".as_slice().into());
        assert_eq!(
            shown,
            [
                ("", &SourceContent::Directory),
                ("a", &link),
                ("b", &SourceContent::Directory),
                ("b/run", &SourceContent::File { executable: true, sha256: sha256("x") }),
                ("b-a", &SourceContent::File { executable: false, sha256: sha256("") }),
            ]
        );
        // The hash is that of the content, by whichever name the top was given.
        let before = hash(&at("top")).unwrap();
        assert_eq!(hash(&at("link")).unwrap(), before);
        fs::write(at("top/b/run"), "y").unwrap();
        assert_ne!(hash(&at("link")).unwrap(), before);
        fs::write(at("top/b/run"), "x").unwrap();
        assert_eq!(hash(&at("link")).unwrap(), before);
        fs::set_permissions(at("top/b/run"), fs::Permissions::from_mode(0o644)).unwrap();
        assert_ne!(hash(&at("top")).unwrap(), before);
    }

    #[test]
    fn what_no_tree_takes_from_a_checkout_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Command::new("mkfifo").arg(folder.path().join("pipe")).status().unwrap().success());
        assert!(
            entries(folder.path()).unwrap_err().to_string().ends_with("is neither a file nor a folder nor a symlink")
        );
        assert!(entries(&folder.path().join("absent")).unwrap_err().to_string().starts_with("cannot find "));
    }
}
