//! What is decided for an image before anything runs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use base16ct::lower::encode_string as hex;
use sha2::{Digest as _, Sha256};
use snug_ext4::size::SizePolicy;
use snug_formats::Ext4Writer;
use snug_formats::kernel::missed;
use snug_formats::{Filesystem, FilesystemKind};
use snug_rootfs::platform::Platform;
use snug_rootfs::tree::TreePath;
use snug_spec::model::{Base, KernelVersion};
use snug_spec::{ImageSet, ImageSpec, Resolved};

use crate::bases::oci::Resolution;
use crate::error::Failure;
use crate::host::requirements::Task;
use crate::manifest::{Manifest, ManifestError, image_file, manifest_beside};
use crate::plan::{self, BuildPlan, PlannedBase, Providers};
use crate::report::progress::Progress;
use crate::tree::first_stage;

/// Part of every image's fingerprint: raised when the same tree gives other bytes than before.
const IMAGE_FORMAT: u32 = 3;

/// A type of image as the command line names it: a filesystem, and whether it is sealed, as `erofs` or `squashfs+verity`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageType {
    pub kind: FilesystemKind,
    /// Seal it with dm-verity, whatever the spec says.
    pub verity: bool,
}

impl FromStr for ImageType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, verity) = text.strip_suffix("+verity").map_or((text, false), |kind| (kind, true));
        kind.parse().map(|kind| ImageType { kind, verity })
    }
}

/// The platform that an image is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub platform: Platform,
    /// Whether the command line or the spec names it. Then the image lies in a folder of that name.
    pub named: bool,
}

impl Target {
    /// Returns the host's platform, for an image that names none.
    pub fn host() -> Result<Self> {
        let platform = Platform::host().context("this machine is neither amd64 nor arm64\nhint: name a --platform")?;
        Ok(Target { platform, named: false })
    }

    /// Returns every target of `spec`: the platforms of the command line, else the spec's, else the host's.
    pub fn all(spec: &ImageSpec, named: &[Platform]) -> Result<Vec<Self>> {
        let platforms = if named.is_empty() { &spec.platforms } else { named };
        if platforms.is_empty() {
            return Ok(vec![Target::host()?]);
        }
        let mut platforms = platforms.to_vec();
        platforms.sort();
        platforms.dedup();
        Ok(platforms.into_iter().map(|platform| Target { platform, named: true }).collect())
    }

    /// The folder of the image `name` and its manifest below `output`.
    pub fn folder(&self, output: &Path, name: &str) -> PathBuf {
        let folder = output.join(name);
        if self.named { folder.join(self.platform.file_name()) } else { folder }
    }
}

impl fmt::Display for ImageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.kind, if self.verity { "+verity" } else { "" })
    }
}

/// One image to be built, with everything that is decided before anything runs.
#[derive(Debug, Clone)]
pub struct Order<'set> {
    pub spec: &'set ImageSpec,
    /// The plans of the images it is based on and, last, its own; each is the base of the next.
    pub chain: Vec<BuildPlan>,
    /// Paths that the specs of the chain put into the image by name.
    pub placed: Vec<TreePath>,
    /// `None`: a base, of which only the tree is made.
    pub filesystem: Option<Filesystem>,
    /// Seal the image with dm-verity.
    pub verity: bool,
    pub sizing: SizePolicy,
    pub target: Target,
    /// Compare the image with its tree before it is published.
    pub check: bool,
    /// Notes and warnings for the user.
    pub notes: Vec<String>,
}

/// How the image in the folder of results compares with what would be built.
#[derive(Debug, Clone, PartialEq)]
pub enum ImageState {
    /// There is no image to build.
    Base,
    NeverBuilt,
    UpToDate(Box<Manifest>),
    /// Its inputs are others now.
    Stale {
        size: u64,
        why: String,
    },
    /// Something else than a build has written to what was built, or removed it.
    Changed {
        size: Option<u64>,
        why: String,
    },
}

