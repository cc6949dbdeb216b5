//! `report`: builds one spec as every type of image and compares their costs.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::Serialize;
use snug_process::Child;
use snug_process::program::HostProgram;
use snug_rootfs::listing::Listing;
use snug_spec::ImageSet;

use super::arguments;
use super::run::Run;
use crate::check::boot::{BootEnvironment, BootSummary};
use crate::engine::OnFailure;
use crate::engine::choose::Choice;
use crate::error::{self, Failure};
use crate::host::requirements::{self, Task};
use crate::image::{BuildOutcome, Built, ImageType, Order, Target};
use crate::report::adjustments::Strictness;
use crate::report::progress::{Progress, human_bytes, human_duration};
use crate::report::render::{Render, seconds};
use crate::report::table;
use crate::tree::{Assembly, Refresh};

const ZSTD: HostProgram = HostProgram { name: "zstd", package: "zstd" };
/// Level 3 with a window of 128 MiB, which decompresses with the limits that zstd has by default.
const ZSTD_ARGUMENTS: [&str; 4] = ["-3", "--long=27", "-q", "-c"];

#[derive(Debug, Args)]
#[command(mut_arg("kernel", |kernel| kernel.conflicts_with("no_boot")))]
pub struct Arguments {
    /// Image to build as every type
    #[arg(value_name = "NAME")]
    name: String,
    /// Types to build
    #[arg(
        long = "filesystem",
        value_name = "TYPE,…",
        value_delimiter = ',',
        default_value = "ext4,squashfs,erofs,squashfs+verity,ext4+verity"
    )]
    types: Vec<ImageType>,
    /// Do not boot the images
    #[arg(long)]
    no_boot: bool,
    #[command(flatten)]
    machine: arguments::Machine,
    #[command(flatten)]
    images: arguments::Images,
    #[command(flatten)]
    format: arguments::Format,
    #[command(flatten)]
    setup: arguments::Setup,
}

/// What each type costs.
#[derive(Debug, Serialize)]
struct Costs {
    /// The image's name.
    name: String,
    types: Vec<Row>,
}

