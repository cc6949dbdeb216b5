//! `boot`: starts an image as a virtual machine and attaches its console, or an SSH session; or prints the command that does.

mod print;

use std::io::{IsTerminal, stderr, stdin};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use snug_formats::FilesystemKind;
use snug_process::child;
use snug_process::program::HostProgram;
use snug_process::terminal::Settings;
use snug_rootfs::platform::Platform;

use super::run::Run;
use super::{arguments, file_names};
use crate::atomic::{Accepts, Destination, Identity};
use crate::cache::Cache;
use crate::check::boot::BootEnvironment;
use crate::check::boot::{
    self, Accelerator, BootRequest, DEFAULT_BUDGET, Disk, Kernel, Machine, OverlayDisk, kernel_arguments,
    run_on_terminal, ssh, write_initramfs,
};
use crate::error::Failure;
use crate::host::requirements::Task;
use crate::image::Built;
use crate::report::progress::{Progress, human_bytes};
use crate::report::streams;

const CP: HostProgram = HostProgram { name: "cp", package: "coreutils" };
/// Has `/init` run a shell on the console, without a password: who writes the kernel's command line is root anyway.
const CONSOLE_SHELL: &str = "snug.console=shell";
/// Size of the disk for an overlay, in bytes. The file is sparse: it takes the space that is written.
const OVERLAY_BYTES: u64 = 1 << 30;
/// Time that a machine has to power off after the SSH session.
const END_BUDGET: Duration = Duration::from_secs(45);

#[derive(Debug, Args)]
#[command(mut_arg("json", |json| json.requires("print")))]
pub struct Arguments {
    /// Image to start, as it was built last
    #[arg(value_name = "NAME")]
    name: String,
    /// Log in by SSH with a throw-away key instead of showing the console
    #[arg(long)]
    ssh: bool,
    /// Print the command that starts the machine, for a shell, and start nothing
    #[arg(long, conflicts_with_all = ["ssh", "command"])]
    print: bool,
    #[command(flatten)]
    printed: print::Options,
    /// Keep what the machine writes in FILE: a copy of the image, or the overlay of a read-only one, made at its first use
    #[arg(long, value_name = "FILE")]
    persist: Option<PathBuf>,
    #[command(flatten)]
    machine: arguments::Machine,
    #[command(flatten)]
    platform: arguments::OnePlatform,
    #[command(flatten)]
    results: arguments::Results,
    #[command(flatten)]
    images: arguments::Images,
    #[command(flatten)]
    setup: arguments::Setup,
    /// Command to run by SSH instead of a shell
    #[arg(last = true, requires = "ssh", value_name = "COMMAND")]
    command: Vec<String>,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let setup = arguments.setup;
    start(arguments).map_err(|error| setup.hint([Task::Boot, Task::DebianBase], error))
}

fn start(arguments: Arguments) -> Result<ExitCode> {
    let interactive = stdin().is_terminal() && stderr().is_terminal();
    if !interactive && arguments.command.is_empty() && !arguments.print {
        bail!(Failure::Usage(
            "a machine's console needs a terminal, and standard input is none\n\
             hint: run one command with `--ssh -- COMMAND`, or check the image with `check NAME --boot`"
                .to_owned()
        ));
    }
    let run = Run::with_images(&arguments.images).and_results(&arguments.results);
    let (set, progress) = (run.images()?, run.progress());
    let built = Built::find(set, &arguments.name, &run.results()?, arguments.platform.platform)?;
    if Some(built.target.platform) != Platform::host() {
        bail!(Failure::Usage(format!(
            "{} is built for {}, and only images for this machine's own platform are started",
            arguments.name, built.target.platform
        )));
    }
    if let Some(why) = built.staleness(set, &run.cached_providers()?) {
        progress.warn(format!("warning: {}: {why}", arguments.name));
    }
    if let Some(why) = built.changes(&progress.for_image(&arguments.name)) {
        progress.warn(format!("{0}: {why}\nhint: cargo xtask image {0} writes it again", arguments.name));
    }
    arguments.setup.prepare(built.boot_tasks())?;
    let persist = arguments.persist.as_deref().map(|file| persistent(file, &built, &arguments)).transpose()?;
    let own_key = if arguments.print { arguments.printed.key()? } else { None };
    let spec = set.resolve(&arguments.name)?.boot;
    let BootEnvironment { cache, kernel, accelerator, why } = BootEnvironment::prepare(
        arguments.machine.kernel.as_deref(),
        arguments.machine.accel,
        built.manifest.verity.is_some(),
        run.swept_cache()?,
        progress,
    )?;
    progress.note(format!("{}: by {} ({why})", arguments.name, accelerator.as_str()));
    let mut words = spec.arguments.clone();
    words.extend(built.root_arguments());
    let disks = match arguments.persist.as_deref().zip(persist) {
        Some((file, disk)) if built.is_read_only() => {
            overlay(file, disk, progress)?;
            words.push(boot::OVERLAY_ARGUMENT.to_owned());
            vec![Disk::discarding_writes(&built.image), Disk::keeping_writes(file)]
        }
        Some((file, disk)) => vec![Disk::keeping_writes(copy(&built.image, file, disk, progress)?)],
        None => vec![Disk::discarding_writes(&built.image)],
    };
    if arguments.print {
        words.push(CONSOLE_SHELL.to_owned());
        return arguments.printed.print(&disks, &kernel, accelerator, (words, own_key), &cache, progress);
    }
    match arguments.ssh {
        true => by_ssh(&disks, (&kernel, accelerator), words, &arguments.command, &cache, progress),
        false => on_console(&disks, (&kernel, accelerator), words, &cache, progress),
    }
}

