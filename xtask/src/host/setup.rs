//! `--setup`: installs what tasks require on a Debian or Ubuntu host.
//!
//! It prints what it is about to install, skips requirements that are met, removes no package, and neither starts nor
//! enables a service.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use snug_process::privilege::{Root, as_root};
use snug_process::program::{HostProgram, Requirement};
use snug_process::{child, interrupt};
use snug_sandbox::{POLICY_PATH, POLICY_SCRIPT};

use super::requirements::{self, Task};
use crate::report::{progress, screen};

const APT_GET: HostProgram = HostProgram { name: "apt-get", package: "apt" };
const APT_CACHE: HostProgram = HostProgram { name: "apt-cache", package: "apt" };

/// The variable that allows `--setup`, by any value, to downgrade installed packages to the version of apt's sources where
/// that avoids a conflict: for throw-away machines, as CI's are.
const MAY_DOWNGRADE: &str = "SNUG_SETUP_MAY_DOWNGRADE";
/// Where `systemctl enable` makes its symlinks.
const UNITS: &str = "/etc/systemd/system";

/// Installs what the host lacks for `tasks`.
pub fn prepare(tasks: &[Task]) -> Result<()> {
    let missing = requirements::lacking(tasks);
    if missing.is_empty() {
        progress::note("setup: nothing to install");
        return Ok(());
    }
    screen::say("setup: installing");
    for requirement in &missing {
        screen::say(&format!("  {:<24} to {}", requirement.package, requirement.purpose));
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "this host has no apt-get\n\
             hint: install the programs above with this host's package manager, then run without --setup"
        );
    }
    install(&missing)?;
    if let Some(unmet) = missing.iter().find(|requirement| requirement.met_by().is_none()) {
        bail!("{} is installed but does not provide {}", unmet.package, unmet.any_of.join(" or "));
    }
    Ok(())
}

