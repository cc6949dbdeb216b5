//! What is to be done for the tree of an image, in which order, and the fingerprint of all its inputs.
//!
//! A plan is all that engines and the tree see of a spec: plain values, each with the place (`path:line`) that errors name.

mod inputs;
mod sources;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use base16ct::lower::encode_string as hex;
use serde::Serialize;
use sha2::{Digest, Sha256};
use snug_rootfs::accounts::Owner;
use snug_rootfs::glob::Glob;
use snug_rootfs::platform::Platform;
use snug_rootfs::regular_file;
use snug_rootfs::stamp::{self, Stamp};
use snug_rootfs::tree::TreePath;
use snug_spec::model::{self, Base, DeviceSpec, Document, FileSpec, ImageSpec, Located, SecretSpec};
use snug_spec::{SpecError, SpecErrors};

use self::inputs::TreeInputs;
use crate::bases::cargo::{Binaries, Program};
use crate::bases::oci::{Resolution, Resolver};
use crate::report::amounts::count;

pub use self::inputs::Inputs;
pub use self::sources::{Source, SourceContent, SourceEntry, open};
pub use snug_spec::model::EngineKind;
pub use snug_spec::suite_help;

/// The mode of an `/init`.
const INIT_MODE: u16 = 0o755;

/// The attribute that holds file capabilities (capabilities(7)).
const CAPABILITY_XATTR: &str = "security.capability";

/// Part of the fingerprint of every Debian base: raised when the same suite would be bootstrapped otherwise than before.
const DEBIAN_FORMAT: u32 = 1;

/// mmdebstrap's package set where the spec names none: the smallest that apt works in.
const DEFAULT_VARIANT: &str = "minbase";

/// How to make the root tree of one image.
#[derive(Debug, Clone)]
pub struct BuildPlan {
    pub name: String,
    /// The platform of the tree's programs.
    pub platform: Platform,
    pub base: PlannedBase,
    /// Where the spec names the base.
    pub base_place: Place,
    /// The package manager for system packages.
    pub system: PackageManager,
    pub steps: Vec<Step>,
    /// Environment that the spec gives to the steps.
    pub environment: Vec<(String, String)>,
    /// What the spec puts into the tree: its init first, its programs last.
    pub files: Vec<PlannedFile>,
    pub devices: Vec<PlannedDevice>,
    /// What is removed from the tree after the steps.
    pub exclude: Vec<PlannedExclude>,
    pub hostname: Option<String>,
    /// What steps may read and the tree must not keep.
    pub secrets: Vec<PlannedSecret>,
    /// SHA-256 over every input of the tree, the base's included, as hex.
    pub fingerprint: String,
    /// For each step a SHA-256 over all that the tree after it depends on, as hex; without steps, one for what entering the base
    /// changes.
    pub layers: Vec<String>,
    pub inputs: Inputs,
}

/// What the tree starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlannedBase {
    Debian {
        suite: String,
        variant: String,
        /// A time stamp of Debian's snapshot archive.
        snapshot: Option<String>,
        fingerprint: String,
    },
    /// An image of a registry.
    Oci(Resolution),
    /// A tar file.
    Tar {
        path: PathBuf,
        sha256: String,
        /// Of the file that has this digest.
        stamp: Stamp,
    },
    /// The tree of another image, which is made first.
    Image { name: String, fingerprint: String },
}

impl PlannedBase {
    pub(crate) fn fingerprint(&self) -> String {
        match self {
            PlannedBase::Debian { fingerprint, .. } | PlannedBase::Image { fingerprint, .. } => fingerprint.clone(),
            PlannedBase::Oci(resolution) => resolution.fingerprint(),
            PlannedBase::Tar { sha256, .. } => sha256.clone(),
        }
    }

    /// Returns the base in a few words.
    pub fn describe(&self) -> String {
        match self {
            PlannedBase::Debian { suite, variant, snapshot: None, .. } => format!("Debian {suite}, {variant}"),
            PlannedBase::Debian { suite, variant, snapshot: Some(moment), .. } => {
                format!("Debian {suite} as of {moment}, {variant}")
            }
            PlannedBase::Oci(resolution) => resolution.describe(),
            PlannedBase::Tar { path, .. } => format!("tar {}", path.display()),
            PlannedBase::Image { name, .. } => format!("image {name}"),
        }
    }
}

