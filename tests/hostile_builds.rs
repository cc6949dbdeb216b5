//! Builds that fail or mean harm: the host stays as it is, and the error says which line of the spec asked for it.

use std::fs;
use std::path::Path;
use std::process::Command;

use snug_tests::{have, succeed, xtask};

/// A base of nothing but a static busybox, so that a build takes no time.
fn busybox_base(folder: &Path) {
    let script = r#"
        mkdir -p root/bin root/etc root/usr/sbin
        cp "$(command -v busybox)" root/bin/busybox
        for name in sh echo cat ls mknod mount env ln chmod mkdir seq sleep test; do ln -s busybox root/bin/$name; done
        echo root:x:0:0::/root:/bin/sh > root/etc/passwd
        tar -cf base.tar --owner 0 --group 0 -C root .
    "#;
    succeed(Command::new("bash").args(["-ec", script]).current_dir(folder));
}

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
    let steps = format!(
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
    );
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
    let number = format!("{}", 1_000_000 + std::process::id());
    for (signal, code) in [("INT", Some(130)), ("TERM", Some(130)), ("KILL", None)] {
        let mut command = prepare(folder, "slow", &format!("run = [\"sleep {number}\"]"));
        let mut running = command.stderr(std::process::Stdio::null()).spawn().expect("xtask runs");
        while !step_runs(&number) {
            assert!(running.try_wait().expect("a child").is_none(), "the build ended by itself");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        succeed(Command::new("kill").args([format!("-{signal}"), running.id().to_string()]));
        assert_eq!(running.wait().expect("a child").code(), code, "{signal}");
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
