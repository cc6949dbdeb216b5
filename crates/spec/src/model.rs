//! The model of an `image.toml`, read and validated.
//!
//! The types serialise without places and absolute paths, so that the serialised form is fit for fingerprints: moving a
//! line or the checkout does not change it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use base16ct::lower::encode_string as hex;
use serde::{Serialize, Serializer};
use snug_ext4::size::SizePolicy;
use snug_formats::Filesystem;
use snug_rootfs::accounts::Owner;
use snug_rootfs::capabilities::Capabilities;
use snug_rootfs::oci::Reference;
use snug_rootfs::platform::Platform;
use snug_rootfs::tree::TreePath;

/// A spec as a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Where it was read from.
    pub path: PathBuf,
    /// The whole text.
    pub text: String,
}

/// A value and its place in the spec, so that a failing step can name its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// Bytes of [`Document::text`].
    pub span: Range<usize>,
}

impl<T> Deref for Located<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Serialize> Serialize for Located<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

/// One image, as its own `image.toml` describes it, without what it inherits: see [`Resolved`](super::Resolved).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImageSpec {
    /// Name of the folder that holds the spec.
    pub name: String,
    /// That folder.
    #[serde(skip)]
    pub folder: PathBuf,
    /// The spec's file.
    #[serde(skip)]
    pub document: Arc<Document>,
    /// One line for people.
    #[serde(skip)]
    pub description: Option<String>,
    /// What the image starts from.
    pub base: Located<Base>,
    /// Packages to install.
    pub packages: Packages,
    /// Environment of the build steps; the image does not keep it.
    pub env: BTreeMap<String, String>,
    /// The content of `/etc/hostname`.
    pub hostname: Option<String>,
    /// The file that becomes `/init`, mode 0755.
    pub init: Option<Located<SourcePath>>,
    /// Every `[[file]]`.
    pub files: Vec<Located<FileSpec>>,
    /// Every `[[device]]`.
    pub devices: Vec<Located<DeviceSpec>>,
    /// Every `[[binary]]`.
    pub binaries: Vec<Located<BinarySpec>>,
    /// Every `[[secret]]`.
    pub secrets: Vec<Located<SecretSpec>>,
    /// Shell steps, in order.
    pub run: Vec<Located<RunStep>>,
    /// Globs rooted at `/`; a match removes the subtree.
    pub exclude: Vec<Located<String>>,
    /// The size of the image: `min-size`, `max-size`, `headroom`, `free-inodes`.
    pub sizing: SizePolicy,
    /// How far the size may drift from the lock.
    pub tolerance: Option<Tolerance>,
    /// How the image is written; `None`: it is a base for other images, without an image file of its own.
    pub filesystem: Option<Filesystem>,
    /// Whether the image gets a dm-verity hash tree.
    pub verity: bool,
    /// Bytes that the writable overlay over a read-only root may hold; `None`: the kernel's default for a tmpfs.
    pub overlay: Option<u64>,
    /// Whether a machine may keep what is written on the disk that `overlay=` on its kernel command line names.
    pub overlay_device: bool,
    /// The engine to build with, unless the command line names one.
    pub engine: Option<EngineKind>,
    /// Platforms to build for, unless the command line names them; empty: the host's.
    pub platforms: Vec<Platform>,
    /// How to boot the image; `None`: as the parent image.
    pub boot: Option<Boot>,
}

/// A path of the host that a spec names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourcePath {
    /// As the spec has it, for messages and fingerprints.
    pub written: String,
    /// The same, resolved against the spec's folder.
    pub path: PathBuf,
}

impl Deref for SourcePath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

impl AsRef<Path> for SourcePath {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

impl fmt::Display for SourcePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

impl Serialize for SourcePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.written)
    }
}

/// What an image starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Base {
    /// A Debian suite, by mmdebstrap.
    Debian {
        /// The release: `trixie`.
        suite: String,
        /// A moment of Debian's snapshot archive, `YYYYMMDDTHHMMSSZ`.
        snapshot: Option<String>,
        /// mmdebstrap's package set, `minbase` unless given.
        variant: Option<String>,
    },
    /// An image of an OCI registry.
    Oci {
        /// With registry, and tag or digest: `docker.io/library/alpine:3.23`.
        reference: Reference,
    },
    /// Another image of this workspace.
    Image {
        /// The name of its folder.
        name: String,
    },
    /// A root filesystem tar.
    Tar {
        /// The file, which need not exist before the build.
        path: SourcePath,
        /// The SHA-256 that the file must have.
        #[serde(serialize_with = "optional_hex")]
        sha256: Option<[u8; 32]>,
    },
}

/// Packages to install, by package manager.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Packages {
    /// By the base's own package manager: apt or apk.
    pub system: Vec<Located<String>>,
    /// By npm, globally.
    pub npm: Vec<Located<String>>,
    /// By pip.
    pub pip: Vec<Located<String>>,
}

/// A `[[file]]`: a file, or a folder with everything below it, to be put into the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileSpec {
    /// What to put there.
    pub source: FileSource,
    /// The path in the image.
    #[serde(serialize_with = "tree_path")]
    pub to: TreePath,
    /// Permission bits; `None`: [`FileSpec::DEFAULT_MODE`] for a file, those on the host for a folder. Those of a folder are
    /// not those of what is in it.
    pub mode: Option<u16>,
    /// `None`: root. The owner of a folder owns everything in it, too.
    pub owner: Option<Owner>,
    /// Extended attributes by full name (`user.note`); only for files.
    #[serde(serialize_with = "hex_values")]
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// The file's capabilities (`security.capability`).
    pub capabilities: Option<Capabilities>,
}