impl<'set> Order<'set> {
    /// Plans the image `name` for `target`; `named` overrides the spec's filesystem.
    pub fn new(
        set: &'set ImageSet,
        name: &str,
        target: Target,
        named: Option<ImageType>,
        providers: &Providers,
    ) -> Result<Self> {
        let resolved = set.resolve(name)?;
        let mut chain: Vec<BuildPlan> = Vec::new();
        for spec in resolved.ancestors.iter().rev().copied().chain([resolved.spec]) {
            chain.push(plan::plan(spec, chain.last(), target.platform, providers)?);
        }
        let placed = placed(&resolved);
        let spec = resolved.spec;
        let mut notes = Vec::new();
        let filesystem = choose_filesystem(spec, named.map(|named| named.kind), &mut notes)?;
        let verity = spec.verity || named.is_some_and(|named| named.verity);
        if verity && matches!(filesystem, Some(Filesystem::Ext4(_))) {
            notes.push("an ext4 sealed with dm-verity is read-only: it cannot be grown or written to any more".into());
        }
        if let (Some(filesystem), Some(kernel)) = (&filesystem, resolved.boot.kernel) {
            refuse_for_kernel(name, filesystem, verity, kernel)?;
        }
        let sizing = spec.sizing.clone();
        Ok(Order { spec, chain, placed, filesystem, verity, sizing, target, check: true, notes })
    }

    /// The order as far as earlier runs know it; `None` where none of them has resolved the reference of the OCI base yet.
    pub fn known(set: &'set ImageSet, name: &str, target: Target, providers: &Providers) -> Result<Option<Self>> {
        let resolved = set.resolve(name)?;
        let lowest = resolved.ancestors.last().copied().unwrap_or(resolved.spec);
        if let Base::Oci { reference } = &lowest.base.value
            && !providers.resolver.knows(reference, target.platform)?
        {
            return Ok(None);
        }
        Order::new(set, name, target, None, providers).map(Some)
    }

    pub fn plan(&self) -> &BuildPlan {
        self.chain.last().expect("a chain ends with its image")
    }

    /// Returns the image of a registry at the bottom of the chain, if there is one.
    pub fn oci(&self) -> Option<&Resolution> {
        match &self.chain.first()?.base {
            PlannedBase::Oci(resolution) => Some(resolution),
            _ => None,
        }
    }

    /// Returns the image's name, with its platform if one was named.
    pub fn title(&self) -> String {
        match self.target.named {
            true => format!("{} ({})", self.spec.name, self.target.platform),
            false => self.spec.name.clone(),
        }
    }

    /// Returns the path of the image file; a base has none.
    pub fn image(&self, output: &Path) -> Option<PathBuf> {
        let kind = self.filesystem.as_ref()?.kind();
        Some(self.target.folder(output, &self.spec.name).join(image_file(kind)))
    }

