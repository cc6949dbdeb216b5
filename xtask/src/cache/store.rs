//! Downloads that builds share, and those that stay an image's own.
//!
//! The store holds files named by the digest of their content. A base can add to it and cannot change what another finds: who
//! looks a file up knows its digest from an index that he trusts, and a name that is not true never gets in.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base16ct::lower::encode_string as hex;
use nix::unistd::{Whence, lseek};
use sha2::{Digest, Sha256, Sha512};

use super::Cache;

/// The digest that a file of the store is named by: the one of the index that it is looked up from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    /// Returns the name of its folder in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// Returns the digest of all that is left to read, in hexadecimal digits.
    fn digest(self, file: &mut File) -> Result<String> {
        match self {
            Algorithm::Sha256 => digest::<Sha256>(file),
            Algorithm::Sha512 => digest::<Sha512>(file),
        }
    }
}

/// The files that builds share.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

impl Cache {
    /// Returns the store, and makes it where it is missing.
    pub fn store(&self) -> Result<Store> {
        let store = Store { folder: self.downloads("store")? };
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let folder = store.files(algorithm);
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(store)
    }

    /// Returns the folder of downloads that only builds of `image` on the base with this fingerprint use, and removes the one
    /// of its last base. Whoever asks has the image's tree locked.
    pub fn downloads_of(&self, image: &str, base: &str) -> Result<PathBuf> {
        let folder = self.downloads("images")?;
        let wanted = format!("{image}-{}", &base[..KEY_DIGITS.min(base.len())]);
        for entry in fs::read_dir(&folder)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != wanted && name.rsplit_once('-').is_some_and(|(owner, _)| owner == image) {
                snug_sandbox::remove_folder(&folder.join(name))?;
            }
        }
        let folder = folder.join(wanted);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }
}

/// Hexadecimal digits that distinguish one base of an image from another.
const KEY_DIGITS: usize = 16;

/// Everybody may read a file of the store, and nobody write it.
const MODE: u32 = 0o444;

impl Store {
    /// Returns the folder, with one folder an algorithm.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the folder of the files that are named by `algorithm`.
    pub fn files(&self, algorithm: Algorithm) -> PathBuf {
        self.folder.join(algorithm.as_str())
    }

    /// Moves a file that a finished step left into the store. With `expected`, only if that is its digest. A damaged file of the
    /// same name is replaced. Returns whether it was taken: not what is no plain file, has holes (no download has, and they make a
    /// file that takes for ever to read), belongs to an id of the namespace, or has a second name, by which it could be written to
    /// once it is in the store.
    pub fn take(&self, path: &Path, algorithm: Algorithm, expected: Option<&str>) -> Result<bool> {
        // Neither a symlink nor a FIFO that nobody writes to is followed or waited for.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let Ok(mut file) = OpenOptions::new().read(true).custom_flags(flags).open(path) else { return Ok(false) };
        let about = file.metadata()?;
        if !about.is_file()
            || about.nlink() != 1
            || has_holes(&file, about.len())
            || file.set_permissions(Permissions::from_mode(MODE)).is_err()
        {
            return Ok(false);
        }
        let digest = algorithm.digest(&mut file).with_context(|| format!("cannot read {}", path.display()))?;
        if expected.is_some_and(|expected| expected != digest) {
            return Ok(false);
        }
        let folder = self.files(algorithm);
        let place = folder.join(&digest);
        if fs::rename(path, &place).is_err() {
            // The downloads may lie on another disk than the work.
            let mut copy = tempfile::NamedTempFile::new_in(&folder).context("cannot write to the cache")?;
            std::io::copy(&mut File::open(path)?, &mut copy).context("cannot write to the cache")?;
            copy.as_file().set_permissions(Permissions::from_mode(MODE))?;
            copy.persist(&place).with_context(|| format!("cannot rename to {}", place.display()))?;
            fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(true)
    }
}

/// Whether a file has a hole before its end, where the filesystem can tell.
fn has_holes(file: &File, length: u64) -> bool {
    let hole = lseek(file, 0, Whence::SeekHole);
    let back = lseek(file, 0, Whence::SeekSet);
    back.is_err() || hole.is_ok_and(|hole| u64::try_from(hole).is_ok_and(|hole| hole < length))
}

fn digest<D: Digest>(file: &mut File) -> Result<String> {
    /// Bytes read at once.
    const PIECE: usize = 128 << 10;
    let (mut state, mut buffer) = (D::new(), vec![0; PIECE]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&state.finalize())),
            count => state.update(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_plain_files_under_their_true_names_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("snug")).unwrap();
        let store = cache.store().unwrap();
        let path = folder.path().join("left");
        let take = |algorithm, expected: Option<&str>| store.take(&path, algorithm, expected).unwrap();

        // printf abc | sha256sum
        let name = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        fs::write(&path, "abc").unwrap();
        assert!(!take(Algorithm::Sha256, Some(&"0".repeat(64))) && path.exists());
        assert!(take(Algorithm::Sha256, None) && !path.exists());
        let place = store.files(Algorithm::Sha256).join(name);
        assert_eq!(fs::read(&place).unwrap(), b"abc");
        assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o7777, MODE);

        // A damaged file is replaced.
        fs::remove_file(&place).unwrap();
        fs::write(&place, "abx").unwrap();
        fs::write(&path, "abc").unwrap();
        assert!(take(Algorithm::Sha256, Some(name)));
        assert_eq!(fs::read(&place).unwrap(), b"abc");

        // What has another name could be written to by it.
        let other = folder.path().join("other");
        fs::write(&path, "linked").unwrap();
        fs::hard_link(&path, &other).unwrap();
        assert!(!take(Algorithm::Sha512, None) && path.exists());
        fs::remove_file(&path).unwrap();
        fs::remove_file(&other).unwrap();

        symlink("/etc/passwd", &path).unwrap();
        assert!(!take(Algorithm::Sha512, None));
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(!take(Algorithm::Sha512, None));
        fs::remove_file(&path).unwrap();
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(!take(Algorithm::Sha512, None));
        assert!(!take(Algorithm::Sha512, None));
        assert_eq!(fs::read_dir(store.files(Algorithm::Sha512)).unwrap().count(), 0);
    }

    #[test]
    fn an_image_keeps_the_downloads_of_its_last_base_only() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("snug")).unwrap();
        let first = cache.downloads_of("a-b", "1111").unwrap();
        let other = cache.downloads_of("a", "1111").unwrap();
        assert_eq!(cache.downloads_of("a-b", "1111").unwrap(), first);
        assert!(first.is_dir());
        let second = cache.downloads_of("a-b", "2222").unwrap();
        assert!(!first.exists() && second.is_dir() && other.is_dir());
    }
}
