//! What hostile bases and steps of the engine builtin reach of the host beside its folders: the files of the programs that run
//! them, device nodes, and what the caller had open or at hand. As root and as a user.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use snug_tests::{Workshop, have, is_root, number_of_its_own, succeed};

use crate::containers::{Dockerd, Podman};

/// The loader that this machine's programs name (PT_INTERP), as a path in the base.
const LOADER: &str =
    if cfg!(target_arch = "aarch64") { "lib/ld-linux-aarch64.so.1" } else { "lib64/ld-linux-x86-64.so.2" };

/// Changes all that can be changed of the file that its process was started from, and of what the first process has, and makes
/// the folder `/attacked`. It needs no library, so that it can be a loader itself.
const ATTACK: &str = r#"
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

static long call(long number, long a, long b, long c, long d, long e) {
#if defined(__aarch64__)
    register long x8 asm("x8") = number, x0 asm("x0") = a, x1 asm("x1") = b, x2 asm("x2") = c, x3 asm("x3") = d, x4 asm("x4") = e;
    asm volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
    return x0;
#else
    long answer;
    register long r10 asm("r10") = d, r8 asm("r8") = e;
    asm volatile("syscall" : "=a"(answer) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
    return answer;
#endif
}

static void attack(const char *path) {
    long at = AT_FDCWD, file = (long)path;
    call(SYS_fchownat, at, file, 1, 1, 0);
    call(SYS_fchmodat, at, file, 04777, 0, 0);
    call(SYS_setxattr, file, (long)"user.harm", (long)"harm", 4, 0);
    call(SYS_setxattr, file, (long)"trusted.harm", (long)"harm", 4, 0);
    call(SYS_utimensat, at, file, (long)&(long[4]){1, 0, 1, 0}, 0, 0);
    call(SYS_truncate, file, 1, 0, 0, 0);
    long opened = call(SYS_openat, at, file, O_WRONLY, 0, 0);
    if (opened >= 0) call(SYS_write, opened, (long)"harm", 4, 0, 0);
}

void _start(void) {
    attack("/proc/self/exe");
    attack("/proc/1/exe");
    char of_first[] = "/proc/1/fd/0";
    for (char digit = '0'; digit <= '9'; digit++) {
        of_first[sizeof of_first - 2] = digit;
        attack(of_first);
    }
    call(SYS_mkdirat, AT_FDCWD, (long)"/attacked", 0755, 0, 0);
    call(SYS_exit_group, 0, 0, 0, 0, 0);
}
"#;

/// Compiles [`ATTACK`] to `attack` in the workshop.
fn compile_attack(workshop: &Workshop) -> PathBuf {
    let (source, program) = (workshop.path("attack.c"), workshop.path("attack"));
    fs::write(&source, ATTACK).expect("a source");
    let options = ["-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-O1", "-o"];
    succeed(Command::new("cc").args(options).arg(&program).arg(&source));
    program
}

/// Writes the spec `hostile`, on a base of these files, all of them executable: a file of the host, and its path in the base.
fn hostile(workshop: &Workshop, files: &[(&Path, &str)], rest: &str) {
    let root = workshop.path("hostile");
    for (from, to) in files {
        let place = root.join(to);
        fs::create_dir_all(place.parent().expect("a folder")).expect("a folder");
        fs::copy(from, &place).expect("a file of the base");
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).expect("a mode");
    }
    let tar = workshop.path("hostile.tar");
    succeed(Command::new("tar").arg("-cf").arg(&tar).args(["--owner", "0", "--group", "0", "-C"]).arg(&root).arg("."));
    let spec = format!("base = {{ tar = \"{}\" }}\nfilesystem = \"ext4\"\n{rest}\n", tar.display());
    workshop.write_spec("hostile", &spec);
}

/// Who builds.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Builder {
    Root,
    User,
}

const BUILDERS: [Builder; 2] = [Builder::Root, Builder::User];

impl Builder {
    /// The command that builds `hostile`, by a copy of the program that belongs to the builder, and the copy.
    fn command(self, workshop: &Workshop) -> (Command, PathBuf) {
        let program = workshop.path("xtask");
        let mut user = workshop.xtask_as_user(&["image", "hostile"], 65536);
        match self {
            Builder::User => {
                let owner = fs::metadata(workshop.path("home")).expect("a home").uid();
                chown(&program, Some(owner), Some(owner)).expect("an owner");
                user.env("PATH", path_with(workshop));
                (user, program)
            }
            Builder::Root => {
                let mut root = Command::new(&program);
                root.args(workshop.xtask(&["image", "hostile"]).get_args());
                root.current_dir(snug_tests::workspace()).env("XDG_CACHE_HOME", workshop.path("cache"));
                root.env("PATH", path_with(workshop)).env("NO_COLOR", "1");
                (root, program)
            }
        }
    }

