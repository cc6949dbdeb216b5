//! `image`: specs in, image files out.

use std::io::{self, IsTerminal};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Value, json};
use snug_ext4::size::Rule;
use snug_rootfs::platform::Platform;
use snug_spec::ImageSet;
use snug_spec::model::Base;

use super::arguments;
use super::run::Run;
use crate::engine::OnFailure;
use crate::engine::choose::{Choice, Engines};
use crate::error;
use crate::error::Failure;
use crate::host::requirements::Task;
use crate::host::setup;
use crate::image::{BuildOutcome, ImageType, Order, Providers, Target};
use crate::jobs;
use crate::report::progress::{human_bytes, human_duration};
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
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Make everything anew, bases and up-to-date images included
    #[arg(long)]
    refresh: bool,
    /// How many images to build at the same time
    #[arg(long, value_name = "N", default_value = "1")]
    jobs: NonZeroUsize,
    /// Leave the tree of a failing step in the cache for you to look at, until `clean`
    #[arg(long)]
    keep: bool,
    /// Open a shell in the tree of a failing step, on this terminal
    #[arg(long, conflicts_with_all = ["keep", "jobs", "dry_run"])]
    shell: bool,
    /// Publish the images without holding them against their trees first
    #[arg(long)]
    no_check: bool,
    /// Install what this host lacks first (Debian and Ubuntu)
    #[arg(long)]
    setup: bool,
}

/// How one image fared.
struct Fared<'a> {
    name: &'a str,
    outcome: Result<BuildOutcome>,
    /// The engine that was to run its steps, once that was decided.
    choice: Option<Choice>,
    time: Duration,
    /// An image of `--all` that is none of this host's business.
    left_out: bool,
}

/// Builds the images, a failing one of which does not keep the others from being built.
///
/// With `--all`, an image that this host cannot build at all (a program is missing, or it is for another platform) is
/// named with the reason and fails nothing, unless `--setup` was to make everything possible.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let on_failure = match (arguments.keep, arguments.shell) {
        (_, true) if !(io::stdin().is_terminal() && io::stdout().is_terminal()) => bail!(Failure::Usage(
            "--shell needs a terminal, and standard input or output is none\nhint: --keep leaves the tree instead"
                .into()
        )),
        (_, true) => OnFailure::Shell,
        (true, false) => OnFailure::Keep,
        (false, false) => OnFailure::Remove,
    };
    let run = Run::with_images(&arguments.images).and_results(&arguments.results).and_refresh(arguments.refresh);
    let set = run.images()?;
    let names = names(&arguments, set)?;
    // A plan names its base by digest, so what asks registries must be there before it.
    if arguments.setup && !arguments.dry_run && names.iter().any(|name| stands_on_registry(set, name)) {
        setup::prepare(&[Task::OciBase])?;
    }
    let providers = match arguments.dry_run {
        true => Providers { binaries: run.cached_providers()?.binaries, ..run.providers()? },
        false => run.providers()?,
    };
    let (names, orders): (Vec<String>, Vec<Result<Order>>) =
        names.iter().flat_map(|name| orders(set, name, &arguments, &providers)).unzip();
    // What was asked for by name must make sense as a whole before any of it is begun.
    let orders = match arguments.all {
        true => orders,
        false => orders.into_iter().map(|order| order.map(Ok)).collect::<Result<_>>()?,
    };
    let output = run.results()?;
    let engines = run.engines()?;
    if arguments.dry_run {
        return describe(&names, &orders, engines, &output, &arguments);
    }
    if arguments.setup {
        let mut tasks: Vec<Task> = orders.iter().flatten().flat_map(Order::tasks).collect();
        tasks.sort();
        tasks.dedup();
        setup::prepare(&tasks)?;
    }
    let cache = run.swept_cache()?;
    let refresh = Refresh::new(arguments.refresh);

    let pairs: Vec<_> = names.iter().zip(orders).map(|(name, order)| (name, Mutex::new(Some(order)))).collect();
    let results = jobs::run(&pairs, arguments.jobs, |(name, order)| {
        let progress = run.progress().for_image(name);
        let started = Instant::now();
        let order = order.lock().expect("no panic while locked").take().expect("each is taken once");
        let mut choice = None;
        let outcome = order.and_then(|order| {
            for note in &order.notes {
                progress.note(format!("{name}: {note}"));
            }
            let Choice { engine, .. } = choice.insert(run.engine(&arguments.engine, &order, &progress)?);
            let assembly = Assembly { cache, engine: &**engine, refresh: &refresh, on_failure };
            order.build(&assembly, &output, &progress)
        });
        let beyond = outcome.as_ref().is_err_and(error::is_beyond_this_host);
        let left_out = beyond && arguments.all && !arguments.setup;
        match &outcome {
            Err(error) if left_out => progress.note(format!("{name} cannot be built here\n{}", error::describe(error))),
            Err(error) => progress.note(error::describe(error)),
            Ok(_) => {}
        }
        Fared { name, outcome, choice, time: started.elapsed(), left_out }
    });
    if arguments.json {
        let rows: Vec<Value> = results.iter().map(Fared::as_json).collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        let rows: Vec<_> = results.iter().map(Fared::as_row).collect();
        print!("{}", table::columns(["image", "state", "size", "on disk", "rule", "time", "file"], &rows));
    }
    let failed = results.iter().filter(|fared| !fared.left_out).find_map(|fared| fared.outcome.as_ref().err());
    Ok(failed.map_or(ExitCode::SUCCESS, error::exit_code))
}

