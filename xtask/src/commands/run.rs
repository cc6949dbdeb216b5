//! What one run of the command works with: the workspace, its specs and results, the cache, the engines, the screen.

use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::Result;
use snug_spec::ImageSet;

use super::arguments;
use crate::bases::cargo::Binaries;
use crate::bases::oci::Resolver;
use crate::cache::Cache;
use crate::engine::choose::{Choice, Engines};
use crate::image::{Order, Providers};
use crate::report::progress::Progress;
use crate::workspace::Workspace;

/// The parts that verbs share. Each is set up when a verb first asks for it, and once.
pub struct Run {
    images: Option<PathBuf>,
    results: Option<PathBuf>,
    refresh: bool,
    progress: Progress,
    workspace: OnceLock<Workspace>,
    set: OnceLock<ImageSet>,
    cache: OnceLock<Cache>,
    engines: OnceLock<Engines>,
    resolver: OnceLock<Resolver>,
    cached_resolver: OnceLock<Resolver>,
}

impl Run {
    /// A run on the workspace of the current folder, with its progress on standard error.
    pub fn start() -> Self {
        Run {
            images: None,
            results: None,
            refresh: false,
            progress: Progress::on_stderr(),
            workspace: OnceLock::new(),
            set: OnceLock::new(),
            cache: OnceLock::new(),
            engines: OnceLock::new(),
            resolver: OnceLock::new(),
            cached_resolver: OnceLock::new(),
        }
    }

    /// A run on the specs that `--images` names.
    pub fn with_images(images: &arguments::Images) -> Self {
        Run { images: images.folder.clone(), ..Run::start() }
    }

    /// The same run with the results in the folder that `--output` names.
    pub fn and_results(self, results: &arguments::Results) -> Self {
        Run { results: results.folder.clone(), ..self }
    }

    /// The same run, which asks registries anew what every tag means where `refresh` is set.
    pub fn and_refresh(self, refresh: bool) -> Self {
        Run { refresh, ..self }
    }

    /// The screen.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The workspace around the current folder.
    pub fn workspace(&self) -> Result<&Workspace> {
        once(&self.workspace, Workspace::find)
    }

    /// The folder of specs: of `--images`, else the workspace's.
    pub fn images_folder(&self) -> Result<PathBuf> {
        Ok(match &self.images {
            Some(folder) => folder.clone(),
            None => self.workspace()?.images(),
        })
    }

    /// The specs. Those with errors are in it, too, with their errors.
    pub fn images(&self) -> Result<&ImageSet> {
        once(&self.set, || Ok(ImageSet::load(&self.images_folder()?)?))
    }

    /// The folder of results: of `--output`, else the workspace's.
    pub fn results(&self) -> Result<PathBuf> {
        Ok(match &self.results {
            Some(folder) => folder.clone(),
            None => self.workspace()?.output(),
        })
    }

    /// The cache.
    pub fn cache(&self) -> Result<&Cache> {
        once(&self.cache, Cache::open)
    }

    /// The cache, after what killed runs left in it was removed.
    pub fn swept_cache(&self) -> Result<&Cache> {
        let cache = self.cache()?;
        cache.sweep()?;
        Ok(cache)
    }

    /// The engines of this host.
    pub fn engines(&self) -> Result<&Engines> {
        once(&self.engines, || Engines::new(self.cache()?))
    }

    /// The engine for an order, ready to run its steps: the one of `--engine` where it is given. Says which it is, and why.
    pub fn engine(&self, named: &arguments::Engine, order: &Order, progress: &Progress) -> Result<Choice> {
        let choice = self.engines()?.choose(named.kind, order.spec.engine)?;
        choice.engine.sweep();
        progress.note(format!("{}: engine {}, {}", order.title(), choice.engine.kind(), choice.reason));
        Ok(choice)
    }

    /// Asks registries what references mean, and cargo to build programs.
    pub fn providers(&self) -> Result<Providers<'_>> {
        let resolver = self.resolver.get_or_init(|| Resolver::new(self.refresh, self.progress.clone()));
        Ok(Providers { resolver, binaries: Binaries::Build(self.workspace()?, &self.progress) })
    }

    /// Knows what earlier runs resolved and built, and neither downloads nor builds.
    pub fn cached_providers(&self) -> Result<Providers<'_>> {
        let resolver = self.cached_resolver.get_or_init(Resolver::from_cache);
        Ok(Providers { resolver, binaries: Binaries::AsBuilt(self.workspace()?) })
    }
}

/// The value of `cell`, made by `make` where there is none yet.
fn once<T>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    if let Some(value) = cell.get() {
        return Ok(value);
    }
    let made = make()?;
    Ok(cell.get_or_init(|| made))
}
