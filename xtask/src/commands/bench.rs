//! `bench`: measures what writing an image from a tar costs, compared with `cp` and with other programs.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::Serialize;
use sha2::{Digest, Sha256};
use snug_process::{Child, child};
use snug_rootfs::layers::{LIMITS, Layers};
use snug_rootfs::tar::Limits;

use super::run::Run;
use super::{arguments, file_names};
use crate::atomic::{Accepts, Destination};
use crate::bench::candidates::{Bench, Candidate};
use crate::bench::scale::{self, Shape};
use crate::bench::{self, Measured, measure, summary, sync_output};
use crate::error::Failure;
use crate::report::progress::{Progress, human_bytes};
use crate::report::render::Render;
use crate::report::shell;

/// Bytes that are hashed to measure the speed of SHA-256.
const HASHED: usize = 64 << 20;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Tar of a root filesystem [default: a generated one of a gigabyte in 53,000 names]
    #[arg(value_name = "TAR")]
    tar: Option<PathBuf>,
    /// Rounds through all candidates; the results are medians
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=99))]
    rounds: u16,
    /// Measure only these, and `cp` [default: all that are installed]
    #[arg(long, value_name = "CANDIDATE", value_delimiter = ',')]
    only: Vec<String>,
    /// Write the generated tar to this file, or `-` for standard output, and measure nothing
    #[arg(long, value_name = "FILE|-", conflicts_with_all = ["tar", "rounds", "only", "json"])]
    sample: Option<PathBuf>,
    /// Measure how time and memory grow instead: with 10,000, 100,000 and a million of each of files, directories, hard links, …
    #[arg(long, conflicts_with_all = ["tar", "rounds", "sample"])]
    scale: bool,
    /// Merge these layers and do nothing else: what `--scale` measures.
    #[arg(long, hide = true, value_name = "LAYER", value_delimiter = ',')]
    merge: Vec<PathBuf>,
    #[command(flatten)]
    format: arguments::Format,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let run = Run::start();
    let progress = run.progress();
    if let Some(place) = &arguments.sample {
        return sample(place, progress);
    }
    if !arguments.merge.is_empty() {
        return merge(&arguments.merge);
    }
    if arguments.scale {
        let scratch = run.swept_cache()?.work_folder("bench")?;
        let rows = scale(&arguments.only, scratch.path(), progress)?;
        arguments.format.print(&Scale { rows })?;
        return Ok(ExitCode::SUCCESS);
    }
    let candidates = candidates(&arguments.only, progress)?;
    let scratch = run.swept_cache()?.work_folder("bench")?;
    let xtask = std::env::current_exe().context("cannot tell where this program is")?;
    let tar = match &arguments.tar {
        Some(tar) => tar.clone(),
        None => made_up(&xtask, scratch.path())?,
    };
    let tar_bytes = warm(&tar)?;
    let needed = Bench::space_needed(tar_bytes);
    let free = free_space(scratch.path())?;
    ensure!(
        free >= needed,
        "{} has {} free, and measuring takes {}\nhint: set XDG_CACHE_HOME to a larger disk, or give a smaller tar",
        scratch.path().display(),
        human_bytes(free),
        human_bytes(needed)
    );
    let mut bench = Bench { tar, scratch: scratch.path().to_path_buf(), xtask, image_bytes: 0, inodes: 0 };
    (bench.image_bytes, bench.inodes) = size(&bench)?;
    let all = rounds(&bench, &candidates, usize::from(arguments.rounds), progress)?;
    let rows = summary::rows(&all);
    let (instructions, rate) = sha256();
    arguments.format.print(&Measurements {
        tar: TarInput { size_bytes: tar_bytes, generated: arguments.tar.is_none() },
        sha256: Sha256Speed { instructions, bytes_per_second: rate as u64 },
        image_bytes: bench.image_bytes,
        candidates: rows,
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What was measured, and with what.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Measurements {
    tar: TarInput,
    sha256: Sha256Speed,
    /// Size of our ext4 image of the tar, without headroom and journal.
    image_bytes: u64,
    candidates: Vec<summary::Row>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct TarInput {
    size_bytes: u64,
    /// Whether it is the generated sample.
    generated: bool,
}

/// How fast one thread hashes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Sha256Speed {
    /// Whether the processor has SHA instructions.
    instructions: bool,
    bytes_per_second: u64,
}

impl Render for Measurements {
    fn text(&self) -> String {
        let how = if self.sha256.instructions { "by SHA instructions" } else { "without SHA instructions" };
        let rate = self.sha256.bytes_per_second;
        let alone = self.image_bytes as f64 / rate as f64;
        format!(
            "{}\nSHA-256 {how}: {}/s a thread, {alone:.2} s for this image\n\
             the tar: {} bytes, in the page cache; `wall` waits for no disk, `to disk` ends when fsync returns; \
             only `syncing ahead` waits for the disk itself; medians (smallest..largest)\n",
            summary::table(&self.candidates),
            human_bytes(rate),
            self.tar.size_bytes,
        )
    }
}

/// How time and memory grow with what an archive has.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Scale {
    rows: Vec<scale::Row>,
}

impl Render for Scale {
    fn text(&self) -> String {
        format!(
            "{}\nwhiteouts: two layers are merged; all others: an archive becomes an ext4 image, as `pack` makes it\n",
            scale::table(&self.rows)
        )
    }
}

/// Measures the shapes of `only`, or all.
fn scale(only: &[String], scratch: &Path, progress: &Progress) -> Result<Vec<scale::Row>> {
    if let Some(unknown) = only.iter().find(|name| Shape::ALL.iter().all(|known| known.name() != *name)) {
        let known: Vec<&str> = Shape::ALL.iter().map(|shape| shape.name()).collect();
        bail!(Failure::Usage(format!("`{unknown}` cannot be measured\nhint: there are {}", known.join(", "))));
    }
    let mut rows = Vec::new();
    for shape in Shape::ALL.into_iter().filter(|shape| only.is_empty() || only.iter().any(|name| name == shape.name()))
    {
        let stage = progress.stage(format!("many {}", shape.name()));
        let without = scale_one(shape, scale::FEW, scratch)?;
        let mut measured = Vec::new();
        for count in scale::COUNTS {
            stage.detail(&count.to_string());
            measured.push((count, scale_one(shape, count, scratch)?));
        }
        rows.extend(scale::rows(shape, &without, &measured));
        stage.finish("");
    }
    Ok(rows)
}

/// Measures one archive, in a process of its own.
fn scale_one(shape: Shape, count: u64, scratch: &Path) -> Result<Measured> {
    let [lower, upper, output] = ["lower.tar", "upper.tar", "image"].map(|name| scratch.join(name));
    shape.write(count, &mut BufWriter::new(File::create(&lower)?))?;
    let mut command = Command::new(std::env::current_exe().context("cannot tell where this program is")?);
    if shape.is_of_layers() {
        shape.write_upper(count, &mut BufWriter::new(File::create(&upper)?))?;
        let layers = [lower.as_os_str(), upper.as_os_str()].join(OsStr::new(","));
        command.args(["bench", "--merge"]).arg(layers);
        File::create(&output)?;
    } else {
        command.args(["pack", "--no-sync", "--no-digest", "--filesystem", "ext4"]).arg(&lower).arg("-o").arg(&output);
    }
    let measured = measure(&mut command, None, &output).with_context(|| format!("{count} {}", shape.name()))?;
    for place in [lower, upper, output] {
        let _ = fs::remove_file(place);
    }
    Ok(measured)
}

/// Merges layers, as those of an image of a registry are.
fn merge(layers: &[PathBuf]) -> Result<ExitCode> {
    // What is measured is more than an image may have: a million in each layer.
    let limits = Limits { entries: 10 * LIMITS.entries, ..LIMITS };
    let mut merged = Layers::new(tempfile::tempfile()?, &limits)?;
    for layer in layers {
        let layer = File::open(layer).with_context(|| format!("cannot open {}", layer.display()))?;
        merged.apply(layer)?;
    }
    merged.finish()?;
    Ok(ExitCode::SUCCESS)
}

/// The candidates of the command line that can run here, `cp` first.
fn candidates(only: &[String], progress: &Progress) -> Result<Vec<Candidate>> {
    if let Some(unknown) = only.iter().find(|name| Candidate::ALL.iter().all(|known| known.name() != *name)) {
        let known: Vec<&str> = Candidate::ALL.iter().map(|candidate| candidate.name()).collect();
        bail!(Failure::Usage(format!("`{unknown}` cannot be measured\nhint: there are {}", known.join(", "))));
    }
    let named = |candidate: &Candidate| only.is_empty() || only.iter().any(|name| name == candidate.name());
    let mut chosen = vec![Candidate::Copy];
    for candidate in Candidate::ALL.into_iter().skip(1) {
        // mke2fs works on what tar extracted in the same round.
        let needed = candidate == Candidate::Extract && named(&Candidate::Mke2fs);
        if !needed && !named(&candidate) {
            continue;
        }
        match candidate.obstacle() {
            Some(obstacle) => progress.note(format!("{}: skipped, {obstacle}", candidate.name())),
            None => chosen.push(candidate),
        }
    }
    Ok(chosen)
}

fn rounds(bench: &Bench, candidates: &[Candidate], count: usize, progress: &Progress) -> Result<Vec<summary::Rounds>> {
    let empty = |&candidate| summary::Rounds { candidate, measured: Vec::new(), output_bytes: None };
    let mut all: Vec<summary::Rounds> = candidates.iter().map(empty).collect();
    for round in 0..count {
        let stage = progress.stage(format!("round {} of {count}", round + 1));
        for entry in &mut all {
            let candidate = entry.candidate;
            if round >= candidate.rounds(count) {
                continue;
            }
            stage.detail(candidate.name());
            let output = bench.output(candidate);
            let feed = bench.feed(candidate)?;
            let mut command = bench.command(candidate)?;
            // Else the pages of the previous candidate would be written during this one.
            sync_output(&bench.scratch)?;
            let measured = measure(&mut command, feed.as_ref(), &output).with_context(|| candidate.title())?;
            entry.measured.push(measured);
            if candidate == Candidate::Extract {
                continue;
            }
            entry.output_bytes = Some(fs::metadata(&output)?.size());
            // At once, so that its pages and its disk space are free for the next one.
            fs::remove_file(&output)?;
        }
        let extracted = bench.output(Candidate::Extract);
        if extracted.exists() {
            fs::remove_dir_all(&extracted).with_context(|| format!("cannot remove {}", extracted.display()))?;
        }
        stage.finish("");
    }
    Ok(all)
}

/// Bytes and inodes of our image of the tar.
fn size(bench: &Bench) -> Result<(u64, u64)> {
    let output = bench.output(Candidate::File);
    let mut command = bench.pack(&bench.tar, &output, &["--no-digest", "--no-sync", "--json"]);
    let said = Child::start(command.stdout(Stdio::piped()))?.wait_with_output()?;
    ensure!(said.status.success(), "cannot make an image of {}", bench.tar.display());
    fs::remove_file(&output)?;
    let about: serde_json::Value = serde_json::from_slice(&said.stdout)?;
    let number = |pointer: &str| about.pointer(pointer).and_then(serde_json::Value::as_u64);
    number("/census/size").zip(number("/census/decision/inodes")).context("the answer of pack has no size")
}

/// Has another process write the sample: the peak memory of this one would count as that of every child it starts.
fn made_up(xtask: &Path, scratch: &Path) -> Result<PathBuf> {
    let tar = scratch.join("sample.tar");
    let status = child::status(Command::new(xtask).args(["bench", "--sample"]).arg(&tar))?;
    ensure!(status.success(), "cannot make a tar");
    Ok(tar)
}

fn sample(place: &Path, progress: &Progress) -> Result<ExitCode> {
    if let Some(by) = file_names::tar(place, "--sample")? {
        bail!(Failure::Usage(format!(
            "{} would hold a tar that is not compressed\nhint: --sample - | {} > {}",
            place.display(),
            by.program(),
            shell::path(place)
        )));
    }
    let place = Destination::new(place, Accepts::STREAMS)?;
    ensure!(
        !place.is_terminal(),
        Failure::Usage("a terminal takes no tar\nhint: name a file, or pipe it on".to_owned())
    );
    let stage = progress.stage("generate a root filesystem");
    place.write(progress, |file| bench::write_sample(file, &stage))?;
    let written = human_bytes(stage.bytes());
    stage.finish(&written);
    Ok(ExitCode::SUCCESS)
}

/// Reads the tar once, so that no candidate waits for it; answers its size.
fn warm(tar: &Path) -> Result<u64> {
    let mut file = File::open(tar).with_context(|| format!("cannot open {}", tar.display()))?;
    ensure!(file.metadata()?.is_file(), Failure::Usage(format!("{} is no file that can be read again", tar.display())));
    io::copy(&mut file.by_ref(), &mut io::sink()).with_context(|| format!("cannot read {}", tar.display()))
}

fn free_space(folder: &Path) -> Result<u64> {
    let about = nix::sys::statvfs::statvfs(folder).with_context(|| format!("cannot look at {}", folder.display()))?;
    Ok(about.blocks_available() * about.fragment_size())
}

/// Returns whether SHA-256 is computed by instructions of the processor, and the bytes that one thread hashes a second.
fn sha256() -> (bool, f64) {
    #[cfg(target_arch = "x86_64")]
    let instructions = std::arch::is_x86_feature_detected!("sha")
        && std::arch::is_x86_feature_detected!("ssse3")
        && std::arch::is_x86_feature_detected!("sse4.1");
    #[cfg(target_arch = "aarch64")]
    let instructions = std::arch::is_aarch64_feature_detected!("sha2");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let instructions = false;
    let (block, mut hash) = (vec![1; 64 << 10], Sha256::new());
    let started = thread_time();
    for _ in 0..HASHED / block.len() {
        hash.update(&block);
    }
    std::hint::black_box(hash.finalize());
    (instructions, HASHED as f64 / (thread_time() - started).as_secs_f64())
}

/// User and system time of this thread: how fast it is while it runs, on a busy machine too.
fn thread_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("there is a thread");
    let micros = |time: TimeVal| Duration::from_micros(time.num_microseconds().max(1) as u64);
    micros(usage.user_time()) + micros(usage.system_time())
}
