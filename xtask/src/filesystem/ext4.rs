//! The native ext4 writer, the crate `snug-ext4`.

use std::path::Path;

use anyhow::Result;
use snug_ext4::Census;
use snug_ext4::size::SizePolicy;

pub use snug_ext4::{Ext4Error, NativeExt4};
use snug_formats::FilesystemKind;
use snug_rootfs::digest::Digest;
use snug_rootfs::tree::RootTree;

use super::FilesystemWriter;
use crate::report::progress::Stage;

impl FilesystemWriter for NativeExt4 {
    fn kind(&self) -> FilesystemKind {
        FilesystemKind::Ext4
    }

    fn write(&self, tree: &RootTree, policy: &SizePolicy, output: &Path, stage: &Stage) -> Result<Census> {
        NativeExt4::write(self, tree, policy, output, stage)
    }

    fn write_hashed(
        &self,
        tree: &RootTree,
        policy: &SizePolicy,
        output: &Path,
        stage: &Stage,
    ) -> Result<(Census, Digest)> {
        NativeExt4::write_hashed(self, tree, policy, output, stage)
    }
}