/// A file, or a folder with everything in it, that the spec puts into the tree.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedFile {
    /// `path:line` of the spec.
    pub place: String,
    pub source: FileSource,
    pub to: TreePath,
    /// `None`: [`PlannedFile::DEFAULT_MODE`] for a file, what is there for a folder. On a folder it is the mode of the folder
    /// itself, not of what is in it.
    pub mode: Option<u16>,
    /// `None`: root. On a folder it holds for all that is in it, too.
    pub owner: Option<Owner>,
    /// Extended attributes by full name, capabilities included.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl PlannedFile {
    /// The mode of a file that is not executable.
    pub const DEFAULT_MODE: u16 = FileSpec::DEFAULT_MODE;
}

/// Where the content of a [`PlannedFile`] comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum FileSource {
    /// A file or folder of the host.
    Host(Arc<Source>),
    Text(String),
}

/// A device node that the spec puts into the tree.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedDevice {
    /// `path:line` of the spec.
    pub place: String,
    pub path: TreePath,
    pub kind: DeviceKind,
    pub major: u32,
    pub minor: u32,
    pub mode: u16,
    /// `None`: root.
    pub owner: Option<Owner>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum DeviceKind {
    Character,
    Block,
}

/// A secret that steps may read.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedSecret {
    /// `path:line` of the spec.
    pub place: String,
    pub id: String,
    pub source: SecretSource,
}

/// Where the value of a secret is read from when a build begins.
#[derive(Debug, Clone, PartialEq)]
pub enum SecretSource {
    File {
        /// As in the spec; `~/` is the home folder of the user who builds.
        written: String,
        /// Path of the file, where it is not in that home folder.
        path: PathBuf,
    },
    /// A variable of the caller's environment.
    Environment(String),
}

/// Paths that are removed from the tree.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedExclude {
    /// `path:line` of the spec.
    pub place: String,
    pub glob: Glob,
}

/// One step of a build, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub action: StepAction,
    /// `path:line` of the spec.
    pub place: String,
}

#[derive(Debug, Clone, PartialEq)]
pub enum StepAction {
    Install {
        manager: PackageManager,
        packages: Vec<String>,
    },
    /// Copies the files into the image.
    Files(Vec<PlannedFile>),
    Shell {
        command: String,
        /// Whether it has a network.
        network: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PackageManager {
    Apt,
    Apk,
    /// The base's own, apt or apk: the step finds out which one a tar or a registry's image has.
    System,
    Npm,
    Pip,
}

impl PackageManager {
    pub fn as_str(self) -> &'static str {
        match self {
            PackageManager::Apt => "apt",
            PackageManager::Apk => "apk",
            PackageManager::System => "packages",
            PackageManager::Npm => "npm",
            PackageManager::Pip => "pip",
        }
    }
}

impl StepAction {
    /// Whether all that it does is to fetch and install packages.
    pub fn fetches(&self) -> bool {
        matches!(self, StepAction::Install { .. })
    }

    /// Whether it has a network.
    pub fn has_network(&self) -> bool {
        !matches!(self, StepAction::Shell { network: false, .. })
    }
}

impl Step {
    /// Returns the step in one line.
    pub fn describe(&self) -> String {
        match &self.action {
            StepAction::Install { manager, packages } => {
                format!("{}: {}", manager.as_str(), in_short(&packages.join(" ")))
            }
            StepAction::Files(files) if files.len() == 1 => format!("file {}", files[0].to),
            StepAction::Files(files) => count(files.len(), "file"),
            StepAction::Shell { command, .. } => {
                format!("run: {}", in_short(command.trim().lines().next().unwrap_or_default()))
            }
        }
    }
}

/// Shortens a text to what fits on a progress line, between two words where there are some.
fn in_short(text: &str) -> String {
    const WIDTH: usize = 60;
    match text.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{} …", text[..end].rsplit_once(' ').map_or(&text[..end], |(words, _)| words)),
        None => text.to_owned(),
    }
}

/// What provides the inputs that specs only refer to: images of registries and programs of Cargo packages.
#[derive(Clone, Copy)]
pub struct Providers<'a> {
    /// Resolves references to images of registries to digests.
    pub resolver: &'a Resolver,
    /// Builds the programs of Cargo packages.
    pub binaries: Binaries<'a>,
}

