//! `check`: whether images match the trees they were made from, and are sound.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::arguments;
use super::run::Run;
use crate::check::{Check, CheckReport, Depth, Reader, State, check_image};
use crate::error;
use crate::host::requirements::Task;
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
    #[command(flatten)]
    setup: arguments::Setup,
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
    let cache = run.swept_cache()?;
    let machine = &arguments.machine;
    let depth = if arguments.quick { Depth::Quick } else { Depth::Full };
    // What was never built is wrong usage, told before anything is checked.
    let look = |name: &String| Built::look(set, name, &results, platform);
    let found = names.iter().map(look).collect::<Result<Vec<_>>>()?;
    let whole = found.iter().filter_map(|found| match found {
        Found::Whole(built) => Some(&**built),
        Found::Damaged { .. } => None,
    });
    let boot = |built: &Built| if arguments.boot { built.boot_tasks() } else { Vec::new() };
    let tasks: Vec<Task> = whole.flat_map(|built| built.check_tasks().into_iter().chain(boot(built))).collect();
    arguments.setup.prepare(tasks.clone())?;
    let mut reports = Vec::new();
    // Why images could not be booted, where that says nothing about them.
    let mut boot_error = None;
    for (name, found) in names.iter().zip(found) {
        let progress = run.progress().for_image(name);
        let rewrite = format!("hint: cargo xtask image {name} writes it again");
        let built = match found {
            Found::Whole(built) => *built,
            Found::Damaged { image, kind, why } => {
                progress.warn(format!("{name}: {why}\n{rewrite}"));
                reports.push(CheckReport::new(name, image, kind, vec![Check::failed("image", "", why)]));
                continue;
            }
        };
        let mut checks = Vec::new();
        if let Some(note) = built.staleness(set, &run.cached_providers()?) {
            progress.warn(format!("warning: {name}: {note}"));
        }
        if let Some(why) = built.changes(&progress) {
            progress.warn(format!("{name}: {why}\n{rewrite}"));
            if depth == Depth::Quick {
                checks.push(Check::failed("digest", "SHA-256", why));
            }
        }
        let (more, found) = check_image(built.check_input(set)?, depth, arguments.reader, &progress);
        checks.extend(more);
        let mut booted = None;
        if arguments.boot {
            let machine = (machine.kernel.as_deref(), machine.accel);
            match built.boot(set, cache, found.as_ref(), machine, &progress) {
                Ok((more, how)) => {
                    checks.extend(more);
                    booted = how;
                }
                Err(error) => {
                    checks.push(Check::failed("boot", "", error::summary(&error)));
                    boot_error.get_or_insert(error);
                }
            }
        }
        let report = CheckReport::new(name, built.image, built.manifest.filesystem.kind(), checks);
        reports.push(CheckReport { boot: booted, ..report });
    }
    let checked = Checked { images: reports };
    arguments.format.print(&checked)?;
    let Some(boot_error) = boot_error else {
        let passed = checked.images.iter().all(|report| report.passed);
        return Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(error::CHECK_FAILED) });
    };
    let boot_error = arguments.setup.hint(tasks, boot_error);
    run.progress().warn(error::message(&boot_error));
    // An image that failed a check that was made counts more.
    let failed = |check: &Check| check.state == State::Failed && !(check.question == "boot" && check.judge.is_empty());
    let unsound = checked.images.iter().any(|report| report.checks.iter().any(failed));
    Ok(if unsound { ExitCode::from(error::CHECK_FAILED) } else { error::exit_code(&boot_error) })
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
