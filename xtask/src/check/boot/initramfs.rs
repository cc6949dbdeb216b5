//! The initramfs: a static busybox, the modules that the kernel needs to mount the image, and a script that mounts it and
//! executes its `/init`. About 4 MB; uncompressed, since compressing would save no time.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use snug_process::child;
use snug_process::program::HostProgram;

use super::cpio;
use super::dmsetup;
use super::kernel::Parts;

/// Modules for the disk, the network and all filesystems. Those that a kernel has built in are skipped.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "ext4",
    "squashfs",
    "erofs",
    "overlay",
    "dm_verity",
    "sha256_generic",
    "sha256_ssse3",
    "crc32c_generic",
    "crc32c_intel",
];

/// The Linux numbers of /dev/console (the kernel's Documentation/admin-guide/devices.txt). The kernel opens it for the
/// first process before anything could be mounted.
const CONSOLE: (u32, u32) = (5, 1);

const XZ: HostProgram = HostProgram { name: "xz", package: "xz-utils" };
const ZSTD: HostProgram = HostProgram { name: "zstd", package: "zstd" };

const INIT: &str = include_str!("initramfs-init.sh");

/// Writes the archive of `parts` to `path`.
pub(super) fn write(parts: &Parts, path: &Path) -> Result<()> {
    let dependencies = Dependencies::read(&parts.modules)?;
    let modules = dependencies.in_loading_order(MODULES)?;
    let file = fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut archive = cpio::Writer::new(BufWriter::new(file));
    for folder in ["bin", "dev", "modules", "proc", "root", "sys"] {
        archive.directory(folder, 0o755)?;
    }
    archive.character_device("dev/console", 0o600, CONSOLE)?;
    archive.file("bin/busybox", 0o755, &read(&parts.busybox)?)?;
    archive.file("init", 0o755, INIT.as_bytes())?;
    if let Some(dmsetup) = &parts.dmsetup {
        archive.directory(dmsetup::FOLDER, 0o755)?;
        for (name, file) in dmsetup.files()? {
            archive.file(&format!("{}/{name}", dmsetup::FOLDER), 0o755, &read(&file)?)?;
        }
    }
    let mut order = String::new();
    for module in &modules {
        let name = format!("{}.ko", module_name(module));
        archive.file(&format!("modules/{name}"), 0o644, &read_module(&parts.modules.join(module))?)?;
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes())?;
    archive.finish()?;
    Ok(())
}

/// Dependencies of modules, from `modules.dep` (depmod(8)): paths below the folder of modules.
struct Dependencies {
    /// By module name: its path, and the paths of its dependencies.
    modules: BTreeMap<String, (String, Vec<String>)>,
    /// Names of modules that are built into the kernel.
    builtin: Vec<String>,
}

impl Dependencies {
    fn read(folder: &Path) -> Result<Self> {
        let text = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        Self::parse(&text("modules.dep")?, &text("modules.builtin")?)
    }

    fn parse(dep: &str, builtin: &str) -> Result<Self> {
        let mut modules = BTreeMap::new();
        for line in dep.lines() {
            let (path, needs) = line.split_once(':').ok_or_else(|| anyhow!("modules.dep has the line {line:?}"))?;
            let needs = needs.split_whitespace().map(str::to_owned).collect();
            modules.insert(module_name(path), (path.to_owned(), needs));
        }
        Ok(Dependencies { modules, builtin: builtin.lines().map(module_name).collect() })
    }

    /// Returns the paths of the wanted modules and their dependencies, dependencies first. A wanted module that this kernel
    /// does not have is left out: kernels rename and merge modules, and the boot shows whether something is missing.
    fn in_loading_order(&self, wanted: &[&str]) -> Result<Vec<String>> {
        let mut order = Vec::new();
        for name in wanted {
            if !self.builtin.iter().any(|builtin| builtin == name) && self.modules.contains_key(*name) {
                self.visit(name, &mut order, &mut Vec::new())?;
            }
        }
        Ok(order)
    }

    fn visit(&self, name: &str, order: &mut Vec<String>, above: &mut Vec<String>) -> Result<()> {
        let (path, needs) =
            self.modules.get(name).ok_or_else(|| anyhow!("modules.dep does not list {name}, which {above:?} need"))?;
        if order.contains(path) {
            return Ok(());
        }
        if above.iter().any(|other| other == name) {
            bail!("modules.dep has a circle at {name}");
        }
        above.push(name.to_owned());
        for need in needs {
            self.visit(&module_name(need), order, above)?;
        }
        above.pop();
        order.push(path.clone());
        Ok(())
    }
}

/// `kernel/fs/virtio-rng.ko.xz` is the module `virtio_rng`: the kernel knows no difference between `-` and `_`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

/// Reads a module and decompresses it. Newer Debian kernels compress each module, and busybox loads uncompressed ones only.
fn read_module(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(OsStr::to_str) {
        Some("xz") => XZ,
        Some("zst") => ZSTD,
        _ => return read(path),
    };
    let mut command = program.command()?;
    command.args(["--decompress", "--stdout"]).arg(path);
    child::run(&mut command, &[]).with_context(|| format!("cannot unpack {}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio.ko.xz:
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko.xz
kernel/drivers/char/hw_random/virtio-rng.ko: kernel/drivers/virtio/virtio.ko.xz
";

    #[test]
    fn modules_come_after_what_they_need() {
        let dependencies = Dependencies::parse(DEP, "kernel/fs/ext4/ext4.ko\n").expect("well formed");
        let order = dependencies.in_loading_order(&["ext4", "virtio_blk", "virtio_rng", "unknown"]).expect("no circle");
        insta::assert_snapshot!(order.join("\n"), @r"
        kernel/drivers/virtio/virtio.ko.xz
        kernel/drivers/virtio/virtio_ring.ko
        kernel/drivers/block/virtio_blk.ko
        kernel/drivers/char/hw_random/virtio-rng.ko
        ");
    }

    #[test]
    fn a_circle_is_an_error() {
        let dependencies = Dependencies::parse("a.ko: b.ko\nb.ko: a.ko\n", "").expect("well formed");
        let error = dependencies.in_loading_order(&["a"]).expect_err("a circle");
        assert_eq!(error.to_string(), "modules.dep has a circle at a");
    }
}
