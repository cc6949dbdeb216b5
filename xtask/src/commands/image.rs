//! `image`: builds images from their specs.

mod dry_run;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Args;
use serde::Serialize;
use snug_ext4::size::Rule;
use snug_rootfs::platform::Platform;
use snug_spec::ImageSet;
use snug_spec::model::EngineKind;

use self::dry_run::Plans;
use super::run::Run;
use super::{arguments, file_names};
use crate::engine::OnFailure;
use crate::engine::choose::Choice;
use crate::error;
use crate::error::Failure;
use crate::host::requirements::Task;
use crate::image::{BuildOutcome, ImageType, Order, Providers, Target};
use crate::jobs;
use crate::report::progress::{human_bytes, human_duration};
use crate::report::render::{Render, seconds};
use crate::report::table;
use crate::tree::{Assembly, Refresh};

#[derive(Debug, Args)]
pub struct Arguments {
    /// Images to build
    #[arg(required_unless_present = "all", value_name = "NAME")]
    names: Vec<String>,
    /// Build every image that has a filesystem
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Filesystem type, whatever the spec says: ext4, squashfs or erofs; sealed with dm-verity as squashfs+verity
    #[arg(long, value_name = "TYPE")]
    filesystem: Option<ImageType>,
    /// Platforms to build for, separated by commas: linux/amd64, linux/arm64 [default: the spec's, else this machine's]
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<Platform>,
    #[command(flatten)]
    engine: arguments::Engine,
    #[command(flatten)]
    results: arguments::Results,
    #[command(flatten)]
    images: arguments::Images,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    format: arguments::Format,
    /// Rebuild everything, bases and up-to-date images included
    #[arg(long)]
    refresh: bool,
    /// How many images to build at the same time
    #[arg(long, value_name = "N", default_value = "1", value_parser = count)]
    jobs: NonZeroUsize,
    /// Keep the tree of a failing step in the cache until `clean`
    #[arg(long)]
    keep: bool,
    /// Open a shell in the tree of a failing step, on this terminal
    #[arg(long, conflicts_with_all = ["keep", "jobs", "dry_run"])]
    shell: bool,
    #[command(flatten)]
    strict: arguments::Strict,
    /// Publish the images without comparing them with their trees first
    #[arg(long)]
    no_check: bool,
    #[command(flatten)]
    setup: arguments::Setup,
}

/// The result of one image.
struct Fared<'a> {
    name: &'a str,
    outcome: Result<BuildOutcome>,
    /// The engine that runs its steps, once it is chosen.
    choice: Option<Choice>,
    time: Duration,
    /// Whether it is an image of `--all` that this host cannot build, which fails nothing.
    left_out: bool,
}

/// Parses a number of images.
fn count(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "the number of images to build at a time, at least 1".to_owned())
}

