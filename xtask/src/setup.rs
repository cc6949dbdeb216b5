//! `--setup`: makes a Debian or Ubuntu host ready for the named work, and only that.
//!
//! It prints what it is about to install, skips what already works, removes nothing and starts no service.

use std::io::IsTerminal;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;

/// Something the host must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Debian's package.
    pub package: &'static str,
    /// A program on PATH, or an absolute path, that is there when the need is met.
    pub proof: &'static str,
    pub purpose: &'static str,
}

/// What builds images on the builtin engine.
pub const BUILD: [Need; 5] = [
    Need { package: "mmdebstrap", proof: "mmdebstrap", purpose: "make Debian bases" },
    Need {
        package: "debian-archive-keyring",
        proof: "/usr/share/keyrings/debian-archive-keyring.gpg",
        purpose: "verify Debian's packages",
    },
    Need { package: "uidmap", proof: "newuidmap", purpose: "build without root" },
    Need { package: "e2fsprogs", proof: "mke2fs", purpose: "write and check ext4" },
    Need { package: "squashfs-tools-ng", proof: "tar2sqfs", purpose: "write squashfs" },
];

/// What the tests need on top: outside judges, and a machine to boot images in.
pub const TEST: [Need; 12] = [
    Need { package: "e2fsprogs", proof: "debugfs", purpose: "judge ext4 images" },
    Need { package: "squashfs-tools", proof: "unsquashfs", purpose: "judge squashfs images" },
    Need { package: "qemu-system-x86", proof: "qemu-system-x86_64", purpose: "boot images" },
    Need { package: "openssh-client", proof: "ssh", purpose: "log in to booted images" },
    Need { package: "attr", proof: "getfattr", purpose: "judge extended attributes" },
    Need { package: "libcap2-bin", proof: "setcap", purpose: "judge file capabilities" },
    Need { package: "libarchive-tools", proof: "bsdtar", purpose: "judge tar archives" },
    Need { package: "busybox-static", proof: "busybox", purpose: "make small roots to test on" },
    Need { package: "cpio", proof: "cpio", purpose: "judge initramfs archives" },
    Need { package: "acl", proof: "setfacl", purpose: "judge access control lists" },
    Need { package: "python3", proof: "python3", purpose: "judge tar archives" },
    Need { package: "shellcheck", proof: "shellcheck", purpose: "judge the images' scripts" },
];

impl Need {
    fn is_met(&self) -> bool {
        if self.proof.starts_with('/') {
            return Path::new(self.proof).exists();
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        // Users without root often lack the sbin folders, where some of the programs are.
        let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(Into::into);
        std::env::split_paths(&path).chain(system).any(|folder| folder.join(self.proof).is_file())
    }
}

/// Installs what is missing of `needs`.
pub fn prepare(needs: &[Need]) -> Result<()> {
    let mut missing: Vec<&Need> = needs.iter().filter(|need| !need.is_met()).collect();
    missing.dedup_by_key(|need| need.package);
    if missing.is_empty() {
        eprintln!("setup: this host has all that is needed");
        return Ok(());
    }
    eprintln!("setup: to be installed");
    for need in &missing {
        eprintln!("  {:<24} to {}", need.package, need.purpose);
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "this host has no apt-get\nhint: install the programs above in this host's own way, then run without --setup"
        );
    }
    apt_get(&["update", "-q"])?;
    let mut install = vec!["install", "-q", "-y", "--no-install-recommends", "--no-remove"];
    install.extend_from_slice(&packages);
    apt_get(&install)?;
    if let Some(need) = missing.iter().find(|need| !need.is_met()) {
        bail!("{} is installed, and still there is no {}", need.package, need.proof);
    }
    Ok(())
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let mut command = if Uid::effective().is_root() {
        Command::new("apt-get")
    } else {
        let mut sudo = Command::new("sudo");
        // Nobody could answer its question off a terminal.
        if !std::io::stdin().is_terminal() {
            sudo.arg("-n");
        }
        sudo.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        sudo
    };
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::inherit());
    // Standard output is for results: what apt-get says goes where people read.
    command.stdout(std::io::stderr());
    let status = command.status().context("cannot run apt-get")?;
    if !status.success() {
        bail!(
            "apt-get {} failed ({status})\nhint: without root or sudo, ask for these packages to be installed",
            arguments.join(" ")
        );
    }
    Ok(())
}
