//! The workspace's root and its target folder, from cargo.

use std::path::PathBuf;

use anyhow::Result;
use cargo_metadata::MetadataCommand;

/// The folders from which all other paths of a workspace are named.
#[derive(Debug, Clone)]
pub struct Workspace {
    pub root: PathBuf,
    pub target: PathBuf,
}

impl Workspace {
    /// The workspace around the current folder, which may be any folder of it.
    pub fn find() -> Result<Self> {
        let metadata = MetadataCommand::new().no_deps().exec().map_err(|error| {
            let hint = match error {
                cargo_metadata::Error::Io(_) => "cargo tells where the workspace is\nhint: put cargo on PATH",
                _ => "cargo finds no workspace here\nhint: run this inside the checkout",
            };
            anyhow::Error::new(error).context(hint)
        })?;
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
