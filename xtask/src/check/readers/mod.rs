//! Reading an image back by others than those who wrote it: the kernel's mount, or programs and libraries that need no
//! privileges.

mod debugfs;
mod ext4;
mod kernel;
mod pseudo;
mod squashfs;

use std::collections::BTreeSet;
use std::path::Path;
use std::str::FromStr;

use anyhow::Result;
use snug_formats::FilesystemKind;
use snug_process::program::HostProgram;
use snug_rootfs::listing::{Listing, Unreadable};

use super::compare::Property;
use super::verdict::Finding;
use crate::report::progress::Stage;

/// Who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reader {
    /// The kernel where it mounts the image here, else programs.
    #[default]
    Auto,
    /// The kernel's own driver, mounted where nobody else sees it: needs root.
    Kernel,
    /// Programs and libraries: ext4-view and debugfs; unsquashfs and sqfs2tar.
    Tools,
}

impl FromStr for Reader {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Reader::Auto),
            "kernel" => Ok(Reader::Kernel),
            "tools" => Ok(Reader::Tools),
            _ => Err(format!("`{text}` is not one of auto, kernel, tools")),
        }
    }
}

/// What a reader saw of an image.
#[derive(Debug)]
pub struct ReadBack {
    pub listing: Listing,
    /// The reader, with its version.
    pub judge: String,
    /// What it cannot see, with the reason.
    pub unseen: Vec<(Property, String)>,
    /// Names whose content it could not read.
    pub unreadable: Vec<Finding>,
    /// What a person should know of how it was read.
    pub notes: Vec<String>,
}

impl ReadBack {
    fn new(listing: Listing, unreadable: Vec<Unreadable>, judge: String) -> Self {
        let said = |Unreadable { path, error }| Finding {
            place: path.to_string(),
            what: format!("its content cannot be read: {error}"),
        };
        let unreadable = unreadable.into_iter().map(said).collect();
        ReadBack { listing, judge, unseen: Vec::new(), unreadable, notes: Vec::new() }
    }

    pub fn skipped_properties(&self) -> BTreeSet<Property> {
        self.unseen.iter().map(|(property, _)| *property).collect()
    }
}

/// Reads an image: every name and what stands under it, and with `bodies` every byte of every file.
pub fn read(
    image: &Path,
    kind: FilesystemKind,
    reader: Reader,
    bodies: bool,
    stage: &Stage,
) -> Result<ReadBack, ReadError> {
    if reader == Reader::Tools || reader == Reader::Auto && !nix::unistd::Uid::effective().is_root() {
        return by_tools(image, kind, bodies, stage);
    }
    match kernel::read(image, kind, bodies, stage) {
        Err(refused @ ReadError::CannotMount(_)) if reader == Reader::Auto => {
            let mut reading = by_tools(image, kind, bodies, stage).map_err(|error| match error {
                ReadError::NoReader(why) => ReadError::NoReader(format!("{why}; {refused}")),
                other => other,
            })?;
            reading.notes.push(format!("{refused}, so that programs read the image instead"));
            Ok(reading)
        }
        other => other,
    }
}

fn by_tools(image: &Path, kind: FilesystemKind, bodies: bool, stage: &Stage) -> Result<ReadBack, ReadError> {
    match kind {
        FilesystemKind::Ext4 => {
            needed(debugfs::DEBUGFS)?;
            Ok(ext4::read(image, bodies, stage)?)
        }
        FilesystemKind::Squashfs => {
            needed(squashfs::UNSQUASHFS)?;
            Ok(squashfs::read(image, bodies, stage)?)
        }
        FilesystemKind::Erofs => {
            let why = "no program tells every name and byte of erofs: only the kernel's mount does, as root";
            Err(ReadError::NoReader(why.to_owned()))
        }
    }
}

/// Why an image was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// This host has no reader for the image, which says nothing about the image.
    #[error("{0}")]
    NoReader(String),
    /// The kernel does not mount the image on this host, for a reason that need not be the image's.
    #[error("the kernel cannot mount it here: {0}")]
    CannotMount(String),
    /// The image cannot be read.
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

fn needed(tool: HostProgram) -> Result<(), ReadError> {
    match tool.find() {
        Some(_) => Ok(()),
        None => Err(ReadError::NoReader(tool.missing().in_a_line())),
    }
}
