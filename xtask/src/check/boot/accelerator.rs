//! Chooses the accelerator of a machine: KVM where it really runs guests, else emulation (TCG).
//!
//! A /dev/kvm that opens does not prove that guests run: on nested and restricted hosts they fail or hang. So a machine is
//! started and given some seconds to reach a marker; the result is kept in the cache.

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
use crate::atomic::Scratch;
use crate::cache::Cache;
use crate::report::progress::Progress;

/// Value of `--accel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AcceleratorChoice {
    #[default]
    Auto,
    Only(Accelerator),
}

impl AcceleratorChoice {
    /// The names of all values.
    pub const NAMES: [&str; 3] = ["auto", "kvm", "tcg"];
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

pub(super) const DEVICE: &str = "/dev/kvm";
/// The initramfs's first message, and how a kernel without one ends on an empty disk.
const MARKER: &str = "initramfs: modules";
const MARKER_WITHOUT_INITRAMFS: &str = "Kernel panic";
/// A working machine needs a second or two; a broken one may hang for ever.
const BUDGET: Duration = Duration::from_secs(15);
/// Size of the probe's disk, in bytes; nothing reads it.
const DISK_BYTES: u64 = 1 << 20;

/// Result of a probe, as the cache has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Probe {
    pub(super) runs: bool,
    pub(super) why: String,
}

/// Returns the accelerator to use, and why.
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
    let probe = match known_probe(kernel, cache)? {
        Some(probe) => probe,
        None => probe_once(kernel, cache, progress)?,
    };
    let accelerator = if probe.runs { Accelerator::Kvm } else { Accelerator::Tcg };
    Ok((accelerator, probe.why))
}

/// Probes, or waits for another run that does: two machines at once are slower, and one would be taken for broken.
fn probe_once(kernel: &Kernel, cache: &Cache, progress: &Progress) -> Result<Probe> {
    let _lock = cache.lock("kvm", || progress.note("another run probes KVM; waiting"))?;
    if let Some(probe) = known_probe(kernel, cache)? {
        return Ok(probe);
    }
    let stage = progress.stage("probe KVM");
    let probe = probe_kvm(kernel)?;
    stage.finish(&probe.why);
    keep(&probe, &remembered(kernel, cache)?)?;
    Ok(probe)
}

/// Returns the result that the cache has for this host, QEMU and kernel.
pub(super) fn known_probe(kernel: &Kernel, cache: &Cache) -> Result<Option<Probe>> {
    let bytes = fs::read(remembered(kernel, cache)?).ok();
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Returns the cache file of the result for this host, QEMU and kernel.
fn remembered(kernel: &Kernel, cache: &Cache) -> Result<PathBuf> {
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = processor.lines().find(|line| line.starts_with("model name")).unwrap_or_default().to_owned();
    // A host changes its machine only between two boots, so its boot id stands for the machine.
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
    let folder = Scratch::new().context("cannot make a temporary folder")?;
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
            Probe { runs: false, why: format!("{DEVICE} opens but runs no guest: {first}") }
        }
    })
}
