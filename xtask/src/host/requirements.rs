//! What a host must have, work by work: the one list that `--setup` installs from, `doctor` tells, and builds refuse by.

use snug_process::program::{Missing, Requirement};

use super::erofs_utils;

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

const fn need(package: &'static str, any_of: &'static [&'static str], purpose: &'static str) -> Requirement {
    Requirement { package, any_of, purpose }
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

    pub fn needs(self) -> &'static [Requirement] {
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
            Work::Erofs if erofs_utils::host_version().is_some() => &[],
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
}

/// What is not met of the requirements of `works`, each package once.
pub fn lacking(works: &[Work]) -> Vec<&'static Requirement> {
    let mut missing: Vec<&Requirement> = Vec::new();
    for need in works.iter().flat_map(|work| work.needs()).filter(|need| need.met_by().is_none()) {
        if !missing.iter().any(|other| other.package == need.package) {
            missing.push(need);
        }
    }
    missing
}

/// An error that names what is missing, if anything is.
pub fn require(works: &[Work]) -> Result<(), Missing> {
    match lacking(works) {
        missing if missing.is_empty() => Ok(()),
        missing => {
            let lacked = missing.into_iter().map(Requirement::lacked).collect();
            Err(Missing { lacked, alternative: Some("run again with --setup") })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_need_can_be_told_and_proved() {
        for need in Work::ALL.iter().flat_map(|work| work.needs()) {
            assert!(!need.any_of.is_empty() && !need.purpose.is_empty(), "{need:?}");
            let clean =
                |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c));
            assert!(clean(need.package), "{need:?}");
        }
    }
}
