//! What a host must have, work by work: the one list that `--setup` installs from, `doctor` tells, and builds refuse by.

use std::path::PathBuf;

use crate::filesystem::{Ext4Writer, Filesystem, erofs};
use crate::image::Order;
use crate::plan::PlannedBase;
use crate::spec::model::Platform;

/// A kind of work that asks something of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// The engine of our own.
    Builtin,
    DebianBase,
    /// An image of a registry as a base.
    OciBase,
    Ext4,
    /// ext4 by `writer = "mke2fs"` or `"loop"`.
    Mke2fs,
    Squashfs,
    Erofs,
    /// Holding images against what they were made from.
    Check,
    /// Steps of images for another machine than this one.
    Emulation,
    /// Starting images in QEMU.
    Boot,
    /// Running this workspace's tests: everything above, and outside judges.
    Test,
}

/// Something the host must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Debian's package.
    pub package: &'static str,
    /// Programs on PATH, or absolute paths: any one of them meets the need.
    pub proofs: &'static [&'static str],
    pub purpose: &'static str,
}

const fn need(package: &'static str, proofs: &'static [&'static str], purpose: &'static str) -> Need {
    Need { package, proofs, purpose }
}

impl Work {
    pub const ALL: [Work; 11] = [
        Work::Builtin,
        Work::DebianBase,
        Work::OciBase,
        Work::Ext4,
        Work::Mke2fs,
        Work::Squashfs,
        Work::Erofs,
        Work::Check,
        Work::Emulation,
        Work::Boot,
        Work::Test,
    ];

    /// The work as a column of `doctor` names it.
    pub fn title(self) -> &'static str {
        match self {
            Work::Builtin => "engine builtin",
            Work::DebianBase => "base debian",
            Work::OciBase => "base oci",
            Work::Ext4 => "filesystem ext4",
            Work::Mke2fs => "filesystem ext4 by mke2fs",
            Work::Squashfs => "filesystem squashfs",
            Work::Erofs => "filesystem erofs",
            Work::Check => "check",
            Work::Emulation => "other platforms",
            Work::Boot => "check --boot",
            Work::Test => "test",
        }
    }

    pub fn needs(self) -> &'static [Need] {
        match self {
            Work::Builtin => const { &[need("uidmap", &["newuidmap"], "build without root")] },
            Work::DebianBase => {
                const {
                    &[
                        need("mmdebstrap", &["mmdebstrap"], "make Debian bases"),
                        need(
                            "debian-archive-keyring",
                            &[
                                "/usr/share/keyrings/debian-archive-keyring.gpg",
                                "/usr/share/keyrings/debian-archive-keyring.pgp",
                            ],
                            "verify Debian's packages",
                        ),
                    ]
                }
            }
            Work::OciBase => const { &[need("skopeo", &["skopeo"], "get images from registries")] },
            // Written by the tool itself.
            Work::Ext4 => &[],
            Work::Mke2fs => const { &[need("e2fsprogs", &["mke2fs"], "write ext4 by mke2fs")] },
            Work::Squashfs => const { &[need("squashfs-tools-ng", &["tar2sqfs", "mksquashfs"], "write squashfs")] },
            // By programs of a newer Debian, unpacked where this host's are too old.
            Work::Erofs if erofs::host_version().is_some() => &[],
            Work::Erofs => Work::DebianBase.needs(),
            Work::Check => {
                const {
                    &[
                        need("e2fsprogs", &["debugfs"], "read ext4 images back"),
                        need("squashfs-tools", &["unsquashfs"], "read squashfs images back"),
                        need("squashfs-tools-ng", &["sqfs2tar"], "read attributes of squashfs images back"),
                    ]
                }
            }
            Work::Boot => {
                const {
                    &[
                        need("qemu-system-x86", &["qemu-system-x86_64"], "boot images"),
                        need("openssh-client", &["ssh"], "log in to booted images"),
                    ]
                }
            }
            Work::Emulation => {
                const { &[need("qemu-user-static", &["qemu-aarch64-static", "qemu-aarch64"], "run programs for arm64")] }
            }
            Work::Test => {
                const {
                    &[
                        need("squashfs-tools-ng", &["tar2sqfs"], "write squashfs the first way"),
                        need("cryptsetup-bin", &["veritysetup"], "judge dm-verity"),
                        need("attr", &["getfattr"], "judge extended attributes"),
                        need("libcap2-bin", &["setcap"], "judge file capabilities"),
                        need("libarchive-tools", &["bsdtar"], "judge tar archives"),
                        need("busybox-static", &["busybox"], "make small roots to test on"),
                        need("cpio", &["cpio"], "judge initramfs archives"),
                        need("acl", &["setfacl"], "judge access control lists"),
                        need("python3", &["python3"], "judge tar archives"),
                        need("zstd", &["zstd"], "make layers to test on"),
                        need("docker-registry", &["docker-registry"], "serve images to test on"),
                        need("apache2-utils", &["htpasswd"], "give the registry a login"),
                        need("qemu-utils", &["qemu-img"], "unpack a real Alpine"),
                        need("python3-pip", &["pip", "pip3"], "get a real Alpine"),
                        need("openssl", &["openssl"], "sign packages to test on"),
                        need("podman", &["podman"], "judge merged layers, and build"),
                        need("fish", &["fish"], "judge completions"),
                        need("zsh", &["zsh"], "judge completions"),
                        need("bsdutils", &["script"], "give commands a terminal"),
                        need("util-linux", &["unshare"], "be another user in tests"),
                        need("file", &["file"], "tell what a program is for"),
                        need("shellcheck", &["shellcheck"], "judge the images' scripts"),
                        need("docker.io", &["dockerd"], "build with docker"),
                    ]
                }
            }
        }
    }

    /// The work that an image is.
    pub fn of(order: &Order) -> Vec<Work> {
        let mut works = vec![Work::Builtin];
        if order.chain.iter().any(|link| matches!(link.plan.base, PlannedBase::Debian { .. })) {
            works.push(Work::DebianBase);
        }
        if order.chain.iter().any(|link| matches!(link.plan.base, PlannedBase::Oci(_))) {
            works.push(Work::OciBase);
        }
        if Some(order.target.platform) != Platform::host() {
            works.push(Work::Emulation);
        }
        works.extend(order.filesystem.as_ref().and_then(Work::of_filesystem));
        works
    }

    /// What writes a filesystem; `None` where nothing is asked of the host.
    fn of_filesystem(filesystem: &Filesystem) -> Option<Work> {
        match filesystem {
            Filesystem::Ext4(options) if options.writer == Ext4Writer::Native => Some(Work::Ext4),
            Filesystem::Ext4(_) => Some(Work::Mke2fs),
            Filesystem::Squashfs(_) => Some(Work::Squashfs),
            Filesystem::Erofs(_) => Some(Work::Erofs),
        }
    }
}

