//! What tells that a file is still the one that was hashed.
//!
//! Hashing a file and reading it later are two looks, between which it can be replaced or written to. Whatever does that, the file
//! at the path is another inode, or its change time (ctime, inode(7)) is another: the kernel sets that with every write, rename
//! and change of attributes, and no program can set it. So both looks compare a [`Stamp`], of the descriptor that they read from.

use std::fs::File;
use std::io::{self, Seek};
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::digest::{self, Digest};

/// The kernel takes change times from its last tick (`current_time` of Linux's `fs/inode.c`), which are 10 ms apart at the most:
/// of two writes within one, the second leaves no trace. What is hashed was not written to for twice as long.
const TICKS: Duration = Duration::from_millis(20);
/// How often a file is hashed that changes meanwhile.
const TRIES: usize = 3;

/// A file at a moment. Equal stamps are the same file with the same content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    device: u64,
    inode: u64,
    /// In bytes.
    size: u64,
    /// Change time in seconds since 1970, and nanoseconds.
    changed: (i64, i64),
}

impl Stamp {
    /// Returns the stamp of an open file.
    pub fn of(file: &File) -> io::Result<Self> {
        let about = file.metadata()?;
        Ok(Stamp {
            device: about.dev(),
            inode: about.ino(),
            size: about.size(),
            changed: (about.ctime(), about.ctime_nsec()),
        })
    }

    /// Whether the file was changed so short a time ago that a further change might not show.
    fn is_fresh(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (seconds, nanoseconds) = self.changed;
        let changed =
            Duration::from_secs(seconds.max(0).unsigned_abs()) + Duration::from_nanos(nanoseconds.unsigned_abs());
        now.saturating_sub(changed) < TICKS
    }
}

/// Computes the digest of an open file, with the stamp that the file has as long as nobody changes it. `advance` is called with
/// the bytes of each step.
///
/// # Errors
///
/// If the file cannot be read, or does not stop to change.
pub fn hash(mut file: &File, advance: &mut dyn FnMut(u64)) -> io::Result<(Digest, Stamp)> {
    for _ in 0..TRIES {
        let before = Stamp::of(file)?;
        if before.is_fresh() {
            thread::sleep(TICKS);
        }
        file.rewind()?;
        let digest = digest::of_reader(file, advance)?;
        if Stamp::of(file)? == before {
            return Ok((digest, before));
        }
    }
    Err(io::Error::other("it is written to while it is read"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn whatever_is_done_to_a_file_shows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let stamp = || hash(&File::open(&path).unwrap(), &mut |_| {}).unwrap().1;
        fs::write(&path, "one").unwrap();
        let first = stamp();
        assert_eq!(stamp(), first);
        // The same length, and the modification time set back.
        let file = File::options().write(true).open(&path).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        file.write_all_at(b"two", 0).unwrap();
        file.set_times(fs::FileTimes::new().set_modified(modified)).unwrap();
        let second = stamp();
        assert_ne!(second, first);
        // Away and back again.
        fs::rename(&path, folder.path().join("away")).unwrap();
        fs::write(&path, "two").unwrap();
        assert_ne!(stamp(), second);
        fs::rename(folder.path().join("away"), &path).unwrap();
        assert_ne!(stamp(), second);
    }

    #[test]
    fn a_write_in_the_moment_of_hashing_shows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for _ in 0..20 {
            fs::write(&path, "checked").unwrap();
            let file = File::open(&path).unwrap();
            let (_, stamp) = hash(&file, &mut |_| {}).unwrap();
            fs::write(&path, "swapped").unwrap();
            assert_ne!(Stamp::of(&file).unwrap(), stamp);
        }
    }
}
