//! The cache's folder is closed to all other users.
//!
//! While a build runs, a cache has trees of strangers' programs in it, with setuid bits and files of any owner; between builds, it
//! has what later builds start from. Whoever can reach the one becomes root by it, and whoever can write to the other decides what
//! is in images. A mode of 0700 on one folder, the topmost, settles both, whatever is below it.

use std::fs::{self, DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;

use crate::error::Failure;

/// For the owner alone.
const MODE: u32 = 0o700;
/// The permissions of everybody else.
const OTHERS: u32 = 0o077;

/// Makes the cache's folder where it is missing, and closes it to all others.
pub(super) fn make(root: &Path) -> Result<()> {
    folder(root)?;
    let about = fs::metadata(root).with_context(|| format!("cannot look at the cache {}", root.display()))?;
    let own = geteuid().as_raw();
    if about.uid() != own {
        // As ssh takes no key file of another user's: he can change what is in it, and root too would run his programs.
        bail!(Failure::Usage(format!(
            "the cache {} belongs to another user (uid {}), who could change what is built from it\n\
             hint: set XDG_CACHE_HOME to a folder of uid {own}, or run this as its owner",
            root.display(),
            about.uid()
        )));
    }
    if about.mode() & OTHERS != 0 {
        // Made by an earlier version of this tool, or by hand. Nobody else has a use for it, so that it is closed without a
        // question, as gpg does with its folder.
        fs::set_permissions(root, Permissions::from_mode(about.mode() & !OTHERS & 0o7777))
            .with_context(|| format!("cannot close the cache {} to other users", root.display()))?;
    }
    Ok(())
}

/// Makes a folder of this user alone, and those above it that are missing (XDG Base Directory Specification: with 0700).
pub(super) fn folder(path: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(MODE).create(path);
    made.map_err(|error| match error.kind() {
        // A file, or a link that leads nowhere.
        ErrorKind::AlreadyExists => anyhow::anyhow!("it is no folder"),
        _ => error.into(),
    })
    .with_context(|| format!("cannot make the cache folder {}\nhint: set XDG_CACHE_HOME", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;

    use super::*;

    #[test]
    fn it_is_closed_whoever_made_it() {
        let above = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        let new = above.path().join("missing/new");
        make(&new).unwrap();
        assert_eq!([mode(&new), mode(new.parent().unwrap())], [MODE; 2]);
        let old = above.path().join("old");
        fs::create_dir(&old).unwrap();
        for wide in [0o777, 0o1777, 0o755, 0o750] {
            fs::set_permissions(&old, Permissions::from_mode(wide)).unwrap();
            make(&old).unwrap();
            assert_eq!(mode(&old) & OTHERS, 0, "{wide:o}");
        }
        // On another disk, to which its owner has put a link.
        let link = above.path().join("link");
        fs::set_permissions(&old, Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink(&old, &link).unwrap();
        make(&link).unwrap();
        assert_eq!(mode(&old), MODE);
        fs::write(above.path().join("file"), "").unwrap();
        let error = format!("{:#}", make(&above.path().join("file")).unwrap_err());
        assert!(error.contains("hint: set XDG_CACHE_HOME: it is no folder"), "{error}");
    }

    #[test]
    fn that_of_another_user_is_refused() {
        if !snug_tests::is_root() {
            return;
        }
        let above = tempfile::tempdir().unwrap();
        let theirs = above.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        chown(&theirs, Some(54_321), None).unwrap();
        let error = make(&theirs).unwrap_err().to_string();
        assert!(error.contains("belongs to another user (uid 54321)") && error.contains("hint: set XDG_CACHE_HOME"));
    }
}
