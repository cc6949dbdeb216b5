//! What has to be done for an image, in which order, and the fingerprint of every input.
//!
//! A plan is all an engine sees: steps with the places of the spec they come from, and nothing of TOML.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base16ct::lower::encode_string as hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use snug_rootfs::digest;
use snug_rootfs::platform::Platform;
use snug_rootfs::tree::Timestamp;
use snug_spec::model::{Base, FileSource, FileSpec, ImageSpec, Located, SecretSpec, SourcePath};

use crate::bases::oci::{Resolution, Resolver};

/// Part of every fingerprint: raised when a tree of the same spec would come out otherwise than before.
const TREE_FORMAT: u32 = 1;

/// mmdebstrap's package set where the spec names none: the smallest that apt works in.
const DEFAULT_VARIANT: &str = "minbase";

/// How to make the root tree of one image.
#[derive(Debug, Clone)]
pub struct BuildPlan {
    pub name: String,
    /// What the tree runs on.
    pub platform: Platform,
    pub base: PlannedBase,
    /// What installs system packages.
    pub system: PackageManager,
    pub steps: Vec<Step>,
    /// What the spec puts into the tree, programs included.
    pub files: Vec<Located<FileSpec>>,
    pub hostname: Option<String>,
    /// What steps may read and the tree must not keep.
    pub secrets: Vec<Located<SecretSpec>>,
    /// SHA-256 over every input of the tree, the base's included, as hex.
    pub fingerprint: String,
    pub inputs: Inputs,
}

/// SHA-256 of the inputs of a tree, kind by kind, to tell which of them changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    pub base: String,
    pub spec: String,
    pub files: String,
}

impl Inputs {
    /// In words, what is other than in the inputs of an image that was built before.
    pub fn difference(&self, before: &Inputs) -> String {
        let kinds = [
            ("the base", &self.base, &before.base),
            ("the spec", &self.spec, &before.spec),
            ("the files", &self.files, &before.files),
        ];
        let changed: Vec<&str> =
            kinds.into_iter().filter(|(_, now, then)| now != then).map(|(kind, ..)| kind).collect();
        match changed[..] {
            [] => "the filesystem, the sizing or the tool changed".to_owned(),
            _ => format!("{} changed", changed.join(" and ")),
        }
    }
}

/// What the tree starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlannedBase {
    Debian {
        suite: String,
        variant: String,
        /// A moment of Debian's snapshot archive.
        snapshot: Option<String>,
        fingerprint: String,
    },
    /// An image of a registry.
    Oci(Resolution),
    /// A tar of the user's.
    Tar { path: PathBuf, sha256: String },
    /// The tree of another image, made before.
    Image { name: String, fingerprint: String },
}

impl PlannedBase {
    fn fingerprint(&self) -> String {
        match self {
            PlannedBase::Debian { fingerprint, .. } | PlannedBase::Image { fingerprint, .. } => fingerprint.clone(),
            PlannedBase::Oci(resolution) => resolution.fingerprint(),
            PlannedBase::Tar { sha256, .. } => sha256.clone(),
        }
    }

