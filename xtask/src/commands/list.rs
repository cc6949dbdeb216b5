//! `list`: the images of a folder, and how each stands: up to date, stale, never built, or not for this host.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use snug_spec::{ImageSet, ImageSpec};

use super::arguments;
use super::run::Run;
use crate::bases::oci::OciError;
use crate::error;
use crate::host::requirements::{self, Task};
use crate::image::{ImageState, Order, Providers, Target};
use crate::report::progress::human_bytes;
use crate::report::table;

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    images: arguments::Images,
    #[command(flatten)]
    results: arguments::Results,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// An image as it is listed.
#[derive(Debug, Serialize)]
struct Row<'set> {
    name: &'set str,
    filesystem: Option<&'static str>,
    state: State,
    /// Why it is stale, or cannot be built here.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Bytes of the image that is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    min_size: u64,
    description: Option<&'set str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    UpToDate,
    Stale,
    NeverBuilt,
    CannotBeBuiltHere,
    /// It is there for other images and has none of its own.
    Base,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            State::UpToDate => "up to date",
            State::Stale => "stale",
            State::NeverBuilt => "never built",
            State::CannotBeBuiltHere => "not here",
            State::Base => "base",
        }
    }
}

/// Lists what can be read, says what cannot, and fails if anything cannot.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let run = Run::with_images(&arguments.images).and_results(&arguments.results);
    let (set, providers, results) = (run.images()?, run.cached_providers()?, run.results()?);
    let rows: Vec<Row> =
        set.iter().filter_map(|(name, spec)| Some(row(set, name, spec.ok()?, &providers, &results))).collect();
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        let cells: Vec<[String; 5]> = rows
            .iter()
            .map(|row| {
                // Why an image is not what it should be is of more interest than what it is for.
                let about = row.reason.as_deref().or(row.description).unwrap_or_default();
                [
                    row.name.to_owned(),
                    row.filesystem.unwrap_or_default().to_owned(),
                    row.size.map(human_bytes).unwrap_or_default(),
                    row.state.as_str().to_owned(),
                    about.to_owned(),
                ]
            })
            .collect();
        print!("{}", table::columns(["image", "type", "size", "state", "what, or why"], &cells));
    }
    let errors = set.errors();
    if errors.0.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(errors.into()) }
}

fn row<'set>(
    set: &'set ImageSet,
    name: &'set str,
    spec: &'set ImageSpec,
    providers: &Providers,
    results: &Path,
) -> Row<'set> {
    let (state, reason, size) = standing(set, name, spec, providers, results);
    Row {
        name,
        filesystem: spec.filesystem.as_ref().map(|filesystem| filesystem.kind().as_str()),
        state,
        reason,
        size,
        min_size: spec.sizing.min_size,
        description: spec.description.as_deref(),
    }
}

fn standing(
    set: &ImageSet,
    name: &str,
    spec: &ImageSpec,
    providers: &Providers,
    results: &Path,
) -> (State, Option<String>, Option<u64>) {
    let order = Target::all(spec, &[]).and_then(|targets| Order::new(set, name, targets[0], None, providers));
    let order = match order {
        Ok(order) => order,
        // What a tag means is asked by builds: none was made yet, then.
        Err(error) if error.chain().any(|cause| matches!(cause.downcast_ref(), Some(OciError::Unresolved(_)))) => {
            return match requirements::require(&[Task::OciBase]) {
                Ok(()) => (State::NeverBuilt, None, None),
                Err(lacking) => (State::CannotBeBuiltHere, Some(error::in_short(&lacking.into())), None),
            };
        }
        Err(error) => return (State::CannotBeBuiltHere, Some(error::in_short(&error)), None),
    };
    let freshness = match order.freshness(results) {
        Ok(freshness) => freshness,
        Err(error) => return (State::CannotBeBuiltHere, Some(error::in_short(&error)), None),
    };
    let (state, reason, size) = match freshness {
        ImageState::UpToDate(manifest) => return (State::UpToDate, None, Some(manifest.census.size)),
        ImageState::Stale { manifest, why } => (State::Stale, Some(why), Some(manifest.census.size)),
        ImageState::NeverBuilt => (State::NeverBuilt, None, None),
        ImageState::Base => (State::Base, None, None),
    };
    match requirements::require(&order.tasks()) {
        Ok(()) => (state, reason, size),
        Err(lacking) => (State::CannotBeBuiltHere, Some(error::in_short(&lacking.into())), size),
    }
}
