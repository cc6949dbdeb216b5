//! `doctor`: what this host can do, probed by doing it, and for what it cannot the command that changes that.

use std::num::NonZeroUsize;
use std::process::{Command, ExitCode};

use anyhow::{Result, anyhow};
use clap::Args;
use serde::Serialize;
use snug_ext4::size::SizePolicy;
use snug_formats::{Ext4Options, Ext4Writer, Filesystem, FilesystemKind, SquashfsOptions};
use snug_process::child;
use snug_process::privilege::Root;
use snug_rootfs::platform::Platform;
use snug_rootfs::tree::{BodySource, RootTree};
use snug_sandbox::emulator::emulator;
use snug_spec::ImageSet;
use snug_spec::model::EngineKind;

use super::arguments;
use super::run::Run;
use crate::atomic::Scratch;
use crate::bases::debian;
use crate::cache::Cache;
use crate::check::boot;
use crate::engine::choose::{self, Engines};
use crate::error;
use crate::filesystem::erofs::ErofsUtils;
use crate::filesystem::squashfs::{Program, SquashfsWriter};
use crate::filesystem::{self, FilesystemWriter};
use crate::host::erofs_utils;
use crate::host::requirements::{self, Task};
use crate::image::{Order, Providers, Target};
use crate::jobs;
use crate::report::progress::Progress;
use crate::report::render::Render;
use crate::report::table;

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    images: arguments::Images,
    #[command(flatten)]
    format: arguments::Format,
}

/// Probes at a time: most of a probe is waiting for a program to start.
const AT_ONCE: NonZeroUsize = NonZeroUsize::new(4).expect("4 is not 0");

/// Probes a capability; returns the program that provides it.
type Probe<'a> = Box<dyn Fn() -> Result<String> + Sync + 'a>;

/// A capability of the host.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Finding {
    what: String,
    can: bool,
    /// The program that provides it, or why there is none.
    detail: String,
    /// The command that makes it possible.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

/// All findings.
#[derive(Debug, Serialize)]
struct Diagnosis {
    /// Whether every image of the workspace can be built here.
    ready: bool,
    findings: Vec<Finding>,
}

impl Finding {
    fn of(what: impl Into<String>, result: Result<String>) -> Self {
        let what = what.into();
        match result {
            Ok(detail) => Finding { what, can: true, detail, fix: None },
            Err(error) => {
                let error::Parts { causes, hints } = error::Parts::of(&error);
                Finding {
                    what,
                    can: false,
                    detail: causes.join(": ").replace('\n', "; "),
                    fix: hints.into_iter().next(),
                }
            }
        }
    }
}

/// Probes every capability. The exit code is 1 if an image of the workspace cannot be built here; what no image needs may be
/// missing.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let run = Run::with_images(&arguments.images);
    let (set, cache, providers, engines) = (run.images()?, run.cache()?, run.cached_providers()?, run.engines()?);
    let mut probes: Vec<(String, Probe)> = Vec::new();
    for kind in EngineKind::ALL {
        let probe = move || choose::engine(kind, cache).probe().map(|()| "its probe passes".to_owned());
        probes.push((format!("engine {kind}"), Box::new(probe)));
    }
    for task in Task::ALL.into_iter().filter(|task| *task != Task::Builtin) {
        let probe = move || requirements::require(&[task]).map_err(Into::into).and_then(|()| probe(task, cache));
        probes.push((task.title().to_owned(), Box::new(probe)));
        match task {
            Task::Mke2fs => {
                probes.push(("filesystem ext4 by loop".to_owned(), Box::new(|| write_ext4(Ext4Writer::Loop))))
            }
            Task::Squashfs => probes.push(("filesystem squashfs by mksquashfs".to_owned(), Box::new(mksquashfs))),
            _ => {}
        }
    }
    let first_image = probes.len();
    for name in set.names() {
        let (providers, engines) = (&providers, &engines);
        probes.push((format!("image {name}"), Box::new(move || can_be_built(set, name, providers, engines))));
    }
    let findings = jobs::run(&probes, AT_ONCE, |(what, probe)| Finding::of(what.as_str(), probe()));
    let ready = findings[first_image..].iter().all(|image| image.can);

    arguments.format.print(&Diagnosis { ready, findings })?;
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Does what a task is about, on a host that meets its requirements; returns what does it.
fn probe(task: Task, cache: &Cache) -> Result<String> {
    let sample = |kind| write_a_sample(&Filesystem::default_of(kind));
    match task {
        // The engines have rows of their own.
        Task::Builtin => Ok(String::new()),
        Task::DebianBase => debian::probe().and_then(|()| version("mmdebstrap", "--version")),
        Task::OciBase => version("skopeo", "--version"),
        Task::Ext4 => sample(FilesystemKind::Ext4),
        Task::Mke2fs => write_ext4(Ext4Writer::Mke2fs),
        Task::Squashfs => sample(FilesystemKind::Squashfs),
        Task::Erofs => sample(FilesystemKind::Erofs),
        Task::CheckExt4 => version("e2fsck", "-V"),
        Task::CheckSquashfs => version("unsquashfs", "-version"),
        Task::CheckErofs => Ok(check_of_erofs()),
        Task::Emulation => emulation(),
        Task::Boot => boot::diagnose(cache),
        Task::Report => version("zstd", "--version"),
        Task::Test => Ok("all programs that the tests compare with".to_owned()),
    }
}