/// Builds the images. A failing image does not keep the others from being built.
///
/// With `--all`, an image that this host cannot build (a program is missing, it is for another platform, or the registry or
/// archive that it comes from does not answer) is named with the reason and fails nothing, unless `--setup` was to install what is missing.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let on_failure = match (arguments.keep, arguments.shell) {
        (_, true) if !(io::stdin().is_terminal() && io::stdout().is_terminal()) => bail!(Failure::Usage(
            "--shell needs a terminal, and standard input or output is none\nhint: --keep keeps the tree instead"
                .into()
        )),
        (_, true) => OnFailure::Shell,
        (true, false) => OnFailure::Keep,
        (false, false) => OnFailure::Remove,
    };
    if let Some(folder) = &arguments.results.folder {
        file_names::folder(folder, "--output")?;
        ensure!(
            folder.is_dir() || !folder.exists(),
            Failure::Usage(format!("{} is no folder\nhint: name a folder with --output", folder.display()))
        );
    }
    let run = Run::with_images(&arguments.images).and_results(&arguments.results).and_refresh(arguments.refresh);
    let set = run.images()?;
    let names = names(&arguments, set)?;
    if !arguments.dry_run {
        arguments.setup.prepare_planning(set, &names)?;
    }
    let providers = match arguments.dry_run {
        true => Providers { binaries: run.cached_providers()?.binaries, ..run.providers()? },
        false => run.providers()?,
    };
    let (names, orders): (Vec<String>, Vec<Result<Order>>) =
        names.iter().flat_map(|name| orders(set, name, &arguments, &providers)).unzip();
    // Images that are named are all planned before any of them is built.
    let orders = match arguments.all {
        true => orders,
        false => orders.into_iter().map(|order| order.map(Ok)).collect::<Result<_>>()?,
    };
    let exit_code = if arguments.all { error::exit_code_of_found } else { error::exit_code };
    let output = run.results()?;
    let engines = run.engines()?;
    if arguments.dry_run {
        let plans = Plans::new(&names, &orders, engines, &arguments.engine, &output)?;
        let mut said = BTreeMap::new();
        for (name, error) in names.iter().zip(&orders).filter_map(|(name, order)| Some((name, order.as_ref().err()?))) {
            let left_out = arguments.all && !arguments.setup.setup && is_beyond(error);
            run.progress().warn(complaint(name, error, left_out, &mut said));
        }
        arguments.format.print(&plans)?;
        let fails = |error: &&anyhow::Error| !(arguments.all && !arguments.setup.setup && is_beyond(error));
        let failed = orders.iter().filter_map(|order| order.as_ref().err()).find(fails);
        return Ok(failed.map_or(ExitCode::SUCCESS, exit_code));
    }
    arguments.setup.prepare(orders.iter().flatten().flat_map(Order::tasks))?;
    let cache = run.swept_cache()?;
    let refresh = Refresh::new(arguments.refresh);

    let said = Mutex::new(BTreeMap::new());
    let pairs: Vec<_> = names.iter().zip(orders).map(|(name, order)| (name, Mutex::new(Some(order)))).collect();
    let results = jobs::run(&pairs, arguments.jobs, |(name, order)| {
        let progress = run.progress().for_image(name);
        let started = Instant::now();
        let order = order.lock().expect("no panic while locked").take().expect("each is taken once");
        let mut choice = None;
        let tasks = order.as_ref().map_or_else(|_| vec![Task::OciBase], Order::tasks);
        let outcome = order.and_then(|order| {
            for note in &order.notes {
                progress.note(format!("{name}: {note}"));
            }
            let Choice { engine, .. } = choice.insert(run.engine(&arguments.engine, &order, &progress)?);
            let assembly = Assembly {
                cache,
                engine: &**engine,
                refresh: &refresh,
                on_failure,
                strictness: arguments.strict.strictness(),
            };
            order.build(&assembly, &output, &progress)
        });
        let outcome = outcome.map_err(|error| arguments.setup.hint(tasks, error));
        let left_out = arguments.all && !arguments.setup.setup && outcome.as_ref().is_err_and(is_beyond);
        if let Err(error) = &outcome {
            progress.warn(complaint(name, error, left_out, &mut lock(&said)));
        }
        Fared { name, outcome, choice, time: started.elapsed(), left_out }
    });
    run.progress().aside("remove the work folders", || cache.finish_removals());
    arguments.format.print(&Results { images: results.iter().map(Fared::row).collect() })?;
    let failed = results.iter().filter(|fared| !fared.left_out).find_map(|fared| fared.outcome.as_ref().err());
    Ok(failed.map_or(ExitCode::SUCCESS, exit_code))
}

/// Whether this host has no way to build an image: what is missing here, or does not answer, is no fault of the image.
fn is_beyond(error: &anyhow::Error) -> bool {
    error::is_unsupported(error) || error::unreachable(error).is_some()
}

