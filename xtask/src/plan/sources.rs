//! Files and folders of the host that go into an image: which of their entries are taken, and the hash of those.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base16ct::lower::encode_string as hex;
use sha2::{Digest, Sha256};

use super::hash_file;

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
    },
}

/// Returns all that an image takes of the file or folder `top`, directories before what is in them and names in order.
///
/// `top` may be a symlink to it; symlinks below it are taken as such. Other types of file are an error.
pub fn entries(top: &Path) -> Result<Vec<SourceEntry>> {
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
            SourceContent::File { executable: about.permissions().mode() & 0o100 != 0 }
        } else {
            bail!("{} is neither a file nor a folder nor a symlink", path.display());
        };
        found.push(SourceEntry { below, path, content });
    }
    Ok(found)
}

/// Returns the SHA-256, as hex, of all that an image takes of the file or folder `top`: names, contents, and whether files
/// are executable.
pub(super) fn hash(top: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for SourceEntry { below, path, content } in entries(top)? {
        hash.update(below.as_os_str().as_bytes());
        match content {
            SourceContent::Directory => hash.update(b"\0directory\n"),
            SourceContent::Symlink(target) => {
                hash.update(b"\0link ");
                hash.update(&target);
                hash.update(b"\n");
            }
            SourceContent::File { executable } => {
                hash.update(format!("\0file {executable} {}\n", hash_file(&path, &mut |_| {})?));
            }
        }
    }
    Ok(hex(&hash.finalize()))
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
        let shown: Vec<_> = found.iter().map(|entry| (entry.below.to_str().unwrap(), &entry.content)).collect();
        let link = SourceContent::Symlink(b"/nowhere".as_slice().into());
        assert_eq!(
            shown,
            [
                ("", &SourceContent::Directory),
                ("a", &link),
                ("b", &SourceContent::Directory),
                ("b/run", &SourceContent::File { executable: true }),
                ("b-a", &SourceContent::File { executable: false }),
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
