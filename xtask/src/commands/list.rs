//! `list`: the images of a folder and the state of each: up to date, stale, changed, never built, or not to be built on this
//! host.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use snug_spec::{ImageSet, ImageSpec, SpecErrors};

use super::arguments;
use super::run::Run;
use crate::error;
use crate::host::requirements::{self, Task};
use crate::image::{ImageState, Order, Providers, Target};
use crate::report::progress::{Progress, human_bytes};
use crate::report::render::Render;
use crate::report::table;

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    images: arguments::Images,
    #[command(flatten)]
    results: arguments::Results,
    #[command(flatten)]
    format: arguments::Format,
}

/// The images of a folder.
#[derive(Debug, Serialize)]
struct List<'set> {
    images: Vec<Row<'set>>,
}

/// An image as it is listed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Row<'set> {
    name: &'set str,
    filesystem: Option<&'static str>,
    state: State,
    /// Why it is stale, how it was changed, why it cannot be built here, or what is wrong with its spec.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Size of the existing image.
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u64>,
    /// Missing where the spec has an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    min_size_bytes: Option<u64>,
    description: Option<&'set str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    UpToDate,
    Stale,
    /// Something else than a build has written to it.
    Changed,
    NeverBuilt,
    /// A program is missing, or the spec asks for what this version cannot do.
    CannotBuild,
    /// A base of other images, without an image file of its own.
    Base,
    /// The spec has errors.
    Broken,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            State::UpToDate => "up to date",
            State::Stale => "stale",
            State::Changed => "changed",
            State::NeverBuilt => "never built",
            State::CannotBuild => "cannot build",
            State::Base => "base",
            State::Broken => "broken spec",
        }
    }
}

/// Lists the images, and fails with the errors of those whose specs cannot be read.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let run = Run::with_images(&arguments.images).and_results(&arguments.results);
    let (set, providers, results) = (run.images()?, run.cached_providers()?, run.results()?);
    let row = |(name, spec)| {
        let progress = run.progress().for_image(name);
        match spec {
            Ok(spec) => row(set, name, spec, &providers, (&results, &progress)),
            Err(errors) => broken(name, errors),
        }
    };
    let images = set.iter().map(row).collect();
    arguments.format.print(&List { images })?;
    let errors = set.errors();
    if errors.0.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(errors.into()) }
}

impl Render for List<'_> {
    fn text(&self) -> String {
        let cells = |row: &Row| {
            // The reason for a state tells more than the description.
            let about = row.reason.as_deref().or(row.description).unwrap_or_default();
            [
                row.name.to_owned(),
                row.filesystem.unwrap_or_default().to_owned(),
                row.size_bytes.map(human_bytes).unwrap_or_default(),
                row.state.as_str().to_owned(),
                about.to_owned(),
            ]
        };
        let rows: Vec<[String; 5]> = self.images.iter().map(cells).collect();
        table::columns(["image", "type", "size", "state", "description or reason"], &rows)
    }
}

fn row<'set>(
    set: &'set ImageSet,
    name: &'set str,
    spec: &'set ImageSpec,
    providers: &Providers,
    (results, progress): (&Path, &Progress),
) -> Row<'set> {
    let (state, reason, size_bytes) = standing(set, name, spec, providers, (results, progress));
    Row {
        name,
        filesystem: spec.filesystem.as_ref().map(|filesystem| filesystem.kind().as_str()),
        state,
        reason,
        size_bytes,
        min_size_bytes: Some(spec.sizing.min_size),
        description: spec.description.as_deref(),
    }
}

/// The row of a spec that cannot be read; its errors are told in full elsewhere.
fn broken<'set>(name: &'set str, errors: &SpecErrors) -> Row<'set> {
    let reason = errors.0.first().map(|error| match error.position() {
        Some((line, _)) => format!("line {line}: {}", error.message()),
        None => error.message().to_owned(),
    });
    Row {
        name,
        filesystem: None,
        state: State::Broken,
        reason,
        size_bytes: None,
        min_size_bytes: None,
        description: None,
    }
}

fn standing(
    set: &ImageSet,
    name: &str,
    spec: &ImageSpec,
    providers: &Providers,
    (results, progress): (&Path, &Progress),
) -> (State, Option<String>, Option<u64>) {
    let order = Target::all(spec, &[]).and_then(|targets| Order::known(set, name, targets[0], providers));
    let order = match order {
        Ok(Some(order)) => order,
        // Only builds ask registries: none was made yet.
        Ok(None) => {
            return match requirements::require(&[Task::OciBase]) {
                Ok(()) => (State::NeverBuilt, None, None),
                Err(missing) => (State::CannotBuild, Some(error::summary(&missing.into())), None),
            };
        }
        Err(error) => return (State::CannotBuild, Some(error::summary(&error)), None),
    };
    let freshness = match order.freshness(results, progress) {
        Ok(freshness) => freshness,
        Err(error) => return (State::CannotBuild, Some(error::summary(&error)), None),
    };
    let (state, reason, size) = match freshness {
        ImageState::UpToDate(manifest) => return (State::UpToDate, None, Some(manifest.census.size)),
        ImageState::Stale { size, why } => (State::Stale, Some(why), Some(size)),
        ImageState::Changed { size, why } => (State::Changed, Some(why), size),
        ImageState::NeverBuilt => (State::NeverBuilt, None, None),
        ImageState::Base => (State::Base, None, None),
    };
    match requirements::require(&order.tasks()) {
        Ok(()) => (state, reason, size),
        Err(missing) => (State::CannotBuild, Some(error::summary(&missing.into())), size),
    }
}