/// What one type costs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Row {
    #[serde(rename = "type")]
    named: String,
    #[serde(flatten)]
    found: Found,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Found {
    Cost(Box<Cost>),
    Failure { error: String },
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Cost {
    size_bytes: u64,
    /// On this disk, holes not counted.
    allocated_bytes: u64,
    /// After `zstd -3 --long=27`.
    compressed_bytes: u64,
    /// User and system time from the finished tree to the image, of all programs together.
    cpu_seconds: f64,
    wall_seconds: f64,
    writer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    boot: Option<BootSummary>,
}

/// Builds, compresses and boots one type after the other, and removes each image.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let run = Run::with_images(&arguments.images);
    let (set, progress, name) = (run.images()?, run.progress(), &arguments.name);
    arguments.setup.prepare_planning(set, [name])?;
    // All types are planned before anything is built.
    let providers = run.providers()?;
    let order = |named: &ImageType| Order::new(set, name, Target::host()?, Some(*named), &providers);
    let orders = arguments.types.iter().map(order).collect::<Result<Vec<_>>>()?;
    let own = if arguments.no_boot { vec![Task::Report] } else { vec![Task::Report, Task::Boot] };
    // The initramfs of sealed images gets dmsetup, unpacked as a Debian base is.
    let dmsetup = (!arguments.no_boot).then_some(Task::DebianBase);
    let tasks: Vec<Task> = orders.iter().flat_map(Order::tasks).chain(own.iter().copied()).chain(dmsetup).collect();
    arguments.setup.prepare(tasks.iter().copied())?;
    // Told before anything is built.
    requirements::require(&own).map_err(|error| arguments.setup.hint(tasks, error.into()))?;
    let Some(first) = orders.first() else { bail!(Failure::Usage("no type was named".to_owned())) };
    let cache = run.swept_cache()?;
    let Choice { engine, .. } = run.engine(&arguments::Engine { kind: None }, first, progress)?;
    let refresh = Refresh::default();
    let assembly = Assembly {
        cache,
        engine: &*engine,
        refresh: &refresh,
        on_failure: OnFailure::default(),
        strictness: Strictness::default(),
    };
    // The tree is built once for all types: what is measured is the way from the tree to the image.
    let (tree, _held) = assembly.read(&first.chain, progress)?;
    let listing = Listing::of(&tree);
    let machine = &arguments.machine;
    let machine = match !arguments.no_boot && listing.has("init") {
        true => Some(BootEnvironment::prepare(machine.kernel.as_deref(), machine.accel, true, cache, progress)?),
        false => None,
    };
    let folder = cache.work_folder("report")?;
    let report = Report { set, assembly: &assembly, machine: machine.as_ref(), folder: folder.path() };
    let mut rows = Vec::new();
    for (named, order) in arguments.types.iter().zip(orders) {
        let progress = progress.for_image(&format!("{name} as {named}"));
        let outcome = report.cost(order, listing.has("usr/sbin/sshd"), &progress);
        if let Err(error) = &outcome {
            progress.warn(error::message(error));
        }
        let found = match outcome {
            Ok(cost) => Found::Cost(cost.into()),
            Err(error) => Found::Failure { error: error::in_full(&error) },
        };
        rows.push(Row { named: named.to_string(), found });
    }
    let all_built = rows.iter().all(|row| matches!(row.found, Found::Cost(_)));
    arguments.format.print(&Costs { name: name.clone(), types: rows })?;
    Ok(if all_built { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Render for Costs {
    fn text(&self) -> String {
        let rows: Vec<[String; 7]> = self.types.iter().map(Row::cells).collect();
        table::columns(["type", "size", "on disk", "zstd -3", "build CPU", "to ssh", "writer"], &rows)
    }
}

struct Report<'a> {
    set: &'a ImageSet,
    assembly: &'a Assembly<'a>,
    machine: Option<&'a BootEnvironment>,
    folder: &'a Path,
}

impl Report<'_> {
    fn cost(&self, order: Order, has_sshd: bool, progress: &Progress) -> Result<Cost> {
        let (name, target) = (order.spec.name.clone(), order.target);
        // Checking the image is not part of its cost.
        let order = Order { check: false, ..order };
        let (before, started) = (cpu_time()?, Instant::now());
        let BuildOutcome::Built { image, manifest } = order.build(self.assembly, self.folder, progress)? else {
            bail!("{name} was not built");
        };
        let (build_cpu, build_wall) = (cpu_time()?.saturating_sub(before), started.elapsed());
        let about = fs::metadata(&image)?;
        let stage = progress.stage("zstd");
        let compressed_bytes = compressed_bytes(&image)?;
        stage.finish(&human_bytes(compressed_bytes));
        let built = Built { name, target, image, manifest: *manifest };
        let boot = match self.machine {
            Some(machine) => {
                let spec = self.set.resolve(&built.name)?.boot;
                let stage = progress.stage(format!("boot ({})", machine.accelerator.as_str()));
                let mut booted = built.boot_test(machine, &spec, has_sshd)?.measure()?;
                // The logs are removed with the images.
                booted.logs.clear();
                stage.finish("");
                Some(booted)
            }
            None => None,
        };
        fs::remove_file(&built.image)?;
        Ok(Cost {
            size_bytes: about.len(),
            // `st_blocks` counts 512-byte units whatever the block size.
            allocated_bytes: about.blocks() * 512,
            compressed_bytes,
            cpu_seconds: seconds(build_cpu),
            wall_seconds: seconds(build_wall),
            writer: built.manifest.census.writer.clone(),
            boot,
        })
    }
}

impl Row {
    fn cells(&self) -> [String; 7] {
        let kind = self.named.clone();
        let Found::Cost(cost) = &self.found else {
            return [kind, "failed".into(), String::new(), String::new(), String::new(), String::new(), String::new()];
        };
        let time = |seconds: f64| human_duration(Duration::from_secs_f64(seconds));
        let to_ssh = cost.boot.as_ref().and_then(|boot| boot.to_ssh).map(time).unwrap_or_default();
        [
            kind,
            human_bytes(cost.size_bytes),
            human_bytes(cost.allocated_bytes),
            human_bytes(cost.compressed_bytes),
            time(cost.cpu_seconds),
            to_ssh,
            cost.writer.clone(),
        ]
    }
}

/// Processor time of this process and of all children it has waited for.
fn cpu_time() -> Result<Duration> {
    let mut total = Duration::ZERO;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who).context("cannot read the processor time")?;
        for time in [usage.user_time(), usage.system_time()] {
            total += Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap_or(0));
        }
    }
    Ok(total)
}

/// Size of the image compressed as it is published.
fn compressed_bytes(image: &Path) -> Result<u64> {
    let mut command = ZSTD.command()?;
    command.args(ZSTD_ARGUMENTS).stdin(fs::File::open(image)?).stdout(Stdio::piped());
    let mut child = Child::start(&mut command)?;
    let mut packed = child.stdout.take().expect("a pipe was asked for");
    let bytes = io::copy(&mut packed.by_ref(), &mut io::sink())?;
    let status = child.wait()?;
    if !status.success() {
        bail!("zstd failed with {status}");
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_a_type_costs_or_why_it_failed() {
        let cost = Cost {
            size_bytes: 4096,
            allocated_bytes: 4096,
            compressed_bytes: 100,
            cpu_seconds: 1.5,
            wall_seconds: 2.0,
            writer: "tar2sqfs".into(),
            boot: None,
        };
        let rows = [
            Row { named: "squashfs+verity".into(), found: Found::Cost(cost.into()) },
            Row { named: "erofs".into(), found: Found::Failure { error: "no mkfs.erofs".into() } },
        ];
        insta::assert_snapshot!(serde_json::to_string(&rows).unwrap(), @r#"[{"type":"squashfs+verity","size-bytes":4096,"allocated-bytes":4096,"compressed-bytes":100,"cpu-seconds":1.5,"wall-seconds":2.0,"writer":"tar2sqfs"},{"type":"erofs","error":"no mkfs.erofs"}]"#);
    }
}