/// Decides where what the machine writes is kept: in a regular file that is no other image's, named as the raw ext4 that it
/// is.
fn persistent(file: &Path, built: &Built, arguments: &Arguments) -> Result<Destination> {
    if built.overlay_disk() == OverlayDisk::LeftAlone {
        bail!(Failure::Usage(format!(
            "{} takes its overlay in memory only, so that nothing it writes can be kept\n\
             hint: leave --persist out, or `overlay-device = false` in its spec",
            built.name
        )));
    }
    // Of an image that can be written to, the file is a copy; of others it holds the overlay, which is ext4, too.
    let kind = if built.is_read_only() { FilesystemKind::Ext4 } else { built.manifest.filesystem.kind() };
    file_names::image(file, Some(kind), "--persist")?;
    let disk = Destination::new(file, Accepts::files("a disk"))?;
    disk.refuse_input(Identity::of(&built.image), &format!("the image {} itself", built.name))?;
    if let Some(kernel) = &arguments.machine.kernel {
        disk.refuse_input(Identity::of(kernel), "the kernel")?;
    }
    disk.probe()?;
    Ok(disk)
}

/// Makes the disk of the overlay, unless it exists.
fn overlay(file: &Path, disk: Destination, progress: &Progress) -> Result<()> {
    if !file.exists() {
        let stage = progress.stage(format!("make {}", file.display()));
        let partial = disk.begin()?;
        boot::empty_disk(partial.path(), OVERLAY_BYTES)?;
        disk.finish(partial, true, progress)?;
        stage.finish(&human_bytes(OVERLAY_BYTES));
    }
    Ok(())
}

/// Copies the image to `file`, which the machine writes to, unless it exists.
fn copy<'a>(image: &Path, file: &'a Path, disk: Destination, progress: &Progress) -> Result<&'a Path> {
    if !file.exists() {
        let stage = progress.stage(format!("copy the image to {}", file.display()));
        let partial = disk.begin()?;
        // Holes stay holes.
        let mut copy = CP.command()?;
        copy.args(["--sparse=always", "--reflink=auto"]).args([image, partial.path()]);
        child::run(&mut copy, &[]).with_context(|| format!("cannot copy {}", image.display()))?;
        disk.finish(partial, true, progress)?;
        stage.finish(&human_bytes(std::fs::metadata(file)?.len()));
    }
    Ok(file)
}

fn on_console(
    disks: &[Disk],
    (kernel, accelerator): (&Kernel, Accelerator),
    mut words: Vec<String>,
    cache: &Cache,
    progress: &Progress,
) -> Result<ExitCode> {
    let folder = cache.work_folder("boot")?;
    let initramfs = write_initramfs(kernel, folder.path())?;
    words.push(CONSOLE_SHELL.to_owned());
    progress.note("Ctrl-A X kills the machine; `kill -TERM 1` in it powers it off");
    // The guest's words go to the terminal as they are: its console is what was asked for.
    streams::begin_fence();
    let status = run_on_terminal(&Machine {
        kernel: &kernel.image,
        initramfs: initramfs.as_deref(),
        disks,
        arguments: &kernel_arguments(kernel, &words),
        accelerator,
        log: &folder.path().join("serial.log"),
        budget: DEFAULT_BUDGET,
    })?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn by_ssh(
    disks: &[Disk],
    (kernel, accelerator): (&Kernel, Accelerator),
    mut words: Vec<String>,
    command: &[String],
    cache: &Cache,
    progress: &Progress,
) -> Result<ExitCode> {
    let folder = cache.work_folder("boot")?;
    let key = ssh::Key::make(cache)?;
    words.push(boot::authorized_key_argument(&key.line));
    let stage = progress.stage("boot");
    let (report, mut guest) = boot::boot_and_keep(&BootRequest {
        kernel,
        disks,
        arguments: &words,
        expectations: &[],
        ssh: true,
        accelerator,
        budget: DEFAULT_BUDGET,
        log: folder.path().join("serial.log"),
    })?;
    stage.finish(&report.ssh_banner.unwrap_or_default());
    let login = ssh::Login { address: guest.ssh_address(), key: &key };
    let mut client = login.client()?;
    if command.is_empty() {
        client.arg("-t");
    }
    // ssh sets the terminal to raw mode; one that is killed leaves it so.
    let settings = Settings::keep();
    streams::begin_fence();
    let status = child::status(client.arg("--").args(command))?;
    drop(settings);
    // A guest that powers off writes out what is kept; one that does not in time is killed.
    let stage = progress.stage("end the machine");
    login.power_off(END_BUDGET)?;
    guest.allow(END_BUDGET);
    match guest.wait_for_end() {
        Ok(_) => stage.finish(""),
        Err(error) => progress.warn(format!("warning: the machine was killed: {error}")),
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
