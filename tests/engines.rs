//! docker and podman as engines: choice, failures, interrupts, remote daemons, and a container exported into an image.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use snug_tests::{busybox_base, have, is_root, number_of_its_own, succeed, xtask};

use crate::containers::{Dockerd, Podman};

/// The command that does `verb` with a spec of `rest` on the base, with a cache of its own.
fn prepare(folder: &Path, verb: &str, rest: &str) -> Command {
    let image = folder.join("images/small");
    fs::create_dir_all(&image).expect("a folder");
    let spec = format!("base = {{ tar = \"{}\" }}\nfilesystem = \"ext4\"\n{rest}\n", folder.join("base.tar").display());
    fs::write(image.join("image.toml"), spec).expect("a spec");
    let mut command = xtask();
    command.args([verb, "small", "--images"]).arg(folder.join("images")).arg("--output").arg(folder.join("out"));
    command.env("XDG_CACHE_HOME", folder.join("cache"));
    command
}

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// How the commands list what they hold.
const CONTAINER: &str = "container {{.ID}} of {{.Image}}, {{.Status}}";
const IMAGE: &str = "image {{.ID}} {{.Repository}}:{{.Tag}}";

/// An engine of this host.
struct Real<'a> {
    name: &'static str,
    /// Names it to a command.
    tell: &'a dyn Fn(&mut Command),
    /// Its images and containers.
    held: &'a dyn Fn() -> Vec<String>,
}

/// Runs `test` with every engine that this host has.
fn with_engines(folder: &Path, test: &dyn Fn(Real)) {
    let held = |commands: [Command; 2]| -> Vec<String> {
        let lines = commands.into_iter().map(|mut command| succeed(&mut command).stdout);
        lines.flat_map(|text| String::from_utf8_lossy(&text).lines().map(str::to_owned).collect::<Vec<_>>()).collect()
    };
    let podmans = folder.join("podman");
    fs::create_dir(&podmans).expect("a folder");
    if let Some(podman) = Podman::prepare(&podmans, "overlay") {
        let lists = || {
            held(
                [&["ps", "--all", "--external", "--format", CONTAINER][..], &["images", "--all", "--format", IMAGE]]
                    .map(|words| {
                        let mut command = Command::new("podman");
                        podman.tell(command.args(words));
                        command
                    }),
            )
        };
        let tell = |command: &mut Command| {
            podman.tell(command.args(["--engine", "podman"]));
        };
        test(Real { name: "podman", tell: &tell, held: &lists });
    }
    if let Some(dockerd) = Dockerd::start(folder) {
        let lists = || {
            held([&["ps", "--all", "--format", CONTAINER][..], &["images", "--all", "--format", IMAGE]].map(|words| {
                let mut command = dockerd.docker();
                command.args(words);
                command
            }))
        };
        let tell = |command: &mut Command| {
            command.args(["--engine", "docker"]).env("DOCKER_HOST", dockerd.host());
        };
        test(Real { name: "docker", tell: &tell, held: &lists });
    }
}

#[test]
fn a_failing_step_is_told_with_its_place_by_every_engine() {
    if !have(&["busybox"]) || !is_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    busybox_base(folder.path());
    with_engines(folder.path(), &|Real { name: engine, tell, held }| {
        let mut command =
            prepare(folder.path(), "image", "run = [\n  \"true\",\n  \"seq 100\\n echo \\\"last\\\"; exit 7\",\n]");
        tell(&mut command);
        let output = command.output().expect("xtask runs");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{engine}: {said}");
        assert!(said.contains("run: seq 100 failed with exit status 7\n"), "{engine}: {said}");
        assert!(said.contains("small/image.toml:5\n"), "{engine}: {said}");
        assert!(
            said.contains("its last 40 lines:\n  | 62\n") && said.contains("  | 100\n  | last\n"),
            "{engine}: {said}"
        );
        assert_eq!(held(), [""; 0], "{engine}");
        assert!(!folder.path().join("out/small/rootfs.ext4").exists());
    });
}

