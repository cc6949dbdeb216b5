//! `export`: the finished tree of an image as a tar, for other tools to look into.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use snug_rootfs::platform::Platform;
use snug_rootfs::tar::{self, TarOptions};
use snug_rootfs::tree::RootTree;
use snug_spec::model::EngineKind;

use super::load_images;
use crate::atomic::Partial;
use crate::bases::cargo::Binaries;
use crate::bases::oci::Resolver;
use crate::cache::Cache;
use crate::engine::OnFailure;
use crate::engine::choose::{Choice, Engines};
use crate::image::{self, Order, Providers, Target};
use crate::report::progress::{Progress, human_bytes};
use crate::tree::{Assembly, Refresh};
use crate::workspace::Workspace;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Image whose tree to write; it is built if it is not in the cache
    #[arg(value_name = "NAME")]
    name: String,
    /// Tar file to write, or `-` for standard output
    #[arg(short, long, value_name = "FILE|-")]
    output: PathBuf,
    /// Platform of the tree [default: the spec's first, else this machine's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Folder of image specs [default: the workspace's images/]
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// What runs the steps: builtin, docker or podman [default: SNUG_ENGINE, the spec's, or the first that works here]
    #[arg(long, value_name = "ENGINE")]
    engine: Option<EngineKind>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let set = load_images(&workspace, arguments.images.as_ref())?;
    let progress = Progress::on_stderr().for_image(&arguments.name);
    let target = Target::all(set.get(&arguments.name)?, arguments.platform.as_slice())?[0];
    let resolver = Resolver::new(false, progress.clone());
    let providers = Providers { resolver: &resolver, binaries: Binaries::Build(&workspace, &progress) };
    let order = Order::new(&set, &arguments.name, target, None, &providers)?;
    let cache = Cache::open()?;
    cache.sweep()?;
    let Choice { engine, reason } = Engines::new(&cache)?.choose(arguments.engine, order.spec.engine)?;
    engine.sweep();
    progress.note(format!("{}: engine {}, {reason}", arguments.name, engine.kind()));
    let assembly =
        Assembly { cache: &cache, engine: &*engine, refresh: &Refresh::default(), on_failure: OnFailure::default() };
    let held = assembly.tree(&order.chain, &progress)?;
    let tree = image::finished_tree(held.path(), order.spec)?;
    if arguments.output.as_os_str() == "-" {
        tar::write(&tree, &mut io::stdout().lock(), TarOptions::FAITHFUL, &mut |_| {})
            .context("cannot write to standard output")?;
        return Ok(ExitCode::SUCCESS);
    }
    let bytes = write(&tree, &arguments.output)?;
    if arguments.json {
        println!("{}", json!({ "tar": arguments.output, "bytes": bytes }));
    } else {
        println!("{}: {}", arguments.output.display(), human_bytes(bytes));
    }
    Ok(ExitCode::SUCCESS)
}

fn write(tree: &RootTree, output: &Path) -> Result<u64> {
    let partial = Partial::begin(output)?;
    let mut file = OpenOptions::new().write(true).open(partial.path())?;
    tar::write(tree, &mut file, TarOptions::FAITHFUL, &mut |_| {})
        .map_err(|error| partial.explain(error.into()))
        .with_context(|| format!("cannot write {}", output.display()))?;
    let bytes = file.metadata()?.len();
    partial.publish()?;
    Ok(bytes)
}
