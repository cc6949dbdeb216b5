//! `doctor`: what this host can do, probed by doing it, and for what it cannot the command that changes that.

use std::num::NonZeroUsize;
use std::process::{Command, ExitCode};

use anyhow::{Result, anyhow};
use clap::Args;
use serde::Serialize;
use snug_ext4::size::SizePolicy;
use snug_formats::{Ext4Options, Ext4Writer, Filesystem, FilesystemKind, SquashfsOptions};
use snug_process::child;
use snug_rootfs::tree::{BodySource, RootTree};
use snug_spec::model::EngineKind;

use super::arguments;
use super::run::Run;
use crate::bases::debian;
use crate::engine::choose;
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
    let (set, cache, providers) = (run.images()?, run.cache()?, run.cached_providers()?);
    let mut probes: Vec<(String, Probe)> = Vec::new();
    for kind in EngineKind::ALL {
        let probe = move || choose::engine(kind, cache).probe().map(|()| "its probe passes".to_owned());
        probes.push((format!("engine {kind}"), Box::new(probe)));
    }
    let debian = || debian::probe().and_then(|()| version("mmdebstrap", "--version"));
    probes.push(("base debian".to_owned(), Box::new(debian)));
    probes.push(("base oci".to_owned(), Box::new(|| proved(Task::OciBase, "skopeo", "--version"))));
    for (what, filesystem) in filesystems() {
        probes.push((what, Box::new(move || write_a_sample(&filesystem))));
    }
    probes.push(("filesystem squashfs by mksquashfs".to_owned(), Box::new(mksquashfs)));
    probes.push(("check of ext4".to_owned(), Box::new(|| proved(Task::Check, "e2fsck", "-V"))));
    probes.push(("check --boot".to_owned(), Box::new(boot)));
    let first_image = probes.len();
    for name in set.names() {
        let providers = &providers;
        probes.push((format!("image {name}"), Box::new(move || can_be_built(set, name, providers))));
    }
    let findings = jobs::run(&probes, AT_ONCE, |(what, probe)| Finding::of(what.as_str(), probe()));
    let ready = findings[first_image..].iter().all(|image| image.can);

    arguments.format.print(&Diagnosis { ready, findings })?;
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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

fn filesystems() -> Vec<(String, Filesystem)> {
    let own = FilesystemKind::ALL.map(|kind| (format!("filesystem {kind}"), Filesystem::default_of(kind)));
    let by = |writer: Ext4Writer| Filesystem::Ext4(Ext4Options { writer, ..Ext4Options::default() });
    let others = [("mke2fs", Ext4Writer::Mke2fs), ("loop", Ext4Writer::Loop)];
    own.into_iter().chain(others.map(|(name, writer)| (format!("filesystem ext4 by {name}"), by(writer)))).collect()
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
    let folder = tempfile::tempdir()?;
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
    Ok(said.lines().next().unwrap_or(program).trim().to_owned())
}

fn proved(task: Task, program: &str, argument: &str) -> Result<String> {
    requirements::require(&[task])?;
    version(program, argument)
}

fn boot() -> Result<String> {
    let qemu = proved(Task::Boot, "qemu-system-x86_64", "--version")?;
    let kvm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    let kvm = match kvm {
        Ok(_) => "/dev/kvm opens".to_owned(),
        Err(error) => format!("emulated, since /dev/kvm does not open ({})", error.kind()),
    };
    Ok(format!("{qemu}, {kvm}"))
}

fn can_be_built(set: &snug_spec::ImageSet, name: &str, providers: &Providers) -> Result<String> {
    let target = Target::all(set.get(name)?, &[])?[0];
    let Some(order) = Order::known(set, name, target, providers)? else {
        // Only builds ask registries: such a base needs the program that does.
        requirements::require(&[Task::OciBase])?;
        return Ok("OCI base, not fetched yet".to_owned());
    };
    requirements::require(&order.tasks())?;
    if let Some(filesystem) = &order.filesystem {
        can_be_written(filesystem)?;
    }
    Ok(order.plan().base.describe())
}
