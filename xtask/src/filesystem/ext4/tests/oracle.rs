//! What outside programs say about an image.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::super::NativeExt4;
use crate::filesystem::{Census, Ext4Options, FilesystemWriter};
use crate::report::progress::Progress;
use crate::rootfs::tree::RootTree;
use crate::size::SizePolicy;

/// An image in a folder of its own, which goes away with it.
pub struct Image {
    pub census: Census,
    folder: TempDir,
}

impl Image {
    pub fn write(tree: &RootTree, policy: &SizePolicy, options: &Ext4Options) -> anyhow::Result<Image> {
        let folder = tempfile::tempdir()?;
        let stage = Progress::hidden().stage("");
        let census = NativeExt4::new(options)?.write(tree, policy, &folder.path().join("image"), &stage)?;
        Ok(Image { census, folder })
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// A place for a mount.
    pub fn mount_point(&self) -> PathBuf {
        let place = self.folder.path().join("mounted");
        std::fs::create_dir_all(&place).expect("the folder is ours");
        place
    }

    /// `e2fsck -fn` finds nothing.
    #[track_caller]
    pub fn is_clean(&self) {
        let output = run("e2fsck", &["-fn"], &self.path());
        assert!(output.0, "{}", output.1);
    }
}

/// A program with arguments before the image: did it succeed, and what did it say?
pub fn run(program: &str, arguments: &[&str], image: &Path) -> (bool, String) {
    let output = Command::new(program).args(arguments).arg(image).output().expect("it was found before");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}
