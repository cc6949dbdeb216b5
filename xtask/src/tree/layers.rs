//! A tree as a chain of layers: the base, and what each step changed. Steps whose layers are in the cache do not run.

use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result};
use snug_rootfs::layers::{Lowest, stack};
use snug_rootfs::tar;
use snug_rootfs::tree::RootTree;

use super::assembly::Assembly;
use crate::atomic::Partial;
use crate::cache::layers::Layer;
use crate::cache::{Cache, Tree};
use crate::engine::{Layered, LayeredRun, secrets};
use crate::plan::{BuildPlan, Step};
use crate::report::progress::Progress;
use crate::steps::secret::Secret;

/// Bytes that layers may take in the cache: those of some dozen images, each in a few versions.
const BUDGET: u64 = 20 << 30;

/// A layer of the tree that is being made.
pub(super) enum ChainLayer {
    /// It is in the cache.
    Cached(Layer),
    /// It is in no cache, and goes with this run: it holds a secret, or stands on one that does.
    Temporary(Partial),
}

impl ChainLayer {
    fn path(&self) -> PathBuf {
        match self {
            ChainLayer::Cached(layer) => layer.tar.path().to_path_buf(),
            ChainLayer::Temporary(partial) => partial.path().to_path_buf(),
        }
    }

    /// Returns the tar, open: at its path there may be another file by now.
    fn file(&self) -> Result<File> {
        match self {
            ChainLayer::Cached(layer) => layer.tar.file(),
            ChainLayer::Temporary(partial) => {
                let path = partial.path();
                File::open(path).with_context(|| format!("cannot open {}", path.display()))
            }
        }
    }
}

/// A tree as its layers have it, and when the first of its steps began, in seconds since 1970.
pub(super) struct Stacked {
    pub(super) tree: RootTree,
    pub(super) began: i64,
    /// To be held as long as the tree is used, which reads from them.
    pub(super) chain: Vec<ChainLayer>,
}

impl Assembly<'_> {
    /// Returns the tree after all steps of `plan`. Those that have layers in the cache are taken from there, up to the first that
    /// has none; the others run.
    pub(super) fn stacked(
        &self,
        engine: &dyn Layered,
        plan: &BuildPlan,
        base: &Tree,
        secrets: &[Secret],
        progress: &Progress,
    ) -> Result<Stacked> {
        let mut chain: Vec<ChainLayer> = Vec::new();
        // The base of one fingerprint may have been made anew: Debian's moves on.
        let seal = if base.is_own() { tar::seal(&base.file()?)? } else { None };
        let mut below = seal.unwrap_or_else(|| plan.base.fingerprint());
        let mut began = super::assembly::now();
        if !self.refresh.everything() {
            for (at, key) in plan.layers.iter().enumerate() {
                let Some(layer) = self.cache.hold_layer(key, &below)? else { break };
                if !layer.is_whole()? {
                    let step = &layer.info.step;
                    progress.warn(format!(
                        "warning: {}: the layer of `{step}` in the cache is damaged; it is made again",
                        plan.name
                    ));
                    self.cache.remove_layer(layer)?;
                    break;
                }
                below.clone_from(&layer.info.sha256);
                began = layer.info.began;
                if let Some(step) = plan.steps.get(at) {
                    progress.note(format!("✓ {}: {}: cached", plan.name, step.describe()));
                }
                chain.push(ChainLayer::Cached(layer));
            }
        }
        if chain.len() < plan.layers.len() {
            let given = LayeredRun { plan, base, layers: &[], outputs: &[], secrets };
            let ran = self.run(engine, given, &mut chain, (below, began), progress);
            if let Err(error) = self.cache.prune_layers(BUDGET) {
                progress.warn(format!("warning: {error:#}"));
            }
            ran?;
        }
        let lowest = Lowest { file: base.file()?, own: base.is_own() };
        let layers = chain.iter().map(ChainLayer::file).collect::<Result<_>>()?;
        let tree = stack(lowest, layers, &tar::Limits::default()).context("cannot read the layers of the tree")?;
        Ok(Stacked { tree, began, chain })
    }

    /// Runs the steps of the `given` plan that have no layer in the chain, and adds those that they leave.
    fn run(
        &self,
        engine: &dyn Layered,
        given: LayeredRun,
        chain: &mut Vec<ChainLayer>,
        (below, began): (String, i64),
        progress: &Progress,
    ) -> Result<()> {
        let LayeredRun { plan, secrets, .. } = given;
        let first = chain.len();
        let rest = BuildPlan { steps: plan.steps[first.min(plan.steps.len())..].to_vec(), ..plan.clone() };
        let keys = &plan.layers[first..];
        let partials = keys.iter().map(|key| self.cache.begin_layer(key)).collect::<Result<VecDeque<Partial>>>()?;
        let outputs: Vec<PathBuf> = partials.iter().map(|partial| partial.path().to_path_buf()).collect();
        let layers: Vec<PathBuf> = chain.iter().map(ChainLayer::path).collect();
        let run = LayeredRun { plan: &rest, layers: &layers, outputs: &outputs, ..given };
        let mut keeper = Keeper {
            cache: self.cache,
            secrets,
            steps: &rest.steps,
            keys,
            partials,
            chain: Vec::new(),
            below,
            began,
            is_tainted: false,
            failed: None,
        };
        engine.run(run, self.on_failure, progress, &mut |_| keeper.keep_next())?;
        chain.append(&mut keeper.chain);
        keeper.failed.map_or(Ok(()), Err)
    }
}

/// Keeps layers as steps leave them, so that what succeeded does not run again, however the run ends.
struct Keeper<'a> {
    cache: &'a Cache,
    secrets: &'a [Secret],
    steps: &'a [Step],
    keys: &'a [String],
    /// Of the layers that are not complete yet.
    partials: VecDeque<Partial>,
    chain: Vec<ChainLayer>,
    /// SHA-256 of the last layer.
    below: String,
    began: i64,
    /// Whether a layer holds a secret.
    is_tainted: bool,
    failed: Option<anyhow::Error>,
}

impl Keeper<'_> {
    /// Keeps the next layer, which is complete.
    fn keep_next(&mut self) {
        let Some(partial) = self.partials.pop_front() else { return };
        if self.failed.is_none() {
            match self.keep(partial) {
                Ok(layer) => self.chain.push(layer),
                Err(error) => self.failed = Some(self.cache.explain(error)),
            }
        }
    }

    fn keep(&mut self, partial: Partial) -> Result<ChainLayer> {
        let at = self.chain.len();
        self.is_tainted = self.is_tainted || holds_secret(&partial, self.secrets)?;
        if self.is_tainted {
            return Ok(ChainLayer::Temporary(partial));
        }
        let step = self.steps.get(at).map(Step::describe).unwrap_or_default();
        let info = self.cache.describe_layer(&partial, &self.below, self.began, step)?;
        self.below.clone_from(&info.sha256);
        Ok(ChainLayer::Cached(self.cache.publish_layer(partial, &self.keys[at], info)?))
    }
}

/// Whether a layer holds a secret as it is, which a later step may remove from the tree but not from the layer.
fn holds_secret(partial: &Partial, secrets: &[Secret]) -> Result<bool> {
    if secrets.is_empty() {
        return Ok(false);
    }
    let file = File::open(partial.path())?;
    let tree = tar::read_own(file, &tar::Limits::default(), &mut |_| {})?;
    Ok(secrets::refuse_in(&tree, secrets).is_err())
}
