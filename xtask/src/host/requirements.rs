//! What each task requires of the host: the one list that `--setup` installs from and that `doctor` and builds check.

use snug_process::privilege::Root;
use snug_process::program::{Missing, Requirement};

use super::erofs_utils;

/// A task with requirements of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// Steps in namespaces, by the tool's own engine.
    Builtin,
    /// A Debian suite as a base, by mmdebstrap.
    DebianBase,
    /// An image of an OCI registry as a base.
    OciBase,
    /// ext4 by the native writer.
    Ext4,
    /// ext4 by `writer = "mke2fs"` or `"loop"`.
    Mke2fs,
    /// squashfs, by either of its programs.
    Squashfs,
    /// erofs, by the host's mkfs.erofs or one that is unpacked into the cache.
    Erofs,
    /// Checking ext4 images.
    CheckExt4,
    /// Checking squashfs images.
    CheckSquashfs,
    /// Checking erofs images.
    CheckErofs,
    /// Steps of images for another platform than the host's.
    Emulation,
    /// Booting images in QEMU.
    Boot,
    /// Comparing types of images by size.
    Report,
    /// The tests of this workspace, with the programs that they compare the tool with.
    Test,
}

const fn package(name: &'static str, any_of: &'static [&'static str], purpose: &'static str) -> Requirement {
    Requirement { package: name, any_of, purpose }
}

impl Task {
    /// Every task.
    pub const ALL: [Task; 14] = [
        Task::Builtin,
        Task::DebianBase,
        Task::OciBase,
        Task::Ext4,
        Task::Mke2fs,
        Task::Squashfs,
        Task::Erofs,
        Task::CheckExt4,
        Task::CheckSquashfs,
        Task::CheckErofs,
        Task::Emulation,
        Task::Boot,
        Task::Report,
        Task::Test,
    ];

    /// Returns the task's name in `doctor`'s table.
    pub fn title(self) -> &'static str {
        match self {
            Task::Builtin => "engine builtin",
            Task::DebianBase => "base debian",
            Task::OciBase => "base oci",
            Task::Ext4 => "filesystem ext4",
            Task::Mke2fs => "filesystem ext4 by mke2fs",
            Task::Squashfs => "filesystem squashfs",
            Task::Erofs => "filesystem erofs",
            Task::CheckExt4 => "check of ext4",
            Task::CheckSquashfs => "check of squashfs",
            Task::CheckErofs => "check of erofs",
            Task::Emulation => "other platforms",
            Task::Boot => "boot",
            Task::Report => "report",
            Task::Test => "test",
        }
    }

    /// Returns what the task requires of the host.
    pub fn requirements(self) -> &'static [Requirement] {
        match self {
            Task::Builtin => const { &[package("uidmap", &["newuidmap"], "build without root")] },
            Task::DebianBase => {
                const {
                    &[
                        package("mmdebstrap", &["mmdebstrap"], "make Debian bases"),
                        package(
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
            Task::OciBase => const { &[package("skopeo", &["skopeo"], "get images from registries")] },
            // Written by the tool itself.
            Task::Ext4 => &[],
            Task::Mke2fs => const { &[package("e2fsprogs", &["mke2fs"], "write ext4 by mke2fs")] },
            Task::Squashfs => const { &[package("squashfs-tools-ng", &["tar2sqfs", "mksquashfs"], "write squashfs")] },
            // For unpacking the mkfs.erofs of a newer Debian.
            Task::Erofs | Task::CheckErofs => Task::DebianBase.requirements(),
            Task::CheckExt4 => const { &[package("e2fsprogs", &["debugfs"], "read ext4 images back")] },
            Task::CheckSquashfs => {
                const {
                    &[
                        package("squashfs-tools", &["unsquashfs"], "read squashfs images back"),
                        package("squashfs-tools-ng", &["sqfs2tar"], "read attributes of squashfs images back"),
                    ]
                }
            }
            Task::Boot => {
                const {
                    &[
                        package("qemu-system-x86", &["qemu-system-x86_64"], "boot images"),
                        package("openssh-client", &["ssh"], "log in to booted images"),
                        package("xz-utils", &["xz"], "unpack a kernel's modules"),
                    ]
                }
            }
            Task::Report => const { &[package("zstd", &["zstd"], "compress images")] },
            Task::Emulation => {
                const { &[package("qemu-user-static", &["qemu-aarch64-static", "qemu-aarch64"], "run programs for arm64")] }
            }
            Task::Test => {
                const {
                    &[
                        package("uidmap", &["newuidmap"], "build without root"),
                        package("squashfs-tools-ng", &["tar2sqfs"], "write squashfs"),
                        package("cryptsetup-bin", &["veritysetup"], "check dm-verity"),
                        package("attr", &["getfattr"], "check extended attributes"),
                        package("libcap2-bin", &["setcap"], "check file capabilities"),
                        package("libarchive-tools", &["bsdtar"], "check tar archives"),
                        package("busybox-static", &["busybox"], "make small roots to test on"),
                        package("cpio", &["cpio"], "check initramfs archives"),
                        package("acl", &["setfacl"], "check access control lists"),
                        package("python3", &["python3"], "check tar archives"),
                        package(
                            "python3-fusepy",
                            &["/usr/lib/python3/dist-packages/fusepy.py", "/usr/lib/python3/dist-packages/fuse.py"],
                            "have disks fail",
                        ),
                        package(
                            "libfaketime",
                            &[
                                "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
                                "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
                            ],
                            "have clocks jump",
                        ),
                        package("zstd", &["zstd"], "make layers to test on"),
                        package("docker-registry", &["docker-registry"], "serve images to test on"),
                        package("apache2-utils", &["htpasswd"], "give the registry a login"),
                        package("qemu-utils", &["qemu-img"], "unpack a real Alpine"),
                        package("python3-pip", &["pip", "pip3"], "get a real Alpine"),
                        package("openssl", &["openssl"], "sign packages to test on"),
                        package("podman", &["podman"], "check merged layers, and build"),
                        package("fish", &["fish"], "check completions"),
                        package("zsh", &["zsh"], "check completions"),
                        package("bsdutils", &["script"], "give commands a terminal"),
                        package("util-linux", &["unshare"], "run tests as another user"),
                        package("file", &["file"], "tell a program's platform"),
                        package("shellcheck", &["shellcheck"], "check the images' scripts"),
                        package("docker.io", &["dockerd"], "build with docker"),
                    ]
                }
            }
        }
    }

    /// Whether the host does without the task's requirements: root needs nobody to map its ids, and the host's own
    /// mkfs.erofs may be new enough.
    fn is_met_already(self) -> bool {
        match self {
            Task::Builtin => Root::here() == Root::Already,
            Task::Erofs | Task::CheckErofs => erofs_utils::host_version().is_some(),
            _ => false,
        }
    }
}

/// Returns the requirements of `tasks` that the host does not meet, each package once.
pub fn lacking(tasks: &[Task]) -> Vec<&'static Requirement> {
    let mut lacking: Vec<&Requirement> = Vec::new();
    let required = tasks.iter().filter(|task| !task.is_met_already()).flat_map(|task| task.requirements());
    for requirement in required.filter(|requirement| requirement.met_by().is_none()) {
        if !lacking.iter().any(|other| other.package == requirement.package) {
            lacking.push(requirement);
        }
    }
    lacking
}

/// Fails with what the host lacks for `tasks`, if it lacks anything.
pub fn require(tasks: &[Task]) -> Result<(), Missing> {
    match lacking(tasks) {
        lacking if lacking.is_empty() => Ok(()),
        lacking => {
            let lacked = lacking.into_iter().map(Requirement::lacked).collect();
            Err(Missing { lacked, alternative: None })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_requirement_names_a_package_a_program_and_a_purpose() {
        for requirement in Task::ALL.iter().flat_map(|task| task.requirements()) {
            assert!(!requirement.any_of.is_empty() && !requirement.purpose.is_empty(), "{requirement:?}");
            let clean =
                |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c));
            assert!(clean(requirement.package), "{requirement:?}");
        }
    }
}