/// The images that the command line asks for, each once.
fn names(arguments: &Arguments, set: &ImageSet) -> Result<Vec<String>> {
    if arguments.all {
        // One that cannot be read counts: its error is part of the result.
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

/// Does an image stand, perhaps by way of others, on one of a registry?
fn stands_on_registry(set: &ImageSet, name: &str) -> bool {
    let chain =
        set.resolve(name).map(|resolved| resolved.ancestors.into_iter().chain([resolved.spec]).collect::<Vec<_>>());
    chain.is_ok_and(|specs| specs.iter().any(|spec| matches!(spec.base.value, Base::Oci { .. })))
}

/// What is to be built of the image `name`, one order a platform, each with its title.
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

impl Fared<'_> {
    fn as_json(&self) -> Value {
        let mut row = match &self.outcome {
            Ok(outcome) => serde_json::to_value(outcome).unwrap_or_default(),
            Err(error) => {
                let state = if self.left_out { "cannot-be-built-here" } else { "failed" };
                json!({ "state": state, "error": format!("{error:#}") })
            }
        };
        row["name"] = self.name.into();
        if let Some(Choice { engine, reason }) = &self.choice {
            row["engine"] = json!({ "name": engine.kind(), "reason": reason });
        }
        row["seconds"] = ((self.time.as_secs_f64() * 10.0).round() / 10.0).into();
        row
    }

    fn as_row(&self) -> [String; 7] {
        let row = |state: &str, size: String, disk: String, rule: String, file: String| {
            [self.name.into(), state.into(), size, disk, rule, human_duration(self.time), file]
        };
        let shown = |file: &Path| {
            let here = std::env::current_dir().unwrap_or_default();
            file.strip_prefix(here).unwrap_or(file).display().to_string()
        };
        match &self.outcome {
            Ok(BuildOutcome::Base { tree }) => row("base", String::new(), String::new(), String::new(), shown(tree)),
            Ok(BuildOutcome::Built { image, manifest } | BuildOutcome::UpToDate { image, manifest }) => {
                let state = if matches!(self.outcome, Ok(BuildOutcome::Built { .. })) { "built" } else { "up to date" };
                let rule = match manifest.census.decision.as_ref().map(|decision| decision.rule) {
                    Some(Rule::Content) => "content",
                    Some(Rule::MinSize) => "min-size",
                    None => "compressed",
                };
                row(state, human_bytes(manifest.census.size), allocated(image), rule.into(), shown(image))
            }
            Err(error) => {
                let state = if self.left_out { "not here" } else { "failed" };
                row(state, String::new(), String::new(), String::new(), error::in_short(error))
            }
        }
    }
}

/// What a file takes on disk, holes not counted.
fn allocated(image: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    // `st_blocks` counts 512-byte units whatever the block size.
    std::fs::metadata(image).map(|about| human_bytes(about.blocks() * 512)).unwrap_or_default()
}

/// `--dry-run`: the plan, for a person or a program.
fn describe(
    names: &[String],
    orders: &[Result<Order>],
    engines: &Engines,
    output: &Path,
    arguments: &Arguments,
) -> Result<ExitCode> {
    let mut rows = Vec::new();
    let mut text = String::new();
    for (name, order) in names.iter().zip(orders) {
        let order = match order {
            Ok(order) => order,
            Err(error) => {
                error::say(error);
                rows.push(json!({ "name": name, "error": format!("{error:#}") }));
                continue;
            }
        };
        let image = order.image(output);
        let file = image.as_ref().map(|path| path.display().to_string());
        text += &format!("{name}: {}\n", file.as_deref().unwrap_or("a base without an image of its own"));
        let choice = engines.choose(arguments.engine.kind, order.spec.engine);
        let engine = match &choice {
            Ok(Choice { engine, reason }) => json!({ "name": engine.kind(), "reason": reason }),
            Err(error) => json!({ "error": format!("{error:#}") }),
        };
        text += &match &choice {
            Ok(Choice { engine, reason }) => format!("  engine {}, {reason}\n", engine.kind()),
            Err(error) => format!("  engine: {error:#}\n"),
        };
        let mut trees = Vec::new();
        for link in &order.chain {
            let plan = &link.plan;
            text += &format!("  {} from {}\n", plan.name, plan.base.describe());
            for step in &plan.steps {
                text += &format!("    {}  ({})\n", step.describe(), step.place);
            }
            let script = choice.as_ref().ok().and_then(|choice| choice.engine.script(plan));
            for line in script.iter().flat_map(|script| script.lines()) {
                text += &format!("      | {line}\n");
            }
            trees.push(json!({
                "name": plan.name,
                "base": plan.base.describe(),
                "fingerprint": plan.fingerprint,
                "dockerfile": script,
                "steps": plan.steps.iter().map(|step| json!({ "step": step.describe(), "place": step.place })).collect::<Vec<_>>(),
            }));
        }
        if let Some(filesystem) = &order.filesystem {
            text +=
                &format!("  as {}{}\n", filesystem.kind(), if order.verity { ", sealed with dm-verity" } else { "" });
        }
        for note in &order.notes {
            text += &format!("  {note}\n");
        }
        rows.push(json!({
            "name": name,
            "image": file,
            "engine": engine,
            "oci": order.oci(),
            "filesystem": order.filesystem,
            "verity": order.verity,
            "sizing": order.sizing,
            "fingerprint": order.fingerprint()?,
            "trees": trees,
        }));
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print!("{text}");
    }
    let failed = orders.iter().find_map(|order| order.as_ref().err());
    Ok(failed.map_or(ExitCode::SUCCESS, error::exit_code))
}
