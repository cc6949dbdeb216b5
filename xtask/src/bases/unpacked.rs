//! Programs of a Debian suite, unpacked into the cache and never installed.
//!
//! Some programs are too old on this host, or their packages would start or enable a service. mmdebstrap's `extract` variant
//! downloads them with all they depend on, verified by apt, and unpacks them without running their scripts. The folder also
//! holds their libraries and loader, so that they run on any host.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use base16ct::lower::encode_string as hex;
use sha2::{Digest, Sha256};
use snug_rootfs::platform::Platform;
use snug_sandbox::{Action, Job};

use crate::bases::debian::{self, Bootstrap};
use crate::cache::Cache;
use crate::report::progress::Progress;

/// mmdebstrap's variant that unpacks the named packages and what they depend on, and runs nothing of theirs.
const EXTRACT: &str = "extract";

/// Where a Debian root has programs, in the order of its PATH.
const PROGRAM_FOLDERS: [&str; 4] = ["usr/sbin", "usr/bin", "sbin", "bin"];

/// Hexadecimal digits that distinguish one set of packages from another.
const NAME_DIGITS: usize = 16;

/// A folder of unpacked packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    root: PathBuf,
}

impl Tools {
    /// Returns `packages` of `suite` (`trixie`) for this machine's architecture, with all they depend on: from the cache or,
    /// the first time, from Debian's archive. Needs what a Debian base needs: mmdebstrap and user namespaces.
    pub fn fetch(cache: &Cache, suite: &str, packages: &[&str], progress: &Progress) -> Result<Self> {
        if let Some(tools) = Self::cached(cache, suite, packages) {
            return Ok(tools);
        }
        let name = name(suite, packages);
        let root = cache.tools().join(&name);
        let _lock =
            cache.lock(&name, || progress.note(format!("another run fetches {}; waiting", packages.join(", "))))?;
        // Another run may have fetched them while this one waited.
        if !root.is_dir() {
            unpack(cache, suite, packages, &root, progress)
                .with_context(|| format!("cannot get {} from Debian {suite}", packages.join(", ")))?;
        }
        Ok(Tools { root })
    }

    /// A folder that [`Self::fetch`] has filled.
    pub fn at(root: &Path) -> Self {
        Tools { root: root.to_path_buf() }
    }

    /// As [`Self::fetch`], from the cache only.
    pub fn cached(cache: &Cache, suite: &str, packages: &[&str]) -> Option<Self> {
        let root = cache.tools().join(name(suite, packages));
        root.is_dir().then_some(Tools { root })
    }

    /// Returns the folder, which is laid out as a root filesystem.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of `program` in the folder.
    pub fn program(&self, program: &str) -> Result<PathBuf> {
        PROGRAM_FOLDERS
            .iter()
            .map(|folder| self.root.join(folder).join(program))
            .find(|path| path.is_file())
            .with_context(|| format!("{} holds no {program}", self.root.display()))
    }

    /// Returns a command that runs `program` with the loader and libraries it was built for. A program that executes
    /// `/proc/self/exe` would get the loader: use [`Self::library_path`] for such a one.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(self.loader()?);
        command.arg("--library-path").arg(self.library_path()).arg(self.program(program)?);
        Ok(command)
    }

    /// Returns the folders of libraries, for `LD_LIBRARY_PATH`. The host's loader fits them where the suite is the host's own.
    pub fn library_path(&self) -> OsString {
        let folders = ["usr/lib", "lib"].into_iter().flat_map(|lib| {
            let lib = self.root.join(lib);
            [lib.join(format!("{}-linux-gnu", std::env::consts::ARCH)), lib]
        });
        std::env::join_paths(folders.filter(|folder| folder.is_dir())).unwrap_or_default()
    }

    /// Returns glibc's dynamic loader, by the name that the architecture's ABI gives it.
    fn loader(&self) -> Result<PathBuf> {
        let names = match std::env::consts::ARCH {
            "aarch64" => ["lib/ld-linux-aarch64.so.1", "usr/lib/ld-linux-aarch64.so.1"],
            _ => ["lib64/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2"],
        };
        // A link may lead to a path that exists only where the folder is the root directory.
        names
            .iter()
            .map(|name| self.root.join(name))
            .find(|path| path.is_file())
            .with_context(|| format!("{} holds no dynamic loader", self.root.display()))
    }
}

/// Returns a folder name: suite and first package, for people, and a digest of suite, architecture and packages.
fn name(suite: &str, packages: &[&str]) -> String {
    let inputs = format!("{suite} {} {}", std::env::consts::ARCH, packages.join(" "));
    let first = packages.first().copied().unwrap_or("nothing");
    format!("{suite}_{first}_{}", &hex(&Sha256::digest(inputs))[..NAME_DIGITS])
}

/// Unpacks in a work folder and renames, so that an interrupted download leaves no partial folder.
fn unpack(cache: &Cache, suite: &str, packages: &[&str], root: &Path, progress: &Progress) -> Result<()> {
    let work = cache.work_folder("tools")?;
    let tar = work.path().join("tools.tar");
    let platform = Platform::host().context("this machine is neither amd64 nor arm64")?;
    let what =
        Bootstrap { suite, variant: EXTRACT, platform, snapshot: None, include: packages, place: "the tool itself" };
    debian::run(cache, &what, progress, &mut |stream| {
        std::io::copy(stream, &mut File::create(&tar)?).context("cannot write to the cache")?;
        Ok(())
    })?;
    let unpacked = work.path().join("root");
    // In the namespace, files of root can be made; outside, they belong to the caller.
    snug_sandbox::run_silent(&Job { actions: vec![Action::materialise(tar, unpacked.clone())] }, |_| {})?;
    fs::create_dir_all(cache.tools())?;
    fs::rename(&unpacked, root).with_context(|| format!("cannot rename to {}", root.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_of_packages_has_a_folder_of_its_own() {
        let one = name("trixie", &["erofs-utils"]);
        assert!(one.starts_with("trixie_erofs-utils_"), "{one}");
        assert_ne!(one, name("bookworm", &["erofs-utils"]));
        assert_ne!(one, name("trixie", &["erofs-utils", "podman"]));
        assert_eq!(one, name("trixie", &["erofs-utils"]));
    }
}
