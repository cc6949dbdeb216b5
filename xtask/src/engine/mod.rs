//! Engines, which run the steps of a [`BuildPlan`] and leave layers, or export a root filesystem as a tar stream. They know nothing of
//! image formats.

pub mod builtin;
pub mod choose;
pub mod container;
mod downloads;
pub(crate) mod environment;
mod files;
mod install;
pub mod secrets;

use std::io::Read;
use std::path::PathBuf;

use anyhow::Result;
use snug_rootfs::tree::RootTree;

use crate::cache::Tree;
use crate::plan::{BuildPlan, EngineKind};
use crate::report::progress::Progress;
use crate::steps::secret::Secret;

pub use files::{apply_attributes, directories_changed, file_tree};

/// What happens to the tree of a failing step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    #[default]
    Remove,
    /// It stays in the cache, to be looked at.
    Keep,
    /// A shell opens in it, on the terminal of the tool; then it is removed.
    Shell,
}

/// How an engine runs the steps of a plan.
pub enum Steps<'a> {
    /// One by one, each of which leaves a layer.
    Layered(&'a dyn Layered),
    /// All at once: it exports the tree that comes out.
    Whole(&'a dyn Whole),
}

/// Steps to run one by one.
#[derive(Debug, Clone, Copy)]
pub struct LayeredRun<'a> {
    /// All of its steps run.
    pub plan: &'a BuildPlan,
    pub base: &'a Tree,
    /// What is over the base, the lowest first: archives of the tool's own, with whiteouts.
    pub layers: &'a [PathBuf],
    /// An empty file for what each step changes, as another such archive. A plan without steps has one, for what entering the
    /// tree changes.
    pub outputs: &'a [PathBuf],
    /// Those that steps may read.
    pub secrets: &'a [Secret],
}

/// Runs steps one by one.
pub trait Layered {
    /// Runs the steps. `finished` is called with the number of each once its output is complete. A tree that cannot be left or
    /// opened `on_failure` is an error before anything runs.
    fn run(
        &self,
        run: LayeredRun,
        on_failure: OnFailure,
        progress: &Progress,
        finished: &mut (dyn FnMut(usize) + Send),
    ) -> Result<()>;
}

/// Runs all steps at once.
pub trait Whole {
    /// Runs the plan's steps on the tree `base`, and hands the tar stream of what comes out to `consume`,
    /// which reads it to its end. A tree that cannot be left or opened `on_failure` is an error before anything runs.
    fn build(
        &self,
        plan: &BuildPlan,
        base: &Tree,
        secrets: &[Secret],
        on_failure: OnFailure,
        progress: &Progress,
        consume: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
    ) -> Result<()>;

    /// Restores what the engine's export loses. `base` is the tree that the build began with.
    fn restore(&self, tree: &mut RootTree, base: &Tree) -> Result<()>;
}

/// A way to run the steps of a plan.
pub trait Engine: Send + Sync {
    fn kind(&self) -> EngineKind;

    /// Checks that the engine works on this host. The error says why it does not, and what to do.
    fn probe(&self) -> Result<()>;

    /// Removes what killed runs left in the engine.
    fn sweep(&self) {}

    /// Returns how it runs steps.
    fn steps(&self) -> Steps<'_>;

    /// Returns the plan as the engine's own script (a Dockerfile), if it has one.
    fn script(&self, _plan: &BuildPlan) -> Option<String> {
        None
    }
}
