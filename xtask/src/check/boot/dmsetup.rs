//! `dmsetup` and its libraries for the initramfs, which opens images under dm-verity with it. Debian's kernels have
//! device-mapper as a module and ignore `dm-mod.create=`; the initramfs reads that argument and does what a kernel with
//! CONFIG_DM_INIT would.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use snug_process::child;

use crate::bases::unpacked::Tools;
use crate::cache::Cache;
use crate::filesystem::verity::Verity;
use crate::report::progress::Progress;

/// Folder in the initramfs; `initramfs-init.sh` has the same names.
pub const FOLDER: &str = "dmsetup";
const PROGRAM: &str = "dmsetup";
const LOADER: &str = "loader";
/// Debian's package, and the suite that it is taken from on every host.
const PACKAGE: &str = "dmsetup";
const SUITE: &str = "trixie";

/// `dmsetup`, unpacked.
#[derive(Debug, Clone)]
pub struct Dmsetup(Tools);

impl Dmsetup {
    /// Fetches it from the cache or, the first time, from Debian's archive.
    pub fn fetch(cache: &Cache, progress: &Progress) -> Result<Self> {
        Tools::fetch(cache, SUITE, &[PACKAGE], progress).map(Dmsetup)
    }

    /// Takes it from a folder that [`Tools`] has filled.
    pub fn at(root: &Path) -> Self {
        Dmsetup(Tools::at(root))
    }

    /// Returns the loader, the program and its libraries, each as name in the initramfs and path on the host.
    pub fn files(&self) -> Result<Vec<(String, PathBuf)>> {
        let dmsetup = self.0.command(PROGRAM)?;
        let loader = PathBuf::from(dmsetup.get_program());
        let program = self.0.program(PROGRAM)?;
        // `ld.so --list … PROGRAM` (ld.so(8)) prints `libc.so.6 => /path/to/libc.so.6 (0x…)`.
        let listed = child::run(Command::new(&loader).arg("--list").args(dmsetup.get_args()), &[])
            .context("cannot list the libraries of dmsetup")?;
        let mut files = vec![(LOADER.to_owned(), loader), (PROGRAM.to_owned(), program)];
        for line in String::from_utf8_lossy(&listed).lines() {
            if let Some((name, place)) = line.trim().split_once(" => ") {
                let place = place.split(" (0x").next().unwrap_or(place);
                files.push((name.to_owned(), PathBuf::from(place)));
            }
        }
        Ok(files)
    }
}

/// Returns the kernel arguments that open an image under dm-verity and make it the root.
pub fn root_arguments(verity: &Verity) -> [String; 2] {
    [verity.kernel_argument.clone(), "root=/dev/dm-0".to_owned()]
}
