//! Emulators for programs of another platform: one that the host has registered, or QEMU's, to be registered in the user
//! namespace alone (the kernel's `Documentation/admin-guide/binfmt-misc.rst`).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::unistd::Uid;
use snug_process::program::{self, HostProgram};
use snug_rootfs::platform::Platform;

use crate::Emulator;

/// The emulators that the host has registered.
const REGISTERED: &str = "/proc/sys/fs/binfmt_misc";

/// ELF's `e_machine` (elf.h), little endian, as 64-bit systems have it.
fn elf_machine(platform: Platform) -> u8 {
    match platform {
        Platform::Amd64 => 62,  // EM_X86_64
        Platform::Arm64 => 183, // EM_AARCH64
    }
}

/// The names of QEMU's user-mode emulators for `platform`: Debian 13 has static ones under either name.
fn interpreters(platform: Platform) -> [&'static str; 2] {
    match platform {
        Platform::Amd64 => ["qemu-x86_64-static", "qemu-x86_64"],
        Platform::Arm64 => ["qemu-aarch64-static", "qemu-aarch64"],
    }
}

/// Returns the emulator to register in the namespace so that programs of `platform` run there; `None` if the machine or the
/// host's own registration runs them. Fails with [`Missing`](program::Missing) in its chain if there is none.
///
/// What is emulated can change the file of its emulator, where its user may: the host's registration, which has the host's
/// file open, is for other users than root.
pub fn emulator(platform: Platform) -> Result<Option<Emulator>> {
    if Some(platform) == Platform::host() {
        return Ok(None);
    }
    let registered = registered(platform, Path::new(REGISTERED));
    if let Some(interpreter) = &registered
        && !is_changeable(interpreter)
    {
        return Ok(None);
    }
    let names = interpreters(platform);
    let found = names.iter().filter_map(|name| program::find(name)).chain(registered);
    let interpreter = found.into_iter().find(|path| is_static(path));
    let interpreter = interpreter
        .ok_or_else(|| HostProgram { name: names[0], package: "qemu-user-static" }.missing())
        .with_context(|| format!("programs of {platform} do not run on this machine"))?;
    Ok(Some(Emulator { interpreter, elf_machine: elf_machine(platform) }))
}

/// Returns whether this user may change the attributes of a file, or replace it.
fn is_changeable(file: &Path) -> bool {
    let user = Uid::effective();
    user.is_root() || fs::metadata(file).is_ok_and(|there| there.uid() == user.as_raw())
}

/// Returns the emulator that the host has registered for any root directory, by its path on the host.
fn registered(platform: Platform, registered: &Path) -> Option<PathBuf> {
    let entry = |text: String| {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name).map(str::trim));
        let magic = field("magic").unwrap_or_default();
        // Hex digits of an ELF header; `e_machine` is its 19th byte.
        let machine = magic.get(36..38).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        // F: the kernel holds the emulator open, so that no root directory needs to have it.
        let fixed = field("flags:").is_some_and(|flags| flags.contains('F'));
        let ours = fixed && magic.starts_with("7f454c46") && machine == Some(elf_machine(platform));
        field("interpreter").map(PathBuf::from).filter(|_| ours && text.starts_with("enabled"))
    };
    let entries = fs::read_dir(registered).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|file| fs::read_to_string(file.path()).ok()).find_map(entry)
}

/// Returns whether a program is statically linked, so that it runs in another root directory: it has no program header of
/// type PT_INTERP (elf(5)).
fn is_static(path: &Path) -> bool {
    use std::os::unix::fs::FileExt;
    const HEADER: usize = 64;
    const PT_INTERP: u32 = 3;
    let Ok(file) = fs::File::open(path) else { return false };
    let mut header = [0; HEADER];
    if file.read_exact_at(&mut header, 0).is_err() || !header.starts_with(b"\x7fELF\x02\x01") {
        return false;
    }
    let number =
        |at: usize, length: usize| header[at..at + length].iter().rev().fold(0, |all, b| all << 8 | u64::from(*b));
    let (offset, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).all(|index| {
        let mut kind = [0; 4];
        file.read_exact_at(&mut kind, offset + index * size).is_ok() && u32::from_le_bytes(kind) != PT_INTERP
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str = "enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: POCF\noffset 0\n\
                         magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n";

    #[test]
    fn the_hosts_emulator_counts_where_it_is_found_from_inside() {
        let folder = tempfile::tempdir().unwrap();
        let with = |text: &str| {
            fs::write(folder.path().join("qemu-aarch64"), text).unwrap();
            registered(Platform::Arm64, folder.path())
        };
        assert_eq!(with(ENTRY), Some("/usr/libexec/qemu-binfmt/aarch64-binfmt-P".into()));
        assert_eq!(with(&ENTRY.replace("POCF", "POC")), None, "no interpreter is held open");
        assert_eq!(with(&ENTRY.replace("enabled", "disabled")), None);
        assert_eq!(with(&ENTRY.replace("00b700", "003e00")), None, "another machine");
        assert_eq!(registered(Platform::Arm64, &folder.path().join("none")), None);
    }

    #[test]
    fn an_emulator_that_its_user_could_change_is_not_the_hosts_open_file() {
        let own = tempfile::NamedTempFile::new().unwrap();
        assert!(is_changeable(own.path()));
        assert_eq!(is_changeable(Path::new("/proc/sys/kernel/hostname")), Uid::effective().is_root());
    }

    #[test]
    fn programs_without_a_loader_are_static() {
        let loader = is_static(&std::env::current_exe().unwrap());
        assert!(!loader, "the test itself is linked dynamically");
        assert!(!is_static(Path::new("/etc/passwd")));
        if let Some(qemu) = program::find("qemu-aarch64-static") {
            assert!(is_static(&qemu));
        }
    }
}
