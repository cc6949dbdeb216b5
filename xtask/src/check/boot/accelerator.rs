//! Which accelerator a machine gets: the processor's where it really runs guests, else emulation.
//!
//! That /dev/kvm opens does not say that guests run: nested and restricted hosts give the device and then fail, or hang.
//! So a machine is started and given some seconds to reach a marker; the answer is kept in the cache.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use base16ct::lower::encode_string as hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Accelerator, Disk, Guest, Kernel, Machine, kernel_arguments, qemu, write_initramfs};
use crate::cache::Cache;
use crate::report::progress::Progress;

/// What the command line asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AcceleratorChoice {
    #[default]
    Auto,
    Only(Accelerator),
}

impl FromStr for AcceleratorChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(AcceleratorChoice::Auto),
            "kvm" => Ok(AcceleratorChoice::Only(Accelerator::Kvm)),
            "tcg" => Ok(AcceleratorChoice::Only(Accelerator::Tcg)),
            _ => Err(format!("`{text}` is not one of auto, kvm, tcg")),
        }
    }
}

const DEVICE: &str = "/dev/kvm";
/// What the initramfs says first, and how a kernel ends that has none and finds nothing on its disk.
const MARKER: &str = "initramfs: modules";
const MARKER_WITHOUT_INITRAMFS: &str = "Kernel panic";
/// A machine that runs is there in a second or two; one that does not may hang for ever.
const BUDGET: Duration = Duration::from_secs(15);
/// The smallest disk that the probe's machine may have, in bytes; nobody reads it.
const DISK_BYTES: u64 = 1 << 20;

/// What a probe found, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Probe {
    runs: bool,
    why: String,
}

/// The accelerator to use, and why it is this one.
pub fn choose_accelerator(
    wanted: AcceleratorChoice,
    kernel: &Kernel,
    cache: &Cache,
    progress: &Progress,
) -> Result<(Accelerator, String)> {
    if let AcceleratorChoice::Only(accelerator) = wanted {
        return Ok((accelerator, "asked for".to_owned()));
    }
    if let Err(error) = File::options().read(true).write(true).open(DEVICE) {
        return Ok((Accelerator::Tcg, format!("{DEVICE}: {error}")));
    }
    let place = remembered(kernel, cache)?;
    let known = fs::read(&place).ok().and_then(|bytes| serde_json::from_slice::<Probe>(&bytes).ok());
    let probe = match known {
        Some(probe) => probe,
        None => {
            let stage = progress.stage("probe KVM");
            let probe = probe_kvm(kernel)?;
            stage.finish(&probe.why);
            keep(&probe, &place)?;
            probe
        }
    };
    let accelerator = if probe.runs { Accelerator::Kvm } else { Accelerator::Tcg };
    Ok((accelerator, probe.why))
}

/// Where the answer for this host, this QEMU and this kernel is kept.
fn remembered(kernel: &Kernel, cache: &Cache) -> Result<PathBuf> {
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = processor.lines().find(|line| line.starts_with("model name")).unwrap_or_default().to_owned();
    // The host may be moved to another machine between two of its own boots only.
    let key = [host.trim(), boot.trim(), &processor, &qemu::version()?, &kernel.version].join("\n");
    let name = hex(&Sha256::digest(key.as_bytes()));
    Ok(cache.root().join(format!("kvm-{}.json", &name[..16])))
}

fn keep(probe: &Probe, place: &PathBuf) -> Result<()> {
    let folder = place.parent().context("the cache has a folder")?;
    let mut file = tempfile::NamedTempFile::new_in(folder).context("cannot write to the cache")?;
    file.write_all(&serde_json::to_vec(probe)?)?;
    file.persist(place).with_context(|| format!("cannot name {}", place.display()))?;
    Ok(())
}

fn probe_kvm(kernel: &Kernel) -> Result<Probe> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let initramfs = write_initramfs(kernel, folder.path())?;
    let marker = if initramfs.is_some() { MARKER } else { MARKER_WITHOUT_INITRAMFS };
    let disk = folder.path().join("disk");
    File::create(&disk)?.set_len(DISK_BYTES)?;
    let reached = Guest::start(&Machine {
        kernel: &kernel.image,
        initramfs: initramfs.as_deref(),
        disks: &[Disk::discarding_writes(&disk)],
        arguments: &kernel_arguments(kernel, &[]),
        accelerator: Accelerator::Kvm,
        log: &folder.path().join("serial.log"),
        budget: BUDGET,
    })
    .and_then(|mut guest| guest.wait_for(marker));
    Ok(match reached {
        Ok(time) => Probe { runs: true, why: format!("a guest came up in {:.1} s", time.as_secs_f64()) },
        Err(error) => {
            let first = error.to_string().lines().next().unwrap_or_default().to_owned();
            Probe { runs: false, why: format!("{DEVICE} opens and runs no guest: {first}") }
        }
    })
}
