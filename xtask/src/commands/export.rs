//! `export`: writes the finished tree of an image as a tar, for other tools.

use std::fs::OpenOptions;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use snug_rootfs::tar::{self, TarOptions};
use snug_rootfs::tree::RootTree;

use super::arguments;
use super::run::Run;
use crate::atomic::Partial;
use crate::engine::OnFailure;
use crate::engine::choose::Choice;
use crate::image::{Order, Target};
use crate::report::progress::human_bytes;
use crate::report::render::Render;
use crate::report::streams::Output;
use crate::tree::{Assembly, Refresh};

/// Bytes of a tar that are written at a time to standard output.
const OUTPUT_BUFFER: usize = 1 << 17;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Image whose tree to write; it is built if it is not in the cache
    #[arg(value_name = "NAME")]
    name: String,
    /// Tar file to write, or `-` for standard output
    #[arg(short, long, value_name = "FILE|-")]
    output: PathBuf,
    #[command(flatten)]
    platform: arguments::OnePlatform,
    #[command(flatten)]
    images: arguments::Images,
    #[command(flatten)]
    engine: arguments::Engine,
    #[command(flatten)]
    format: arguments::Format,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let run = Run::with_images(&arguments.images);
    let (set, progress) = (run.images()?, run.progress().for_image(&arguments.name));
    let target = Target::all(set.get(&arguments.name)?, arguments.platform.platform.as_slice())?[0];
    let order = Order::new(set, &arguments.name, target, None, &run.providers()?)?;
    let cache = run.swept_cache()?;
    let Choice { engine, .. } = run.engine(&arguments.engine, &order, &progress)?;
    let assembly = Assembly { cache, engine: &*engine, refresh: &Refresh::default(), on_failure: OnFailure::default() };
    let (tree, _held) = order.finished_tree(&assembly, &progress)?;
    if arguments.output.as_os_str() == "-" {
        let mut output = BufWriter::with_capacity(OUTPUT_BUFFER, Output);
        tar::write(&tree, &mut output, TarOptions::FAITHFUL, &mut |_| {})
            .map_err(anyhow::Error::from)
            .and_then(|()| Ok(output.flush()?))
            .context("cannot write to standard output")?;
        return Ok(ExitCode::SUCCESS);
    }
    let size_bytes = write(&tree, &arguments.output)?;
    arguments.format.print(&Exported { tar: arguments.output, size_bytes })?;
    Ok(ExitCode::SUCCESS)
}

/// The tar that was written.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Exported {
    tar: PathBuf,
    size_bytes: u64,
}

impl Render for Exported {
    fn text(&self) -> String {
        format!("{}: {}\n", self.tar.display(), human_bytes(self.size_bytes))
    }
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
