//! The commands `docker` and `podman`, and their errors with what to do about them.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, PipeReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdout, Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use nix::unistd::{Uid, User};
use serde_json::Value;
use snug_process::Child;
use snug_process::child::{self, DeathSignal};
use snug_process::privilege::as_root;
use snug_process::program::HostProgram;
use snug_rootfs::platform::Platform;

use super::names::BuildNames;
use super::output::{Builder, Watch};
use super::pause;
use crate::error::{Failure, quoted};
use crate::plan::EngineKind;
use crate::steps::environment::PASSED;
use crate::steps::secret::Secret;

/// Fewer ids than this cannot hold Debian's `nobody` (65534).
const ENOUGH_IDS: u64 = 65_535;

/// The time that a reproducible build is said to happen at (reproducible-builds.org).
const SOURCE_DATE_EPOCH: &str = "SOURCE_DATE_EPOCH";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cli(EngineKind);

impl fmt::Display for Cli {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Cli {
    pub(super) fn new(kind: EngineKind) -> Self {
        Cli(kind)
    }

    pub(super) fn kind(self) -> EngineKind {
        self.0
    }

    pub(super) fn is_docker(self) -> bool {
        self.0 == EngineKind::Docker
    }

    /// The command with the caller's environment, in which contexts and remote daemons are named.
    fn command(self) -> Result<Command> {
        let program = match self.is_docker() {
            true => HostProgram { name: "docker", package: "docker.io" },
            false => HostProgram { name: "podman", package: "podman" },
        };
        let mut command = program.command().map_err(|missing| missing.or("use another engine"))?;
        if !self.is_docker() {
            pause::adopt();
        }
        // The classic builder needs no plugin, and every daemon has it.
        command.env("DOCKER_BUILDKIT", "0").stdin(Stdio::null());
        // Left out of the environment of other programs, which write it down. BuildKit and buildah read it.
        command.envs(std::env::var_os(SOURCE_DATE_EPOCH).map(|time| (SOURCE_DATE_EPOCH, time)));
        // Ctrl-C is for the tool, which ends its children and then clears up after them.
        command.process_group(0);
        Ok(command)
    }

