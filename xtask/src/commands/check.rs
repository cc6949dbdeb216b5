//! `check`: is an image what it should be?

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use snug_rootfs::platform::Platform;

use super::load_images;
use crate::cache::Cache;
use crate::check::boot::Wanted;
use crate::check::{CheckReport, Depth, Reader, prove};
use crate::error;
use crate::image::Built;
use crate::report::progress::Progress;
use crate::workspace::Workspace;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Images to check, as they were built last
    #[arg(required_unless_present = "all", value_name = "NAME")]
    names: Vec<String>,
    /// Check every image that has been built
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Leave the content of files and the image's digest out
    #[arg(long)]
    quick: bool,
    /// Start the image in QEMU and try it, too
    #[arg(long)]
    boot: bool,
    /// What runs the machine: kvm, tcg (emulation), or auto
    #[arg(long, value_name = "ACCELERATOR", default_value = "auto", requires = "boot")]
    accel: Wanted,
    /// Kernel that starts the image without an initramfs [default: Debian's, with one]
    #[arg(long, value_name = "FILE", requires = "boot")]
    kernel: Option<PathBuf>,
    /// Who reads the image back: kernel (its own driver; needs root), tools, or auto
    #[arg(long, value_name = "READER", default_value = "auto")]
    reader: Reader,
    /// Platform of the image [default: the spec's first, else this machine's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Folder of results [default: target/images]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Folder of image specs [default: the workspace's images/]
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Checks one image after the other; all of them, whatever becomes of the first.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let set = load_images(&workspace, arguments.images.as_ref())?;
    let output = arguments.output.clone().unwrap_or_else(|| workspace.output());
    let names = match arguments.all {
        true => Built::names(&set, &output, arguments.platform),
        false => arguments.names.clone(),
    };
    let cache = Cache::open()?;
    let progress = Progress::on_stderr();
    let depth = if arguments.quick { Depth::Quick } else { Depth::Full };
    let mut reports = Vec::new();
    for name in &names {
        let built = Built::find(&set, name, &output, arguments.platform)?;
        let progress = progress.for_image(name);
        if let Some(note) = built.staleness(&set, &workspace) {
            progress.note(format!("{name}: {note}"));
        }
        let (mut checks, found) = prove(built.subject(&set)?, depth, arguments.reader, &progress);
        let mut booted = None;
        if arguments.boot {
            let (more, how) =
                built.boot(&set, &cache, found.as_ref(), (arguments.kernel.as_deref(), arguments.accel), &progress)?;
            checks.extend(more);
            booted = how;
        }
        let report = CheckReport::new(name, built.image, built.manifest.filesystem.kind(), checks);
        reports.push(CheckReport { boot: booted, ..report });
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
    } else {
        for report in &reports {
            println!("{}: {} {}", report.name, report.image.display(), if report.passed { "passes" } else { "FAILS" });
            print!("{}", report.as_text());
        }
    }
    let passed = reports.iter().all(|report| report.passed);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(error::CHECK_FAILED) })
}
