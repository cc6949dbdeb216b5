//! Temporary folders that no signal leaves behind.

use std::fs;
use std::io;
use std::path::Path;

use snug_process::interrupt;

/// A temporary folder, removed when this is dropped or a signal ends the tool.
#[derive(Debug)]
pub struct Scratch {
    folder: tempfile::TempDir,
    _registered: interrupt::Registered,
}

impl Scratch {
    /// Makes a folder in `TMPDIR`, or in /tmp.
    pub fn new() -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let registered = interrupt::remove_on_interrupt(folder.path(), |folder| Ok(fs::remove_dir_all(folder)?));
        Ok(Scratch { folder, _registered: registered })
    }

    /// Returns the folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}
