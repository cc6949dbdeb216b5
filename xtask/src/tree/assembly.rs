//! Makes the tree of an image, or takes it from the cache: the base, the steps by an engine, then what is the same for every
//! engine. The result is a tar in the cache, named by the fingerprint of all its inputs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use snug_rootfs::adjustments::Adjustments;
use snug_rootfs::container_archive::ContainerArchive;
use snug_rootfs::fit::leave_out_sockets;
use snug_rootfs::glob;
use snug_rootfs::normalise::{Normalise, normalise};
use snug_rootfs::platform::Platform;
use snug_rootfs::stamp::Stamp;
use snug_rootfs::tar::{self, TarError};
use snug_rootfs::tree::{RootTree, Timestamp};

use crate::atomic::Partial;
use crate::bases::debian::{self, Bootstrap, NoSuchSuite};
use crate::bases::oci::{self, Resolution};
use crate::cache::{Cache, Tree};
use crate::engine::{Engine, OnFailure, Steps, apply_attributes, directories_changed, secrets};
use crate::error::Failure;
use crate::plan::{self, BuildPlan, Place, PlannedBase};
use crate::report::adjustments::Strictness;
use crate::report::amounts::entries;
use crate::report::progress::Progress;
use crate::report::shell;

/// Shows the place in the spec where the archive has no such suite.
fn at_suite(error: anyhow::Error, suite: &str, place: &Place) -> anyhow::Error {
    match error.downcast_ref::<NoSuchSuite>() {
        Some(missing) => {
            let message = format!("the archive of Debian has no suite `{suite}`");
            place.error(message, [format!("apt says: {}", missing.said), plan::suite_help(suite)]).into()
        }
        None => error,
    }
}

/// Where and how trees are made.
pub struct Assembly<'a> {
    pub cache: &'a Cache,
    pub engine: &'a dyn Engine,
    /// Which trees to make although they are in the cache.
    pub refresh: &'a Refresh,
    pub on_failure: OnFailure,
    /// What becomes of a tree that cannot be taken or held as it is.
    pub strictness: Strictness,
}

/// Which trees are made although they are in the cache: none, those that turned out to be damaged, or every one; once in a
/// run.
#[derive(Debug, Default)]
pub struct Refresh {
    everything: bool,
    trees: Mutex<Trees>,
}

#[derive(Debug, Default)]
struct Trees {
    damaged: BTreeSet<PathBuf>,
    /// Those that this run has made, which are not made again.
    made: BTreeSet<PathBuf>,
    /// Those whose digest this run knows to be right, with the file that it is of.
    whole: BTreeMap<PathBuf, Stamp>,
}

impl Refresh {
    pub fn new(everything: bool) -> Self {
        Refresh { everything, trees: Mutex::default() }
    }

    /// Whether everything is made, whatever the cache has.
    pub fn everything(&self) -> bool {
        self.everything
    }

    fn wants(&self, tree: &Path) -> bool {
        let trees = self.trees();
        (self.everything || trees.damaged.contains(tree)) && !trees.made.contains(tree)
    }

    /// Whether this run made the tree.
    pub fn made(&self, tree: &Path) -> bool {
        self.trees().made.contains(tree)
    }

    fn note(&self, tree: &Path) {
        self.trees().made.insert(tree.to_path_buf());
    }

    fn is_known_whole(&self, tree: &Path, stamp: Stamp) -> bool {
        self.trees().whole.get(tree) == Some(&stamp)
    }

    fn note_whole(&self, tree: &Path, stamp: Stamp) {
        self.trees().whole.insert(tree.to_path_buf(), stamp);
    }

    /// Has a tree made again, unless this run made it. Returns whether it will be.
    fn distrust(&self, tree: &Path) -> bool {
        self.trees().damaged.insert(tree.to_path_buf());
        self.wants(tree)
    }

    fn trees(&self) -> MutexGuard<'_, Trees> {
        self.trees.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Assembly<'_> {
    /// Returns the tree of the last plan of `chain`, each of which is the base of the next; only what is missing is built.
    pub fn tree(&self, chain: &[BuildPlan], progress: &Progress) -> Result<Tree> {
        let (last, ancestors) = chain.split_last().context("an image has at least itself")?;
        let subject = subject(&last.name, last.platform);
        let wanted = self.cache.tree(&subject, &last.fingerprint);
        if let Some(tree) = self.present(&subject, &wanted, progress)? {
            return Ok(tree);
        }
        let (base, adjusted) = self.base(last, ancestors, progress)?;
        // Before any step runs.
        self.strictness.judge_again(&adjusted, Some(&last.base.describe()))?;
        self.make(&subject, &wanted, progress, || self.build(last, &base, adjusted, &wanted, progress))
    }

