//! What booting an image needs from the host: a kernel and an accelerator.

use std::path::Path;

use anyhow::Result;

use crate::cache::Cache;
use crate::check::boot::{self, Accelerator, AcceleratorChoice, Dmsetup, Kernel};
use crate::host::requirements::{self, Task};
use crate::report::progress::Progress;

/// A kernel and an accelerator to boot images with, and where files of machines lie.
pub struct BootEnvironment {
    pub cache: Cache,
    pub kernel: Kernel,
    pub accelerator: Accelerator,
    /// Why this accelerator was chosen.
    pub why: String,
}

impl BootEnvironment {
    /// Fetches Debian's kernel, or takes `own`, a kernel that needs no initramfs, and chooses the accelerator. `sealed`: the
    /// image is under dm-verity, so that the initramfs needs dmsetup.
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
        Ok(BootEnvironment { cache: cache.clone(), kernel, accelerator, why })
    }
}

fn debians(sealed: bool, cache: &Cache, progress: &Progress) -> Result<Kernel> {
    let stage = progress.stage("get a kernel");
    let mut kernel = Kernel::fetch(cache, progress)?;
    stage.finish(&kernel.version);
    if let (true, Some(parts)) = (sealed, &mut kernel.initramfs) {
        parts.dmsetup = Some(Dmsetup::fetch(cache, progress)?);
    }
    Ok(kernel)
}
