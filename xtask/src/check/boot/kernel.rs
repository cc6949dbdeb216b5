//! The kernel to boot with: Debian's for virtual machines, unpacked into the cache and never installed (its
//! installation scripts would touch the host's /boot), or one of the user's that has all drivers built in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use snug_process::child;
use snug_process::program::HostProgram;
use snug_rootfs::regular_file;

use super::dmsetup::Dmsetup;
use crate::cache::Cache;
use crate::error::Failure;
use crate::report::progress::Progress;

const APT_CACHE: HostProgram = HostProgram { name: "apt-cache", package: "apt" };
const APT_GET: HostProgram = HostProgram { name: "apt-get", package: "apt" };
const DPKG_DEB: HostProgram = HostProgram { name: "dpkg-deb", package: "dpkg" };

/// Bytes of the largest kernel that is read: uncompressed and with all drivers, they have less than a tenth.
const KERNEL_MAX: u64 = 1 << 30;

/// The package that always depends on the current kernel.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
const BUSYBOX_PACKAGE: &str = "busybox-static";

/// A kernel and the parts of its initramfs.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// As the kernel names itself, for example `6.1.0-56-cloud-amd64`.
    pub version: String,
    /// A bzImage, or an ELF file with a PVH entry.
    pub image: PathBuf,
    /// `None`: all drivers are built in, and the kernel mounts the image by itself.
    pub initramfs: Option<Parts>,
}

/// The parts of an initramfs.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The folder that holds `modules.dep`.
    pub modules: PathBuf,
    /// A static busybox.
    pub busybox: PathBuf,
    /// For images under dm-verity, together with [`super::dmsetup::root_arguments`].
    pub dmsetup: Option<Dmsetup>,
}

impl Kernel {
    /// Fetches the current kernel of the host's Debian from the cache or, the first time, from Debian's archive. If apt does
    /// not know the current one, takes the newest in the cache.
    pub fn fetch(cache: &Cache, progress: &Progress) -> Result<Self> {
        let kernels = cache.kernels();
        let package = match current_package() {
            Ok(package) => package,
            Err(error) => return newest(&kernels).ok_or(error),
        };
        let folder = kernels.join(package.folder());
        if folder.exists() {
            return Self::open(&folder);
        }
        let waiting = || progress.note(format!("another run fetches {}; waiting", package.name));
        let _lock = cache.lock("kernels", waiting)?;
        // Another run may have fetched it while this one waited.
        if !folder.exists() {
            download(cache, &package, &folder)
                .with_context(|| format!("cannot get the kernel package {}", package.name))?;
        }
        Self::open(&folder)
    }

    /// Returns the kernel that [`Kernel::fetch`] would return without fetching; `None` if it would fetch one.
    pub fn known(cache: &Path) -> Result<Option<Self>> {
        let kernels = cache.join("kernels");
        match current_package() {
            Ok(package) => {
                let folder = kernels.join(package.folder());
                folder.exists().then(|| Self::open(&folder)).transpose()
            }
            Err(error) => newest(&kernels).map(Some).ok_or(error),
        }
    }

    /// Opens a folder that [`Kernel::fetch`] has filled.
    pub fn open(folder: &Path) -> Result<Self> {
        let modules_of_versions = folder.join("lib/modules");
        let version = fs::read_dir(&modules_of_versions)
            .with_context(|| format!("cannot read {}", modules_of_versions.display()))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .next()
            .ok_or_else(|| anyhow!("{} is empty", modules_of_versions.display()))?;
        let parts = Parts { modules: modules_of_versions.join(&version), busybox: busybox_in(folder)?, dmsetup: None };
        Ok(Kernel { image: folder.join("boot").join(format!("vmlinuz-{version}")), initramfs: Some(parts), version })
    }

    /// Takes a kernel of the user's, as microVM runtimes have them: no modules, no initramfs.
    pub fn own(image: &Path) -> Result<Self> {
        let bytes = regular_file::read(image, KERNEL_MAX)
            .map_err(|error| Failure::Usage(format!("no kernel {}: {error}", image.display())))?;
        let version = release(&bytes).ok_or_else(|| {
            Failure::Usage(format!(
                "{} is no kernel that QEMU starts: neither a bzImage nor an uncompressed ELF file",
                image.display()
            ))
        })?;
        Ok(Kernel { version, image: image.to_path_buf(), initramfs: None })
    }

    /// Returns the parts of its initramfs. It is an error if the kernel takes none.
    pub fn parts(&self) -> Result<&Parts> {
        self.initramfs.as_ref().ok_or_else(|| anyhow!("Linux {} is to start without an initramfs", self.version))
    }
}