/// What a host lacks of what a piece of work needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this host lacks {}\nhint: {} (or run again with --setup)", listed(.0), install_command(.0))]
pub struct Lacking(pub Vec<&'static Need>);

/// What is not met of the needs of `works`, each package once.
pub fn lacking(works: &[Work]) -> Vec<&'static Need> {
    let mut missing: Vec<&Need> = Vec::new();
    for need in works.iter().flat_map(|work| work.needs()).filter(|need| need.met_by().is_none()) {
        if !missing.iter().any(|other| other.package == need.package) {
            missing.push(need);
        }
    }
    missing
}

/// An error that names what is missing, if anything is.
pub fn require(works: &[Work]) -> Result<(), Lacking> {
    match lacking(works) {
        missing if missing.is_empty() => Ok(()),
        missing => Err(Lacking(missing)),
    }
}

fn listed(needs: &[&'static Need]) -> String {
    let words: Vec<String> =
        needs.iter().map(|need| format!("{} (to {})", need.proofs.join(" or "), need.purpose)).collect();
    words.join(", ")
}

/// The command by which a person installs what is missing.
pub fn install_command(needs: &[&'static Need]) -> String {
    let packages: Vec<&str> = needs.iter().map(|need| need.package).collect();
    format!("sudo apt-get install --no-install-recommends {}", packages.join(" "))
}

impl Need {
    /// Where what meets the need stands.
    pub fn met_by(&self) -> Option<PathBuf> {
        self.proofs.iter().find_map(|proof| find(proof))
    }
}

/// Where a program stands: on PATH, or in the folders of the administrator's programs, which users without root often
/// lack there. An absolute path is looked up as it is.
pub fn find(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Some(PathBuf::from(program)).filter(|path| path.exists());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_command_that_brings_it() {
        const MISSING: Need = need("no-such-package", &["no-such-program", "/no/such/file"], "show an error");
        assert_eq!(MISSING.met_by(), None);
        assert_eq!(
            Lacking(vec![&MISSING]).to_string(),
            "this host lacks no-such-program or /no/such/file (to show an error)\n\
             hint: sudo apt-get install --no-install-recommends no-such-package (or run again with --setup)"
        );
        assert!(find("sh").is_some_and(|path| path.ends_with("sh")));
    }

    #[test]
    fn every_need_can_be_told_and_proved() {
        for need in Work::ALL.iter().flat_map(|work| work.needs()) {
            assert!(!need.proofs.is_empty() && !need.purpose.is_empty(), "{need:?}");
            let clean =
                |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c));
            assert!(clean(need.package), "{need:?}");
        }
    }
}
