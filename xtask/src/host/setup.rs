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
use snug_process::program::{HostProgram, Requirement};
use snug_process::{child, interrupt};

use super::requirements::{self, Task};

const APT_GET: HostProgram = HostProgram { name: "apt-get", package: "apt" };
const APT_CACHE: HostProgram = HostProgram { name: "apt-cache", package: "apt" };

/// Debian's word that no service may be started while packages are configured (/usr/share/doc/init-system-helpers).
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// 101: action forbidden by policy.
const POLICY_SCRIPT: &str = "#!/bin/sh\nexit 101\n";
/// Allows `--setup`, by any value, to take installed packages back to the version of the sources where they stand in the
/// way: for machines that are nobody's, as CI's are.
const MAY_DOWNGRADE: &str = "SNUG_SETUP_MAY_DOWNGRADE";
/// Where `systemctl enable` leaves its links.
const UNITS: &str = "/etc/systemd/system";

/// Installs what is missing of the needs of `works`.
pub fn prepare(works: &[Task]) -> Result<()> {
    let missing = requirements::lacking(works);
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
        bail!("{} is installed, and still there is no {}", need.package, need.any_of.join(" or "));
    }
    Ok(())
}

fn install(missing: &[&'static Requirement]) -> Result<()> {
    apt_get(&["update", "-q"])?;
    let packages: Vec<String> = missing.iter().map(|need| need.package.to_owned()).collect();
    let mut words = vec!["install", "-q", "-y", "--no-install-recommends", "--no-remove"];
    let downgrades = downgrades(&packages)?;
    if !downgrades.is_empty() {
        words.push("--allow-downgrades");
    }
    words.extend(packages.iter().chain(&downgrades).map(String::as_str));
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

/// Installed packages that stand in the way of `packages`, as `name=version` of the sources, which would not.
///
/// A package can be newer than what this host's sources have (from backports that were taken off again, say) and break
/// what they have; apt would then remove it without a word of why. Which of the two it shall be is the person's to
/// decide, unless [`MAY_DOWNGRADE`] says so.
fn downgrades(packages: &[String]) -> Result<Vec<String>> {
    let in_the_way = removals(packages)?;
    if in_the_way.is_empty() {
        return Ok(Vec::new());
    }
    let older: Vec<String> =
        in_the_way.iter().filter_map(|name| Some(format!("{name}={}", version_of_sources(name)?))).collect();
    let together: Vec<String> = packages.iter().chain(&older).cloned().collect();
    if older.len() < in_the_way.len() || !removals(&together)?.is_empty() {
        bail!(
            "apt would remove {} to install {}, and --setup removes nothing\n\
             hint: decide what shall stay: sudo apt-get install --no-install-recommends {}",
            in_the_way.join(", "),
            packages.join(", "),
            packages.join(" ")
        );
    }
    if std::env::var_os(MAY_DOWNGRADE).is_none_or(|value| value.is_empty()) {
        let mut broken = Vec::new();
        for package in packages {
            if !removals(std::slice::from_ref(package))?.is_empty() {
                broken.push(package.as_str());
            }
        }
        bail!(
            "{} is installed here in a version that the sources of this host do not have, and apt would remove it for \
             {}; --setup changes no package that is there\n\
             hint: take the version of the sources, then run this again: sudo apt-get install --allow-downgrades {}",
            in_the_way.join(", "),
            broken.join(", "),
            older.join(" ")
        );
    }
    eprintln!("setup: {MAY_DOWNGRADE} is set: {} in the version of the sources", older.join(", "));
    Ok(older)
}

/// What apt would remove to install `packages`.
fn removals(packages: &[String]) -> Result<Vec<String>> {
    let mut simulate = APT_GET.command()?;
    simulate.args(["install", "--simulate", "--no-install-recommends", "--allow-downgrades"]).args(packages);
    let output = child::output(&mut simulate)?;
    let said = String::from_utf8_lossy(&output.stdout);
    // Lines as `Remv qemu-utils [1:10.0.2]`. What cannot be installed at all, apt itself says when it is asked to.
    Ok(said.lines().filter_map(|line| Some(line.strip_prefix("Remv ")?.split(' ').next()?.to_owned())).collect())
}

/// The newest version of a package that the sources of this host have.
fn version_of_sources(package: &str) -> Option<String> {
    let output = child::output(APT_CACHE.command().ok()?.args(["madison", package])).ok()?;
    // Lines as `qemu-utils | 1:7.2+dfsg-7 | http://…`, newest first.
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(said.lines().next()?.split('|').nth(1)?.trim().to_owned())
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

/// Runs a command as root: by sudo where this is not root. It is not killed with this tool: a dpkg that is killed leaves
/// packages half configured.
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
