//! Sends a file to the disk while more of it is written, hashed and checked, so that little is left to wait for at the end.
//! fsync(2) has the disk empty its own cache as well: writeback alone, which the kernel begins by itself, does not spare
//! that wait.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Bytes that are sent together: few enough that the disk is busy early, enough that its cache is not emptied all the time.
const SHARE: u64 = 32 << 20;
/// Between two looks at what the file takes.
const PAUSE: Duration = Duration::from_millis(20);

/// A thread that syncs one file again and again. Dropped before its [end](Self::finish), it stops by itself.
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

    /// Nothing more will be written: the rest is sent now.
    pub(super) fn send_rest(&mut self) {
        self.writing = None;
    }

    /// Waits until the disk has the file's content. An error of the disk may have been told to the thread, and is then
    /// told to nobody else.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.send_rest();
        self.thread.join().expect("syncing does not panic")
    }
}

/// Bytes that the file takes on the disk, or will: 0 while there is none.
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
        // Given up, and removed.
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
