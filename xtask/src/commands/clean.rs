//! `clean`: removes caches, and what failed and killed runs left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use snug_sandbox;

use super::arguments;
use super::run::Run;
use crate::cache::{self, Cache};
use crate::error::Failure;
use crate::report::progress::human_bytes;
use crate::report::render::Render;
use crate::report::table;

/// The name of the folder of results among the caches.
const RESULTS: &str = "results";
/// What killed runs left.
const LEFTOVERS: &str = "leftovers";
/// What `--keep` left.
const KEPT: &str = "kept";

#[derive(Debug, Args)]
pub struct Arguments {
    /// Caches to empty, as the table names them: trees, downloads, results and others [default: only what killed runs and
    /// --keep left]
    #[arg(value_name = "CACHE", conflicts_with = "all")]
    caches: Vec<String>,
    /// Empty every cache, finished images included
    #[arg(long)]
    all: bool,
    /// Show what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    results: arguments::Results,
    #[command(flatten)]
    format: arguments::Format,
}

/// What was removed, cache by cache.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Cleaned {
    /// On disk, of all caches together.
    freed_bytes: u64,
    /// What would be freed, where nothing is removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    would_free_bytes: Option<u64>,
    caches: Vec<Row>,
}

/// A cache and what becomes of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Row {
    cache: String,
    /// Size on disk before anything was removed.
    size_bytes: u64,
    freed_bytes: u64,
    state: State,
    /// What the cache is for.
    holds: &'static str,
    folder: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Kept,
    WouldBeRemoved,
    Removed,
    /// Some of it is used by another run.
    InUse,
    /// Some of it cannot be removed.
    CannotBeRemoved,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            State::Kept => "kept",
            State::WouldBeRemoved => "would be removed",
            State::Removed => "removed",
            State::InUse => "in use by another run",
            State::CannotBeRemoved => "cannot be removed",
        }
    }
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let run = Run::start().and_results(&arguments.results);
    let cache = run.cache()?;
    // Leftovers are removed without being named.
    let mut folders = vec![(LEFTOVERS.to_owned(), cache.root().join("work"))];
    folders.extend(cache.categories()?);
    folders.push((RESULTS.to_owned(), run.results()?));
    // One that nothing has filled yet is as good as emptied.
    let known = |name: &String| folders.iter().any(|(known, _)| known == name) || !purpose(name).is_empty();
    if let Some(unknown) = arguments.caches.iter().find(|name| !known(name)) {
        let names = CACHES.map(|(name, _)| name);
        bail!(Failure::Usage(format!("there is no cache `{unknown}`\nhint: the caches are {}", names.join(", "))));
    }
    let alone = arguments.dry_run || cache.take_alone();
    let mut rows = Vec::new();
    for (name, folder) in folders {
        let wanted = arguments.all || name == LEFTOVERS || name == KEPT || arguments.caches.contains(&name);
        let size_bytes = size(cache, &name, &folder)?;
        let state = match (wanted, arguments.dry_run) {
            (false, _) => State::Kept,
            (true, true) => State::WouldBeRemoved,
            (true, false) => empty(cache, &name, &folder, alone).unwrap_or_else(|error| {
                run.progress().warn(format!("warning: {error:#}"));
                State::CannotBeRemoved
            }),
        };
        let freed_bytes = size_bytes.saturating_sub(size(cache, &name, &folder)?);
        rows.push(Row { holds: purpose(&name), cache: name, size_bytes, freed_bytes, state, folder });
    }
    let doomed = rows.iter().filter(|row| row.state == State::WouldBeRemoved).map(|row| row.size_bytes);
    let would_free_bytes = arguments.dry_run.then(|| doomed.sum());
    let freed_bytes = rows.iter().map(|row| row.freed_bytes).sum();
    let cleaned = Cleaned { freed_bytes, would_free_bytes, caches: rows };
    arguments.format.print(&cleaned)?;
    run.progress().note(match would_free_bytes {
        Some(bytes) => format!("would free {}", human_bytes(bytes)),
        None => format!("freed {}", human_bytes(cleaned.freed_bytes)),
    });
    if cleaned.caches.iter().any(|row| row.state == State::Kept && row.size_bytes > 0) {
        run.progress().note(
            "hint: clean CACHE… empties caches, clean --all all of them; what they held is fetched or made again when it is \
             needed, except finished images (results) and what --keep left (kept)",
        );
    }
    let is_stuck = cleaned.caches.iter().any(|row| row.state == State::CannotBeRemoved);
    Ok(if is_stuck { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

impl Render for Cleaned {
    fn text(&self) -> String {
        let cells =
            |row: &Row| [row.cache.clone(), human_bytes(row.size_bytes), row.state.as_str().into(), row.holds.into()];
        let rows: Vec<[String; 4]> = self.caches.iter().map(cells).collect();
        table::columns(["cache", "size", "state", "holds"], &rows)
    }
}

/// Size of a cache, in bytes on disk.
fn size(cache: &Cache, name: &str, folder: &Path) -> Result<u64> {
    Ok(match name {
        LEFTOVERS => cache.abandoned()?.iter().map(|path| on_disk(path)).sum(),
        _ => on_disk(folder),
    })
}

/// The caches, and what each is for.
pub const CACHES: [(&str, &str); 8] = [
    (LEFTOVERS, "work of runs that were killed"),
    ("downloads", "packages, and images of registries"),
    (KEPT, "trees of failed steps, left by --keep"),
    ("kernels", "kernels to boot images with"),
    ("layers", "what steps changed, for builds that begin alike"),
    ("tools", "programs of other Debian suites"),
    ("trees", "finished trees of bases and images"),
    (RESULTS, "finished images"),
];

/// What a cache is for.
fn purpose(name: &str) -> &'static str {
    CACHES.iter().find(|(known, _)| *known == name).map_or("", |(_, purpose)| purpose)
}

/// Empties one cache. Returns what became of it: what another run uses is kept.
fn empty(cache: &Cache, name: &str, folder: &Path, alone: bool) -> Result<State> {
    let mut all_gone = true;
    match name {
        // It has said what stays.
        LEFTOVERS if !cache.sweep()? => return Ok(State::CannotBeRemoved),
        LEFTOVERS => {}
        // A build locks each tree that it uses.
        "trees" => all_gone = cache.drop_trees()?,
        // A build locks each layer that it uses.
        "layers" => all_gone = cache.drop_layers()?,
        RESULTS => {
            for image in entries(folder)?.into_iter().filter(|path| path.is_dir()) {
                all_gone &= cache::remove_unless_held(&image)?;
            }
        }
        _ if !alone => all_gone = entries(folder)?.is_empty(),
        _ => snug_sandbox::remove_folder(folder)?,
    }
    Ok(if all_gone { State::Removed } else { State::InUse })
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries
            .with_context(|| format!("cannot read {}", folder.display()))?
            .map(|entry| Ok(entry?.path()))
            .collect(),
    }
}

/// Size of a file or folder in bytes on disk, each inode counted once. What cannot be read does not count.
pub fn on_disk(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut seen = std::collections::HashSet::new();
    let mut pending = vec![path.to_path_buf()];
    let mut sum = 0;
    while let Some(path) = pending.pop() {
        let Ok(about) = fs::symlink_metadata(&path) else { continue };
        if about.nlink() == 1 || about.is_dir() || seen.insert((about.dev(), about.ino())) {
            // `st_blocks` counts 512-byte units whatever the block size.
            sum += about.blocks() * 512;
        }
        if about.is_dir() {
            pending.extend(entries(&path).unwrap_or_default());
        }
    }
    sum
}
