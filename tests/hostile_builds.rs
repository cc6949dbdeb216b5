//! Builds that fail or attack the host: the host is unchanged, and the error names the line of the spec.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use snug_tests::{Workshop, busybox_base, have, is_root, number_of_its_own, succeed, xtask};

fn build(folder: &Path, name: &str, rest: &str) -> std::process::Output {
    prepare(folder, name, rest).output().expect("xtask runs")
}

/// The command that builds a spec of `rest` on the base, with a cache of its own.
fn prepare(folder: &Path, name: &str, rest: &str) -> Command {
    let image = folder.join("images").join(name);
    fs::create_dir_all(&image).expect("a folder");
    let spec = format!("base = {{ tar = \"{}\" }}\nfilesystem = \"ext4\"\n{rest}\n", folder.join("base.tar").display());
    fs::write(image.join("image.toml"), spec).expect("a spec");
    let mut command = xtask();
    command.args(["image", name, "--images"]).arg(folder.join("images")).arg("--output").arg(folder.join("out"));
    command.env("SECRET_OF_THE_CALLER", "canary").env("XDG_CACHE_HOME", folder.join("cache"));
    command
}

#[test]
fn a_failing_step_shows_its_last_lines_its_status_and_its_place() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    busybox_base(folder.path());
    let output = build(folder.path(), "failing", "run = [\n  \"true\",\n  \"seq 100; exit 7\",\n]");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("run: seq 100; exit 7 failed with exit status 7"), "{said}");
    assert!(said.contains("failing/image.toml:5"), "{said}");
    assert!(said.contains("its last 40 lines:\n  | 61\n") && said.contains("  | 100\n"), "{said}");
    assert!(!folder.path().join("out/failing/rootfs.ext4").exists());
}

#[test]
fn a_step_finds_no_way_to_the_host() {
    if !have(&["busybox", "newuidmap", "debugfs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    busybox_base(folder.path());
    let outside = folder.path().join("outside");
    let before = fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name");
    let steps = steps_that_try_everything(&outside);
    fs::create_dir(&outside).expect("a folder");
    fs::write(outside.join("file"), "untouched").expect("a file");
    let output = build(folder.path(), "hostile", &steps);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_to_string(outside.join("file")).expect("the file"), "untouched");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name"), before);
    let seen =
        succeed(Command::new("debugfs").args(["-R", "cat /seen"]).arg(folder.path().join("out/hostile/rootfs.ext4")));
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(seen.contains("bin\n") && !seen.contains("home\n"), "{seen}");
}

/// What a build left in the cache's folder of work.
fn work_left(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder.join("cache/snug/work")).expect("the folder of work");
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect()
}

/// Is a process of the build still there? Its step carries a number that no other has.
fn step_runs(number: &str) -> bool {
    let processes = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    processes
        .filter_map(|process| fs::read_to_string(process.path().join("cmdline")).ok())
        .any(|words| words.starts_with("sleep\0") && words.contains(number))
}

#[test]
fn an_interrupted_build_leaves_the_last_image_and_nothing_else() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path();
    busybox_base(folder);
    assert!(build(folder, "slow", "").status.success());
    let image = folder.join("out/slow/rootfs.ext4");
    let good = fs::read(&image).expect("an image");
    // The step's argument is this process's own, so that no other test's is taken for it.
    let number = number_of_its_own();
    for (signal, killed_by) in [("INT", 2), ("TERM", 15), ("KILL", 9)] {
        let mut command = prepare(folder, "slow", &format!("run = [\"sleep {number}\"]"));
        let mut running = command.stderr(std::process::Stdio::null()).spawn().expect("xtask runs");
        while !step_runs(&number) {
            assert!(running.try_wait().expect("a child").is_none(), "the build ended by itself");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        succeed(Command::new("kill").args([format!("-{signal}"), running.id().to_string()]));
        assert_eq!(running.wait().expect("a child").signal(), Some(killed_by), "{signal}");
        // The kernel ends a pid namespace at once, but not before `wait` answers.
        (0..100).any(|_| {
            !step_runs(&number) || {
                std::thread::sleep(std::time::Duration::from_millis(50));
                false
            }
        });
        assert!(!step_runs(&number), "the step outlives {signal}");
        assert!(fs::read(&image).expect("the image") == good, "{signal} cost the image");
        assert!(signal == "KILL" || work_left(folder).is_empty(), "{signal}: {:?}", work_left(folder));
    }
    // The next run clears up after the killed one.
    assert!(build(folder, "slow", "run = [\"true\"]").status.success());
    assert!(work_left(folder).is_empty(), "{:?}", work_left(folder));
}

#[test]
fn a_base_whose_etc_points_outside_writes_nothing_there() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let outside = folder.path().join("outside");
    fs::create_dir(&outside).expect("a folder");
    let script = format!("mkdir root; ln -s {} root/etc; tar -cf base.tar -C root .", outside.display());
    succeed(Command::new("bash").args(["-ec", &script]).current_dir(folder.path()));
    let file = "file = [{ content = \"harm\", to = \"/etc/harm\" }]";
    let output = build(folder.path(), "pointing", file);
    // Whether that builds or not, the host's folder stays empty.
    assert_eq!(fs::read_dir(&outside).expect("the folder").count(), 0, "{output:?}");
}

