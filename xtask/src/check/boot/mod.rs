//! Boots an image as a microVM would, in QEMU with Debian's kernel, and reports the times.
//!
//! [`Kernel::fetch`] gets a kernel, `initramfs::write` makes its initramfs, [`Guest::start`] starts QEMU. [`boot_and_keep`]
//! does all three and returns a [`BootReport`].

mod accelerator;
mod boot_test;
mod cpio;
mod diagnosis;
pub mod dmsetup;
mod environment;
mod initramfs;
mod kernel;
mod qemu;
pub mod ssh;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::atomic::Scratch;
use anyhow::Context;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use snug_process::program::Missing;

use crate::cache::Cache;
use crate::plan::hash_file;

pub use accelerator::{AcceleratorChoice, choose_accelerator};
pub use boot_test::{BootSummary, BootTest, GuestCommand, OVERLAY_ARGUMENT, OverlayDisk, empty_disk, remove_logs};
pub use diagnosis::diagnose;
pub use dmsetup::Dmsetup;
pub use environment::BootEnvironment;
pub use kernel::{Kernel, Parts};
pub use qemu::{Accelerator, Disk, Guest, Machine, run_on_terminal, terminal_command};

/// How long a boot may take. Under emulation a Debian root needs 3 to 13 s on an idle machine, and needed more than two
/// minutes on one that had thirteen times as much to do as processors.
pub const DEFAULT_BUDGET: Duration = Duration::from_secs(300);

/// Hexadecimal digits that distinguish one initramfs from another.
const NAME_DIGITS: usize = 16;

/// The guest's address in QEMU's user network, and the router's there (QEMU's documentation, "Network emulation").
const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const ROUTER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// What `/init` says when it starts, and when the network is up.
const INIT_STARTED: &str = "init: mounts";
const NETWORK_UP: &str = "init: network";

/// Why a boot failed. A caller can tell a slow machine from a broken image.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// QEMU ended, or its guest powered off, before the awaited event.
    #[error("the machine ended ({status}) before {awaited}\n{tail}")]
    Ended { awaited: String, status: String, tail: String },
    /// The budget was used up.
    #[error("{awaited} did not come within {} s\n{tail}", budget.as_secs())]
    TimedOut { awaited: String, budget: Duration, tail: String },
    /// This host has no QEMU.
    #[error("cannot start a virtual machine")]
    Missing(#[from] Missing),
    /// QEMU could not be started or watched.
    #[error("cannot run {program}: {source}")]
    Run { program: &'static str, source: std::io::Error },
}

/// One boot: what to start, and what to wait for.
pub struct BootRequest<'a> {
    pub kernel: &'a Kernel,
    /// The first is the image: a filesystem without a partition table.
    pub disks: &'a [Disk<'a>],
    /// More of the kernel command line, for example [`authorized_key_argument`].
    pub arguments: &'a [String],
    /// Texts to wait for on the serial console, in any order.
    pub expectations: &'a [&'a str],
    /// Whether to wait for an SSH server's identification line.
    pub ssh: bool,
    pub accelerator: Accelerator,
    /// Time limit of the whole boot, from QEMU's start.
    pub budget: Duration,
    /// File that receives the output of the serial console.
    pub log: PathBuf,
}

/// The result of a boot. Times count from QEMU's start.
#[derive(Debug, Clone, serde::Serialize)]
pub struct BootReport {
    pub kernel: String,
    pub to_init: Option<Duration>,
    pub to_network: Option<Duration>,
    /// The server's identification line, `SSH-2.0-…` (RFC 4253, 4.2), and when it was read.
    pub ssh_banner: Option<String>,
    pub to_ssh: Option<Duration>,
    /// Each expectation with the time it was first seen, in the order of the request.
    pub seen: Vec<(String, Duration)>,
    pub log: PathBuf,
}

/// Boots an image and waits for everything that the request expects. Returns the machine, still running, with the report.
pub fn boot_and_keep(request: &BootRequest) -> anyhow::Result<(BootReport, Guest)> {
    let folder = Scratch::new().context("cannot make a temporary folder for the initramfs")?;
    let initramfs = write_initramfs(request.kernel, folder.path())?;
    let mut guest = Guest::start(&Machine {
        kernel: &request.kernel.image,
        initramfs: initramfs.as_deref(),
        disks: request.disks,
        arguments: &kernel_arguments(request.kernel, request.arguments),
        accelerator: request.accelerator,
        log: &request.log,
        budget: request.budget,
    })?;
    let mut seen = Vec::new();
    for expectation in request.expectations {
        seen.push(((*expectation).to_owned(), guest.wait_for(expectation)?));
    }
    let (ssh_banner, to_ssh) = match request.ssh {
        true => guest.read_ssh_banner().map(|(banner, time)| (Some(banner), Some(time)))?,
        false => (None, None),
    };
    let report = BootReport {
        kernel: request.kernel.version.clone(),
        to_init: guest.seen_at(INIT_STARTED),
        to_network: guest.seen_at(NETWORK_UP),
        ssh_banner,
        to_ssh,
        seen,
        log: request.log.clone(),
    };
    Ok((report, guest))
}

