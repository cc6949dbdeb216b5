//! `--setup`: makes a Debian or Ubuntu host ready for the named work, and only that.
//!
//! It prints what it is about to install, skips what already works, removes nothing, and neither starts nor enables a
//! service.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;

use crate::interrupt;
use crate::needs::{self, Need, Work};

/// Debian's word that no service may be started while packages are configured (/usr/share/doc/init-system-helpers).
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// 101: action forbidden by policy.
const POLICY_SCRIPT: &str = "#!/bin/sh\nexit 101\n";
/// Where `systemctl enable` leaves its links.
const UNITS: &str = "/etc/systemd/system";

/// Installs what is missing of the needs of `works`.
pub fn prepare(works: &[Work]) -> Result<()> {
    let missing = needs::lacking(works);
    if missing.is_empty() {
        eprintln!("setup: this host has all that is needed");
        return Ok(());
    }
    eprintln!("setup: to be installed");
    for need in &missing {
        eprintln!("  {:<24} to {}", need.package, need.purpose);
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "this host has no apt-get\nhint: install the programs above in this host's own way, then run without --setup"
        );
    }
    install(&missing)?;
    if let Some(need) = missing.iter().find(|need| need.met_by().is_none()) {
        bail!("{} is installed, and still there is no {}", need.package, need.proofs.join(" or "));
    }
    Ok(())
}

fn install(missing: &[&'static Need]) -> Result<()> {
    apt_get(&["update", "-q"])?;
    let mut words = vec!["install", "-q", "-y", "--no-install-recommends", "--no-remove"];
    words.extend(missing.iter().map(|need| need.package));
    let quiet = QuietServices::lay()?;
    let enabled = enabled_units();
    let installed = apt_get(&words);
    quiet.lift()?;
    for link in enabled_units().difference(&enabled) {
        eprintln!("setup: {} was enabled by its package and is not any more", link.display());
        as_root("rm", &["--", &link.to_string_lossy()])?;
    }
    installed
}

/// Links by which systemd starts units at boot.
fn enabled_units() -> BTreeSet<PathBuf> {
    let links = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    links(UNITS.into())
        .filter(|path| path.extension().is_some_and(|end| end == "wants" || end == "requires"))
        .flat_map(links)
        .collect()
}

/// Keeps package scripts from starting services until it is lifted; a host's own policy is left alone.
struct QuietServices {
    laid: Option<interrupt::Registered>,
}

impl QuietServices {
    fn lay() -> Result<Self> {
        if fs::symlink_metadata(POLICY).is_ok() {
            return Ok(QuietServices { laid: None });
        }
        let laid = interrupt::remove_on_interrupt(Path::new(POLICY), |_| lift_policy());
        let mut script = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
        io::Write::write_all(&mut script, POLICY_SCRIPT.as_bytes())?;
        as_root("install", &["-m", "0755", "-T", &script.path().to_string_lossy(), POLICY])?;
        Ok(QuietServices { laid: Some(laid) })
    }

    fn lift(self) -> Result<()> {
        if self.laid.is_some() { lift_policy() } else { Ok(()) }
    }
}

fn lift_policy() -> Result<()> {
    if fs::read(POLICY).is_ok_and(|text| text == POLICY_SCRIPT.as_bytes()) {
        as_root("rm", &["--", POLICY])?;
    }
    Ok(())
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    // Another apt may be at work, a desktop's own for one.
    let mut words = vec!["-o", "DPkg::Lock::Timeout=600"];
    words.extend_from_slice(arguments);
    as_root("apt-get", &words)
}

/// Runs a command as root: by sudo where this is not root.
fn as_root(program: &str, arguments: &[&str]) -> Result<()> {
    let mut command = if Uid::effective().is_root() {
        Command::new(program)
    } else {
        let mut sudo = Command::new("sudo");
        // Nobody could answer its question off a terminal.
        if !io::stdin().is_terminal() {
            sudo.arg("-n");
        }
        sudo.args(["DEBIAN_FRONTEND=noninteractive", program]);
        sudo
    };
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::inherit());
    // Standard output is for results: what apt-get says goes where people read.
    command.stdout(io::stderr());
    let status = command
        .status()
        .with_context(|| format!("cannot run {program}\nhint: without root or sudo, ask for the packages above"))?;
    if !status.success() {
        bail!(
            "{program} {} failed ({status})\nhint: without root or sudo, ask for these packages to be installed",
            arguments.join(" ")
        );
    }
    Ok(())
}
