//! A tree as a chain of layers: the base, and what each step changed. Steps whose layers are in the cache do not run.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context, Result};
use snug_rootfs::layers::{Lowest, stack};
use snug_rootfs::tar;
use snug_rootfs::tree::RootTree;

use super::assembly::Assembly;
use crate::atomic::Partial;
use crate::cache::Tree;
use crate::cache::layers::{About, Layer};
use crate::engine::{Below, Layered, secrets};
use crate::plan::BuildPlan;
use crate::report::progress::Progress;
use crate::steps::secret::Secret;

/// Bytes that layers may take in the cache: those of some dozen images, each in a few versions.
const BUDGET: u64 = 20 << 30;

/// A layer of the tree that is being made.
enum Link {
    /// It is in the cache.
    Cached(Layer),
    /// It is in no cache, and goes with this run: it holds a secret, or stands on one that does.
    Temporary(Partial),
}

impl Link {
    fn path(&self) -> PathBuf {
        match self {
            Link::Cached(layer) => layer.tar.path().to_path_buf(),
            Link::Temporary(partial) => partial.path().to_path_buf(),
        }
    }
}

/// A tree as its layers have it, and when the first of its steps began, in seconds since 1970.
pub(super) struct Stacked {
    pub(super) tree: RootTree,
    pub(super) began: i64,
    /// The tree reads from these.
    _links: Vec<Link>,
}

impl Assembly<'_> {
    /// Returns the tree after all steps of `plan`. Those that have layers in the cache are taken from there, up to the first that
    /// has none; the others run.
    pub(super) fn stacked(
        &self,
        engine: &dyn Layered,
        plan: &BuildPlan,
        base: &Tree,
        progress: &Progress,
    ) -> Result<Stacked> {
        let mut links: Vec<Link> = Vec::new();
        // The base of one fingerprint may have been made anew: Debian's moves on.
        let mut below = tar::seal(&base.file()?)?.unwrap_or_else(|| plan.base.fingerprint());
        let mut began = super::assembly::now();
        if !self.refresh.everything() {
            for (at, key) in plan.layers.iter().enumerate() {
                let Some(layer) = self.cache.hold_layer(key, &below)? else { break };
                if !layer.is_whole()? {
                    let step = &layer.about.step;
                    progress.warn(format!(
                        "warning: {}: the layer of `{step}` in the cache is damaged; it is made again",
                        plan.name
                    ));
                    self.cache.remove_layer(key)?;
                    break;
                }
                below.clone_from(&layer.about.sha256);
                began = layer.about.began;
                if let Some(step) = plan.steps.get(at) {
                    progress.note(format!("✓ {}: {}: cached", plan.name, step.describe()));
                }
                links.push(Link::Cached(layer));
            }
        }
        if links.len() < plan.layers.len() {
            self.run(engine, plan, base, &mut links, (below, began), progress)?;
            self.cache.prune_layers(BUDGET)?;
        }
        let open = |path: PathBuf| File::open(&path).with_context(|| format!("cannot open {}", path.display()));
        let lowest = Lowest { file: base.file()?, own: base.is_own() };
        let layers = links.iter().map(|link| open(link.path())).collect::<Result<_>>()?;
        let tree = stack(lowest, layers, &tar::Limits::default()).context("cannot read the layers of the tree")?;
        Ok(Stacked { tree, began, _links: links })
    }

    /// Runs the steps that have no layer among `links`, and adds those that they leave.
    fn run(
        &self,
        engine: &dyn Layered,
        plan: &BuildPlan,
        base: &Tree,
        links: &mut Vec<Link>,
        (mut below, began): (String, i64),
        progress: &Progress,
    ) -> Result<()> {
        let first = links.len();
        let rest = BuildPlan { steps: plan.steps[first.min(plan.steps.len())..].to_vec(), ..plan.clone() };
        let secrets = secrets::read(&plan.secrets)?;
        let keys = &plan.layers[first..];
        let partials = keys.iter().map(|key| self.cache.begin_layer(key)).collect::<Result<Vec<Partial>>>()?;
        let outputs: Vec<PathBuf> = partials.iter().map(|partial| partial.path().to_path_buf()).collect();
        let layers: Vec<PathBuf> = links.iter().map(Link::path).collect();
        let found = Below { base, layers: &layers };
        let complete = Mutex::new(0);
        let mut finished = |at: usize| *complete.lock().expect("nothing fails under it") = at + 1;
        let result = engine.run(&rest, found, &outputs, self.on_failure, progress, &mut finished);
        // What succeeded is kept, also where a later step fails.
        let complete = *complete.lock().expect("nothing fails under it");
        let mut may_be_kept = true;
        for (at, partial) in partials.into_iter().take(complete).enumerate() {
            may_be_kept = may_be_kept && !holds_secret(&partial, &secrets)?;
            if !may_be_kept {
                links.push(Link::Temporary(partial));
                continue;
            }
            let step = rest.steps.get(at).map(|step| step.describe()).unwrap_or_default();
            let about: About = self.cache.about_layer(&partial, &below, began, step)?;
            below.clone_from(&about.sha256);
            let layer = self.cache.publish_layer(partial, about).map_err(|error| self.cache.explain(error))?;
            links.push(Link::Cached(layer.context("a layer was removed while it was made")?));
        }
        result
    }
}

/// Whether a layer holds a secret as it is, which a later step may remove from the tree but not from the layer.
fn holds_secret(partial: &Partial, secrets: &[Secret]) -> Result<bool> {
    if secrets.is_empty() {
        return Ok(false);
    }
    let file = OpenOptions::new().read(true).open(partial.path())?;
    let tree = tar::read_own(file, &tar::Limits::default(), &mut |_| {})?;
    Ok(secrets::refuse_in(&tree, secrets).is_err())
}
