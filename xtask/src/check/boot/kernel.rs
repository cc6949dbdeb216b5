//! The kernel to boot with: Debian's for virtual machines, unpacked into the cache and never installed (its
//! installation scripts would touch the host's /boot).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use super::mapper::Mapper;

/// The package that always depends on the current kernel.
pub const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
const BUSYBOX_PACKAGE: &str = "busybox-static";

/// A kernel with its modules, and the busybox that starts before the image.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// As the kernel names itself and its folder of modules, for example `6.1.0-56-cloud-amd64`.
    pub version: String,
    /// A bzImage.
    pub image: PathBuf,
    /// The folder that holds `modules.dep`.
    pub modules: PathBuf,
    /// A static busybox.
    pub busybox: PathBuf,
    /// For images that are sealed with dm-verity, with which [`super::mapper::arguments`] go.
    pub mapper: Option<Mapper>,
}

impl Kernel {
    /// The current kernel of the host's Debian, from `cache`/kernels or, the first time, from Debian's archive. Where
    /// the archive cannot be asked, the newest one in the cache.
    pub fn fetch(cache: &Path) -> Result<Self> {
        let kernels = cache.join("kernels");
        let package = match current_package() {
            Ok(package) => package,
            Err(error) => return newest(&kernels).ok_or(error),
        };
        let folder = kernels.join(package.folder());
        if !folder.exists() {
            download(&package, &kernels, &folder)
                .with_context(|| format!("cannot get the kernel package {}", package.name))?;
        }
        Self::open(&folder)
    }

    /// A folder that [`Kernel::fetch`] has filled.
    pub fn open(folder: &Path) -> Result<Self> {
        let modules_of_versions = folder.join("lib/modules");
        let version = fs::read_dir(&modules_of_versions)
            .with_context(|| format!("cannot read {}", modules_of_versions.display()))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .next()
            .ok_or_else(|| anyhow!("{} is empty", modules_of_versions.display()))?;
        Ok(Kernel {
            image: folder.join("boot").join(format!("vmlinuz-{version}")),
            modules: modules_of_versions.join(&version),
            busybox: busybox_in(folder)?,
            mapper: None,
            version,
        })
    }
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
    let depends = said(Command::new("apt-cache").args(["depends", KERNEL_PACKAGE])).context(hint)?;
    let name = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .ok_or_else(|| anyhow!("apt knows no {KERNEL_PACKAGE}\n{hint}"))?;
    let stanza = said(Command::new("apt-cache").args(["show", "--no-all-versions", name])).context(hint)?;
    let version = stanza
        .lines()
        .find_map(|line| line.strip_prefix("Version: "))
        .ok_or_else(|| anyhow!("apt shows no version of {name}\n{hint}"))?;
    Ok(Package { name: name.to_owned(), version: version.to_owned() })
}

/// Unpacks beside the final place and renames, so that an interrupted download leaves nothing half done.
fn download(package: &Package, kernels: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(kernels).with_context(|| format!("cannot make {}", kernels.display()))?;
    let unpacked = tempfile::tempdir_in(kernels)?;
    let debs = tempfile::tempdir_in(kernels)?;
    // The sandbox user could not write into this folder, and apt verifies what it downloads either way.
    said(
        Command::new("apt-get")
            .args(["download", "--quiet", "--option", "APT::Sandbox::User=root", &package.name, BUSYBOX_PACKAGE])
            .current_dir(debs.path()),
    )?;
    for deb in fs::read_dir(debs.path())? {
        said(Command::new("dpkg-deb").arg("--extract").arg(deb?.path()).arg(unpacked.path()))?;
    }
    // The package leaves this to its installation script.
    let kernel = Kernel::open(unpacked.path())?;
    said(
        Command::new(&kernel.busybox).args(["depmod", "-b"]).arg(unpacked.path().canonicalize()?).arg(&kernel.version),
    )?;
    match fs::rename(unpacked.path(), folder) {
        // Another run was faster.
        Err(_) if folder.exists() => Ok(()),
        renamed => renamed.with_context(|| format!("cannot rename to {}", folder.display())),
    }
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

/// Debian moved it from /bin to /usr/bin.
fn busybox_in(folder: &Path) -> Result<PathBuf> {
    ["usr/bin/busybox", "bin/busybox"]
        .iter()
        .map(|path| folder.join(path))
        .find(|path| path.is_file())
        .ok_or_else(|| anyhow!("{BUSYBOX_PACKAGE} in {} holds no busybox", folder.display()))
}

/// Runs a command to its end; what it printed, or an error with what it said.
fn said(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.env("LC_ALL", "C").output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
