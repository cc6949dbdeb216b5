//! Registers an emulator in this user namespace alone: since Linux 6.7 each namespace may have a binfmt_misc of its own (`Documentation/admin-guide/binfmt-misc.rst`).

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::Emulator;
use super::sealed::SealedProgram;

/// The first bytes of a 64-bit little-endian ELF program (ELF specification, `e_ident` to `e_machine`), executable or
/// position-independent, and the mask of the bits to compare.
const MAGIC: [u8; 19] = [0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0];
const MASK: [u8; 19] =
    [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0xff, 0xff];

/// A registration, which lasts as long as its filesystem is open.
#[derive(Debug)]
pub(super) struct Emulation {
    _filesystem: File,
}

/// Registers `emulator` in this namespace, for every root directory.
pub(super) fn emulate(emulator: &Emulator) -> Result<Emulation> {
    let here = tempfile::tempdir().context("cannot make a temporary folder")?;
    let none: Option<&str> = None;
    mount(Some("binfmt_misc"), here.path(), Some("binfmt_misc"), MsFlags::empty(), none).with_context(|| {
        // The namespace's root is not the host's: how to become that is for the person to know.
        "cannot register an emulator in the namespace alone, which needs Linux 6.7 or newer\n\
         hint: register it for the whole host, as its root (apt-get install qemu-user-static binfmt-support), and build as \
         another user than root: what root emulates could change the host's emulator"
    })?;
    let registered = register(emulator, here.path());
    // The open folder keeps the filesystem when it is unmounted and the root directory changes.
    let filesystem = File::open(here.path())?;
    umount2(here.path(), MntFlags::MNT_DETACH)?;
    registered.map(|()| Emulation { _filesystem: filesystem })
}

fn register(emulator: &Emulator, at: &Path) -> Result<()> {
    // A program that is emulated has the emulator as its `/proc/self/exe`.
    let interpreter = SealedProgram::copy(&emulator.interpreter)?;
    let mut magic = MAGIC;
    magic[18] = emulator.elf_machine;
    let escaped = |bytes: &[u8]| bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
    let mut line = format!(":emulated:M::{}:{}:", escaped(&magic), escaped(&MASK)).into_bytes();
    line.extend_from_slice(interpreter.path().as_os_str().as_bytes());
    // O, C: set-id programs work; P: the emulator gets argv[0]; F: the kernel opens the emulator now, so that no root needs
    // to have it.
    line.extend_from_slice(b":OCPF");
    fs::write(at.join("register"), line)
        .with_context(|| format!("cannot register the emulator {}", emulator.interpreter.display()))
}