    fn image(self, workshop: &Workshop) -> PathBuf {
        let folder = match self {
            Builder::Root => workshop.path("out/hostile"),
            Builder::User => workshop.path("home/out/hostile"),
        };
        // Those of another platform are in a folder of their own.
        ["rootfs.ext4", "linux-arm64/rootfs.ext4"]
            .map(|name| folder.join(name))
            .into_iter()
            .find(|path| path.exists())
            .expect("an image")
    }
}

/// The programs of the workshop's own `bin` come before the host's.
fn path_with(workshop: &Workshop) -> String {
    format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", workshop.path("bin").display())
}

/// Whatever is done to a file, even to its attributes, changes the time of its last change.
fn state(file: &Path) -> (u32, u32, u32, u64, (i64, i64), (i64, i64)) {
    let about = fs::metadata(file).expect("the file");
    let changed = (about.ctime(), about.ctime_nsec());
    (about.mode(), about.uid(), about.gid(), about.len(), (about.mtime(), about.mtime_nsec()), changed)
}

/// Content of a file in an image; empty where it has none.
fn content(image: &Path, path: &str) -> String {
    let output = succeed(Command::new("debugfs").args(["-R", &format!("cat {path}")]).arg(image));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
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

/// A program with three uses. `probe hold COMMAND…` runs a command with what a caller may have: an open file and an open folder
/// that are inherited, a key in the session's keyring and one in the user's, and an abstract socket. `probe` alone says what of
/// that it reaches, and fails if it is anything. `probe vsock` fails if it gets a socket that leads to the machine's host.
const PROBE: &str = r#"
#include <fcntl.h>
#include <linux/keyctl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

static const char *const keys[] = {NAME "-session", NAME "-user"};
static int reached;

static void say(const char *what) {
    // Once each, in whatever order.
    static const char *said[16];
    for (int index = 0; index < 16; index++) {
        if (said[index] == NULL) {
            reached = 1;
            said[index] = what;
            printf("reached: %s\n", what);
        }
        if (!strcmp(said[index], what)) return;
    }
}

static struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "\0" NAME};
static const socklen_t length = offsetof(struct sockaddr_un, sun_path) + sizeof "\0" NAME - 1;

static int hold(char **command) {
    syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL);
    long session = syscall(SYS_add_key, "user", keys[0], "canary", 6, KEY_SPEC_SESSION_KEYRING);
    long user = syscall(SYS_add_key, "user", keys[1], "canary", 6, KEY_SPEC_USER_KEYRING);
    syscall(SYS_keyctl, KEYCTL_SET_TIMEOUT, user, 600);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int bound = bind(listener, (struct sockaddr *)&address, length) == 0 && listen(listener, 8) == 0;
    char name[] = "/tmp/snug-test-XXXXXX";
    int file = mkstemp(name);
    unlink(name);
    if (session < 0 || user < 0 || !bound || write(file, "canary", 6) != 6 || dup2(file, 7) < 0) return 2;
    if (dup2(open("/", O_RDONLY | O_DIRECTORY), 9) < 0) return 2;
    // The listener stays with this process, which ends after its child.
    pid_t child = fork();
    if (child == 0) {
        execvp(command[0], command);
        _exit(2);
    }
    int status = 2;
    syscall(SYS_wait4, child, &status, 0, NULL);
    syscall(SYS_keyctl, KEYCTL_UNLINK, user, KEY_SPEC_USER_KEYRING);
    return (status & 0x7f) ? 2 : status >> 8 & 0xff;
}

static void read_key(long key, const char *how) {
    char text[64] = "";
    if (key > 0 && syscall(SYS_keyctl, KEYCTL_READ, key, text, sizeof text, 0) == 6 && !memcmp(text, "canary", 6)) {
        say(how);
    }
}

static void search_keys(const char *how) {
    for (int index = 0; index < 2; index++) {
        read_key(syscall(SYS_request_key, "user", keys[index], NULL, 0), how);
        for (long ring = KEY_SPEC_USER_SESSION_KEYRING; ring < 0; ring++)
            read_key(syscall(SYS_keyctl, KEYCTL_SEARCH, ring, "user", keys[index], 0), how);
    }
}

