//! Where things stand: the workspace's root and its target folder, as cargo tells them.

use std::path::PathBuf;

use anyhow::{Context, Result};
use cargo_metadata::MetadataCommand;

/// The two folders that everything else is named from.
#[derive(Debug, Clone)]
pub struct Workspace {
    pub root: PathBuf,
    pub target: PathBuf,
}

impl Workspace {
    /// Asks cargo from the current folder, so that any folder of the workspace will do.
    pub fn find() -> Result<Self> {
        let metadata = MetadataCommand::new()
            .no_deps()
            .exec()
            .context("cargo cannot tell where the workspace is\nhint: run this inside the checkout")?;
        Ok(Workspace {
            root: metadata.workspace_root.into_std_path_buf(),
            target: metadata.target_directory.into_std_path_buf(),
        })
    }

    /// The folder of specs, unless `--images` names another.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// The folder of results, unless `--output` names another.
    pub fn output(&self) -> PathBuf {
        self.target.join("images")
    }
}