/// Plans the tree of `spec` for `platform`; `parent` is the plan of the image that it is based on, if it is based on one.
pub fn plan(
    spec: &ImageSpec,
    parent: Option<&BuildPlan>,
    platform: Platform,
    providers: &Providers,
) -> Result<BuildPlan> {
    let places = Places(&spec.document.path);
    let files = plan_files(spec, platform, providers)?;
    let base = plan_base(spec, parent, platform, providers.resolver)?;
    let system = match &base {
        PlannedBase::Debian { .. } => PackageManager::Apt,
        PlannedBase::Oci(_) | PlannedBase::Tar { .. } => PackageManager::System,
        PlannedBase::Image { .. } => parent.map_or(PackageManager::System, |parent| parent.system),
    };
    let exclude = |pattern: &Located<String>| {
        let place = places.of(pattern);
        Ok(PlannedExclude { glob: Glob::new(pattern).with_context(|| place.clone())?, place })
    };
    let mut plan = BuildPlan {
        name: spec.name.clone(),
        platform,
        base_place: Place::of(spec, &spec.base),
        system,
        steps: plan_steps(spec, system, &files),
        environment: spec.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        files,
        devices: spec.devices.iter().map(|device| planned_device(device, places.of(device))).collect(),
        exclude: spec.exclude.iter().map(exclude).collect::<Result<_>>()?,
        hostname: spec.hostname.clone(),
        secrets: spec.secrets.iter().map(|secret| planned_secret(secret, places.of(secret))).collect(),
        fingerprint: String::new(),
        layers: Vec::new(),
        inputs: Inputs::default(),
        base,
    };
    let base = plan.base.fingerprint();
    let inputs = TreeInputs::of(&plan, &base);
    let (fingerprint, layers, summary) = (inputs.fingerprint()?, inputs.layers()?, inputs.summary()?);
    (plan.fingerprint, plan.layers, plan.inputs) = (fingerprint, layers, summary);
    Ok(plan)
}

/// A place in a spec, shown as `path:line`, at which an error can be shown.
#[derive(Debug, Clone)]
pub struct Place {
    line: String,
    source: Option<(Arc<Document>, Range<usize>)>,
}

impl Place {
    fn of<T>(spec: &ImageSpec, located: &Located<T>) -> Self {
        let line = Places(&spec.document.path).of(located);
        Place { line, source: Some((spec.document.clone(), located.span.clone())) }
    }

    /// Returns an error of the spec with its place, the line of the text, and what would be right.
    pub fn error(&self, message: String, helps: impl IntoIterator<Item = String>) -> SpecErrors {
        let error = match &self.source {
            Some((document, span)) => SpecError::new(document, span.clone(), message),
            None => SpecError::whole(Path::new(&self.line), message),
        };
        SpecErrors(vec![helps.into_iter().fold(error, SpecError::help)])
    }
}

impl From<&str> for Place {
    fn from(line: &str) -> Self {
        Place { line: line.to_owned(), source: None }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

/// Places in a spec, as errors name them.
#[derive(Clone, Copy)]
struct Places<'a>(&'a Path);

impl Places<'_> {
    fn of<T>(self, located: &Located<T>) -> String {
        format!("{}:{}", self.0.display(), located.line)
    }
}

fn plan_base(
    spec: &ImageSpec,
    parent: Option<&BuildPlan>,
    platform: Platform,
    resolver: &Resolver,
) -> Result<PlannedBase> {
    Ok(match &spec.base.value {
        Base::Debian { suite, variant, snapshot } => {
            let variant = variant.clone().unwrap_or_else(|| DEFAULT_VARIANT.to_owned());
            let inputs = format!("debian {DEBIAN_FORMAT} {} {suite} {variant}", platform.machine());
            let inputs = snapshot.iter().fold(inputs, |inputs, moment| format!("{inputs} as of {moment}"));
            let fingerprint = hex(&Sha256::digest(inputs));
            PlannedBase::Debian { suite: suite.clone(), variant, snapshot: snapshot.clone(), fingerprint }
        }
        Base::Tar { path, sha256 } => {
            let place = Place::of(spec, &spec.base);
            let file = regular_file::open(&path.path).map_err(io::Error::from);
            let hash = file.and_then(|file| stamp::hash(&file, &mut |_| {}));
            let (found, stamp) = hash.map(|(digest, stamp)| (hex(&digest), stamp)).map_err(|error| {
                let help = "a path in a spec is relative to the folder of the spec";
                place.error(format!("cannot read the base tar {}: {error}", path.path.display()), [help.to_owned()])
            })?;
            if let Some(wanted) = sha256.map(|digest| hex(&digest))
                && wanted != found
            {
                let message = format!("the base tar {} is not the one that the spec pins", path.path.display());
                let digests = [format!("pinned: {wanted}"), format!("found:  {found}")];
                return Err(place.error(message, digests).into());
            }
            PlannedBase::Tar { path: path.path.clone(), sha256: found, stamp }
        }
        Base::Image { name } => {
            let parent = parent.with_context(|| format!("the plan of {name} is missing"))?;
            PlannedBase::Image { name: name.clone(), fingerprint: parent.fingerprint.clone() }
        }
        Base::Oci { reference } => {
            let resolution = resolver
                .resolve(reference, platform)
                .with_context(|| format!("{}:{}: base {reference}", spec.document.path.display(), spec.base.line))?;
            PlannedBase::Oci(resolution)
        }
    })
}

