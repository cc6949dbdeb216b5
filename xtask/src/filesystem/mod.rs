//! Filesystem images from a [`RootTree`]: ext4, squashfs, erofs. Nothing here knows of specs or engines.

pub mod erofs;
pub mod ext4;
pub mod mke2fs;
pub mod requires;
pub mod squashfs;
pub mod tool;

pub use snug_ext4::{Census, Ext4Options, Ext4Writer, Part, identity};
pub use snug_rootfs::digest;
pub use snug_rootfs::tree::image_time;
pub use tool::MissingTool;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use self::digest::Digest;
use crate::report::progress::{Progress, Stage};
use crate::rootfs::tree::RootTree;
use crate::size::SizePolicy;

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

/// Writes one tree as one image.
pub trait FilesystemWriter {
    /// The type that it writes.
    fn kind(&self) -> FilesystemKind;

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
