//! `check`: whether images match the trees they were made from, and are sound.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::arguments;
use super::run::Run;
use crate::check::{Check, CheckReport, Depth, Reader, check_image};
use crate::error;
use crate::image::{Built, Found};
use crate::report::render::Render;

#[derive(Debug, Args)]
#[command(mut_arg("accel", |accel| accel.requires("boot")), mut_arg("kernel", |kernel| kernel.requires("boot")))]
pub struct Arguments {
    /// Images to check, as they were built last
    #[arg(required_unless_present = "all", value_name = "NAME")]
    names: Vec<String>,
    /// Check every image that has been built
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Skip the content of files and the digest of the image
    #[arg(long)]
    quick: bool,
    /// Boot the image in QEMU, too, and run the checks of its spec
    #[arg(long)]
    boot: bool,
    #[command(flatten)]
    machine: arguments::Machine,
    /// What reads the image back: kernel (its own driver; needs root), tools, or auto
    #[arg(long, value_name = "READER", default_value = "auto")]
    reader: Reader,
    #[command(flatten)]
    platform: arguments::OnePlatform,
    #[command(flatten)]
    results: arguments::Results,
    #[command(flatten)]
    images: arguments::Images,
    #[command(flatten)]
    format: arguments::Format,
}

/// Checks the images one by one. A failing image does not keep the others from being checked.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let run = Run::with_images(&arguments.images).and_results(&arguments.results);
    let (set, results, platform) = (run.images()?, run.results()?, arguments.platform.platform);
    let names = match arguments.all {
        true => Built::names(set, &results, platform),
        false => arguments.names.clone(),
    };
    // Held while images are checked: `clean` leaves the programs that read them alone.
    let cache = run.cache()?;
    let machine = &arguments.machine;
    let depth = if arguments.quick { Depth::Quick } else { Depth::Full };
    // What was never built is wrong usage, told before anything is checked.
    let look = |name: &String| Built::look(set, name, &results, platform);
    let found = names.iter().map(look).collect::<Result<Vec<_>>>()?;
    let mut reports = Vec::new();
    for (name, found) in names.iter().zip(found) {
        let progress = run.progress().for_image(name);
        let rewrite = format!("hint: cargo xtask image {name} writes it again");
        let built = match found {
            Found::Whole(built) => *built,
            Found::Damaged { image, kind, why } => {
                progress.note(format!("{name}: {why}\n{rewrite}"));
                reports.push(CheckReport::new(name, image, kind, vec![Check::failed("image", "", why)]));
                continue;
            }
        };
        let mut checks = Vec::new();
        if let Some(note) = built.staleness(set, &run.cached_providers()?) {
            progress.note(format!("{name}: {note}"));
        }
        if let Some(why) = built.changes(&progress) {
            progress.note(format!("{name}: {why}\n{rewrite}"));
            if depth == Depth::Quick {
                checks.push(Check::failed("digest", "SHA-256", why));
            }
        }
        let (more, found) = check_image(built.check_input(set)?, depth, arguments.reader, &progress);
        checks.extend(more);
        let mut booted = None;
        if arguments.boot {
            let (more, how) =
                built.boot(set, cache, found.as_ref(), (machine.kernel.as_deref(), machine.accel), &progress)?;
            checks.extend(more);
            booted = how;
        }
        let report = CheckReport::new(name, built.image, built.manifest.filesystem.kind(), checks);
        reports.push(CheckReport { boot: booted, ..report });
    }
    let checked = Checked { images: reports };
    arguments.format.print(&checked)?;
    let passed = checked.images.iter().all(|report| report.passed);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(error::CHECK_FAILED) })
}

/// Everything that was checked, image by image.
#[derive(Debug, Serialize)]
struct Checked {
    images: Vec<CheckReport>,
}

impl Render for Checked {
    fn text(&self) -> String {
        let text = |report: &CheckReport| {
            let verdict = if report.passed { "passes" } else { "FAILS" };
            format!("{}: {} {verdict}\n{}", report.name, report.image.display(), report.as_text())
        };
        self.images.iter().map(text).collect()
    }
}