/// What is said of an image that was not built. What several images lack is said in full for the first; `said` has what was
/// said, and of which image.
fn complaint(name: &str, error: &anyhow::Error, left_out: bool, said: &mut BTreeMap<String, String>) -> String {
    let known = error::unreachable(error).and_then(|cause| match said.get(cause) {
        Some(first) => Some(first.clone()),
        None => {
            said.insert(cause.to_owned(), name.to_owned());
            None
        }
    });
    match (known, left_out) {
        (Some(first), true) => format!("cannot build {name} on this host, for the same reason as {first}"),
        (Some(first), false) => format!("error: {name} failed for the same reason as {first}"),
        (None, true) => format!("cannot build {name} on this host\n{}", error::message(error)),
        (None, false) => error::message(error),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The names of the images to build, each once.
fn names(arguments: &Arguments, set: &ImageSet) -> Result<Vec<String>> {
    if arguments.all {
        // An image whose spec cannot be read counts: its error is part of the result.
        let built = set.iter().filter(|(_, spec)| spec.as_ref().map_or(true, |spec| spec.filesystem.is_some()));
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

/// The orders of the image `name`, one a platform, each with its title.
fn orders<'set>(
    set: &'set ImageSet,
    name: &str,
    arguments: &Arguments,
    providers: &Providers,
) -> Vec<(String, Result<Order<'set>>)> {
    let targets = set.get(name).map_err(anyhow::Error::from).and_then(|spec| Target::all(spec, &arguments.platform));
    match targets {
        Err(error) => vec![(name.to_owned(), Err(error))],
        Ok(targets) => {
            let order = |target| match Order::new(set, name, target, arguments.filesystem, providers) {
                Ok(order) => (order.title(), Ok(Order { check: !arguments.no_check, ..order })),
                Err(error) => (name.to_owned(), Err(error)),
            };
            targets.into_iter().map(order).collect()
        }
    }
}

impl<'a> Fared<'a> {
    fn row(&'a self) -> Row<'a> {
        let became = match &self.outcome {
            Ok(outcome) => Became::Done(outcome),
            Err(error) => Became::Not {
                state: if self.left_out { FailedState::CannotBuild } else { FailedState::Failed },
                error: error::in_full(error),
                summary: error::summary(error),
            },
        };
        let engine = self.choice.as_ref();
        let engine = engine.map(|choice| RunBy { name: choice.engine.kind(), reason: &choice.reason });
        let image = match &self.outcome {
            Ok(BuildOutcome::Built { image, .. } | BuildOutcome::UpToDate { image, .. }) => Some(image),
            Ok(BuildOutcome::Base { .. }) | Err(_) => None,
        };
        let allocated_bytes = image.and_then(|image| allocated(image));
        Row { name: self.name, became, allocated_bytes, engine, seconds: seconds(self.time) }
    }
}

/// The results of all images.
#[derive(Debug, Serialize)]
struct Results<'a> {
    images: Vec<Row<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Row<'a> {
    name: &'a str,
    #[serde(flatten)]
    became: Became<'a>,
    /// Size of the image on disk, holes not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    allocated_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    engine: Option<RunBy<'a>>,
    seconds: f64,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Became<'a> {
    Done(&'a BuildOutcome),
    Not {
        state: FailedState,
        error: String,
        /// The error in one line, for the table.
        #[serde(skip)]
        summary: String,
    },
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
enum FailedState {
    Failed,
    CannotBuild,
}

/// The engine that ran the steps.
#[derive(Debug, Serialize)]
struct RunBy<'a> {
    name: EngineKind,
    reason: &'a str,
}

impl Render for Results<'_> {
    fn text(&self) -> String {
        let rows: Vec<[String; 7]> = self.images.iter().map(Row::cells).collect();
        table::columns(["image", "state", "size", "on disk", "rule", "time", "file"], &rows)
    }
}

impl Row<'_> {
    fn cells(&self) -> [String; 7] {
        let time = human_duration(Duration::from_secs_f64(self.seconds));
        let row = |state: &str, [size, disk, rule]: [String; 3], file: String| {
            [self.name.into(), state.into(), size, disk, rule, time, file]
        };
        let shown = |file: &Path| {
            let here = std::env::current_dir().unwrap_or_default();
            file.strip_prefix(here).unwrap_or(file).display().to_string()
        };
        match &self.became {
            Became::Done(BuildOutcome::Base { tree }) => row("base", Default::default(), shown(tree)),
            Became::Done(
                outcome @ (BuildOutcome::Built { image, manifest } | BuildOutcome::UpToDate { image, manifest }),
            ) => {
                let state = if matches!(outcome, BuildOutcome::Built { .. }) { "built" } else { "up to date" };
                let rule = match manifest.census.decision.as_ref().map(|decision| decision.rule) {
                    Some(Rule::Content) => "content",
                    Some(Rule::MinSize) => "min-size",
                    None => "compressed",
                };
                let on_disk = self.allocated_bytes.map(human_bytes).unwrap_or_default();
                row(state, [human_bytes(manifest.census.size), on_disk, rule.into()], shown(image))
            }
            Became::Not { state: FailedState::Failed, summary, .. } => {
                row("failed", Default::default(), summary.clone())
            }
            Became::Not { state: FailedState::CannotBuild, summary, .. } => {
                row("cannot build", Default::default(), summary.clone())
            }
        }
    }
}

/// Size of a file on disk, holes not counted.
fn allocated(image: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    // `st_blocks` counts 512-byte units whatever the block size.
    std::fs::metadata(image).ok().map(|about| about.blocks() * 512)
}