impl FileSpec {
    /// The mode of a file that the spec gives none.
    pub const DEFAULT_MODE: u16 = 0o644;
}

/// The content of a `[[file]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileSource {
    /// A file or folder beside the spec or in the shared folder; it existed when the spec was read.
    From(SourcePath),
    /// The text itself.
    Content(String),
}

/// A `[[device]]`: a device node, put into the tree and never made on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceSpec {
    /// The path in the image.
    #[serde(serialize_with = "tree_path")]
    pub path: TreePath,
    /// Character or block device.
    pub kind: DeviceKind,
    /// 12 bits.
    pub major: u32,
    /// 20 bits.
    pub minor: u32,
    /// Permission bits.
    pub mode: u16,
    /// `None`: root.
    pub owner: Option<Owner>,
}

impl DeviceSpec {
    /// The mode of a device that the spec gives none: for the owner alone.
    pub const DEFAULT_MODE: u16 = 0o600;
}

/// The two types of device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// A character device.
    Char,
    /// A block device.
    Block,
}

/// A `[[binary]]`: a program of a Cargo package, built for the image's platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BinarySpec {
    /// The package, of this workspace unless `manifest_path` names another.
    pub package: String,
    /// The binary target's name; the package's unless given.
    pub bin: String,
    /// The `Cargo.toml` of the package where it is not in this workspace; it need not exist before the build.
    pub manifest_path: Option<SourcePath>,
    /// Features to enable.
    pub features: Vec<String>,
    /// The path in the image, `/usr/local/bin/<bin>` unless given.
    #[serde(serialize_with = "tree_path")]
    pub to: TreePath,
    /// Permission bits.
    pub mode: u16,
    /// `None`: root.
    pub owner: Option<Owner>,
}

impl BinarySpec {
    /// The mode of a program that the spec gives none.
    pub const DEFAULT_MODE: u16 = 0o755;
}

/// A `[[secret]]`: what the steps may read and the image must not keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SecretSpec {
    /// The file's name below `/run/secrets`.
    pub id: String,
    /// Where its value is.
    pub source: SecretSource,
}

/// Where the value of a secret is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretSource {
    /// In a file, which need not exist before the build; `~/` is the caller's home.
    File(SourcePath),
    /// In a variable of the caller's environment.
    Environment(String),
}

/// How much a size may differ from the locked one before it counts as drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tolerance {
    /// This many bytes.
    Bytes(u64),
    /// A share of the locked size, in millionths of a percent: 2 % is 2_000_000.
    PercentMillionths(u32),
}

impl Tolerance {
    /// Returns the bytes by which a size may differ from `locked`, rounded down.
    pub fn bytes_of(self, locked: u64) -> u64 {
        match self {
            Tolerance::Bytes(bytes) => bytes,
            Tolerance::PercentMillionths(share) => {
                u64::try_from(u128::from(locked) * u128::from(share) / 100_000_000).unwrap_or(u64::MAX)
            }
        }
    }
}

/// The engines that run the steps of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    /// The tool's own, in namespaces.
    Builtin,
    /// A docker daemon.
    Docker,
    /// podman.
    Podman,
}

impl EngineKind {
    /// Every engine.
    pub const ALL: [EngineKind; 3] = [EngineKind::Builtin, EngineKind::Docker, EngineKind::Podman];

    /// Returns the name that specs and the command line use.
    pub fn as_str(self) -> &'static str {
        match self {
            EngineKind::Builtin => "builtin",
            EngineKind::Docker => "docker",
            EngineKind::Podman => "podman",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for EngineKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| format!("`{text}` is not one of builtin, docker, podman"))
    }
}

/// A step of `run`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RunStep {
    /// What `/bin/sh -e` runs.
    pub shell: String,
    /// Whether it has a network.
    pub network: bool,
}

/// `[boot]`: how the image is booted, and what is checked in it then.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Boot {
    /// The oldest kernel to support.
    pub kernel: Option<KernelVersion>,
    /// Further words of the kernel command line.
    pub arguments: Vec<String>,
    /// Commands to run in the guest.
    pub checks: Vec<Located<BootCheck>>,
}

/// A command to run in the guest, which must succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BootCheck {
    /// The shell command.
    pub run: String,
    /// Text that its output must contain.
    pub prints: Option<String>,
    /// How long it may take; `None`: two minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<Duration>,
}

/// A release series of Linux: `6.1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct KernelVersion {
    /// `6`.
    pub major: u16,
    /// `1`.
    pub minor: u16,
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

fn tree_path<S: Serializer>(path: &TreePath, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(path)
}

fn optional_hex<S: Serializer>(digest: &Option<[u8; 32]>, serializer: S) -> Result<S::Ok, S::Error> {
    digest.as_ref().map(|digest| hex(digest)).serialize(serializer)
}

fn hex_values<S: Serializer>(xattrs: &BTreeMap<String, Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(xattrs.iter().map(|(name, value)| (name, hex(value))))
}