    /// Runs the command to its end.
    fn output(self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command()?;
        let child = start(command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        child.wait_with_output().with_context(|| format!("cannot read what {self} says"))
    }

    /// Runs the command to its end. Returns what it printed, or its error message.
    pub(super) fn ask(self, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments)?;
        if !output.status.success() {
            bail!("{self} {}: {}", arguments[0], quoted(&said(&output.stderr)));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Checks that it can build on this host. The error says why not, and what to do.
    pub(super) fn probe(self) -> Result<()> {
        match self.0 {
            EngineKind::Podman => self.probe_podman(),
            _ => self.probe_docker(),
        }
    }

    fn probe_docker(self) -> Result<()> {
        let output = self.output(&["version", "--format", "{{json .Server}}"])?;
        if !output.status.success() {
            let said = said(&output.stderr);
            bail!("{}", why_unreachable(&said));
        }
        let server: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        require_platform(server["Os"].as_str(), server["Arch"].as_str())
    }

    fn probe_podman(self) -> Result<()> {
        let output = self.output(&["info", "--format", "json"])?;
        if !output.status.success() {
            bail!("podman cannot work here: {}", said(&output.stderr));
        }
        let about: Value = serde_json::from_slice(&output.stdout).context("podman info gives no JSON")?;
        let host = &about["host"];
        require_platform(host["os"].as_str(), host["arch"].as_str())?;
        let rootless = host["security"]["rootless"].as_bool().unwrap_or(false);
        if rootless && ids(&host["idMappings"]["uidmap"]).min(ids(&host["idMappings"]["gidmap"])) < ENOUGH_IDS {
            bail!(
                "podman has no {ENOUGH_IDS} subordinate ids here, so the image's users cannot be told apart\n\
                 hint: {}, then: podman system migrate",
                as_root(&format!("usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {}", user_name()))
            );
        }
        Ok(())
    }

    /// Returns the builder to use: docker's classic builder, which needs no plugin and which every daemon has, unless there
    /// are secrets, which it would keep in its layers.
    pub(super) fn builder(self, with_secrets: bool) -> Builder {
        if self.is_docker() && with_secrets { Builder::BuildKit } else { Builder::Classic }
    }

    /// Checks that docker can build with BuildKit: versions before 23.0 include it, later ones need a plugin.
    pub(super) fn require_buildkit(self) -> Result<()> {
        let version = self.ask(&["version", "--format", "{{.Client.Version}}"])?;
        if has_own_buildkit(&version) || self.ask(&["buildx", "version"]).is_ok() {
            return Ok(());
        }
        bail!(Failure::Unsupported(format!(
            "docker shows secrets to steps by BuildKit alone, and docker {version} has no buildx here\n\
             hint: {} (where the distribution has it), --engine builtin, or --engine podman",
            as_root("apt-get install docker-buildx")
        )))
    }

    /// Imports the tar that `write` writes as the base image.
    pub(super) fn import(self, names: &BuildNames, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        let mut command = self.command()?;
        command.arg("import");
        for label in names.labels() {
            command.args(["--change", &format!("LABEL {label}")]);
        }
        command.args(["-", &names.base_image()]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = start(&mut command)?;
        let written = child.stdin.take().map(|mut stdin| write(&mut stdin));
        end(child).with_context(|| format!("{self} cannot import the base"))?;
        // Where the command failed, its own words count more than the pipe that it closed.
        written.transpose().context("cannot hand the base over")?;
        Ok(())
    }

    /// Builds the image of the context in `folder`.
    pub(super) fn build(
        self,
        folder: &Path,
        names: &BuildNames,
        secrets: &[Secret],
        keep: bool,
        watch: Watch,
    ) -> Result<()> {
        let mut command = self.command()?;
        command.args(["build", "--network", "host", "--no-cache", "--tag", &names.image()]);
        let builder = self.builder(!secrets.is_empty());
        match builder {
            Builder::BuildKit => command.env("DOCKER_BUILDKIT", "1").args(["--progress", "plain"]),
            Builder::Classic if keep => command.arg("--rm=false"),
            Builder::Classic => command.arg("--force-rm"),
        };
        if !self.is_docker() {
            // One layer for all steps: there is nothing to gain from the others. The base is here and nowhere else.
            command.args(["--isolation", "chroot", "--layers=false", "--pull=never"]);
        }
        for name in PASSED.iter().filter(|name| std::env::var_os(name).is_some()) {
            // Without a value it is taken from the environment: proxies may hold a password.
            command.args(["--build-arg", name]);
        }
        for (index, secret) in secrets.iter().enumerate() {
            // Through the command's environment: a file could outlive a killed run.
            let variable = format!("SNUG_SECRET_{index}");
            command.args(["--secret", &format!("id={},env={variable}", secret.id)]);
            command.env(variable, OsStr::from_bytes(&secret.value));
        }
        command.arg(folder);
        // docker's classic builder tells the steps' output (standard output) from its own errors; the others do not.
        let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
        match self.is_docker() && builder == Builder::Classic {
            true => command.stdout(writer).stderr(Stdio::piped()),
            false => command.stdout(writer.try_clone()?).stderr(writer),
        };
        let child = start(&mut command)?;
        // The command holds the pipe's writing end open as well.
        drop(command);
        watched(child, reader, watch)
    }

    /// Creates a container of the built image, to export it; it never runs.
    pub(super) fn create(self, names: &BuildNames) -> Result<()> {
        self.ask(&["create", "--name", &names.container(), &names.image(), "/bin/true"]).map(drop)
    }

    /// Exports the container's tree as a tar stream to `consume`, which reads it to its end.
    pub(super) fn export(self, names: &BuildNames, consume: impl FnOnce(&mut ChildStdout) -> Result<()>) -> Result<()> {
        let mut command = self.command()?;
        command.args(["export", &names.container()]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = start(&mut command)?;
        let mut stdout = child.stdout.take().context("the export has no output")?;
        let consumed = consume(&mut stdout);
        drop(stdout);
        let ended = end(child).with_context(|| format!("{self} cannot export the tree"));
        // The reader fails on a stream cut short as well, but the command's own error says why.
        match consumed {
            Err(error) if ended.is_ok() => Err(error),
            _ => ended,
        }
    }
}

fn has_own_buildkit(version: &str) -> bool {
    version.split('.').next().and_then(|major| major.parse().ok()).is_some_and(|major: u32| (18..23).contains(&major))
}

/// Returns the name of the user that runs this, for commands that another one types.
fn user_name() -> String {
    let uid = Uid::effective();
    User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

/// Returns the message for a daemon that cannot be reached, with what to do about it.
fn why_unreachable(said: &str) -> String {
    let hint = if said.contains("permission denied") {
        let join = as_root(&format!("usermod --append --groups docker {}", user_name()));
        format!(
            "members of the group docker may use the daemon (it makes them as good as root): {join}, then log in again"
        )
    } else {
        let start = as_root("systemctl start docker");
        format!("start the docker daemon ({start}), or name another by DOCKER_HOST or docker context use")
    };
    format!("the docker daemon cannot be reached: {said}\nhint: {hint}")
}

fn require_platform(os: Option<&str>, architecture: Option<&str>) -> Result<()> {
    let host = Platform::host().context("this machine is neither amd64 nor arm64")?;
    let there = format!("{}/{}", os.unwrap_or_default(), architecture.unwrap_or_default());
    if there != host.to_string() {
        bail!("its machine is {there}, and images are built for {host}\nhint: name a daemon on such a machine");
    }
    Ok(())
}

/// Returns how many ids a map of podman's has.
fn ids(map: &Value) -> u64 {
    map.as_array().into_iter().flatten().filter_map(|range| range["size"].as_u64()).sum()
}

/// Returns a command's standard error without notices.
fn said(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !is_notice(line)).collect();
    lines.join("\n").trim().to_owned()
}

/// Whether this is docker's notice about its other builder.
fn is_notice(line: &str) -> bool {
    ["DEPRECATED: The legacy builder", "BuildKit is currently disabled", "environment-variable.", "Install the buildx"]
        .iter()
        .any(|notice| line.trim_start().starts_with(notice))
}

/// Starts a command that is told to end, and not killed, where the tool is: it then has its daemon clear up.
/// It gets nothing that the caller left open: podman's `--isolation chroot` would hand it to the steps.
fn start(command: &mut Command) -> Result<Child> {
    let command = child::leave_inheritance(command).context("cannot list the open descriptors")?;
    Ok(Child::start_with(command, DeathSignal::Terminate)?)
}

/// Waits, and makes an error of a failure with what was said.
fn end(child: Child) -> Result<()> {
    let name = child.name().to_owned();
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{name} failed ({}): {}", output.status, quoted(&said(&output.stderr)));
    }
    Ok(())
}

/// Follows a build to its end.
fn watched(child: Child, reader: PipeReader, mut watch: Watch) -> Result<()> {
    let waiting = std::thread::spawn(move || child.wait_with_output());
    watch.follow(reader);
    let output = waiting.join().expect("waiting does not panic")?;
    if output.status.success() {
        watch.succeeded();
        return Ok(());
    }
    Err(watch.failed(&said(&output.stderr)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_out_of_reach_comes_with_what_to_do() {
        let denied = "permission denied while trying to connect to the docker API at unix:///run/docker.sock";
        assert!(why_unreachable(denied).contains("--groups docker"));
        let absent = "Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?";
        assert!(why_unreachable(absent).contains("DOCKER_HOST"));
        assert!(require_platform(Some("linux"), Some("s390x")).unwrap_err().to_string().contains("linux/s390x"));
    }

    #[test]
    fn older_docker_commands_have_buildkit_of_their_own() {
        assert!(has_own_buildkit("20.10.24+dfsg1"));
        assert!(!has_own_buildkit("28.2.2"));
        assert!(!has_own_buildkit("1.13.1"));
        assert!(!has_own_buildkit(""));
    }

    #[test]
    fn what_docker_says_of_its_builders_is_no_error() {
        let stderr =
            b"DEPRECATED: The legacy builder is deprecated and will be removed in a future release.\n            \
            BuildKit is currently disabled; enable it by removing the DOCKER_BUILDKIT=0\n            \
            environment-variable.\n\nno space left on device\n";
        assert_eq!(said(stderr), "no space left on device");
    }
}
