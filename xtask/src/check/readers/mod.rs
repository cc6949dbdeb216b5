//! Reads an image back with code other than its writer's: the kernel, or programs and libraries that need no privileges.

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

/// What reads an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reader {
    /// The kernel if it can mount the image, else programs.
    #[default]
    Auto,
    /// The kernel's driver, in a mount namespace of its own: needs root.
    Kernel,
    /// Programs and libraries: ext4-view and debugfs; unsquashfs and sqfs2tar.
    Tools,
}

impl Reader {
    /// The names of all values.
    pub const NAMES: [&str; 3] = ["auto", "kernel", "tools"];
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

/// What a reader has read of an image.
#[derive(Debug)]
pub(super) struct ReadBack {
    pub listing: Listing,
    /// The reader, with its version.
    pub judge: String,
    /// Properties that it cannot read, with the reason.
    pub unseen: Vec<(Property, String)>,
    /// Files whose content it could not read.
    pub unreadable: Vec<Finding>,
    /// Notes on how it was read.
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

    pub(super) fn skipped_properties(&self) -> BTreeSet<Property> {
        self.unseen.iter().map(|(property, _)| *property).collect()
    }
}

/// Reads an image: every name and what stands under it, and with `bodies` every byte of every file.
pub(super) fn read(
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
            reading.notes.push(format!("{refused}, so programs read the image instead"));
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
            let why = "only the kernel reads all of erofs, which needs root to mount it";
            Err(ReadError::NoReader(why.to_owned()))
        }
    }
}

/// Why an image was not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
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