    /// The base in a few words.
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

/// One step of a build, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub action: StepAction,
    /// `path:line` of the spec that asks for it.
    pub place: String,
    /// Environment of the spec for this step.
    pub environment: Vec<(String, String)>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum StepAction {
    Install {
        manager: PackageManager,
        packages: Vec<String>,
    },
    /// Puts the files into the image.
    Files(Vec<Located<FileSpec>>),
    Shell(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PackageManager {
    Apt,
    Apk,
    /// The base's own, apt or apk: what a tar or a registry's image has is known once the step runs in it.
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

impl Step {
    /// The step in a line.
    pub fn describe(&self) -> String {
        match &self.action {
            StepAction::Install { manager, packages } => {
                format!("{}: {}", manager.as_str(), in_short(&packages.join(" ")))
            }
            StepAction::Files(files) if files.len() == 1 => format!("file {}", files[0].to),
            StepAction::Files(files) => format!("{} files", files.len()),
            StepAction::Shell(command) => {
                format!("run: {}", in_short(command.trim().lines().next().unwrap_or_default()))
            }
        }
    }
}

/// At most as much of a text as a progress line has room for.
fn in_short(text: &str) -> String {
    const ROOM: usize = 60;
    match text.char_indices().nth(ROOM) {
        Some((end, _)) => format!("{} …", &text[..end]),
        None => text.to_owned(),
    }
}

/// Plans the tree of `spec` for `platform`; `parent` is the plan of the image it is based on, where it is, and `binaries`
/// are the programs that were built for it (see [`Binaries`](crate::bases::cargo::Binaries)). `resolver` says what references
/// to registries mean.
pub fn plan(
    spec: &ImageSpec,
    parent: Option<&BuildPlan>,
    platform: Platform,
    binaries: Vec<Located<FileSpec>>,
    resolver: &Resolver,
) -> Result<BuildPlan> {
    let mut files = all_files(spec);
    files.extend(binaries);
    let base = plan_base(spec, parent, platform, resolver)?;
    let system = match &base {
        PlannedBase::Debian { .. } => PackageManager::Apt,
        PlannedBase::Oci(_) | PlannedBase::Tar { .. } => PackageManager::System,
        PlannedBase::Image { .. } => parent.map_or(PackageManager::System, |parent| parent.system),
    };
    let steps = plan_steps(spec, system, &files);
    let mut hash = Sha256::new();
    // The name and the filesystem do not change the tree.
    let mut tree_inputs = spec.clone();
    tree_inputs.name.clear();
    tree_inputs.filesystem = None;
    tree_inputs.sizing = Default::default();
    tree_inputs.tolerance = None;
    tree_inputs.engine = None;
    tree_inputs.platforms.clear();
    tree_inputs.boot = None;
    tree_inputs.verity = false;
    hash.update(format!("tree {TREE_FORMAT} {} {}\n", platform.machine(), base.fingerprint()));
    let spec_inputs = serde_json::to_vec(&tree_inputs)?;
    hash.update(&spec_inputs);
    hash.update(format!("\nepoch {:?}\n", Timestamp::source_date_epoch()));
    let mut file_inputs = Sha256::new();
    for source in sources(&files) {
        hash_source(&mut hash, source)?;
        hash_source(&mut file_inputs, source)?;
    }
    let inputs = Inputs {
        base: base.fingerprint().to_owned(),
        spec: hex(&Sha256::digest(&spec_inputs)),
        files: hex(&file_inputs.finalize()),
    };
    Ok(BuildPlan {
        name: spec.name.clone(),
        platform,
        base,
        system,
        steps,
        files,
        hostname: spec.hostname.clone(),
        secrets: spec.secrets.clone(),
        fingerprint: hex(&hash.finalize()),
        inputs,
    })
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
            let inputs = format!("debian {TREE_FORMAT} {} {suite} {variant}", platform.machine());
            let inputs = snapshot.iter().fold(inputs, |inputs, moment| format!("{inputs} as of {moment}"));
            let fingerprint = hex(&Sha256::digest(inputs));
            PlannedBase::Debian { suite: suite.clone(), variant, snapshot: snapshot.clone(), fingerprint }
        }
        Base::Tar { path, sha256 } => {
            let found = hash_file(&path.path)
                .with_context(|| format!("{}:{}: base tar", spec.document.path.display(), spec.base.line))?;
            if let Some(wanted) = sha256.map(|digest| hex(&digest))
                && wanted != found
            {
                bail!(
                    "{}:{}: the base tar {} is not the one that the spec pins\n  pinned: {wanted}\n  found:  {found}",
                    spec.document.path.display(),
                    spec.base.line,
                    path.path.display()
                );
            }
            PlannedBase::Tar { path: path.path.clone(), sha256: found }
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

fn plan_steps(spec: &ImageSpec, system: PackageManager, files: &[Located<FileSpec>]) -> Vec<Step> {
    let environment: Vec<_> = spec.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let step = |action, line: usize| Step {
        action,
        place: format!("{}:{line}", spec.document.path.display()),
        environment: environment.clone(),
    };
    let managers = [
        (system, &spec.packages.system),
        (PackageManager::Npm, &spec.packages.npm),
        (PackageManager::Pip, &spec.packages.pip),
    ];
    let mut steps = Vec::new();
    for (manager, packages) in managers {
        if let Some(first) = packages.first() {
            let packages = packages.iter().map(|package| package.value.clone()).collect();
            steps.push(step(StepAction::Install { manager, packages }, first.line));
        }
    }
    if let Some(first) = files.first() {
        steps.push(step(StepAction::Files(files.to_vec()), first.line));
    }
    for command in &spec.run {
        steps.push(step(StepAction::Shell(command.value.clone()), command.line));
    }
    steps
}

/// The files of a spec, with the one that becomes `/init` first.
fn all_files(spec: &ImageSpec) -> Vec<Located<FileSpec>> {
    let init = spec.init.iter().map(|init| Located {
        value: FileSpec {
            source: FileSource::From(init.value.clone()),
            to: snug_rootfs::tree::TreePath::new("init").expect("a constant"),
            mode: Some(0o755),
            owner: None,
            xattrs: Default::default(),
            capabilities: None,
        },
        line: init.line,
        column: init.column,
        span: init.span.clone(),
    });
    init.chain(spec.files.iter().cloned()).collect()
}

fn sources(files: &[Located<FileSpec>]) -> Vec<&SourcePath> {
    files
        .iter()
        .filter_map(|file| match &file.value.source {
            FileSource::From(path) => Some(path),
            FileSource::Content(_) => None,
        })
        .collect()
}

/// Hashes what a build takes of a file or folder: names, content, and whether it is executable.
fn hash_source(hash: &mut Sha256, source: &SourcePath) -> Result<()> {
    let mut pending = vec![source.path.clone()];
    while let Some(path) = pending.pop() {
        let about = fs::symlink_metadata(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.strip_prefix(&source.path).unwrap_or(&path);
        hash.update(name.as_os_str().as_bytes());
        if about.is_dir() {
            let mut names: Vec<_> = fs::read_dir(&path)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
            names.sort();
            names.reverse();
            pending.extend(names);
            hash.update(b"\0directory\n");
        } else if about.is_symlink() {
            hash.update(b"\0link ");
            hash.update(fs::read_link(&path)?.as_os_str().as_bytes());
            hash.update(b"\n");
        } else {
            hash.update(format!("\0file {} {}\n", about.permissions().mode() & 0o100, hash_file(&path)?));
        }
    }
    Ok(())
}

/// SHA-256 of a file's bytes, as hex.
pub fn hash_file(path: &Path) -> Result<String> {
    let digest = digest::of_file(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hex(&digest))
}