fn check_of_erofs() -> String {
    let fsck = match ErofsUtils::must_be_fetched() {
        true => "fsck.erofs, which the first check fetches from Debian into the cache",
        false => "fsck.erofs",
    };
    match Root::here() {
        Root::Already => format!("{fsck}; the kernel reads the files"),
        _ => format!("{fsck}; only the kernel reads the files, which needs root"),
    }
}

fn emulation() -> Result<String> {
    let others = Platform::ALL.into_iter().filter(|platform| Some(*platform) != Platform::host());
    let mut said = Vec::new();
    for platform in others {
        said.push(match emulator(platform)? {
            None => format!("{platform}: by the host's own registration"),
            Some(emulator) => {
                format!("{platform}: {}, registered in the build's namespace alone", emulator.interpreter.display())
            }
        });
    }
    Ok(said.join("; "))
}

impl Render for Diagnosis {
    fn text(&self) -> String {
        let cells = |finding: &Finding| {
            let fix = finding.fix.as_ref().map(|fix| format!(" → {fix}")).unwrap_or_default();
            [finding.what.clone(), if finding.can { "yes" } else { "no" }.into(), finding.detail.clone() + &fix]
        };
        let rows: Vec<[String; 3]> = self.findings.iter().map(cells).collect();
        table::columns(["capability", "here", "by, or why not"], &rows)
    }
}

fn write_ext4(writer: Ext4Writer) -> Result<String> {
    write_a_sample(&Filesystem::Ext4(Ext4Options { writer, ..Ext4Options::default() }))
}

/// Writes an image of an empty tree; returns the program that wrote it.
fn write_a_sample(filesystem: &Filesystem) -> Result<String> {
    can_be_written(filesystem)?;
    if filesystem.kind() == FilesystemKind::Erofs && ErofsUtils::must_be_fetched() {
        let here = erofs_utils::installed_version()
            .map_or("no mkfs.erofs here".to_owned(), |version| format!("mkfs.erofs {version} is too old"));
        return Ok(format!("{here}; the first erofs image fetches a newer one from Debian into the cache"));
    }
    write_by(&*filesystem::writer(filesystem, &Progress::hidden())?)
}

fn write_by(writer: &dyn FilesystemWriter) -> Result<String> {
    let tree = RootTree::new(BodySource::new(Vec::new()));
    let folder = Scratch::new()?;
    let census =
        writer.write(&tree, &SizePolicy::default(), &folder.path().join("sample"), &Progress::hidden().stage(""))?;
    Ok(census.writer)
}

/// Probes the program that writes squashfs where tar2sqfs is missing.
fn mksquashfs() -> Result<String> {
    Program::Mksquashfs.probe()?;
    let writer = SquashfsWriter::with_program(&SquashfsOptions::default(), Program::Mksquashfs)?;
    Ok(format!("{}, which loses the root directory's attributes", write_by(&writer)?))
}

/// Checks the options, and that a program is there or can be fetched, without fetching it.
fn can_be_written(filesystem: &Filesystem) -> Result<()> {
    match filesystem.kind() == FilesystemKind::Erofs && ErofsUtils::must_be_fetched() {
        true => Ok(requirements::require(&[Task::Erofs])?),
        false => filesystem::writer(filesystem, &Progress::hidden()).map(drop),
    }
}

/// The first line of a program's version text.
fn version(program: &str, argument: &str) -> Result<String> {
    let path = snug_process::program::find(program).ok_or_else(|| anyhow!("there is no {program}"))?;
    let output = child::output(Command::new(path).arg(argument).env("LC_ALL", "C"))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    // zstd puts stars around it.
    Ok(said.lines().next().unwrap_or(program).trim_matches(['*', ' ']).to_owned())
}

/// Says what an image is built from, if all that its build needs is here.
fn can_be_built(set: &ImageSet, name: &str, providers: &Providers, engines: &Engines) -> Result<String> {
    let spec = set.get(name)?;
    engines.choose(None, spec.engine)?;
    let target = Target::all(spec, &[])?[0];
    let Some(order) = Order::known(set, name, target, providers)? else {
        // Only builds ask registries: such a base needs the program that does.
        requirements::require(&[Task::OciBase])?;
        return Ok("OCI base, not fetched yet".to_owned());
    };
    // Whether an engine works was asked of the engines.
    let tasks: Vec<Task> = order.tasks().into_iter().filter(|task| *task != Task::Builtin).collect();
    requirements::require(&tasks)?;
    if tasks.contains(&Task::DebianBase) {
        debian::probe()?;
    }
    if let Some(filesystem) = &order.filesystem {
        can_be_written(filesystem)?;
    }
    Ok(order.plan().base.describe())
}