    /// Returns the SHA-256, as hex, over everything that the image file depends on.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hash = Sha256::new();
        hash.update(format!("image {IMAGE_FORMAT} {} {}\n", self.target.platform, self.plan().fingerprint));
        let overlay = (self.spec.overlay, self.spec.overlay_device);
        hash.update(serde_json::to_vec(&(&self.filesystem, self.verity, &self.sizing, overlay))?);
        hash.update(Sha256::digest(first_stage::SCRIPT));
        Ok(hex(&hash.finalize()))
    }

    /// Returns how the image below `output` compares with this order.
    pub fn freshness(&self, output: &Path, progress: &Progress) -> Result<ImageState> {
        let Some(image) = self.image(output) else { return Ok(ImageState::Base) };
        let place = manifest_beside(&image);
        let manifest = match Manifest::read(&place) {
            Ok(manifest) => Box::new(manifest),
            Err(ManifestError::Missing | ManifestError::OtherSchema) => return Ok(ImageState::NeverBuilt),
            Err(error @ ManifestError::Damaged(_)) => {
                return Ok(ImageState::Changed { size: None, why: error.to_string() });
            }
        };
        let size = manifest.census.size;
        if image.file_name().is_none_or(|name| name != manifest.file.as_str()) {
            return Ok(ImageState::Stale { size, why: format!("there is {}", manifest.file) });
        }
        if manifest.fingerprint != self.fingerprint()? {
            return Ok(ImageState::Stale { size, why: self.plan().inputs.difference(&manifest.tree.inputs) });
        }
        Ok(match manifest.changes(&place, progress) {
            Some(why) => ImageState::Changed { size: Some(size), why },
            None => ImageState::UpToDate(manifest),
        })
    }

    /// Returns the tasks of building the image, whose requirements the host has to meet.
    pub fn tasks(&self) -> Vec<Task> {
        self.tree_tasks().into_iter().chain(self.filesystem.as_ref().map(task_of)).collect()
    }

    /// Returns the tasks of building the image's tree.
    pub fn tree_tasks(&self) -> Vec<Task> {
        let mut tasks = vec![Task::Builtin];
        if self.chain.iter().any(|plan| matches!(plan.base, PlannedBase::Debian { .. })) {
            tasks.push(Task::DebianBase);
        }
        if self.chain.iter().any(|plan| matches!(plan.base, PlannedBase::Oci(_))) {
            tasks.push(Task::OciBase);
        }
        if Some(self.target.platform) != Platform::host() {
            tasks.push(Task::Emulation);
        }
        tasks
    }
}

/// Returns the paths that an image's spec and those it is based on put into it by name.
pub(super) fn placed(resolved: &Resolved) -> Vec<TreePath> {
    let mut placed = Vec::new();
    for spec in resolved.ancestors.iter().copied().chain([resolved.spec]) {
        placed.extend(spec.files.iter().map(|file| file.to.clone()));
        placed.extend(spec.binaries.iter().map(|binary| binary.to.clone()));
        placed.extend(spec.devices.iter().map(|device| device.path.clone()));
    }
    placed
}

/// Returns the task of writing a filesystem.
pub fn task_of(filesystem: &Filesystem) -> Task {
    match filesystem {
        Filesystem::Ext4(options) if options.writer == Ext4Writer::Native => Task::Ext4,
        Filesystem::Ext4(_) => Task::Mke2fs,
        Filesystem::Squashfs(_) => Task::Squashfs,
        Filesystem::Erofs(_) => Task::Erofs,
    }
}

/// Refuses filesystem options that the oldest kernel of the spec cannot read.
fn refuse_for_kernel(name: &str, filesystem: &Filesystem, verity: bool, kernel: KernelVersion) -> Result<()> {
    let Some(missed) = missed(filesystem, verity, (kernel.major, kernel.minor)) else { return Ok(()) };
    let (major, minor) = missed.since;
    bail!(Failure::Usage(format!(
        "{name}: the guest's kernel {kernel} does not know {}: Linux has it since {major}.{minor}\n\
         hint: raise `kernel` in [boot], or choose other options of {}",
        missed.feature,
        filesystem.kind()
    )));
}

/// Returns the spec's filesystem or, if it is of another type, the default of the one that the command line names.
fn choose_filesystem(
    spec: &ImageSpec,
    named: Option<FilesystemKind>,
    notes: &mut Vec<String>,
) -> Result<Option<Filesystem>> {
    let Some(own) = spec.filesystem.clone() else {
        if named.is_some() {
            let name = &spec.name;
            bail!(Failure::Usage(format!(
                "{name} is a base without an image of its own, so --filesystem does not apply"
            )));
        }
        return Ok(None);
    };
    match named.filter(|kind| *kind != own.kind()) {
        None => Ok(Some(own)),
        Some(kind) => {
            if own.kind() == FilesystemKind::Ext4 && spec.sizing != SizePolicy::default() {
                notes.push(format!("the spec's sizing does not apply to {kind}, which is as large as its content"));
            }
            Ok(Some(Filesystem::default_of(kind)))
        }
    }
}
