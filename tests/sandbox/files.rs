//! The files of the programs that run steps, and device nodes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use snug_tests::{Workshop, have, is_root, succeed};

use super::{BUILDERS, Builder, content, hostile, said};
use crate::containers::Podman;

/// The loader that this machine's programs name (PT_INTERP), as a path in the base.
const LOADER: &str =
    if cfg!(target_arch = "aarch64") { "lib/ld-linux-aarch64.so.1" } else { "lib64/ld-linux-x86-64.so.2" };

/// As a program, and as a loader.
const ATTACK: &str = include_str!("attack.c");

/// Compiles [`ATTACK`] to `attack` in the workshop.
fn compile_attack(workshop: &Workshop) -> PathBuf {
    let (source, program) = (workshop.path("attack.c"), workshop.path("attack"));
    fs::write(&source, ATTACK).expect("a source");
    let options = ["-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-O1", "-o"];
    succeed(Command::new("cc").args(options).arg(&program).arg(&source));
    program
}

/// Whatever is done to a file, even to its attributes, changes the time of its last change.
fn state(file: &Path) -> (u32, u32, u32, u64, (i64, i64), (i64, i64)) {
    let about = fs::metadata(file).expect("the file");
    let changed = (about.ctime(), about.ctime_nsec());
    (about.mode(), about.uid(), about.gid(), about.len(), (about.mtime(), about.mtime_nsec()), changed)
}

/// Builds `hostile`, whose base attacks the file of its own process, and asserts that `victim` stays as it is.
fn assert_unharmed(builder: Builder, workshop: &Workshop, mut build: Command, victim: &Path) {
    let (before, bytes) = (state(victim), fs::read(victim).expect("the program"));
    let output = build.output().expect("the command runs");
    assert_eq!(state(victim), before, "{builder:?}: {}", said(&output));
    assert!(fs::read(victim).expect("the program") == bytes, "{builder:?}: {}", said(&output));
    // The attack ran, so that the comparison means something.
    assert!(output.status.success(), "{builder:?}: {}", said(&output));
    let stat = succeed(Command::new("debugfs").args(["-R", "stat /attacked"]).arg(builder.image(workshop)));
    assert!(String::from_utf8_lossy(&stat.stdout).contains("Type: directory"), "{builder:?}: {}", said(&output));
}

#[test]
fn a_base_with_a_loader_of_its_own_does_not_reach_the_tools_file() {
    if !is_root() || !have(&["busybox", "newuidmap", "unshare", "setpriv", "debugfs", "cc"]) {
        return;
    }
    for builder in BUILDERS {
        for shell in ["#!/proc/self/exe\n", "#!/proc/self/exe image\n"] {
            let workshop = Workshop::new();
            let loader = compile_attack(&workshop);
            fs::write(workshop.path("shell"), shell).expect("a script");
            hostile(&workshop, &[(&workshop.path("shell"), "bin/sh"), (&loader, LOADER)], "run = [\"attack\"]");
            let (build, program) = builder.command(&workshop);
            assert_unharmed(builder, &workshop, build, &program);
        }
    }
}

/// As [`ATTACK`], as a program of arm64: a static ELF file of one segment (elf(5)), assembled here, since a compiler for
/// another machine is seldom at hand.
fn arm64_attack() -> Vec<u8> {
    const AT_FDCWD: u64 = -100_i64 as u64;
    /// Numbers of system calls (asm-generic/unistd.h).
    const FCHOWNAT: u64 = 54;
    const FCHMODAT: u64 = 53;
    const SETXATTR: u64 = 5;
    const MKDIRAT: u64 = 34;
    const EXIT_GROUP: u64 = 94;
    const ADDRESS: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    /// Instructions, then the strings.
    const STRINGS: u64 = ADDRESS + HEADERS + 0x200;
    let texts = [c"/proc/self/exe", c"/attacked", c"user.harm"].map(|text| text.to_bytes_with_nul());
    let at = |index: usize| STRINGS + texts[..index].iter().map(|text| text.len() as u64).sum::<u64>();
    let (own, attacked, attribute) = (at(0), at(1), at(2));
    let mut code: Vec<u32> = Vec::new();
    // MOVZ or MOVK of 16 bits each, for any 64 bits.
    let set = |code: &mut Vec<u32>, register: u32, value: u64| {
        for part in 0..4 {
            let operation = if part == 0 { 0xd280_0000 } else { 0xf280_0000 };
            let bits = (value >> (16 * part)) as u32 & 0xffff;
            code.push(operation | part << 21 | bits << 5 | register);
        }
    };
    for (number, arguments) in [
        (FCHOWNAT, [AT_FDCWD, own, 1, 1, 0]),
        (FCHMODAT, [AT_FDCWD, own, 0o4777, 0, 0]),
        (SETXATTR, [own, attribute, attribute, 4, 0]),
        (MKDIRAT, [AT_FDCWD, attacked, 0o755, 0, 0]),
        (EXIT_GROUP, [0; 5]),
    ] {
        for (register, argument) in (0..).zip(arguments) {
            set(&mut code, register, argument);
        }
        set(&mut code, 8, number);
        code.push(0xd400_0001); // SVC #0
    }
    let mut code: Vec<u8> = code.into_iter().flat_map(u32::to_le_bytes).collect();
    assert!(code.len() <= 0x200 + HEADERS as usize, "{}", code.len());
    code.resize((STRINGS - ADDRESS - HEADERS) as usize, 0);
    code.extend(texts.concat());
    let length = HEADERS + code.len() as u64;

    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |file: &mut Vec<u8>, value: u16| file.extend(value.to_le_bytes());
    let word = |file: &mut Vec<u8>, value: u32| file.extend(value.to_le_bytes());
    let long = |file: &mut Vec<u8>, value: u64| file.extend(value.to_le_bytes());
    half(&mut file, 2); // ET_EXEC
    half(&mut file, 183); // EM_AARCH64
    word(&mut file, 1);
    long(&mut file, ADDRESS + HEADERS); // the entry
    long(&mut file, 64); // program headers
    long(&mut file, 0);
    word(&mut file, 0);
    for value in [64, 56, 1, 0, 0, 0] {
        half(&mut file, value);
    }
    word(&mut file, 1); // PT_LOAD
    word(&mut file, 5); // readable, executable
    for value in [0, ADDRESS, ADDRESS, length, length, 0x1000] {
        long(&mut file, value);
    }
    file.extend(code);
    file
}