/// Writes `hostile.tar`: a busybox base, and members that lead to `outside` in one of the [`WAYS_OUT`].
fn base_that_leads_outside(workshop: &Workshop, way: &str, outside: &Path) {
    let script = r#"
import io, sys, tarfile
base, busybox, way, outside = sys.argv[1:]
up = "../" * 12 + outside.lstrip("/")
with tarfile.open(base, "w", format=tarfile.PAX_FORMAT) as tar:
    def add(name, kind=tarfile.REGTYPE, target="", text=b"harm\n"):
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.mode = kind, target, 0o755
        member.size = len(text) if kind == tarfile.REGTYPE else 0
        tar.addfile(member, io.BytesIO(text) if member.size else None)
    add("bin", tarfile.DIRTYPE)
    add("bin/busybox", text=open(busybox, "rb").read())
    add("bin/sh", tarfile.SYMTYPE, "busybox")
    for name, kind, target in {
        "dots": [(up + "/escaped", tarfile.REGTYPE, "")],
        "inner-dots": [("bin/../" + up + "/escaped", tarfile.REGTYPE, "")],
        "absolute": [(outside + "/escaped", tarfile.REGTYPE, "")],
        "symlink": [("way", tarfile.SYMTYPE, outside), ("way/escaped", tarfile.REGTYPE, "")],
        "relative-symlink": [("way", tarfile.SYMTYPE, up), ("way/escaped", tarfile.REGTYPE, "")],
        "hard-link": [("way", tarfile.LNKTYPE, outside + "/file")],
        "relative-hard-link": [("way", tarfile.LNKTYPE, up + "/file")],
        "hard-link-by-symlink": [("to", tarfile.SYMTYPE, outside), ("way", tarfile.LNKTYPE, "to/file")],
        "etc": [("etc", tarfile.SYMTYPE, outside)],
    }[way]:
        add(name, kind, target)
"#;
    let busybox = workshop.path("root/bin/busybox");
    let mut python = Command::new("python3");
    python.args(["-c", script]).arg(workshop.path("hostile.tar")).arg(busybox).arg(way).arg(outside);
    succeed(&mut python);
}

/// How members of a base can lead out of it.
const WAYS_OUT: [&str; 9] = [
    "dots",
    "inner-dots",
    "absolute",
    "symlink",
    "relative-symlink",
    "hard-link",
    "relative-hard-link",
    "hard-link-by-symlink",
    "etc",
];

#[test]
fn a_base_that_leads_outside_reaches_nothing_there_for_root_and_for_a_user() {
    if !is_root() || !have(&["busybox", "newuidmap", "python3", "unshare", "setpriv"]) {
        return;
    }
    for way in WAYS_OUT {
        let workshop = Workshop::new();
        let outside = workshop.path("outside");
        fs::create_dir(&outside).expect("a folder");
        fs::write(outside.join("file"), "untouched").expect("a file");
        // The user may write there: what holds it back is the build, not the host.
        succeed(Command::new("chmod").args(["-R", "a+rwX"]).arg(&outside));
        base_that_leads_outside(&workshop, way, &outside);
        let spec = format!(
            "base = {{ tar = \"{}\" }}\nfilesystem = \"ext4\"\nfile = [{{ content = \"harm\", to = \"/etc/harm\" }}]\n\
             run = [\"busybox test ! -e /way || echo harm >> /way || true\", \"busybox mkdir -p /etc; echo harm > /etc/step || true\"]\n",
            workshop.path("hostile.tar").display()
        );
        workshop.write_spec("hostile", &spec);
        let root = workshop.build("hostile");
        let user = workshop.xtask_as_user(&["image", "hostile"], 65536).output().expect("unshare runs");
        // Some are refused, some are built with the members inside; the host's folder stays as it is.
        let said = [root.stderr, user.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).join("\n");
        assert_eq!(workshop.names("outside"), ["file"], "{way}: {said}");
        assert_eq!(fs::read_to_string(outside.join("file")).expect("the file"), "untouched", "{way}: {said}");
        assert_eq!(root.status.code(), user.status.code(), "{way}: {said}");
    }
}

#[test]
fn a_step_finds_no_more_ways_where_a_user_builds() {
    if !is_root() || !have(&["busybox", "newuidmap", "unshare", "setpriv"]) {
        return;
    }
    let workshop = Workshop::new();
    let outside = workshop.path("outside");
    fs::create_dir(&outside).expect("a folder");
    fs::write(outside.join("file"), "untouched").expect("a file");
    succeed(Command::new("chmod").args(["-R", "a+rwX"]).arg(&outside));
    let before = fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name");
    workshop.spec("hostile", &steps_that_try_everything(&outside));
    let mut build = workshop.xtask_as_user(&["image", "hostile"], 65536);
    succeed(build.env("SECRET_OF_THE_CALLER", "canary"));
    assert_eq!(fs::read_to_string(outside.join("file")).expect("the file"), "untouched");
    assert_eq!(workshop.names("outside"), ["file"]);
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name"), before);
}

/// Steps each of which fails the build where it reaches the host.
fn steps_that_try_everything(outside: &Path) -> String {
    format!(
        r#"run = [
            "! mknod /disk b 254 0",
            "! echo 1 > /proc/sys/kernel/sysrq",
            "! echo hacked > /proc/sys/kernel/hostname",
            "! echo x > /proc/sysrq-trigger",
            "! mount -o remount,rw /proc/sys",
            "! mount -t tmpfs none /bin",
            "! cat /../../../..{outside}/file",
            "test -z \"$SECRET_OF_THE_CALLER\" && test -z \"$CARGO\"",
            "ln -s {outside} /link; ! echo harm > /link/file",
            "ls / > /seen",
        ]"#,
        outside = outside.display()
    )
}
