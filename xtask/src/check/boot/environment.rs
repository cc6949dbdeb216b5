//! What it takes to boot images on this host.

use std::path::Path;

use anyhow::Result;

use crate::cache::Cache;
use crate::check::boot::{self, Accelerator, AcceleratorChoice, Dmsetup, Kernel};
use crate::host::requirements::{self, Task};
use crate::report::progress::Progress;

/// What it takes to boot images on this host.
pub struct BootEnvironment {
    pub kernel: Kernel,
    pub accelerator: Accelerator,
    /// Why it is this accelerator.
    pub why: String,
}

impl BootEnvironment {
    /// `own`: a kernel that needs no initramfs. `sealed`: with what opens images under dm-verity.
    pub fn prepare(
        own: Option<&Path>,
        wanted: AcceleratorChoice,
        sealed: bool,
        cache: &Cache,
        progress: &Progress,
    ) -> Result<Self> {
        requirements::require(&[Task::Boot])?;
        let kernel = match own {
            Some(image) => Kernel::own(image)?,
            None => debians(sealed, cache, progress)?,
        };
        let (accelerator, why) = boot::choose_accelerator(wanted, &kernel, cache, progress)?;
        Ok(BootEnvironment { kernel, accelerator, why })
    }
}

fn debians(sealed: bool, cache: &Cache, progress: &Progress) -> Result<Kernel> {
    let stage = progress.stage("get a kernel");
    let mut kernel = Kernel::fetch(cache.root())?;
    stage.finish(&kernel.version);
    if let (true, Some(parts)) = (sealed, &mut kernel.initramfs) {
        parts.dmsetup = Some(Dmsetup::fetch(cache, progress)?);
    }
    Ok(kernel)
}