#[test]
fn an_emulated_base_does_not_reach_the_emulators_file() {
    if !is_root() || !have(&["busybox", "newuidmap", "unshare", "setpriv", "debugfs", "qemu-aarch64-static"]) {
        return;
    }
    if std::env::consts::ARCH != "x86_64" {
        // On an arm64 machine nothing is emulated.
        return;
    }
    for builder in BUILDERS {
        let workshop = Workshop::new();
        let bin = workshop.path("bin");
        fs::create_dir(&bin).expect("a folder");
        let qemu = bin.join("qemu-aarch64-static");
        fs::copy("/usr/bin/qemu-aarch64-static", &qemu).expect("a copy of the emulator");
        fs::write(workshop.path("shell"), arm64_attack()).expect("a program");
        hostile(&workshop, &[(&workshop.path("shell"), "bin/sh")], "run = [\"attack\"]");
        let (mut build, program) = builder.command(&workshop);
        let owner = fs::metadata(program).expect("the program").uid();
        chown(&qemu, Some(owner), Some(owner)).expect("an owner");
        build.args(["--platform", "linux/arm64"]);
        assert_unharmed(builder, &workshop, build, &qemu);
    }
}

#[test]
fn steps_write_to_devices_and_change_none() {
    if !is_root() || !have(&["busybox", "newuidmap", "unshare", "setpriv", "debugfs"]) {
        return;
    }
    // Nothing else on the machine uses this one: what a fault does to it does no harm.
    let device = Path::new("/dev/full");
    for builder in BUILDERS {
        let workshop = Workshop::new();
        let steps = r#"run = [
            "busybox chmod 0600 /dev/full || true; busybox chown 1:1 /dev/full || true; busybox touch -d @1 /dev/full || true",
            "busybox rm -f /dev/full || true",
            "for node in null zero random urandom; do echo x > /dev/$node; busybox head -c 1 /dev/$node > /dev/null; done",
            "if echo x > /dev/full; then exit 3; fi; busybox test -c /dev/tty; busybox head -c 3 /dev/full | wc -c > /read",
            "busybox mkdir /attacked",
        ]"#;
        workshop.spec("hostile", steps);
        let before = state(device);
        let (mut build, _) = builder.command(&workshop);
        let output = build.output().expect("the command runs");
        let after = state(device);
        if after != before {
            fs::set_permissions(device, fs::Permissions::from_mode(0o666)).expect("a mode");
            chown(device, Some(0), Some(0)).expect("an owner");
        }
        assert_eq!(after, before, "{builder:?}: {}", said(&output));
        assert!(output.status.success(), "{builder:?}: {}", said(&output));
        assert_eq!(content(&builder.image(&workshop), "/read"), "3\n", "{builder:?}");
    }
}

#[test]
fn builds_work_where_memory_is_not_executable() {
    if !is_root() || !have(&["busybox", "newuidmap", "unshare"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("hostile", "run = [\"true\"]");
    // The setting is one of the pid namespace.
    let setting = "/proc/sys/vm/memfd_noexec";
    if !Path::new(setting).exists() {
        // Before Linux 6.3 there is none.
        return;
    }
    let build = workshop.xtask(&["image", "hostile", "--engine", "builtin"]);
    let script = format!("echo 2 > {setting} && exec \"$@\"");
    let mut forbidden = Command::new("unshare");
    forbidden.args(["--pid", "--fork", "--mount-proc", "sh", "-c", &script, "sh"]).arg(build.get_program());
    forbidden.args(build.get_args()).env("XDG_CACHE_HOME", workshop.path("cache"));
    succeed(forbidden.current_dir(snug_tests::workspace()));
}

#[test]
fn a_base_with_a_loader_of_its_own_does_not_reach_podmans_file() {
    if !is_root() || !have(&["busybox", "newuidmap", "unshare", "setpriv", "debugfs", "cc", "podman"]) {
        return;
    }
    let workshop = Workshop::new();
    let folder = workshop.path("podman");
    fs::create_dir(&folder).expect("a folder");
    let Some(podman) = Podman::prepare(&folder, "overlay") else { return };
    let loader = compile_attack(&workshop);
    fs::write(workshop.path("shell"), "#!/proc/self/exe\n").expect("a script");
    hostile(&workshop, &[(&workshop.path("shell"), "bin/sh"), (&loader, LOADER)], "run = [\"attack\"]");
    let bin = workshop.path("bin");
    fs::create_dir(&bin).expect("a folder");
    let victim = bin.join("podman");
    fs::copy("/usr/bin/podman", &victim).expect("a copy of podman");
    let (mut build, _) = Builder::Root.command(&workshop);
    build.args(["--engine", "podman"]);
    podman.tell(&mut build);
    assert_unharmed(Builder::Root, &workshop, build, &victim);
}
