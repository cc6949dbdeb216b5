//! `clean`: what the tool keeps beside the images, and its removal.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use snug_sandbox;

use super::arguments;
use super::run::Run;
use crate::atomic::Partial;
use crate::cache::{self, Cache};
use crate::error::Failure;
use crate::report::progress::human_bytes;
use crate::report::table;

/// The finished images of the workspace, among the rooms of the cache.
const RESULTS: &str = "results";

#[derive(Debug, Args)]
pub struct Arguments {
    /// Rooms to empty, as the table names them: trees, downloads, results and others; without any, only what killed runs
    /// and --keep left
    #[arg(value_name = "ROOM", conflicts_with = "all")]
    rooms: Vec<String>,
    /// Empty every room, finished images included
    #[arg(long)]
    all: bool,
    /// Say what would go, and remove nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    results: arguments::Results,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A room and what becomes of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Row {
    room: String,
    /// What it held before, in bytes on disk.
    bytes: u64,
    freed: u64,
    state: State,
    what: &'static str,
    folder: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Stays,
    WouldGo,
    Removed,
    /// Some of it is used by another run.
    InUse,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            State::Stays => "stays",
            State::WouldGo => "would go",
            State::Removed => "removed",
            State::InUse => "in use by another run",
        }
    }
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let run = Run::start().and_results(&arguments.results);
    let cache = run.cache()?;
    // Leftovers are never asked for by name.
    let mut rooms = vec![("leftovers".to_owned(), cache.root().join("work"))];
    rooms.extend(cache.rooms()?);
    rooms.push((RESULTS.to_owned(), run.results()?));
    if let Some(unknown) = arguments.rooms.iter().find(|name| !rooms.iter().any(|(room, _)| room == *name)) {
        let names: Vec<&str> = rooms.iter().map(|(room, _)| room.as_str()).collect();
        bail!(Failure::Usage(format!("there is no room `{unknown}`\nhint: the rooms are {}", names.join(", "))));
    }
    let alone = arguments.dry_run || cache.take_alone();
    let mut rows = Vec::new();
    for (room, folder) in rooms {
        let wanted = arguments.all || room == "leftovers" || room == "kept" || arguments.rooms.contains(&room);
        let bytes = held(cache, &room, &folder)?;
        let state = match (wanted, arguments.dry_run) {
            (false, _) => State::Stays,
            (true, true) => State::WouldGo,
            (true, false) if empty(cache, &room, &folder, alone)? => State::Removed,
            (true, false) => State::InUse,
        };
        let left = held(cache, &room, &folder)?;
        let what = what_is_in(&room);
        rows.push(Row { room, bytes, freed: bytes.saturating_sub(left), state, what, folder });
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(ExitCode::SUCCESS);
    }
    let cells: Vec<[String; 4]> = rows
        .iter()
        .map(|row| [row.room.clone(), human_bytes(row.bytes), row.state.as_str().into(), row.what.into()])
        .collect();
    print!("{}", table::columns(["room", "size", "state", "what it holds"], &cells));
    eprintln!("freed {}", human_bytes(rows.iter().map(|row| row.freed).sum()));
    let stays: u64 = rows.iter().filter(|row| row.state == State::Stays).map(|row| row.bytes).sum();
    if stays > 0 {
        eprintln!(
            "hint: name rooms to empty them, or give --all; everything but results is made again when it is needed"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Bytes on disk of all that is in a room.
fn held(cache: &Cache, room: &str, folder: &Path) -> Result<u64> {
    Ok(match room {
        "leftovers" => cache.abandoned()?.iter().map(|path| on_disk(path)).sum(),
        _ => on_disk(folder),
    })
}

fn what_is_in(room: &str) -> &'static str {
    match room {
        "leftovers" => "work of runs that were killed",
        "kept" => "trees of failed steps, left by --keep",
        "trees" => "finished trees of bases and images",
        "downloads" => "packages of apt, npm and pip",
        "kernels" => "kernels to boot images with",
        "tools" => "programs of other suites",
        RESULTS => "finished images",
        _ => "",
    }
}

/// Empties one room. Answers `false` where another run uses some of it, which then stays.
fn empty(cache: &Cache, room: &str, folder: &Path, alone: bool) -> Result<bool> {
    let mut all_gone = true;
    match room {
        "leftovers" => cache.sweep()?,
        // Each file is locked by who uses it.
        "trees" => {
            for path in entries(folder)? {
                all_gone &= cache::remove_unless_held(&path)?;
            }
        }
        RESULTS => {
            for image in entries(folder)?.into_iter().filter(|path| path.is_dir()) {
                Partial::sweep(&image, "")?;
                for path in entries(&image)? {
                    all_gone &= cache::remove_unless_held(&path)?;
                }
                // Not empty where an image is in the making.
                let _ = fs::remove_dir(&image);
            }
        }
        _ if !alone => return Ok(entries(folder)?.is_empty()),
        _ => snug_sandbox::remove_folder(folder)?,
    }
    Ok(all_gone)
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

/// Bytes that a file or folder takes on disk, as far as it can be read; each inode once.
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
