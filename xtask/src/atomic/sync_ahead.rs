//! Syncs a file to the disk while more of it is written, hashed and checked, so that the last sync is short. Writeback, which
//! the kernel starts by itself, is not enough: fsync(2) also waits for the disk to flush its own cache.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Bytes between two syncs: few enough to keep the disk busy early, enough not to flush its cache all the time.
const SHARE: u64 = 32 << 20;
/// Pause between two looks at the blocks that the file takes.
const PAUSE: Duration = Duration::from_millis(20);

/// A thread that syncs one file again and again. It stops by itself where this is dropped before [`Self::finish`].
#[derive(Debug)]
pub(super) struct SyncAhead {
    /// Dropped once nothing more will be written.
    writing: Option<Sender<()>>,
    thread: JoinHandle<io::Result<()>>,
}

impl SyncAhead {
    /// Starts on the file at `path`, which a program may replace meanwhile.
    pub(super) fn start(path: &Path) -> io::Result<Self> {
        let path = path.to_path_buf();
        let (writing, over) = mpsc::channel::<()>();
        let work = move || {
            let mut sent = 0;
            while over.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
                let takes = allocated(&path)?;
                if takes >= sent + SHARE {
                    sync(&path)?;
                    sent = takes;
                }
            }
            sync(&path)
        };
        let thread = thread::Builder::new().name("sync".into()).spawn(work)?;
        Ok(SyncAhead { writing: Some(writing), thread })
    }

    /// Starts the last sync: nothing more will be written.
    pub(super) fn send_rest(&mut self) {
        self.writing = None;
    }

    /// Waits until the file's content is on the disk. An error of the disk is reported once, and perhaps to this thread only:
    /// it is returned here.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.send_rest();
        self.thread.join().expect("syncing does not panic")
    }
}

/// Returns the bytes that the file takes on the disk, or will take; 0 while there is none.
fn allocated(path: &Path) -> io::Result<u64> {
    match fs::metadata(path) {
        // st_blocks counts units of 512 bytes, inode(7).
        Ok(about) => Ok(about.blocks() * 512),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

fn sync(path: &Path) -> io::Result<()> {
    match File::open(path) {
        Ok(file) => file.sync_data(),
        // It was removed: the caller has given it up.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_synced_while_it_grows_and_may_be_replaced_or_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        fs::write(&path, "begun").unwrap();
        let mut ahead = SyncAhead::start(&path).unwrap();
        let other = folder.path().join("other");
        fs::write(&other, "another file").unwrap();
        fs::rename(&other, &path).unwrap();
        ahead.send_rest();
        ahead.finish().unwrap();
        let ahead = SyncAhead::start(&path).unwrap();
        fs::remove_file(&path).unwrap();
        ahead.finish().unwrap();
    }
}