#[test]
fn an_interrupt_leaves_nothing_with_an_engine_and_a_kill_nothing_after_the_next_run() {
    if !have(&["busybox"]) || !is_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    busybox_base(folder.path());
    // The step's argument is this process's own, so that no other test's is taken for it.
    let number = number_of_its_own();
    let step_runs = || {
        let processes = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
        let mut words = processes.filter_map(|process| fs::read_to_string(process.path().join("cmdline")).ok());
        words.any(|words| words.starts_with("sleep\0") && words.contains(&number))
    };
    with_engines(folder.path(), &|Real { name: engine, tell, held }| {
        for (signal, killed_by) in [("INT", 2), ("TERM", 15), ("KILL", 9)] {
            let mut command = prepare(folder.path(), "image", &format!("run = [\"sleep {number}\"]"));
            tell(&mut command);
            let mut running = command.stderr(Stdio::null()).spawn().expect("xtask runs");
            while !step_runs() {
                assert!(running.try_wait().expect("a child").is_none(), "{engine}: the build ended by itself");
                std::thread::sleep(Duration::from_millis(50));
            }
            succeed(Command::new("kill").args([format!("-{signal}"), running.id().to_string()]));
            assert_eq!(running.wait().expect("a child").signal(), Some(killed_by), "{engine}: {signal}");
            // A daemon hears of the end by its connection, not at once.
            while step_runs() {
                std::thread::sleep(Duration::from_millis(50));
            }
            if signal != "KILL" {
                assert_eq!(held(), [""; 0], "{engine}: {signal}");
            }
            // The daemon itself removes the container of a build that was broken off; podman's is the next run's.
            let building = || held().iter().any(|line| line.starts_with("container "));
            while engine == "docker" && building() {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        let mut next = prepare(folder.path(), "image", "run = [\"true\"]");
        tell(&mut next);
        succeed(&mut next);
        assert_eq!(held(), [""; 0], "{engine}");
        fs::remove_dir_all(folder.path().join("cache")).expect("the cache goes");
    });
}

#[test]
fn an_engine_is_chosen_in_order_and_one_that_cannot_work_is_an_error_with_its_remedy() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    busybox_base(folder.path());
    let nowhere = format!("unix://{}", folder.path().join("no.sock").display());
    let plan = |spec: &str, variable: &str, words: &[&str]| -> serde_json::Value {
        let mut command = prepare(folder.path(), "image", spec);
        command.args(["--dry-run", "--json"]).args(words).env("SNUG_ENGINE", variable).env("DOCKER_HOST", &nowhere);
        let output = succeed(&mut command);
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")["images"][0].take()
    };
    assert_eq!(plan("", "", &[])["engine"]["name"], "builtin");
    assert_eq!(plan("", "", &[])["engine"]["reason"], "the default");
    let wish = |plan: serde_json::Value| plan["engine"]["error"].as_str().unwrap_or_default().to_owned();
    if have(&["docker"]) {
        let said = wish(plan("engine = \"docker\"", "", &[]));
        assert!(said.starts_with("the spec asks for the engine docker, which cannot work here: "), "{said}");
        assert!(
            said.contains("Is the docker daemon running?") && said.contains("hint: start the docker daemon"),
            "{said}"
        );
        assert!(wish(plan("engine = \"builtin\"", "docker", &[])).starts_with("SNUG_ENGINE asks for"));
        assert_eq!(plan("", "docker", &["--engine", "builtin"])["engine"]["reason"], "--engine asks for it");
        // What is asked for and cannot be had is never silently something else.
        let mut command = prepare(folder.path(), "image", "");
        let output = command.args(["--engine", "docker"]).env("DOCKER_HOST", &nowhere).output().expect("xtask runs");
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    }
    if have(&["podman"]) && is_root() {
        let plan = plan("run = [\"echo one\", \"echo two\"]", "podman", &[]);
        assert_eq!(plan["engine"]["reason"], "SNUG_ENGINE asks for it");
        let dockerfile = plan["trees"][0]["dockerfile"].as_str().expect("a Dockerfile");
        assert!(dockerfile.contains("\nFROM ") && dockerfile.matches("\nRUN [").count() == 2, "{dockerfile}");
    }
    let mut command = prepare(folder.path(), "image", "");
    let output = command.env("SNUG_ENGINE", "dokcer").output().expect("xtask runs");
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    // Without the command itself: all that is on this PATH is nothing.
    let mut command = prepare(folder.path(), "image", "");
    let output = command
        .args(["--engine", "podman"])
        .env("PATH", folder.path())
        .env("CARGO", env!("CARGO"))
        .output()
        .expect("xtask runs");
    assert!(stderr(&output).contains("this host lacks podman"), "{}", stderr(&output));
}

#[test]
fn a_context_of_dockers_is_followed() {
    if !have(&["busybox"]) || !is_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    busybox_base(folder.path());
    let Some(dockerd) = Dockerd::start(folder.path()) else { return };
    let settings = folder.path().join("docker");
    let docker = || {
        let mut command = Command::new("docker");
        command.env("DOCKER_CONFIG", &settings).env_remove("DOCKER_HOST");
        command
    };
    succeed(docker().args(["context", "create", "far", "--docker", &format!("host={}", dockerd.host())]));
    succeed(docker().args(["context", "use", "far"]));
    let mut build = prepare(folder.path(), "image", "run = [\"echo by docker > /made\"]");
    succeed(build.args(["--engine", "docker"]).env("DOCKER_CONFIG", &settings).env_remove("DOCKER_HOST"));
    let image = folder.path().join("out/small/rootfs.ext4");
    let made = succeed(Command::new("debugfs").args(["-R", "cat /made"]).arg(image));
    assert_eq!(String::from_utf8_lossy(&made.stdout), "by docker\n");
}

#[test]
fn a_running_container_becomes_an_image_through_a_pipe() {
    if !have(&["busybox", "e2fsck", "debugfs"]) || !is_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    busybox_base(folder.path());
    let Some(dockerd) = Dockerd::start(folder.path()) else { return };
    let base = fs::File::open(folder.path().join("base.tar")).expect("the base");
    succeed(dockerd.docker().args(["import", "-", "busybox"]).stdin(base));
    let step = "echo made in the container > /made; exec sleep 1000";
    succeed(dockerd.docker().args([
        "run",
        "--detach",
        "--network",
        "host",
        "--name",
        "snug-live",
        "busybox",
        "/bin/sh",
        "-c",
        step,
    ]));
    // `docker run --detach` answers before the container has written.
    while succeed(dockerd.docker().args(["exec", "snug-live", "/bin/ls", "/"]))
        .stdout
        .windows(5)
        .all(|word| word != b"made\n")
    {
        std::thread::sleep(Duration::from_millis(50));
    }
    let image = folder.path().join("x.ext4");
    let mut export =
        dockerd.docker().args(["export", "snug-live"]).stdout(Stdio::piped()).spawn().expect("docker runs");
    let stream = export.stdout.take().expect("a pipe");
    succeed(xtask().args(["pack", "-", "-o"]).arg(&image).stdin(stream));
    assert!(export.wait().expect("a child").success());
    succeed(Command::new("e2fsck").arg("-fn").arg(&image));
    let made = succeed(Command::new("debugfs").args(["-R", "cat /made"]).arg(&image));
    assert_eq!(String::from_utf8_lossy(&made.stdout), "made in the container\n");
    succeed(dockerd.docker().args(["rm", "--force", "snug-live"]));
}
