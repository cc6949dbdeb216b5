//! Turns a [`BuildPlan`] into the tar stream of a root filesystem. Knows nothing of filesystems.

pub mod builtin;
pub mod choose;
pub mod container;
pub(crate) mod environment;
mod files;
mod install;
pub mod secrets;

use std::io::Read;
use std::path::Path;

use anyhow::Result;
use snug_rootfs::tree::RootTree;

use crate::plan::{BuildPlan, EngineKind};
use crate::report::progress::Progress;

pub use files::{apply_attributes, file_tree};

/// What becomes of the tree of a failing step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    #[default]
    Remove,
    /// It stays, for a person to look at.
    Keep,
    /// A shell opens in it, on the terminal of the tool; then it goes.
    Shell,
}

/// One way to run the steps of a plan.
pub trait Engine: Send + Sync {
    fn kind(&self) -> EngineKind;

    /// Can it work here? The error says why not and what to do.
    fn probe(&self) -> Result<()>;

    /// Removes what killed runs left with it, once it is to be used.
    fn sweep(&self) {}

    /// Runs the plan's steps on the tree in `base`, a tar file, and hands the tar stream of what comes out to `consume`,
    /// which reads it to its end. A tree that cannot be left or opened `on_failure` is an error before anything runs.
    fn build(
        &self,
        plan: &BuildPlan,
        base: &Path,
        on_failure: OnFailure,
        progress: &Progress,
        consume: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
    ) -> Result<()>;

    /// Puts right what the way of the tree through the engine has done to it, before anything else looks at it.
    fn restore(&self, _tree: &mut RootTree, _base: &Path) -> Result<()> {
        Ok(())
    }

    /// The plan in the engine's own words, where it has any.
    fn script(&self, _plan: &BuildPlan) -> Option<String> {
        None
    }
}
