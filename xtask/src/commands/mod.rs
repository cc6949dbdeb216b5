//! One file a verb: what it takes, what it does, what it says at the end.

pub mod bench;
pub mod boot;
pub mod check;
pub mod clean;
pub mod completions;
pub mod doctor;
pub mod export;
pub mod image;
pub mod list;
pub mod new;
pub mod pack;
pub mod report;
pub mod test;
pub mod tools;

use std::path::PathBuf;

use anyhow::Result;
use snug_spec::ImageSet;

use crate::workspace::Workspace;

/// Reads the folder of specs: the workspace's, unless the command line names another.
pub fn load_images(workspace: &Workspace, named: Option<&PathBuf>) -> Result<ImageSet> {
    Ok(ImageSet::load(&named.cloned().unwrap_or_else(|| workspace.images()))?)
}
