//! What an `image.toml` says, read and validated: the vocabulary that plan and engine speak.
//!
//! Every type serialises to its meaning alone, without places and absolute paths, so that the serialised form is fit
//! for fingerprints: moving a line or the checkout does not change it.

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
use snug_rootfs::platform::Platform;
use snug_rootfs::tree::TreePath;

/// The text of a spec and where it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub path: PathBuf,
    pub text: String,
}

/// A value and where the spec says it, so that a failing step can name its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<T> {
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

/// One image, as its own `image.toml` describes it. What it inherits is not in here: see
/// [`Resolved`](super::Resolved).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImageSpec {
    /// Name of the folder that holds the spec.
    pub name: String,
    #[serde(skip)]
    pub folder: PathBuf,
    #[serde(skip)]
    pub document: Arc<Document>,
    /// One line for people.
    #[serde(skip)]
    pub description: Option<String>,
    pub base: Located<Base>,
    pub packages: Packages,
    /// Environment of the build steps; the image does not keep it.
    pub env: BTreeMap<String, String>,
    pub hostname: Option<String>,
    /// The file that becomes `/init`, mode 0755.
    pub init: Option<Located<SourcePath>>,
    pub files: Vec<Located<FileSpec>>,
    pub devices: Vec<Located<DeviceSpec>>,
    pub binaries: Vec<Located<BinarySpec>>,
    pub secrets: Vec<Located<SecretSpec>>,
    /// Shell steps, in order.
    pub run: Vec<Located<String>>,
    /// Globs rooted at `/`; a match removes the subtree.
    pub exclude: Vec<Located<String>>,
    pub sizing: SizePolicy,
    /// How far the size may drift from the lock.
    pub tolerance: Option<Tolerance>,
    /// `None`: a base for other images, without an image file of its own.
    pub filesystem: Option<Filesystem>,
    /// Seal the image with dm-verity.
    pub verity: bool,
    /// Bytes that the writable overlay over a read-only root may hold; `None`: what the kernel gives a tmpfs.
    pub overlay: Option<u64>,
    /// The engine to build with, unless the command line names one.
    pub engine: Option<EngineKind>,
    /// Platforms to build for, unless the command line names them; empty: the host's.
    pub platforms: Vec<Platform>,
    /// `None`: as the parent image says.
    pub boot: Option<Boot>,
}

/// A path of the spec: as it is written, which is what people and fingerprints see, and where it really is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourcePath {
    pub written: String,
    /// Relative paths are resolved against the spec's folder.
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
        suite: String,
        /// A moment of Debian's snapshot archive, `YYYYMMDDTHHMMSSZ`.
        snapshot: Option<String>,
        /// mmdebstrap's package set, `minbase` unless given.
        variant: Option<String>,
    },
    /// An image of an OCI registry.
    Oci { reference: String },
    /// Another image of this workspace.
    Image { name: String },
    /// A root filesystem tar; it is looked for when it is needed.
    Tar {
        path: SourcePath,
        /// What the file's bytes must hash to.
        #[serde(serialize_with = "optional_hex")]
        sha256: Option<[u8; 32]>,
    },
}

/// Packages to install, by package manager.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Packages {
    /// By the base's own package manager: apt or apk.
    pub system: Vec<Located<String>>,
    pub npm: Vec<Located<String>>,
    pub pip: Vec<Located<String>>,
}

/// A file, or a folder with everything below it, to be put into the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileSpec {
    pub source: FileSource,
    #[serde(serialize_with = "tree_path")]
    pub to: TreePath,
    /// `None`: [`FileSpec::DEFAULT_MODE`] for a file, what is there for a folder. On a folder it is the mode of the
    /// folder itself, not of what is in it.
    pub mode: Option<u16>,
    /// `None`: root. On a folder it holds for all that is in it, too.
    pub owner: Option<Owner>,
    /// By full name (`user.note`); only for files.
    #[serde(serialize_with = "hex_values")]
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// What becomes the file's `security.capability`.
    pub capabilities: Option<Capabilities>,
}

impl FileSpec {
    pub const DEFAULT_MODE: u16 = 0o644;
}

/// Where a `[[file]]` comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileSource {
    /// A file or folder beside the spec or in the shared folder; it existed when the spec was read.
    From(SourcePath),
    Content(String),
}

/// A device node, put into the tree and never made on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceSpec {
    #[serde(serialize_with = "tree_path")]
    pub path: TreePath,
    pub kind: DeviceKind,
    /// 12 bits.
    pub major: u32,
    /// 20 bits.
    pub minor: u32,
    pub mode: u16,
    pub owner: Option<Owner>,
}

impl DeviceSpec {
    /// Nobody but the owner, unless the spec says otherwise.
    pub const DEFAULT_MODE: u16 = 0o600;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    Char,
    Block,
}

/// A program of this Cargo workspace, built for the image's platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BinarySpec {
    pub package: String,
    /// The target's name; the package's unless given.
    pub bin: String,
    /// The `Cargo.toml` of the package where it is not in this workspace; it need not exist before the build.
    pub manifest_path: Option<SourcePath>,
    pub features: Vec<String>,
    /// `/usr/local/bin/<bin>` unless given.
    #[serde(serialize_with = "tree_path")]
    pub to: TreePath,
    pub mode: u16,
    pub owner: Option<Owner>,
}

impl BinarySpec {
    pub const DEFAULT_MODE: u16 = 0o755;
}

/// Something the steps may read and the image must not keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SecretSpec {
    pub id: String,
    pub source: SecretSource,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretSource {
    /// It need not exist before the build; `~/` is the caller's home.
    File(SourcePath),
    /// A variable of the caller's environment.
    Environment(String),
}

/// How far a size may move away from the locked one before it counts as drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tolerance {
    Bytes(u64),
    /// Of the locked size, in millionths of a percent: 2 % is 2_000_000.
    PercentMillionths(u32),
}

impl Tolerance {
    /// Bytes that `locked` may differ by, rounded down.
    pub fn bytes_of(self, locked: u64) -> u64 {
        match self {
            Tolerance::Bytes(bytes) => bytes,
            Tolerance::PercentMillionths(share) => {
                u64::try_from(u128::from(locked) * u128::from(share) / 100_000_000).unwrap_or(u64::MAX)
            }
        }
    }
}

/// What turns a plan into a root filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    Builtin,
    Docker,
    Podman,
}

impl EngineKind {
    pub const ALL: [EngineKind; 3] = [EngineKind::Builtin, EngineKind::Docker, EngineKind::Podman];

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

/// How the image is to be booted and what proves that it did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Boot {
    /// The oldest kernel to support.
    pub kernel: Option<KernelVersion>,
    /// Further words of the kernel command line.
    pub arguments: Vec<String>,
    pub checks: Vec<Located<BootCheck>>,
}

/// A command to run in the guest; it must succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BootCheck {
    pub run: String,
    /// What its output must contain.
    pub prints: Option<String>,
    /// How long it may take; `None`: two minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<Duration>,
}

/// `6.1`: the release series of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct KernelVersion {
    pub major: u16,
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
