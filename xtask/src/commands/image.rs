//! `image`: specs in, image files out.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use super::{UsageError, load_images};
use crate::assemble::{Assembly, Link};
use crate::cache::Cache;
use crate::engine::Engine;
use crate::engine::builtin::Builtin;
use crate::filesystem::{Filesystem, FilesystemKind};
use crate::plan::{self, BuildPlan};
use crate::report::progress::{Progress, human_bytes, human_duration};
use crate::report::table;
use crate::setup;
use crate::spec::model::EngineKind;
use crate::spec::{ImageSet, ImageSpec};
use crate::workspace::Workspace;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Images to build
    #[arg(required_unless_present = "all", value_name = "NAME")]
    names: Vec<String>,
    /// Build every image that has a filesystem
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Filesystem type, whatever the spec says: ext4, squashfs or erofs
    #[arg(long, value_name = "TYPE")]
    filesystem: Option<FilesystemKind>,
    /// What runs the steps: builtin, docker or podman
    #[arg(long, value_name = "ENGINE")]
    engine: Option<EngineKind>,
    /// Folder of results, one folder an image in it [default: target/images]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Folder of image specs [default: the workspace's images/]
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Make everything anew, bases and up-to-date images included
    #[arg(long)]
    refresh: bool,
    /// Leave the tree of a failing step for you to look at
    #[arg(long)]
    keep: bool,
    /// Install what this host lacks first (Debian and Ubuntu)
    #[arg(long)]
    setup: bool,
}

/// One image to be built, with all that is decided before anything runs.
struct Order<'set> {
    spec: &'set ImageSpec,
    /// From the foundation to the image itself.
    chain: Vec<Link<'set>>,
    /// `None`: a base; its tree is made and no image.
    filesystem: Option<Filesystem>,
}

impl Order<'_> {
    fn plan(&self) -> &BuildPlan {
        &self.chain.last().expect("a chain has its image").plan
    }
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let set = load_images(&workspace, arguments.images.as_ref())?;
    let names = names(&arguments, &set)?;
    let progress = Progress::on_stderr();
    let orders = names.iter().map(|name| order(&set, name, &arguments, &progress)).collect::<Result<Vec<_>>>()?;
    let output = arguments.output.clone().unwrap_or_else(|| workspace.output());
    if arguments.dry_run {
        return describe(&orders, &output, arguments.json);
    }
    if arguments.setup {
        setup::prepare(&setup::BUILD)?;
    }
    let cache = Cache::open()?;
    cache.sweep()?;
    let engine = Builtin::new(cache.clone());
    let assembly = Assembly { cache: &cache, engine: &engine, refresh: arguments.refresh, keep: arguments.keep };
    engine.probe().context("the builtin engine cannot work here")?;
    for order in &orders {
        let tree = assembly.tree(&order.chain, &progress.for_image(&order.spec.name))?;
        println!("{}", tree.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// The images that the command line asks for, each once.
fn names(arguments: &Arguments, set: &ImageSet) -> Result<Vec<String>> {
    if arguments.all {
        let errors = set.errors();
        if !errors.0.is_empty() {
            return Err(errors.into());
        }
        let built = set.iter().filter(|(_, spec)| spec.is_ok_and(|spec| spec.filesystem.is_some()));
        return Ok(built.map(|(name, _)| name.to_owned()).collect());
    }
    let mut names: Vec<String> = Vec::new();
    for name in &arguments.names {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    Ok(names)
}

fn order<'set>(set: &'set ImageSet, name: &str, arguments: &Arguments, progress: &Progress) -> Result<Order<'set>> {
    let resolved = set.resolve(name)?;
    let mut chain: Vec<Link> = Vec::new();
    for spec in resolved.ancestors.iter().rev().copied().chain([resolved.spec]) {
        let plan = plan::plan(spec, chain.last().map(|link| &link.plan))?;
        chain.push(Link { spec, plan });
    }
    if let Some(engine) = arguments.engine.or(resolved.spec.engine).filter(|engine| *engine != EngineKind::Builtin) {
        bail!(UsageError(format!("{name}: the engine {engine} is not built yet\nhint: leave it to `builtin`")));
    }
    let filesystem = filesystem(resolved.spec, arguments.filesystem, progress);
    if filesystem.is_none() && arguments.filesystem.is_some() {
        bail!(UsageError(format!("{name} is a base without an image of its own, so --filesystem does not apply")));
    }
    Ok(Order { spec: resolved.spec, chain, filesystem })
}

/// The spec's filesystem, or the one of the command line: with the spec's options where the type is the same.
fn filesystem(spec: &ImageSpec, named: Option<FilesystemKind>, progress: &Progress) -> Option<Filesystem> {
    let own = spec.filesystem.clone()?;
    match named.filter(|kind| *kind != own.kind()) {
        None => Some(own),
        Some(kind) => {
            if own.kind() == FilesystemKind::Ext4 {
                progress.note(format!("{}: min-size, max-size and headroom do not apply to {kind}", spec.name));
            }
            Some(Filesystem::default_of(kind))
        }
    }
}

fn describe(orders: &[Order], output: &std::path::Path, json: bool) -> Result<ExitCode> {
    let _ = (orders, output, json);
    Ok(ExitCode::SUCCESS)
}
