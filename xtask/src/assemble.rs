//! The tree of an image, from the cache or from an engine: base first, then steps, then what engines leave behind is
//! put right. What comes out is a tar in the cache, complete and named by the fingerprint of all its inputs.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::bootstrap::{self, Bootstrap};
use crate::cache::Cache;
use crate::engine::{Engine, apply_attributes};
use crate::oci::{self, Resolution};
use crate::plan::{BuildPlan, PlannedBase, all_files};
use crate::report::progress::Progress;
use crate::rootfs::glob::{self, Glob};
use crate::rootfs::normalise::{Normalise, normalise};
use crate::rootfs::tar::{self, TarOptions};
use crate::rootfs::tree::{RootTree, Timestamp};
use crate::spec::ImageSpec;

/// How to go about it.
pub struct Assembly<'a> {
    pub cache: &'a Cache,
    pub engine: &'a dyn Engine,
    /// Make everything anew, bases included.
    pub refresh: bool,
    /// Leave the tree of a failing step for a person to look at.
    pub keep: bool,
}

/// An image's spec and plan.
#[derive(Debug, Clone)]
pub struct Link<'set> {
    pub spec: &'set ImageSpec,
    pub plan: BuildPlan,
}

impl Assembly<'_> {
    /// The tree of the last image of `chain`, each of which is the base of the next; only what is missing is built.
    pub fn tree(&self, chain: &[Link], progress: &Progress) -> Result<PathBuf> {
        let (last, ancestors) = chain.split_last().context("an image has at least itself")?;
        let wanted = self.cache.tree(&last.plan.name, &last.plan.fingerprint);
        if wanted.exists() && !self.refresh {
            return Ok(wanted);
        }
        let base = match &last.plan.base {
            PlannedBase::Image { .. } => {
                self.tree(ancestors, &progress.for_image(&ancestors.last().context("no parent")?.plan.name))?
            }
            PlannedBase::Tar { path, .. } => path.clone(),
            PlannedBase::Oci(resolution) => self.oci(resolution, progress)?,
            PlannedBase::Debian { suite, variant, fingerprint } => {
                self.debian(suite, variant, fingerprint, progress)?
            }
        };
        let _lock = self.lock(&last.plan.name, progress)?;
        // Another run may have made it while this one waited.
        if !wanted.exists() || self.refresh {
            self.build(last, &base, &wanted, progress)?;
            self.cache.drop_older_trees(&last.plan.name, &wanted)?;
        }
        Ok(wanted)
    }

    fn lock(&self, subject: &str, progress: &Progress) -> Result<File> {
        self.cache.lock(subject, || progress.note(format!("{subject}: another run builds it; waiting")))
    }

    fn debian(&self, suite: &str, variant: &str, fingerprint: &str, progress: &Progress) -> Result<PathBuf> {
        let name = format!("debian_{suite}_{variant}");
        let wanted = self.cache.tree(&name, fingerprint);
        let _lock = self.lock(&name, progress)?;
        if !wanted.exists() || self.refresh {
            let what = Bootstrap { suite, variant, include: &[] };
            bootstrap::run(self.cache, &what, progress, &mut |stream| {
                let tree = self.read(stream)?;
                self.store(&tree, &wanted)
            })?;
            self.cache.drop_older_trees(&name, &wanted)?;
        }
        Ok(wanted)
    }

    /// The merged layers of a registry's image, stored as one tar: what engines start from, whichever they are.
    fn oci(&self, resolution: &Resolution, progress: &Progress) -> Result<PathBuf> {
        let name = resolution.tree_name()?;
        let wanted = self.cache.tree(&name, &resolution.manifest.hex());
        let _lock = self.lock(&name, progress)?;
        if !wanted.exists() || self.refresh {
            let spool =
                tempfile::tempfile_in(self.cache.trees()).context("cannot make a temporary file in the cache")?;
            let tree = oci::fetch(self.cache, resolution, progress)?.tree(spool, progress)?;
            self.store(&tree, &wanted)?;
            self.cache.drop_older_trees(&name, &wanted)?;
        }
        Ok(wanted)
    }

    fn build(&self, link: &Link, base: &Path, wanted: &Path, progress: &Progress) -> Result<()> {
        let mut tree = None;
        self.engine.build(&link.plan, base, self.keep, progress, &mut |stream| {
            tree = Some(self.read(stream)?);
            Ok(())
        })?;
        let mut tree = tree.context("the engine gave no tree")?;
        self.engine.mend(&mut tree, base)?;
        let stage = progress.stage("normalise and store the tree");
        put_right(&mut tree, link, progress)?;
        self.store(&tree, wanted)?;
        stage.finish(&format!("{} entries", tree.len()));
        Ok(())
    }

    fn read(&self, stream: &mut dyn Read) -> Result<RootTree> {
        let spool = tempfile::tempfile_in(self.cache.trees()).context("cannot make a temporary file in the cache")?;
        tar::read_stream(stream, spool, &tar::Limits::default(), &mut |_| {}).context("the engine's tar stream")
    }

    /// Writes the tree as a tar that appears complete or not at all.
    fn store(&self, tree: &RootTree, wanted: &Path) -> Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(self.cache.trees()).context("cannot write to the cache")?;
        tar::write(tree, file.as_file_mut(), TarOptions::FAITHFUL, &mut |_| {}).context("cannot write to the cache")?;
        file.persist(wanted).with_context(|| format!("cannot name {}", wanted.display()))?;
        Ok(())
    }
}

/// What comes after the steps, the same for every engine: exclude, normalise, attributes, devices (DESIGN 4).
fn put_right(tree: &mut RootTree, link: &Link, progress: &Progress) -> Result<()> {
    let spec = link.spec;
    let place = |line: usize| format!("{}:{line}", spec.document.path.display());
    let globs = spec
        .exclude
        .iter()
        .map(|pattern| Glob::new(pattern).with_context(|| place(pattern.line)))
        .collect::<Result<Vec<_>>>()?;
    for (pattern, count) in spec.exclude.iter().zip(glob::exclude(tree, &globs)) {
        if count == 0 {
            progress.note(format!("warning: {}: `{}` excludes nothing", place(pattern.line), pattern.value));
        }
    }
    let clamp_mtime = Timestamp::source_date_epoch();
    normalise(tree, &Normalise { hostname: spec.hostname.as_deref(), clamp_mtime });
    apply_attributes(tree, &all_files(spec), &spec.devices)
        .with_context(|| format!("cannot finish the tree of {}", spec.document.path.display()))
}