fn plan_steps(spec: &ImageSpec, system: PackageManager, files: &[PlannedFile]) -> Vec<Step> {
    let places = Places(&spec.document.path);
    let managers = [
        (system, &spec.packages.system),
        (PackageManager::Npm, &spec.packages.npm),
        (PackageManager::Pip, &spec.packages.pip),
    ];
    let mut steps = Vec::new();
    for (manager, packages) in managers {
        if let Some(first) = packages.first() {
            let packages = packages.iter().map(|package| package.value.clone()).collect();
            steps.push(Step { action: StepAction::Install { manager, packages }, place: places.of(first) });
        }
    }
    if let Some(first) = files.first() {
        steps.push(Step { action: StepAction::Files(files.to_vec()), place: first.place.clone() });
    }
    for step in &spec.run {
        let action = StepAction::Shell { command: step.shell.clone(), network: step.network };
        steps.push(Step { action, place: places.of(step) });
    }
    steps
}

/// The files of a spec: the one that becomes `/init`, its `[[file]]`s, and its programs, which are built here.
fn plan_files(spec: &ImageSpec, platform: Platform, providers: &Providers) -> Result<Vec<PlannedFile>> {
    let places = Places(&spec.document.path);
    let program = |place: String, path: PathBuf, to: &TreePath, mode: u16, owner: Option<&Owner>| {
        anyhow::Ok(PlannedFile {
            place,
            source: FileSource::Host(Arc::new(Source::read(&path)?)),
            to: to.clone(),
            mode: Some(mode),
            owner: owner.cloned(),
            xattrs: BTreeMap::new(),
        })
    };
    let mut files = Vec::new();
    if let Some(init) = &spec.init {
        let to = TreePath::new("init").expect("the name is valid");
        files.push(program(places.of(init), init.path.clone(), &to, INIT_MODE, None)?);
    }
    for file in &spec.files {
        files.push(planned_file(file, places.of(file))?);
    }
    for binary in &spec.binaries {
        let place = places.of(binary);
        let manifest = binary.manifest_path.as_deref();
        let wanted =
            Program { package: &binary.package, bin: &binary.bin, manifest, features: &binary.features, platform };
        let path = providers.binaries.get(&wanted).with_context(|| format!("{place}: `[[binary]]`"))?;
        let planned = path.map(|path| program(place, path, &binary.to, binary.mode, binary.owner.as_ref()));
        files.extend(planned.transpose()?);
    }
    Ok(files)
}

fn planned_file(file: &FileSpec, place: String) -> Result<PlannedFile> {
    let mut xattrs = file.xattrs.clone();
    xattrs.extend(file.capabilities.map(|set| (CAPABILITY_XATTR.to_owned(), set.to_xattr().to_vec())));
    let source = match &file.source {
        model::FileSource::From(source) => FileSource::Host(Arc::new(Source::read(&source.path)?)),
        model::FileSource::Content(text) => FileSource::Text(text.clone()),
    };
    Ok(PlannedFile { place, source, to: file.to.clone(), mode: file.mode, owner: file.owner.clone(), xattrs })
}

fn planned_device(device: &DeviceSpec, place: String) -> PlannedDevice {
    PlannedDevice {
        place,
        path: device.path.clone(),
        kind: match device.kind {
            model::DeviceKind::Char => DeviceKind::Character,
            model::DeviceKind::Block => DeviceKind::Block,
        },
        major: device.major,
        minor: device.minor,
        mode: device.mode,
        owner: device.owner.clone(),
    }
}

fn planned_secret(secret: &SecretSpec, place: String) -> PlannedSecret {
    let source = match &secret.source {
        model::SecretSource::Environment(name) => SecretSource::Environment(name.clone()),
        model::SecretSource::File(source) => {
            SecretSource::File { written: source.written.clone(), path: source.path.clone() }
        }
    };
    PlannedSecret { place, id: secret.id.clone(), source }
}

/// Returns the SHA-256 of a file's content, as hex. `advance` is called with the bytes of each step.
pub fn hash_file(path: &Path, advance: &mut dyn FnMut(u64)) -> Result<String> {
    let digest =
        snug_rootfs::digest::of_file(path, advance).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hex(&digest))
}