/// Writes the initramfs of `kernel` into `folder`. Returns its path; `None` if the kernel takes none.
pub fn write_initramfs(kernel: &Kernel, folder: &Path) -> anyhow::Result<Option<PathBuf>> {
    let Some(parts) = &kernel.initramfs else { return Ok(None) };
    let place = folder.join("initramfs.cpio");
    initramfs::write(parts, &place)?;
    Ok(Some(place))
}

/// Writes the initramfs of `kernel` into the cache, where it stays until `clean`, named by its content. Returns its path;
/// `None` if the kernel takes none.
pub fn keep_initramfs(kernel: &Kernel, cache: &Cache) -> anyhow::Result<Option<PathBuf>> {
    // Removed by the next run where this one is ended by a signal.
    let folder = cache.work_folder("initramfs")?;
    let Some(written) = write_initramfs(kernel, folder.path())? else { return Ok(None) };
    let digest = hash_file(&written, &mut |_| {})?;
    std::fs::create_dir_all(cache.kernels()).context("cannot make the folder of kernels")?;
    let place = cache.kernels().join(format!("initramfs-{}-{}.cpio", kernel.version, &digest[..NAME_DIGITS]));
    std::fs::rename(&written, &place).with_context(|| format!("cannot name {}", place.display()))?;
    Ok(Some(place))
}

/// Returns the kernel argument by which `/init` authorizes a key. `line` is one line of `authorized_keys`.
pub fn authorized_key_argument(line: &str) -> String {
    format!("snug.authorized_key_b64={}", BASE64_STANDARD.encode(line.trim_end()))
}

/// Returns the kernel command line of a boot: serial console, restart on a panic (at which QEMU ends), the network of
/// `GUEST_ADDRESS`, then the arguments of the caller.
///
/// An emulated processor on a busy host may get too few ticks of its timer while the kernel looks whether that works,
/// and then panics ("IO-APIC + timer doesn't work"): it is told not to look.
///
/// A kernel without an initramfs runs on QEMU's microvm, which ends when its guest restarts by a triple fault (QEMU's
/// documentation, "'microvm' virtual platform"). Of the other ways, which a kernel tries first, an emulated machine on a
/// busy host did not come back in 5 of 13 ends.
///
/// Kernels of microVMs may have no driver for a serial port and speak over virtio (hvc0); whoever has one console only
/// takes that.
pub fn kernel_arguments(kernel: &Kernel, more: &[String]) -> String {
    let consoles = if kernel.initramfs.is_some() { "console=ttyS0" } else { "console=hvc0 console=ttyS0" };
    let mut arguments = vec![
        consoles.to_owned(),
        "quiet".to_owned(),
        "panic=-1".to_owned(),
        "no_timer_check".to_owned(),
        "root=/dev/vda".to_owned(),
        // An image that can be written to is; one that cannot is mounted read-only all the same.
        "rw".to_owned(),
        "init=/init".to_owned(),
        format!("ip={GUEST_ADDRESS}::{ROUTER_ADDRESS}:255.255.255.0:::off"),
    ];
    if kernel.initramfs.is_none() {
        arguments.push("reboot=t".to_owned());
    }
    arguments.extend_from_slice(more);
    arguments.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_ends_with_what_the_caller_adds() {
        let kernel = Kernel {
            version: "6.1".into(),
            image: PathBuf::new(),
            initramfs: Some(Parts { modules: PathBuf::new(), busybox: PathBuf::new(), dmsetup: None }),
        };
        insta::assert_snapshot!(
            kernel_arguments(&kernel, &[authorized_key_argument("ssh-ed25519 AAAA\n")]),
            @"console=ttyS0 quiet panic=-1 no_timer_check root=/dev/vda rw init=/init ip=10.0.2.15::10.0.2.2:255.255.255.0:::off snug.authorized_key_b64=c3NoLWVkMjU1MTkgQUFBQQ=="
        );
        insta::assert_snapshot!(
            kernel_arguments(&Kernel { initramfs: None, ..kernel }, &[]),
            @"console=hvc0 console=ttyS0 quiet panic=-1 no_timer_check root=/dev/vda rw init=/init ip=10.0.2.15::10.0.2.2:255.255.255.0:::off reboot=t"
        );
    }
}