    /// Returns the tree that the steps of `plan` start from, and what was adjusted of it so far.
    fn base(&self, plan: &BuildPlan, ancestors: &[BuildPlan], progress: &Progress) -> Result<(Tree, Adjustments)> {
        let cached = match &plan.base {
            PlannedBase::Image { .. } => {
                self.tree(ancestors, &progress.for_image(&ancestors.last().context("no parent")?.name))?
            }
            PlannedBase::Tar { path, stamp, .. } => return tar_base(path, *stamp),
            PlannedBase::Oci(resolution) => self.oci(resolution, progress)?,
            PlannedBase::Debian { suite, variant, snapshot, fingerprint } => {
                let platform = plan.platform;
                let what = Bootstrap {
                    suite,
                    variant,
                    platform,
                    snapshot: snapshot.as_deref(),
                    include: &[],
                    place: &plan.base_place.to_string(),
                };
                self.debian(&what, fingerprint, progress).map_err(|error| at_suite(error, suite, &plan.base_place))?
            }
        };
        let adjusted = self.adjustments(&cached)?;
        Ok((cached, adjusted))
    }

    /// Returns what was adjusted of a tree in the cache: when what it was made from was read, and by steps.
    pub fn adjustments(&self, tree: &Tree) -> Result<Adjustments> {
        tree.file()
            .and_then(|file| Ok(tar::own_adjustments(file)?))
            .with_context(|| format!("cannot read the finished tree {}", tree.path().display()))
    }

    /// Returns the tree of the last plan of `chain` as [`Assembly::tree`] has it, read. One in the cache that cannot be read is
    /// made again.
    pub fn read(&self, chain: &[BuildPlan], progress: &Progress) -> Result<(RootTree, Tree)> {
        let read = |held: Tree| {
            let path = held.path().to_path_buf();
            held.file()
                .and_then(|file| Ok((tar::read_own(file, &tar::Limits::default(), &mut |_| {})?, held)))
                .with_context(|| format!("cannot read the finished tree {}", path.display()))
        };
        let held = self.tree(chain, progress)?;
        let path = held.path().to_path_buf();
        match read(held) {
            Err(error) if self.refresh.distrust(&path) => {
                let name = chain.last().map_or("", |plan| &plan.name);
                progress.warn(format!("{name}: {error:#}; it is made again"));
                read(self.tree(chain, progress)?)
            }
            result => result,
        }
    }

    /// Has the tree of the last plan of `chain` made again, unless this run made it: the one in the cache is not what its
    /// inputs gave.
    pub fn distrust(&self, chain: &[BuildPlan]) {
        if let Some(plan) = chain.last() {
            self.refresh.distrust(&self.cache.tree(&subject(&plan.name, plan.platform), &plan.fingerprint));
        }
    }

    /// Returns the tree `name` at `wanted`, if the cache has it whole and it is not to be made anew. That it is damaged is said
    /// once.
    fn present(&self, name: &str, wanted: &Path, progress: &Progress) -> Result<Option<Tree>> {
        if self.refresh.wants(wanted) {
            return Ok(None);
        }
        let Some(tree) = self.cache.hold(wanted)? else { return Ok(None) };
        let file = tree.file()?;
        let stamp = Stamp::of(&file)?;
        // An error of the disk is damage, too.
        if self.refresh.is_known_whole(wanted, stamp) || tar::is_whole(&file).unwrap_or(false) {
            self.refresh.note_whole(wanted, stamp);
            return Ok(Some(tree));
        }
        if self.refresh.distrust(wanted) {
            progress.warn(format!("{name}: the tree in the cache is damaged; it is made again"));
        }
        Ok(None)
    }

    /// Makes the tree at `wanted` by `build`, or waits for another run that makes it.
    fn make(&self, name: &str, wanted: &Path, progress: &Progress, build: impl FnOnce() -> Result<()>) -> Result<Tree> {
        let _lock = self.cache.lock(name, || progress.note(format!("{name}: another build makes it; waiting")))?;
        // Another run may have made it meanwhile.
        if let Some(tree) = self.present(name, wanted, progress)? {
            return Ok(tree);
        }
        build()?;
        self.refresh.note(wanted);
        self.cache.drop_older_trees(name, wanted)?;
        let tree = self.cache.hold(wanted)?.with_context(|| format!("{} has been removed", wanted.display()))?;
        self.refresh.note_whole(wanted, Stamp::of(&tree.file()?)?);
        Ok(tree)
    }

    fn debian(&self, what: &Bootstrap, fingerprint: &str, progress: &Progress) -> Result<Tree> {
        let name = subject(&format!("debian_{}_{}", what.suite, what.variant), what.platform);
        let wanted = self.cache.tree(&name, fingerprint);
        if let Some(tree) = self.present(&name, &wanted, progress)? {
            return Ok(tree);
        }
        self.make(&name, &wanted, progress, || {
            debian::run(self.cache, what, progress, &mut |stream| {
                let tree = self.read_stream(stream)?;
                self.store(&tree, &wanted)
            })
        })
    }

    /// Returns the merged layers of a registry's image as one tar, from which every engine starts.
    fn oci(&self, resolution: &Resolution, progress: &Progress) -> Result<Tree> {
        let name = resolution.tree_name();
        let wanted = self.cache.tree(&name, &resolution.fingerprint());
        if let Some(tree) = self.present(&name, &wanted, progress)? {
            return Ok(tree);
        }
        self.make(&name, &wanted, progress, || {
            let tree = oci::tree(self.cache, resolution, &|| self.spool(), progress)
                .map_err(|error| self.cache.explain(error))?;
            self.store(&tree, &wanted)
        })
    }

