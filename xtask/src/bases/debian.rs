//! Debian roots, bootstrapped by mmdebstrap in the sandbox: the bases of images, and programs to run.
//!
//! Every engine starts from the same base: a container engine has no root to start from, and the base's tree must not depend
//! on the engine.

use std::io::Read;

use anyhow::{Context, Result, bail};
use snug_process::child;
use snug_process::program::HostProgram;
use snug_rootfs::platform::Platform;
use snug_sandbox::emulator;
use snug_sandbox::{Action, Job, Program};

use crate::cache::Cache;
use crate::host::requirements::{self, Task};
use crate::report::progress::Progress;
use crate::steps::StepFailed;
use crate::steps::environment;
use crate::steps::watched::{self, Title};

const APT_GET: HostProgram = HostProgram { name: "apt-get", package: "apt" };

/// What mmdebstrap is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bootstrap<'a> {
    /// Release, `trixie`.
    pub suite: &'a str,
    /// mmdebstrap's package set.
    pub variant: &'a str,
    /// What the root runs on.
    pub platform: Platform,
    /// A moment of Debian's snapshot archive, `YYYYMMDDTHHMMSSZ`, to which the root's own apt keeps as well.
    pub snapshot: Option<&'a str>,
    /// Packages beyond the variant's.
    pub include: &'a [&'a str],
    /// Where it is asked for: `path:line` of a spec, or a description.
    pub place: &'a str,
}

/// Probes whether a Debian root can be made here. The error says why not and what to do.
pub fn probe() -> Result<()> {
    requirements::require(&[Task::DebianBase])?;
    snug_sandbox::probe().context(
        "a Debian base is made in user namespaces, whatever engine runs the steps\n\
         hint: where there are no namespaces, start from a finished base: { tar = \"…\" } or { oci = \"…\" }",
    )
}

/// Fails where this host's apt knows no `--snapshot`: it is run on an empty list of sources.
fn require_snapshots() -> Result<()> {
    let mut update = APT_GET.command()?;
    update
        .args(["update", "--snapshot", "20250101T000000Z"])
        .args(["-o", "Dir::Etc::SourceList=/dev/null", "-o", "Dir::Etc::SourceParts=/dev/null"])
        .args(["-o", "Dir::State::Lists=/nonexistent"]);
    let output = child::output(&mut update)?;
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("not understood") {
        bail!(
            "this host's apt is too old for a `snapshot` of Debian's archive\n\
             hint: apt 2.8 or newer has it (Debian 13, Ubuntu 24.04); or pin packages by version: \"openssh-server=1:10.0*\""
        );
    }
    Ok(())
}

/// The archive has no such suite.
#[derive(Debug, thiserror::Error)]
#[error("the archive of Debian has no suite `{suite}`\n  {said}")]
pub struct NoSuchSuite {
    suite: String,
    /// apt's own words.
    pub said: String,
}

/// Returns what apt says of a suite that the archive does not have.
fn missing_suite(error: &anyhow::Error) -> Option<String> {
    let failed: &StepFailed = error.downcast_ref()?;
    let line = failed.last_lines.iter().find(|line| line.contains("does not have a Release file"))?;
    Some(line.trim_start_matches("E: ").to_owned())
}

/// Bootstraps the root and hands its tar stream to `consume`, which reads it to its end.
pub fn run(
    cache: &Cache,
    what: &Bootstrap,
    progress: &Progress,
    consume: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
) -> Result<()> {
    probe()?;
    let work = cache.work_folder("bootstrap")?;
    // mmdebstrap makes the root there and runs its programs.
    cache.require_exec()?;
    let scratch = work.path().join("tmp");
    std::fs::create_dir(&scratch)?;
    // Root of the namespace is all that mmdebstrap's root mode needs.
    let mut command = vec!["mmdebstrap".to_owned(), "--mode=root".into(), format!("--variant={}", what.variant)];
    command.push(format!("--architectures={}", what.platform.debian_architecture()));
    // It would look for emulators registered on the host, and not in our namespace.
    command.push("--skip=check/qemu".into());
    if let Some(moment) = what.snapshot {
        require_snapshots()?;
        // apt knows where an archive keeps its snapshots; mmdebstrap writes the option into the root's apt.conf.d.
        command.push(format!("--aptopt=APT::Snapshot \"{moment}\""));
    }
    if !what.include.is_empty() {
        command.push(format!("--include={}", what.include.join(",")));
    }
    command.extend([what.suite.to_owned(), "-".into()]);
    let program = Program { command, environment: environment::host_tools(), directory: None, network: true };
    let content = if what.include.is_empty() { what.variant.to_owned() } else { what.include.join(", ") };
    let title = Title {
        text: format!("mmdebstrap {} ({content})", what.suite),
        place: what.place.to_owned(),
        fetches: true,
        network: true,
    };
    let mut actions = vec![Action::Scratch { folder: scratch }];
    actions.extend(emulator::emulator(what.platform)?.map(Action::Emulate));
    let mut titles: Vec<_> = actions.iter().map(|_| None).collect();
    titles.push(Some(title));
    actions.push(Action::Pipe(program));
    watched::run(&Job { actions }, &titles, &[], progress, consume).map_err(|error| match missing_suite(&error) {
        Some(said) => NoSuchSuite { suite: what.suite.to_owned(), said }.into(),
        None => cache.explain(error),
    })
}
