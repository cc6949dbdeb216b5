//! ext4 as the kernel writes it: mke2fs makes an empty filesystem, root mounts it through a loop device, and GNU tar unpacks
//! the tree there. Slow, and for root only; but it shares no code with the other writers, which can be compared with it.
//!
//! The mount lives in the mount namespace of a process of its own: the tool, started again under a hidden verb
//! ([`VERB`]). However that process ends, the kernel takes mount and loop device away with it. It ends with the tool.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;
use snug_ext4::Census;
use snug_ext4::size::SizePolicy;
use snug_formats::{Ext4Options, FilesystemKind};
use snug_process::program::HostProgram;
use snug_process::{Child, child};
use snug_rootfs::tar::{self, TarOptions};
use snug_rootfs::tree::RootTree;

use super::{Content, MKE2FS, RESIZE2FS, Run, Settings, check, version};
use crate::error::quoted;
use crate::filesystem::FilesystemWriter;
use crate::host::mounts;
use crate::report::progress::Stage;
use crate::report::{github, screen};

/// The hidden verb with which the tool starts itself to mount an image and unpack its standard input there.
pub const VERB: &str = "__loop";

const MOUNT: HostProgram = HostProgram { name: "mount", package: "mount" };
const TAR: HostProgram = HostProgram { name: "tar", package: "tar" };
/// Bytes of a write to tar's standard input: the capacity of a pipe.
const PIPE_BYTES: usize = 64 << 10;

/// Writes a tree as ext4 through a loop mount.
#[derive(Debug, Clone)]
pub struct LoopWriter {
    options: Ext4Options,
}

impl LoopWriter {
    /// A writer with these options, if they are valid, this host has the programs, and we are root.
    pub fn new(options: &Ext4Options) -> Result<Self> {
        if !geteuid().is_root() {
            bail!(
                "writer = \"loop\" mounts the image, which only root may do\n\
                 hint: leave `writer` out: the native writer needs no root"
            );
        }
        check(options, &[MKE2FS, RESIZE2FS, MOUNT, TAR])?;
        Ok(LoopWriter { options: options.clone() })
    }
}

impl FilesystemWriter for LoopWriter {
    fn kind(&self) -> FilesystemKind {
        FilesystemKind::Ext4
    }

    fn write(&self, tree: &RootTree, policy: &SizePolicy, output: &Path, stage: &Stage) -> Result<Census> {
        let settings = Settings::new(tree, &self.options);
        Run { settings, tree, content: &Unpacked, output, stage }.search(policy)
    }
}

/// The kernel writes what GNU tar unpacks.
struct Unpacked;

impl Content for Unpacked {
    fn make(&self, run: &Run, mut mke2fs: Command, blocks: u64) -> Result<()> {
        run.stage.detail("mke2fs");
        child::run(mke2fs.arg(run.output).arg(blocks.to_string()), &[])?;
        run.stage.detail("tar");
        let image = run.output.canonicalize().context("mke2fs made no image")?;
        let mut command = Command::new("/proc/self/exe");
        // What it says is said again by us, and fenced there.
        command.arg(VERB).arg(image).env_remove(github::VARIABLE);
        child::feed(&mut command, &[], |input| {
            let mut input = BufWriter::with_capacity(PIPE_BYTES, input);
            tar::write(run.tree, &mut input, TarOptions::FAITHFUL, &mut |_| {})?;
            Ok(input.flush()?)
        })
        .context("cannot fill the filesystem through a loop mount")?;
        Ok(())
    }

    fn writer(&self) -> Result<String> {
        let kernel = nix::sys::utsname::uname().context("the kernel has no name")?;
        Ok(format!("{}, Linux {}", version()?, kernel.release().display()))
    }
}

/// Runs the hidden verb: mounts the image named by its argument and unpacks standard input there.
pub fn inside_main() -> ExitCode {
    let filled = match std::env::args_os().nth(2) {
        Some(image) => fill(Path::new(&image)),
        None => Err(anyhow::anyhow!("this verb is for the tool's own use")),
    };
    if let Err(error) = filled {
        screen::say(&format!("{error:#}"));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn fill(image: &Path) -> Result<()> {
    let hint = "hint: root of this host or container may not mount; the native writer needs no mount";
    unshare(CloneFlags::CLONE_NEWNS).with_context(|| format!("cannot make a mount namespace\n{hint}"))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("cannot keep mounts to this process")?;
    // The image's own folder is used as the mount point: it exists, and only this process sees the mount.
    let place = image.parent().context("an image is in a folder")?;
    let mut command = MOUNT.command()?;
    command.args(["-t", "ext4", "-o", "loop,noatime"]).arg(image).arg(place);
    child::run(&mut command, &[]).map_err(|error| error.context(hint_of_loop()))?;
    release_reserved_clusters(place).context("cannot release the kernel's reserved clusters")?;
    unpack(place)?;
    umount2(place, MntFlags::empty()).context("cannot unmount the image")
}

fn hint_of_loop() -> String {
    "cannot mount the image\nhint: the host must have loop devices; the native writer needs none".to_owned()
}

/// The kernel reserves 2 % of the clusters, at most 4096, for its own use (kernel documentation,
/// `ABI/testing/sysfs-fs-ext4`, `reserved_clusters`). An exactly full image needs them.
fn release_reserved_clusters(place: &Path) -> Result<()> {
    let mounts = mounts::mounts().context("cannot read the mounts")?;
    // Ours is the last one.
    let device = mounts
        .last()
        .and_then(|mount| mount.source.file_name())
        .with_context(|| format!("{} is not mounted", place.display()))?;
    let control = Path::new("/sys/fs/ext4").join(device).join("reserved_clusters");
    // Fails if /sys is read-only; an image with enough free blocks can still be written.
    let _ = fs::write(control, "0");
    Ok(())
}

fn unpack(place: &Path) -> Result<()> {
    let mut command = TAR.command()?;
    command.args(["--extract", "--file", "-", "--preserve-permissions", "--same-owner", "--numeric-owner"]);
    command.args(["--xattrs", "--xattrs-include=*", "--warning=no-timestamp", "-C"]).arg(place);
    let tar = Child::start(command.stdin(Stdio::inherit()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let output = tar.wait_with_output().context("cannot read what tar says")?;
    // tar only warns of an attribute that the kernel refuses; here it is an error.
    if !output.status.success() || !output.stderr.is_empty() {
        bail!("tar ended with {}\n  {}", output.status, quoted(String::from_utf8_lossy(&output.stderr).trim_end()));
    }
    Ok(())
}
