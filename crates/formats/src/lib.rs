//! The types of filesystem that an image can have: their options, what they can hold, and the
//! version of Linux that each needs. Shared by those
//! who read options (a spec, a command line) and those who write images.
//!
//! ```
//! use snug_formats::{Filesystem, FilesystemKind, kernel};
//!
//! let kind: FilesystemKind = "erofs".parse().expect("one of ext4, squashfs, erofs");
//! let filesystem = Filesystem::default_of(kind);
//! let missed = kernel::missed(&filesystem, false, (5, 10)).expect("5.10 is too old");
//! assert_eq!((missed.feature.as_str(), missed.since), ("erofs with packed tails", (5, 17)));
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod file_name;
pub mod kernel;
pub mod limits;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use snug_ext4::{Ext4Options, Ext4Writer};

/// A type of filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FilesystemKind {
    /// Writable, sized by a policy.
    Ext4,
    /// Read-only, compressed.
    Squashfs,
    /// Read-only, compressed or not.
    Erofs,
}

impl FilesystemKind {
    /// All types.
    pub const ALL: [FilesystemKind; 3] = [FilesystemKind::Ext4, FilesystemKind::Squashfs, FilesystemKind::Erofs];

    /// Returns its name, as in image.toml and as the extension of image files.
    pub fn as_str(self) -> &'static str {
        match self {
            FilesystemKind::Ext4 => "ext4",
            FilesystemKind::Squashfs => "squashfs",
            FilesystemKind::Erofs => "erofs",
        }
    }
}

impl fmt::Display for FilesystemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for FilesystemKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| format!("`{text}` is not one of ext4, squashfs, erofs"))
    }
}

/// The options of a squashfs image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SquashfsOptions {
    /// `zstd:15`, `gzip`, `xz`, `lz4`: an algorithm and, after a colon, its level. Default: `zstd:15`.
    pub compression: String,
    /// Bytes of a data block, a power of two in 4 KiB..=1 MiB. Default: 1 MiB.
    pub block_size: u32,
}

impl Default for SquashfsOptions {
    fn default() -> Self {
        SquashfsOptions { compression: "zstd:15".into(), block_size: 1 << 20 }
    }
}

/// The options of an erofs image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErofsOptions {
    /// `lz4hc:12`, `zstd:15`, `deflate`, `lzma`: an algorithm of mkfs.erofs and, after a colon, its level; or `none`. Default:
    /// `lz4hc:12`.
    pub compression: String,
    /// Bytes of a physical cluster, a power of two in 4 KiB..=1 MiB. Default: 64 KiB.
    pub cluster_size: u32,
    /// Whether equal compressed data is stored once (`-Ededupe`). Default: no.
    pub dedupe: bool,
}

impl Default for ErofsOptions {
    fn default() -> Self {
        ErofsOptions { compression: "lz4hc:12".into(), cluster_size: 65536, dedupe: false }
    }
}

/// A filesystem type with its options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Filesystem {
    /// ext4.
    Ext4(Ext4Options),
    /// squashfs.
    Squashfs(SquashfsOptions),
    /// erofs.
    Erofs(ErofsOptions),
}

impl Filesystem {
    /// Returns the type without its options.
    pub fn kind(&self) -> FilesystemKind {
        match self {
            Filesystem::Ext4(_) => FilesystemKind::Ext4,
            Filesystem::Squashfs(_) => FilesystemKind::Squashfs,
            Filesystem::Erofs(_) => FilesystemKind::Erofs,
        }
    }

    /// Returns the type with its default options.
    pub fn default_of(kind: FilesystemKind) -> Self {
        match kind {
            FilesystemKind::Ext4 => Filesystem::Ext4(Ext4Options::default()),
            FilesystemKind::Squashfs => Filesystem::Squashfs(SquashfsOptions::default()),
            FilesystemKind::Erofs => Filesystem::Erofs(ErofsOptions::default()),
        }
    }
}
