//! What a base or a step leaves where the tool looks for a small file, or nests without end: it is read with suspicion, in bounded
//! time and memory.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use snug_tests::{Workshop, have, succeed, xtask};

/// Seconds within which every build here ends; the slowest takes two, on a busy machine ten.
const PATIENCE: &str = "120";
/// Memory of a build in KiB: a tenth of what `policy-rc.d` as `/dev/zero` took.
const MEMORY: u64 = 300 << 10;

/// Makes the folders that Debian has, into which the tool lays its policy on services.
const FOLDERS: &str = "run = [\"busybox mkdir -p /usr/sbin /etc /var/lib/dpkg\"]";

/// The outcome of a build: exit code, what was said, and the most memory that one of its processes had, in KiB.
fn bounded(workshop: &Workshop, words: &[&str]) -> (Option<i32>, String, u64) {
    let inner = workshop.xtask(words);
    let report = workshop.path("memory");
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", PATIENCE, "/usr/bin/time", "-f", "%M", "-o"]).arg(&report);
    command.arg(inner.get_program()).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(folder) = inner.get_current_dir() {
        command.current_dir(folder);
    }
    let output = command.output().expect("timeout runs");
    assert_eq!(output.status.signal(), None, "{words:?}: {output:?}");
    let memory = fs::read_to_string(report).unwrap_or_default();
    let memory = memory.lines().last().and_then(|line| line.parse().ok()).unwrap_or(0);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned(), memory)
}

#[test]
fn what_a_step_leaves_in_the_place_of_a_small_file_costs_neither_time_nor_memory() {
    if !have(&["busybox", "newuidmap", "/usr/bin/time"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("debian-like", FOLDERS);
    for (name, step) in [
        ("policy-zero", "cd /usr/sbin; busybox rm policy-rc.d; busybox ln -s /dev/zero policy-rc.d"),
        ("policy-fifo", "cd /usr/sbin; busybox rm policy-rc.d; busybox mkfifo policy-rc.d"),
        (
            "etc-fifos",
            "cd /etc; for name in passwd group hosts resolv.conf; do busybox rm -f $name; busybox mkfifo $name; done",
        ),
        ("etc-zero", "busybox ln -sf /dev/zero /etc/passwd; busybox ln -sf /dev/zero /var/lib/dpkg/status"),
        ("sparse-passwd", "busybox truncate -s 40G /etc/passwd"),
        ("sparse-init", "busybox truncate -s 40G /init"),
        ("a-line", "busybox dd if=/dev/zero bs=1M count=400 | busybox tr '\\\\0' x"),
    ] {
        let base = "base = { image = \"debian-like\" }\nfilesystem = \"ext4\"\n";
        workshop.write_spec(name, &format!("{base}run = [\"{step}\"]\n"));
        let (code, said, memory) = bounded(&workshop, &["image", name]);
        assert_eq!(code, Some(0), "{name}: {said}");
        assert!(memory < MEMORY, "{name}: {memory} KiB");
    }
    workshop.write_spec(
        "sparse-status",
        "base = { image = \"debian-like\" }\nfilesystem = \"ext4\"\nrun = [\"busybox truncate -s 40G /var/lib/dpkg/status\"]\n",
    );
    let (code, said, memory) = bounded(&workshop, &["image", "sparse-status"]);
    assert!(code == Some(1) && said.contains("/var/lib/dpkg/status of the tree cannot be read"), "{code:?}: {said}");
    assert!(said.contains("more than 128 MiB") && memory < MEMORY, "{memory} KiB: {said}");
}

#[test]
fn what_is_no_regular_file_is_refused_at_once_wherever_a_file_is_named() {
    if !have(&["busybox", "newuidmap", "mkfifo"]) {
        return;
    }
    let workshop = Workshop::new();
    let fifo = workshop.path("fifo");
    succeed(Command::new("mkfifo").arg(&fifo));
    workshop.spec("plain", "");
    let base = |path: &str| format!("base = {{ tar = \"{path}\" }}\nfilesystem = \"ext4\"\n");
    for (what, path) in [("a FIFO", fifo.to_str().expect("a path")), ("a character device", "/dev/zero")] {
        assert!(workshop.build("plain").status.success());
        let why = format!("it is {what}, not a regular file");
        workshop.write_spec("odd-base", &base(path));
        let secret = format!("secret = [{{ id = \"token\", from = {{ file = \"{path}\" }} }}]\nrun = [\"true\"]");
        workshop.spec("odd-secret", &secret);
        for words in [
            &["image", "odd-base"][..],
            &["image", "odd-secret"],
            &["boot", "plain", "--print", "--key", path],
            &["boot", "plain", "--print", "--kernel", path],
        ] {
            let (code, said, _) = bounded(&workshop, words);
            assert!(code.is_some_and(|code| code > 0) && said.contains(&why), "{words:?}: {code:?}: {said}");
        }
        // The manifest and the list beside an image.
        for file in ["manifest.json", "contents.mtree"] {
            assert!(workshop.build("plain").status.success());
            let place = workshop.path("out/plain").join(file);
            fs::remove_file(&place).expect("a file");
            succeed(Command::new("ln").args(["-s", path]).arg(&place));
            let (code, said, _) = bounded(&workshop, &["check", "plain"]);
            assert!(code.is_some_and(|code| code > 0), "{file}: {code:?}: {said}");
            fs::remove_file(&place).expect("a link");
            let _ = fs::remove_file(workshop.path("out/plain/manifest.json"));
        }
    }
    let mut zeros = Command::new("timeout");
    zeros.args(["--signal=KILL", PATIENCE]).arg(xtask().get_program());
    let output = zeros.args(["pack", "/dev/zero", "-o"]).arg(workshop.path("x.ext4")).output().expect("timeout runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("more than 2 GiB of zeros"), "{said}");
}

#[test]
fn holes_that_would_be_written_out_for_hours_are_refused_before_anything_is_written() {
    if !have(&["python3", "tar2sqfs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tar = folder.path().join("holes.tar");
    let script = r#"
import io, sys, tarfile
with tarfile.open(sys.argv[1], "w", format=tarfile.PAX_FORMAT) as tar:
    member = tarfile.TarInfo("large")
    member.size = 512
    member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "large",
                          "GNU.sparse.realsize": str(2**63 - 1)}
    tar.addfile(member, io.BytesIO(b"0\n".ljust(512, b"\0")))
"#;
    succeed(Command::new("python3").args(["-c", script]).arg(&tar));
    for (filesystem, why) in
        [("squashfs", "holes of 9223372036854775807 bytes"), ("ext4", "a file of 9223372036854775807")]
    {
        let mut pack = Command::new("timeout");
        pack.args(["--signal=KILL", PATIENCE]).arg(xtask().get_program()).arg("pack").arg(&tar);
        pack.arg("-o").arg(folder.path().join(format!("image.{filesystem}")));
        let output = pack.args(["--filesystem", filesystem]).output().expect("timeout runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(why) && said.contains("hint: "), "{said}");
    }
}