int main(int count, char **words) {
    if (count > 2) return hold(words + 2);
    if (count > 1) return socket(AF_VSOCK, SOCK_STREAM, 0) >= 0;
    for (int open = 3; open < 64; open++) {
        char text[8] = "";
        if (pread(open, text, 6, 0) == 6 && !strcmp(text, "canary")) say("an open file");
        if (faccessat(open, "proc/1", F_OK, 0) == 0) say("an open folder");
    }
    search_keys("a key by its name");
    char line[512];
    FILE *list = fopen("/proc/keys", "r");
    while (list && fgets(line, sizeof line, list)) {
        long key = strtol(line, NULL, 16);
        read_key(key, "a key by its number");
        syscall(SYS_keyctl, KEYCTL_LINK, key, KEY_SPEC_PROCESS_KEYRING);
        search_keys("a key by a keyring's number");
    }
    int client = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(client, (struct sockaddr *)&address, length) == 0) say("an abstract socket");
    return reached;
}
"#;

/// The command, with the program of the build started by `wrapper`.
fn wrapped(build: &Command, program: &Path, wrapper: &[&str]) -> Command {
    let mut words: Vec<_> = std::iter::once(build.get_program()).chain(build.get_args()).collect();
    let at = words.iter().position(|word| *word == program).expect("the program");
    words.splice(at..at, wrapper.iter().map(AsRef::as_ref));
    let mut command = Command::new(words[0]);
    // The user's cache is in a home of its own.
    command.env_remove("XDG_CACHE_HOME");
    command.args(&words[1..]).envs(build.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.current_dir(build.get_current_dir().expect("a folder"));
    command
}

/// Writes the spec `hostile`, on a base of busybox and [`PROBE`].
fn hostile_with_probe(workshop: &Workshop, rest: &str) -> PathBuf {
    fs::write(workshop.path("probe.c"), PROBE).expect("a source");
    let probe = workshop.path("probe");
    // What it holds has a name of its own: tests run beside each other.
    let name = format!("-DNAME=\"snug-test-{}\"", number_of_its_own());
    succeed(Command::new("cc").args(["-static", "-O1", &name, "-o"]).arg(&probe).arg(workshop.path("probe.c")));
    let busybox = workshop.path("root/bin/busybox");
    let files: &[(&Path, &str)] = &[(&busybox, "bin/busybox"), (&busybox, "bin/sh"), (&probe, "bin/probe")];
    hostile(workshop, files, rest);
    probe
}

#[test]
fn steps_get_nothing_that_the_caller_has_open_or_at_hand() {
    if !is_root() || !have(&["busybox", "newuidmap", "unshare", "setpriv", "cc"]) {
        return;
    }
    for builder in BUILDERS {
        let workshop = Workshop::new();
        let probe = hostile_with_probe(&workshop, "run = [\"probe\"]");
        let (build, program) = builder.command(&workshop);
        let wrapper = [probe.to_str().expect("a path"), "hold"];

        // Outside of a build all of it is there to be reached.
        let all = Command::new(&probe).arg("hold").arg(&probe).output().expect("the probe runs");
        let all = String::from_utf8_lossy(&all.stdout).into_owned();
        for what in ["an open file", "an open folder", "a key by its name", "an abstract socket"] {
            assert!(all.contains(what), "{builder:?}: {what}: {all}");
        }
        let output = wrapped(&build, &program, &wrapper).output().expect("the command runs");
        assert!(output.status.success(), "{builder:?}: {}", said(&output));
    }
}

#[test]
fn podman_gets_nothing_that_the_caller_has_open() {
    if !is_root() || !have(&["busybox", "newuidmap", "unshare", "setpriv", "cc", "podman"]) {
        return;
    }
    let workshop = Workshop::new();
    let folder = workshop.path("podman");
    fs::create_dir(&folder).expect("a folder");
    let Some(podman) = Podman::prepare(&folder, "overlay") else { return };
    let probe = hostile_with_probe(&workshop, "run = [\"probe || true; echo probed; exit 3\"]");
    let (mut build, program) = Builder::Root.command(&workshop);
    build.args(["--engine", "podman"]);
    podman.tell(&mut build);
    let wrapper = [probe.to_str().expect("a path"), "hold"];
    let output = wrapped(&build, &program, &wrapper).output().expect("the command runs");
    // The keyring of root itself, and the network with its abstract sockets, are podman's to give.
    let said = said(&output);
    assert!(said.contains("| probed") && !said.contains("an open file") && !said.contains("an open folder"), "{said}");
}

#[test]
fn a_step_without_network_has_a_loopback_device_and_no_way_out() {
    if !is_root() || !have(&["busybox", "newuidmap", "unshare", "setpriv", "cc"]) {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    // That a connection is made is enough.
    std::thread::spawn(move || listener.incoming().for_each(drop));
    for builder in BUILDERS {
        let workshop = Workshop::new();
        let alone = format!(
            "test -z \\\"$http_proxy\\\"; if busybox nc 127.0.0.1 {port} < /dev/null; then exit 3; fi; busybox ping -c 1 127.0.0.1; \
             busybox nc -l -p 9000 -e /bin/echo here & until busybox nc 127.0.0.1 9000 < /dev/null; do busybox sleep 0.1; done; \
             test $(busybox grep -c : /proc/net/dev) = 1; probe vsock"
        );
        let outside = format!("busybox nc 127.0.0.1 {port} < /dev/null; test \\\"$http_proxy\\\"");
        let steps = format!("run = [\"{outside}\", {{ shell = \"{alone}\", network = false }}, \"{outside}\"]");
        hostile_with_probe(&workshop, &steps);
        let (mut build, _) = builder.command(&workshop);
        let output = build.env("http_proxy", "http://archive.example:3128").output().expect("the command runs");
        assert!(output.status.success(), "{builder:?}: {}", said(&output));

        let steps = "run = [{ shell = \"busybox wget -q http://archive.example/file\", network = false }]";
        hostile_with_probe(&workshop, steps);
        let output = builder.command(&workshop).0.output().expect("the command runs");
        assert_eq!(output.status.code(), Some(1), "{builder:?}: {}", said(&output));
        assert!(said(&output).contains("hint: this step has no network, since the spec says"), "{}", said(&output));
    }
}

#[test]
fn a_host_that_gives_no_network_namespaces_is_told_from_a_full_disk() {
    if !is_root() || !have(&["busybox", "newuidmap", "unshare"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("hostile", "run = [{ shell = \"true\", network = false }]");
    // Inside a user namespace of its own, the limit is of that namespace alone.
    let build = workshop.xtask(&["image", "hostile", "--engine", "builtin"]);
    let mut limited = Command::new("unshare");
    // It is root, with what root may do, from the first exec on that follows the maps.
    let script =
        "read go && exec sh -c 'echo 0 > /proc/sys/user/max_net_namespaces && exec \"$@\" < /dev/null' sh \"$@\"";
    limited.args(["--user", "sh", "-c", script, "sh"]).arg(build.get_program());
    limited.args(build.get_args()).env("XDG_CACHE_HOME", workshop.path("cache"));
    limited.current_dir(snug_tests::workspace()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut limited = limited.spawn().expect("unshare runs");
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/user")).expect("a namespace");
    let process = limited.id().to_string();
    while namespace(&process) == namespace("self") {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    // All ids, as root has them, which unshare cannot map.
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{process}/{map}"), "0 0 4294967295").expect("a map");
    }
    limited.stdin.take().expect("its input").write_all(b"go\n").expect("a line");
    let output = limited.wait_with_output().expect("the command runs");
    assert!(
        said(&output).contains("hint: the step has no network, which takes a network namespace"),
        "{}",
        said(&output)
    );
}

#[test]
fn engines_that_cannot_take_the_network_away_refuse_by_the_line() {
    if !is_root() || !have(&["busybox", "newuidmap", "podman"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("hostile", "run = [\n  \"true\",\n  { shell = \"true\", network = false },\n]");
    let refuses = |engine: &str, tell: &dyn Fn(&mut Command)| {
        let mut build = workshop.xtask(&["image", "hostile", "--engine", engine]);
        tell(&mut build);
        let output = build.output().expect("xtask runs");
        let reason = format!("{engine} gives all steps of a build one network, and run: true is to have none");
        let place =
            format!("asked for at {}:5\nhint: --engine builtin", workshop.path("images/hostile/image.toml").display());
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains(&reason) && said(&output).contains(&place), "{}", said(&output));
    };
    let folder = workshop.path("podman");
    fs::create_dir(&folder).expect("a folder");
    if let Some(podman) = Podman::prepare(&folder, "overlay") {
        refuses("podman", &|build| {
            podman.tell(build);
        });
    }
    if let Some(dockerd) = Dockerd::start(&workshop.path("")) {
        refuses("docker", &|build| {
            build.env("DOCKER_HOST", dockerd.host());
        });
    }
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
