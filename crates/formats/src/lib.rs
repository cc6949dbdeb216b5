//! The types of filesystem that an image can have: their options, and the kernel that each needs. What a spec may ask for
//! and what writers are told, without knowing of either.

pub mod kernel;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use snug_ext4::{Ext4Options, Ext4Writer};

/// The type of an image; also its file extension and its name in specs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FilesystemKind {
    Ext4,
    Squashfs,
    Erofs,
}

impl FilesystemKind {
    pub const ALL: [FilesystemKind; 3] = [FilesystemKind::Ext4, FilesystemKind::Squashfs, FilesystemKind::Erofs];

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

/// What a squashfs image can be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SquashfsOptions {
    /// `zstd:15`, `gzip`, `xz`, `lz4`: algorithm and, after a colon, its level.
    pub compression: String,
    /// Bytes, a power of two in 4 KiB..=1 MiB.
    pub block_size: u32,
}

impl Default for SquashfsOptions {
    fn default() -> Self {
        SquashfsOptions { compression: "zstd:15".into(), block_size: 1 << 20 }
    }
}

/// What an erofs image can be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErofsOptions {
    pub compression: String,
    /// Bytes of a physical cluster, a power of two in 4 KiB..=1 MiB.
    pub cluster_size: u32,
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
    Ext4(Ext4Options),
    Squashfs(SquashfsOptions),
    Erofs(ErofsOptions),
}

impl Filesystem {
    pub fn kind(&self) -> FilesystemKind {
        match self {
            Filesystem::Ext4(_) => FilesystemKind::Ext4,
            Filesystem::Squashfs(_) => FilesystemKind::Squashfs,
            Filesystem::Erofs(_) => FilesystemKind::Erofs,
        }
    }

    /// The type with its default options.
    pub fn default_of(kind: FilesystemKind) -> Self {
        match kind {
            FilesystemKind::Ext4 => Filesystem::Ext4(Ext4Options::default()),
            FilesystemKind::Squashfs => Filesystem::Squashfs(SquashfsOptions::default()),
            FilesystemKind::Erofs => Filesystem::Erofs(ErofsOptions::default()),
        }
    }
}
