//! Filesystem images from a [`RootTree`]: ext4, squashfs, erofs. Nothing here knows of specs or engines.

pub mod digest;
pub mod erofs;
pub mod ext4;
pub mod identity;
pub mod mke2fs;
pub mod requires;
pub mod squashfs;
#[cfg(test)]
pub(crate) mod testing;
pub mod tool;

pub use tool::MissingTool;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use self::digest::Digest;
use crate::report::progress::{Progress, Stage};
use crate::rootfs::tree::{RootTree, Timestamp};
use crate::size::{SizeDecision, SizePolicy};

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

/// Which program writes an ext4 image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ext4Writer {
    /// The writer of this tool.
    #[default]
    Native,
    /// `mke2fs -d` over the tree, materialised in a namespace.
    Mke2fs,
    /// `mkfs.ext4`, a loop mount and `tar`: needs root.
    Loop,
}

impl FromStr for Ext4Writer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "native" => Ok(Ext4Writer::Native),
            "mke2fs" => Ok(Ext4Writer::Mke2fs),
            "loop" => Ok(Ext4Writer::Loop),
            _ => Err(format!("`{text}` is not one of native, mke2fs, loop")),
        }
    }
}

/// What an ext4 image can be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ext4Options {
    /// Have a journal, sized by mke2fs's table.
    pub journal: bool,
    /// Blocks kept for root, in percent of all (0..=50).
    pub reserved_percent: u8,
    /// Volume label, at most 16 bytes.
    pub label: Option<String>,
    /// Instead of the UUID that is derived from the content.
    pub uuid: Option<[u8; 16]>,
    /// Size in bytes up to which the filesystem must be able to grow online (group descriptors are reserved for it);
    /// `None`: 16 times its size and at least 64 GiB.
    pub growth: Option<u64>,
    pub writer: Ext4Writer,
}

impl Default for Ext4Options {
    fn default() -> Self {
        Ext4Options {
            journal: true,
            reserved_percent: 0,
            label: None,
            uuid: None,
            growth: None,
            writer: Ext4Writer::default(),
        }
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

/// Writes one tree as one image.
pub trait FilesystemWriter {
    /// Writes `tree` to `output`, a path in the folder of the final image that the caller renames afterwards, sized by
    /// `policy`, and answers what every byte is for. On an error `output` may be left behind for the caller to remove.
    fn write(&self, tree: &RootTree, policy: &SizePolicy, output: &Path, stage: &Stage) -> anyhow::Result<Census>;

    /// As [`Self::write`], and answers the SHA-256 of the image as well. Taken while writing where the writer can, or else
    /// by reading the image again.
    fn write_hashed(
        &self,
        tree: &RootTree,
        policy: &SizePolicy,
        output: &Path,
        stage: &Stage,
    ) -> anyhow::Result<(Census, Digest)> {
        let census = self.write(tree, policy, output, stage)?;
        stage.detail("hashing the image");
        let digest = digest::of_file(output).with_context(|| format!("read {}", output.display()))?;
        Ok((census, digest))
    }
}

/// What an image consists of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Census {
    /// Length of the image file in bytes.
    pub size: u64,
    /// The program and version that wrote it.
    pub writer: String,
    /// Every byte of the image by what it is for, in the order of the image or by weight; sums to `size`.
    pub parts: Vec<Part>,
    /// Why it is this large; `None` for read-only types, which are as large as their content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<SizeDecision>,
    /// What of the tree the format cannot hold, in sentences for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub omitted: Vec<String>,
}

/// A share of an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    pub name: String,
    pub bytes: u64,
}

/// The time an image is said to be made, in seconds since the epoch: `SOURCE_DATE_EPOCH` where it is set, or else the
/// newest modification time of the tree. Never the time of the build.
pub fn image_time(tree: &RootTree) -> i64 {
    Timestamp::source_date_epoch()
        .unwrap_or_else(|| tree.entries().map(|entry| entry.inode.mtime.seconds).max().unwrap_or(0))
}

/// The writer of a filesystem type, its options checked and its programs found, or fetched into the cache.
pub fn writer(filesystem: &Filesystem, progress: &Progress) -> Result<Box<dyn FilesystemWriter>> {
    match filesystem {
        Filesystem::Ext4(options) => match options.writer {
            Ext4Writer::Mke2fs => Ok(Box::new(mke2fs::Mke2fsWriter::new(options)?)),
            Ext4Writer::Native => Ok(Box::new(ext4::NativeExt4::new(options)?)),
            Ext4Writer::Loop => Ok(Box::new(mke2fs::LoopWriter::new(options)?)),
        },
        Filesystem::Squashfs(options) => Ok(Box::new(squashfs::SquashfsWriter::new(options)?)),
        Filesystem::Erofs(options) => {
            Ok(Box::new(erofs::ErofsWriter::new(options, erofs::ErofsUtils::find(progress)?)?))
        }
    }
}
