//! Filesystem images from a [`RootTree`]: ext4, squashfs, erofs, and dm-verity. Independent of specs and engines.

pub mod erofs;
pub mod ext4;
pub mod mke2fs;
pub mod squashfs;
pub mod verity;

use std::path::Path;

use anyhow::{Context, Result};
use snug_ext4::Census;
use snug_ext4::size::SizePolicy;
pub use snug_formats::limits::limits;
use snug_formats::{Ext4Writer, Filesystem, FilesystemKind};
use snug_rootfs::digest::{self, Digest};
use snug_rootfs::tree::RootTree;

use crate::report::progress::{Progress, Stage};

/// Writes one tree as one image.
pub trait FilesystemWriter {
    /// Returns the type that it writes.
    fn kind(&self) -> FilesystemKind;

    /// Writes `tree`, which is within the limits of the type ([`limits`]), to `output`, sized by `policy`, and returns what every
    /// byte is used for. `output` is a path beside the
    /// final image, which the caller renames afterwards. On an error it may be left behind for the caller to remove.
    fn write(&self, tree: &RootTree, policy: &SizePolicy, output: &Path, stage: &Stage) -> anyhow::Result<Census>;

    /// As [`Self::write`], and also returns the SHA-256 of the image: computed during the write if the writer can, otherwise
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
        stage.expect_also(census.size);
        let digest = digest::of_file(output, &mut |bytes| stage.advance(bytes))
            .with_context(|| format!("read {}", output.display()))?;
        Ok((census, digest))
    }
}

/// Returns the writer of a filesystem type. Fails if its options are invalid or its programs are missing; erofs-utils are
/// downloaded into the cache if the host has none.
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