/// Returns the release that a kernel's file states: a bzImage in its header (the kernel's Documentation/arch/x86/boot.rst,
/// `kernel_version`), an uncompressed one in the banner that it prints.
fn release(kernel: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let start = if kernel.get(0x202..0x206) == Some(b"HdrS") {
        0x200 + usize::from(u16::from_le_bytes(kernel.get(0x20e..0x210)?.try_into().ok()?))
    } else if kernel.starts_with(b"\x7fELF") {
        memchr::memmem::find(kernel, BANNER)? + BANNER.len()
    } else {
        return None;
    };
    let word = kernel.get(start..)?.split(|byte| byte.is_ascii_whitespace() || *byte == 0).next()?;
    (!word.is_empty() && word.is_ascii()).then(|| String::from_utf8_lossy(word).into_owned())
}

/// A package and the version that apt would install.
struct Package {
    name: String,
    version: String,
}

impl Package {
    fn folder(&self) -> String {
        format!("{}_{}", self.name, self.version)
    }
}

fn current_package() -> Result<Package> {
    let hint = "hint: kernels come from Debian's archive through apt; try `apt-get update`";
    let depends = said(APT_CACHE.command()?.args(["depends", KERNEL_PACKAGE])).context(hint)?;
    let name = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .ok_or_else(|| anyhow!("apt knows no {KERNEL_PACKAGE}\n{hint}"))?;
    let stanza = said(APT_CACHE.command()?.args(["show", "--no-all-versions", name])).context(hint)?;
    let version = stanza
        .lines()
        .find_map(|line| line.strip_prefix("Version: "))
        .ok_or_else(|| anyhow!("apt shows no version of {name}\n{hint}"))?;
    Ok(Package { name: name.to_owned(), version: version.to_owned() })
}

/// Unpacks in a work folder and renames, so that an interrupted download leaves nothing half done.
fn download(cache: &Cache, package: &Package, folder: &Path) -> Result<()> {
    let work = cache.work_folder("kernel")?;
    let [unpacked, debs] = ["unpacked", "debs"].map(|name| work.path().join(name));
    for folder in [&unpacked, &debs, &cache.kernels()] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    // The sandbox user could not write into this folder, and apt verifies what it downloads either way.
    said(
        APT_GET
            .command()?
            .args(["download", "--quiet", "--option", "APT::Sandbox::User=root", &package.name, BUSYBOX_PACKAGE])
            .current_dir(&debs),
    )?;
    for deb in fs::read_dir(&debs)? {
        said(DPKG_DEB.command()?.arg("--extract").arg(deb?.path()).arg(&unpacked))?;
    }
    // The package leaves depmod to its installation script.
    let kernel = Kernel::open(&unpacked)?;
    said(
        Command::new(&kernel.parts()?.busybox)
            .args(["depmod", "-b"])
            .arg(unpacked.canonicalize()?)
            .arg(&kernel.version),
    )?;
    fs::rename(&unpacked, folder).with_context(|| format!("cannot rename to {}", folder.display()))
}

fn newest(kernels: &Path) -> Option<Kernel> {
    let mut folders: Vec<PathBuf> = fs::read_dir(kernels)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("linux-image-")))
        .collect();
    folders.sort_by_key(|folder| fs::metadata(folder).and_then(|metadata| metadata.modified()).ok());
    folders.iter().rev().find_map(|folder| Kernel::open(folder).ok())
}

/// Finds busybox, which Debian moved from /bin to /usr/bin.
fn busybox_in(folder: &Path) -> Result<PathBuf> {
    ["usr/bin/busybox", "bin/busybox"]
        .iter()
        .map(|path| folder.join(path))
        .find(|path| path.is_file())
        .ok_or_else(|| anyhow!("{BUSYBOX_PACKAGE} in {} holds no busybox", folder.display()))
}

/// Runs a command to its end and returns what it printed.
fn said(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&child::run(command, &[])?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_names_its_release() {
        let mut compressed = vec![0; 0x400];
        compressed[0x202..0x206].copy_from_slice(b"HdrS");
        compressed[0x20e..0x210].copy_from_slice(&[0x00, 0x01]);
        compressed[0x300..0x310].copy_from_slice(b"6.1.0-56-cloud (");
        assert_eq!(release(&compressed).as_deref(), Some("6.1.0-56-cloud"));
        assert_eq!(release(b"\x7fELF\x02 Linux version 6.18.55 (root@x)\n").as_deref(), Some("6.18.55"));
        assert_eq!(release(b"Linux version 6.18.55"), None);
        assert_eq!(release(b"\x7fELF\x02 a program"), None);
    }
}