    fn build(
        &self,
        plan: &BuildPlan,
        base: &Tree,
        adjusted: Adjustments,
        wanted: &Path,
        progress: &Progress,
    ) -> Result<()> {
        // Once: what steps see is what is looked for.
        let secrets = secrets::read(&plan.secrets)?;
        let _held;
        let (mut tree, began) = match self.engine.steps() {
            Steps::Layered(engine) => {
                let stacked = self.stacked(engine, plan, base, &secrets, progress)?;
                _held = stacked.chain;
                (stacked.tree, stacked.began)
            }
            Steps::Whole(engine) => {
                let began = now();
                let mut tree = None;
                engine.build(plan, base, &secrets, self.on_failure, progress, &mut |stream| {
                    tree = Some(self.read_stream(stream)?);
                    Ok(())
                })?;
                let mut tree = tree.context("the engine gave no tree")?;
                tree.inherit_adjustments(adjusted);
                engine.restore(&mut tree, base)?;
                (tree, began)
            }
        };
        // Before anything is kept of it.
        base.check()?;
        let stage = progress.stage("normalise and store the tree");
        finish(&mut tree, plan, began, progress)?;
        secrets::refuse_in(&tree, &secrets)?;
        self.store(&tree, wanted)?;
        stage.finish(&entries(tree.len()));
        Ok(())
    }

    fn spool(&self) -> Result<File> {
        tempfile::tempfile_in(self.cache.trees()).context("cannot make a temporary file in the cache")
    }

    fn read_stream(&self, stream: &mut dyn Read) -> Result<RootTree> {
        tar::read_own_stream(stream, self.spool()?, &tar::Limits::default(), &mut |_| {})
            .context("the engine's tar stream")
    }

    /// Writes the tree, with what was adjusted of it, as a tar that appears complete or not at all.
    fn store(&self, tree: &RootTree, wanted: &Path) -> Result<()> {
        let partial = Partial::begin(wanted)?;
        let write = || -> Result<()> { Ok(tar::write_sealed(tree, partial.file()?, &mut |_| {})?) };
        write().context("cannot write to the cache").map_err(|error| self.cache.explain(error))?;
        partial.publish()?;
        Ok(())
    }
}

/// Reads a tar that a spec names as its base, before any step runs. Returns what had to be adjusted of it, too. Engines read it
/// again, each where it needs it.
fn tar_base(path: &Path, stamp: Stamp) -> Result<(Tree, Adjustments)> {
    let shown = path.display();
    let base = Tree::outside(path, stamp)?;
    let tree =
        tar::read_as_stated(base.file()?, &tar::Limits::default(), &mut |_| {}).map_err(|error| match error {
            TarError::Compressed { format, command, .. } => anyhow!(
                "the base {shown} is {format}-compressed, not a tar\n\
             hint: decompress it and name the result: {command} {} > root.tar",
                shell::path(path)
            ),
            error => anyhow::Error::new(error).context(format!("cannot read the base {shown}")),
        })?;
    if let Some(archive) = ContainerArchive::of(&tree) {
        bail!(Failure::Usage(format!(
            "{shown} cannot be a base: {archive}\n\
             hint: docker create IMAGE, then docker export CONTAINER > root.tar; or name the image as base = {{ oci = \"…\" }}"
        )));
    }
    Ok((base, tree.adjustments().clone()))
}

/// Returns the time before what follows, in seconds since 1970, as a filesystem notes it: its clock may be some milliseconds
/// behind (`current_time` of Linux's `fs/inode.c` takes that of the last tick).
pub(super) fn now() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX) - 1
}

/// Returns the name of a tree in the cache. A platform that is not the host's is part of it.
pub fn subject(name: &str, platform: Platform) -> String {
    if Some(platform) == Platform::host() { name.to_owned() } else { format!("{name}_{}", platform.file_name()) }
}

/// Finishes the tree after the steps, the same for every engine: exclude, normalise, attributes and devices
/// (docs/architecture.md, "Order of a build"). `began` is when the engine began, in seconds since 1970.
fn finish(tree: &mut RootTree, plan: &BuildPlan, began: i64, progress: &Progress) -> Result<()> {
    let globs: Vec<_> = plan.exclude.iter().map(|exclude| exclude.glob.clone()).collect();
    for (exclude, count) in plan.exclude.iter().zip(glob::exclude(tree, &globs)) {
        if count == 0 {
            progress.warn(format!("warning: {}: `{}` excludes nothing", exclude.place, exclude.glob.as_str()));
        }
    }
    let clamp_mtime = Timestamp::source_date_epoch();
    let changed = directories_changed(tree, &plan.files, began)?;
    normalise(tree, &Normalise { hostname: plan.hostname.as_deref(), clamp_mtime, changed: &changed });
    // Those that would have reached the image.
    leave_out_sockets(tree);
    apply_attributes(tree, &plan.files, &plan.devices)
        .with_context(|| format!("cannot finish the tree of {}", plan.name))
}