fn install(missing: &[&'static Requirement]) -> Result<()> {
    apt_get(&["update", "-q"])?;
    let packages: Vec<String> = missing.iter().map(|requirement| requirement.package.to_owned()).collect();
    let mut words = vec!["install", "-q", "-y", "--no-install-recommends", "--no-remove"];
    let downgrades = downgrades(&packages)?;
    if !downgrades.is_empty() {
        words.push("--allow-downgrades");
    }
    words.extend(packages.iter().chain(&downgrades).map(String::as_str));
    let policy = ServicePolicy::install()?;
    let enabled = enabled_units();
    let installed = apt_get(&words);
    policy.remove()?;
    for link in enabled_units().difference(&enabled) {
        screen::say(&format!("setup: {} was enabled by its package; disabling it", link.display()));
        run_as_root("rm", &["--", &link.to_string_lossy()])?;
    }
    installed
}

/// Returns the installed packages that conflict with `packages`, as `name=version` of apt's sources.
///
/// An installed package can be newer than what apt's sources have (from backports that were removed again, for one), and
/// packages of the sources may then conflict with it: apt would remove it. The user decides, unless [`MAY_DOWNGRADE`] is
/// set.
fn downgrades(packages: &[String]) -> Result<Vec<String>> {
    let conflicting = removals(packages)?;
    if conflicting.is_empty() {
        return Ok(Vec::new());
    }
    let older: Vec<String> =
        conflicting.iter().filter_map(|name| Some(format!("{name}={}", version_of_sources(name)?))).collect();
    let together: Vec<String> = packages.iter().chain(&older).cloned().collect();
    if older.len() < conflicting.len() || !removals(&together)?.is_empty() {
        bail!(
            "apt would remove {} to install {}, and --setup removes nothing\n\
             hint: decide which to keep: {}",
            conflicting.join(", "),
            packages.join(", "),
            as_root(&format!("apt-get install --no-install-recommends {}", packages.join(" ")))
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
            "{} is installed in a version that apt's sources do not have, and apt would remove it to install {}; --setup \
             changes no installed package\n\
             hint: downgrade it, then run this again: {}",
            conflicting.join(", "),
            broken.join(", "),
            as_root(&format!("apt-get install --allow-downgrades {}", older.join(" ")))
        );
    }
    screen::say(&format!("setup: {MAY_DOWNGRADE} is set: downgrading to {}", older.join(", ")));
    Ok(older)
}

/// Returns the packages that apt would remove to install `packages`.
fn removals(packages: &[String]) -> Result<Vec<String>> {
    let mut simulate = APT_GET.command()?;
    simulate.args(["install", "--simulate", "--no-install-recommends", "--allow-downgrades"]).args(packages);
    let output = child::output(&mut simulate)?;
    let said = String::from_utf8_lossy(&output.stdout);
    // Lines as `Remv qemu-utils [1:10.0.2]`. A failure is left for the installation to report.
    Ok(said.lines().filter_map(|line| Some(line.strip_prefix("Remv ")?.split(' ').next()?.to_owned())).collect())
}

/// Returns the newest version of a package in apt's sources.
fn version_of_sources(package: &str) -> Option<String> {
    let output = child::output(APT_CACHE.command().ok()?.args(["madison", package])).ok()?;
    // Lines as `qemu-utils | 1:7.2+dfsg-7 | http://…`, newest first.
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(said.lines().next()?.split('|').nth(1)?.trim().to_owned())
}

/// Returns the symlinks by which systemd starts units at boot.
fn enabled_units() -> BTreeSet<PathBuf> {
    let links = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    links(UNITS.into())
        .filter(|path| path.extension().is_some_and(|end| end == "wants" || end == "requires"))
        .flat_map(links)
        .collect()
}

/// Our `policy-rc.d` on the host, which keeps package scripts from starting services. A host's own policy is left alone.
struct ServicePolicy {
    installed: Option<interrupt::Registered>,
}

impl ServicePolicy {
    fn install() -> Result<Self> {
        let path = Path::new("/").join(POLICY_PATH);
        if fs::symlink_metadata(&path).is_ok() {
            return Ok(ServicePolicy { installed: None });
        }
        let installed = interrupt::remove_on_interrupt(&path, remove_policy);
        let mut script = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
        io::Write::write_all(&mut script, POLICY_SCRIPT.as_bytes())?;
        let (from, to) = (script.path().to_string_lossy(), path.to_string_lossy());
        run_as_root("install", &["-m", "0755", "-T", &from, &to])?;
        Ok(ServicePolicy { installed: Some(installed) })
    }

    fn remove(self) -> Result<()> {
        if self.installed.is_some() { remove_policy(&Path::new("/").join(POLICY_PATH)) } else { Ok(()) }
    }
}

/// Removes our `policy-rc.d`.
fn remove_policy(path: &Path) -> Result<()> {
    if fs::read(path).is_ok_and(|text| text == POLICY_SCRIPT.as_bytes()) {
        run_as_root("rm", &["--", &path.to_string_lossy()])?;
    }
    Ok(())
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    // Seconds to wait for another apt, such as a desktop's update service.
    let mut words = vec!["-o", "DPkg::Lock::Timeout=600"];
    words.extend_from_slice(arguments);
    run_as_root("apt-get", &words)
}

/// Runs a command as root, by sudo for other users. It is not killed with this tool: a killed dpkg leaves packages half
/// configured.
fn run_as_root(program: &str, arguments: &[&str]) -> Result<()> {
    let mut command = match Root::here() {
        Root::Already => Command::new(program),
        Root::Sudo => {
            let mut sudo = Command::new("sudo");
            // Without a terminal, nobody can type a password.
            if !io::stdin().is_terminal() {
                sudo.arg("-n");
            }
            sudo.args(["DEBIAN_FRONTEND=noninteractive", program]);
            sudo
        }
        Root::OtherAccount => bail!(
            "{program} needs root, and this host has no sudo\nhint: have root install the packages above, then run \
             without --setup"
        ),
    };
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::inherit());
    // Standard output is for results.
    command.stdout(io::stderr());
    let status = command.status().with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!(
            "{program} {} failed ({status}){}",
            arguments.join(" "),
            match Root::here() {
                Root::Already => "",
                _ =>
                    "\nhint: where sudo is not allowed, have root install the packages above, then run without --setup",
            }
        );
    }
    Ok(())
}
