//! What the caller has open or at hand, and the network.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use snug_tests::{Workshop, have, is_root, number_of_its_own, succeed};

use super::{BUILDERS, Builder, hostile, said};
use crate::containers::{Dockerd, Podman};

/// What a caller may have, and what of that is reached.
const PROBE: &str = include_str!("probe.c");

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
        for what in ["an open file", "an open folder", "a key by its name", "the name of a key", "an abstract socket"] {
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
