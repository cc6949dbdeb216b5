//! What a boot would find on this host, told without starting a machine or fetching anything.

use std::fs::File;

use anyhow::Result;

use super::accelerator::{DEVICE, known_probe};
use super::{Kernel, qemu};
use crate::cache::Cache;

/// Says with which QEMU, kernel and accelerator an image would boot.
///
/// # Errors
///
/// If there is no QEMU, or no kernel in the cache and none to be fetched.
pub fn diagnose(cache: &Cache) -> Result<String> {
    let kernel = Kernel::known(cache.root())?;
    let accelerator = match (File::options().read(true).write(true).open(DEVICE), &kernel) {
        (Err(error), _) => format!("emulated, since {DEVICE} does not open ({})", error.kind()),
        (Ok(_), None) => format!("{DEVICE} opens; the first boot tries whether guests run"),
        (Ok(_), Some(kernel)) => match known_probe(kernel, cache)? {
            None => format!("{DEVICE} opens; the first boot tries whether guests run"),
            Some(probe) if probe.runs => format!("by KVM ({})", probe.why),
            Some(probe) => format!("emulated ({})", probe.why),
        },
    };
    let kernel = kernel.map_or("a kernel that the first boot fetches from Debian".to_owned(), |kernel| {
        format!("Linux {}", kernel.version)
    });
    Ok(format!("{}, {kernel}, {accelerator}", qemu::version()?))
}
