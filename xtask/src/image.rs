//! One image from its spec to its file: what is decided before anything runs, and the way through tree, filesystem and
//! manifest.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use base16ct::lower::encode_string as hex;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::artifact::verity::{self, Verity};
use crate::artifact::{Manifest, Partial, TreeSummary, contents_beside, manifest_beside, write_contents};
use crate::assemble::{Assembly, Link};
use crate::binaries::Binaries;
use crate::check::contents::Contents;
use crate::check::{self, Subject};
use crate::filesystem::digest::{self, BodyDigests, Digest};
use crate::filesystem::requires::missed;
use crate::filesystem::{self, Census, Filesystem, FilesystemKind, FilesystemWriter, Part};
use crate::first_stage;
use crate::oci::{Resolution, Resolver};
use crate::plan::{self, BuildPlan, PlanError, PlannedBase};
use crate::report::progress::{Progress, human_bytes};
use crate::rootfs::tree::{Kind, RootTree};
use crate::rootfs::{packages, tar};
use crate::size::SizePolicy;
use crate::spec::model::{KernelVersion, Platform};
use crate::spec::{ImageSet, ImageSpec};

/// Part of every image's fingerprint: raised when the same tree would come out as other bytes than before.
const IMAGE_FORMAT: u32 = 1;

/// A type of image as the command line names it: `erofs`, or `squashfs+verity`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedType {
    pub kind: FilesystemKind,
    /// Seal it with dm-verity, whatever the spec says.
    pub verity: bool,
}

impl FromStr for NamedType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, verity) = text.strip_suffix("+verity").map_or((text, false), |kind| (kind, true));
        kind.parse().map(|kind| NamedType { kind, verity })
    }
}

/// Where an order gets what its specs only name.
#[derive(Clone, Copy)]
pub struct Suppliers<'a> {
    /// Says what references to registries mean.
    pub resolver: &'a Resolver,
    /// Builds the programs of Cargo packages.
    pub binaries: Binaries<'a>,
}

/// What an image is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub platform: Platform,
    /// Did the command line or the spec name it? Then the folder of results carries its name.
    pub named: bool,
}

impl Target {
    /// The host's platform, as nobody named any.
    pub fn host() -> Result<Self> {
        let platform = Platform::host().context("this machine is neither amd64 nor arm64\nhint: name a --platform")?;
        Ok(Target { platform, named: false })
    }

    /// All that `spec` is to be built for: what the command line names, else what the spec names, else the host's.
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

impl fmt::Display for NamedType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.kind, if self.verity { "+verity" } else { "" })
    }
}

/// One image to be built, with all that is decided before anything runs.
#[derive(Debug, Clone)]
pub struct Order<'set> {
    pub spec: &'set ImageSpec,
    /// From the foundation to the image itself.
    pub chain: Vec<Link<'set>>,
    /// `None`: a base; its tree is made and no image.
    pub filesystem: Option<Filesystem>,
    /// Seal the image with dm-verity.
    pub verity: bool,
    pub sizing: SizePolicy,
    pub target: Target,
    /// Hold the image against its tree before it is published.
    pub check: bool,
    /// What to tell the person who asked.
    pub notes: Vec<String>,
}

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Outcome {
    Built {
        image: PathBuf,
        manifest: Box<Manifest>,
    },
    UpToDate {
        image: PathBuf,
        manifest: Box<Manifest>,
    },
    /// A base has no image of its own.
    Base {
        tree: PathBuf,
    },
}

/// How the image that is there compares with what would be built.
#[derive(Debug, Clone, PartialEq)]
pub enum Freshness {
    /// There is no image to build.
    Base,
    NeverBuilt,
    UpToDate(Box<Manifest>),
    Stale {
        manifest: Box<Manifest>,
        why: String,
    },
}

impl<'set> Order<'set> {
    /// Decides everything for the image `name` on `target`; `named` overrides the spec's filesystem.
    pub fn new(
        set: &'set ImageSet,
        name: &str,
        target: Target,
        named: Option<NamedType>,
        suppliers: &Suppliers,
    ) -> Result<Self> {
        let resolved = set.resolve(name)?;
        let mut chain: Vec<Link> = Vec::new();
        for spec in resolved.ancestors.iter().rev().copied().chain([resolved.spec]) {
            let binaries = suppliers.binaries.files(spec, target.platform)?;
            let parent = chain.last().map(|link| &link.plan);
            let plan = plan::plan(spec, parent, target.platform, binaries, suppliers.resolver)?;
            chain.push(Link { spec, plan });
        }
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
        Ok(Order { spec, chain, filesystem, verity, sizing: spec.sizing.clone(), target, check: true, notes })
    }

    pub fn plan(&self) -> &BuildPlan {
        &self.chain.last().expect("a chain ends with its image").plan
    }

    /// The image of a registry that everything stands on, where it does.
    pub fn oci(&self) -> Option<&Resolution> {
        match &self.chain.first()?.plan.base {
            PlannedBase::Oci(resolution) => Some(resolution),
            _ => None,
        }
    }

    /// The image's name, with its platform where one was named.
    pub fn title(&self) -> String {
        match self.target.named {
            true => format!("{} ({})", self.spec.name, self.target.platform),
            false => self.spec.name.clone(),
        }
    }

    /// The image file in the folder of results.
    pub fn image(&self, output: &Path) -> Option<PathBuf> {
        let kind = self.filesystem.as_ref()?.kind();
        Some(self.target.folder(output, &self.spec.name).join(format!("rootfs.{kind}")))
    }

    /// SHA-256 over everything the image file depends on.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hash = Sha256::new();
        hash.update(format!("image {IMAGE_FORMAT} {} {}\n", self.target.platform, self.plan().fingerprint));
        hash.update(serde_json::to_vec(&(&self.filesystem, self.verity, &self.sizing, self.spec.overlay))?);
        hash.update(Sha256::digest(first_stage::SCRIPT));
        Ok(hex(&hash.finalize()))
    }

    /// How the image below `output` compares with this order.
    pub fn freshness(&self, output: &Path) -> Result<Freshness> {
        let Some(image) = self.image(output) else { return Ok(Freshness::Base) };
        let Some(manifest) = Manifest::read(&manifest_beside(&image)) else { return Ok(Freshness::NeverBuilt) };
        let manifest = Box::new(manifest);
        let length = fs::metadata(&image).map(|about| about.len());
        let why = if image.file_name().is_none_or(|name| name != manifest.file.as_str()) {
            format!("there is {}", manifest.file)
        } else if length.as_ref().ok() != Some(&manifest.census.size) {
            if length.is_ok() { "the image file was changed".into() } else { "the image file is gone".into() }
        } else if !image.with_file_name(&manifest.contents.file).is_file() {
            "the list of its contents is gone".into()
        } else if manifest.fingerprint == self.fingerprint()? {
            return Ok(Freshness::UpToDate(manifest));
        } else {
            self.plan().inputs.difference(&manifest.tree.inputs)
        };
        Ok(Freshness::Stale { manifest, why })
    }

    /// Builds what is not up to date below `output`.
    pub fn fill(&self, assembly: &Assembly, output: &Path, progress: &Progress) -> Result<Outcome> {
        let (Some(filesystem), Some(image)) = (&self.filesystem, self.image(output)) else {
            let tree = assembly.tree(&self.chain, progress)?;
            return Ok(Outcome::Base { tree: tree.path().to_path_buf() });
        };
        if let Some(folder) = image.parent() {
            // What a killed run left, of any type of image.
            Partial::sweep(folder, "")?;
        }
        let fingerprint = self.fingerprint()?;
        if !assembly.refresh.everything()
            && let Freshness::UpToDate(manifest) = self.freshness(output)?
        {
            return Ok(Outcome::UpToDate { image, manifest });
        }
        // A folder that cannot be written to is better known before the tree is built.
        drop(Partial::begin(&image)?);
        // What cannot be written here is better known before the tree is built.
        let writer = filesystem::writer(filesystem, progress)?;
        let held = assembly.tree(&self.chain, progress)?;
        let tree = finished_tree(held.path(), self.spec)?;

        let partial = Partial::begin(&image)?.sync_ahead()?;
        let written = write(&tree, &*writer, self.verity, &self.sizing, partial, Digests::All, progress)?;
        let (sha256, bodies) = written.sha256.zip(written.bodies.as_ref()).context("the digests were asked for")?;
        let (list, contents) = write_contents(&tree, bodies, &contents_beside(&image))?;

        let manifest = Manifest {
            schema: Manifest::SCHEMA,
            snug: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.spec.name.clone(),
            platform: self.target.platform.to_string(),
            file: image.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            filesystem: filesystem.clone(),
            fingerprint,
            sha256: hex(&sha256),
            contents,
            oci: self.oci().cloned(),
            tree: summary(&tree, self.plan()),
            packages: packages::installed(&tree)?,
            census: written.census,
            verity: written.verity,
        };
        if self.check {
            let (meant, _) = Contents::of(&tree, false, |_| {});
            let chain = self.chain.iter().map(|link| link.spec);
            check::guard(Subject::new(written.partial.path(), &manifest, Ok(meant), chain), progress)?;
        }
        // Between the steps the old manifest would speak of the new files.
        let place = manifest_beside(&image);
        if place.exists() {
            fs::remove_file(&place).with_context(|| format!("cannot replace {}", place.display()))?;
        }
        list.publish()?;
        written.partial.publish()?;
        manifest.write(&place)?;
        Ok(Outcome::Built { image, manifest: manifest.into() })
    }
}

/// The tree of `spec` as its image holds it: the one that was built and kept at `tar`, with the tool's own first stage.
pub fn finished_tree(tar: &Path, spec: &ImageSpec) -> Result<RootTree> {
    let mut tree = tar::read_file(File::open(tar)?, &tar::Limits::default(), &mut |_| {})
        .with_context(|| format!("cannot read the finished tree {}", tar.display()))?;
    first_stage::install(&mut tree, spec.overlay)
        .with_context(|| format!("cannot put the first stage into the tree of {}", spec.name))?;
    Ok(tree)
}

/// Refuses what the oldest kernel that the spec wants to support cannot read.
fn refuse_for_kernel(name: &str, filesystem: &Filesystem, verity: bool, kernel: KernelVersion) -> Result<()> {
    let Some(missed) = missed(filesystem, verity, (kernel.major, kernel.minor)) else { return Ok(()) };
    let (major, minor) = missed.since;
    bail!(PlanError(format!(
        "{name}: the guest's kernel {kernel} does not know {}: Linux has it since {major}.{minor}\n\
         hint: raise `kernel` in [boot], or choose other options of {}",
        missed.feature,
        filesystem.kind()
    )));
}

/// Which digests are taken while an image is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Digests {
    None,
    Image,
    /// Of the image, and of every file in it.
    All,
}

/// An image that is written and not yet published.
pub struct Written {
    pub partial: Partial,
    pub census: Census,
    /// Of the image file, where it was asked for.
    pub sha256: Option<Digest>,
    /// Of the files, where they were asked for.
    pub bodies: Option<BodyDigests>,
    /// How to open it, where it is sealed.
    pub verity: Option<Verity>,
}

/// Threads that hash bodies: the writer and the digest of the image have work for one core, and more than a few wait for
/// the disk.
fn body_threads() -> usize {
    thread::available_parallelism().map_or(1, |cores| (cores.get() - 1).clamp(1, 4))
}

/// Writes a tree as an image into the `partial` file, which is then to be published; `seal` closes it with dm-verity.
pub fn write(
    tree: &RootTree,
    writer: &dyn FilesystemWriter,
    seal: bool,
    sizing: &SizePolicy,
    mut partial: Partial,
    digests: Digests,
    progress: &Progress,
) -> Result<Written> {
    let stage = progress.stage(format!("write {}", writer.kind()));
    let stop = AtomicBool::new(false);
    let (written, bodies) = thread::scope(|scope| {
        let hash = || BodyDigests::of(tree, body_threads(), &stop);
        let bodies = (digests == Digests::All).then(|| scope.spawn(hash));
        // A seal adds to the image: its digest comes after.
        let written = match digests == Digests::None || seal {
            true => writer.write(tree, sizing, partial.path(), &stage).map(|census| (census, None)),
            false => {
                writer.write_hashed(tree, sizing, partial.path(), &stage).map(|(census, digest)| (census, Some(digest)))
            }
        };
        stop.store(written.is_err(), Ordering::Relaxed);
        (written, bodies.map(|bodies| bodies.join().expect("hashing does not panic")))
    });
    let (mut census, mut sha256) = written
        .map_err(|error| partial.explain(error))
        .with_context(|| format!("cannot write the {} image", writer.kind()))?;
    let bodies = bodies.transpose().context("cannot read the files for their digests")?;
    stage.finish(&human_bytes(census.size));
    for omitted in &census.omitted {
        progress.note(format!("warning: {omitted}"));
    }
    let verity = match seal {
        true => Some(seal_image(tree, &partial, &mut census, progress)?),
        false => None,
    };
    partial.send_rest();
    if seal && digests != Digests::None {
        let stage = progress.stage("hash the image");
        sha256 = Some(digest::of_file(partial.path()).context("cannot read the image again")?);
        stage.finish("");
    }
    Ok(Written { partial, census, sha256, bodies, verity })
}

fn seal_image(tree: &RootTree, partial: &Partial, census: &mut Census, progress: &Progress) -> Result<Verity> {
    let stage = progress.stage("seal with dm-verity");
    stage.expect_bytes(census.size);
    let verity = verity::seal(partial.path(), &verity::Seed::of(tree), &stage)
        .map_err(|error| partial.explain(error))
        .context("cannot seal the image")?;
    stage.finish(&format!("root hash {}", verity.root_hash));
    let padding = verity.hash_offset - census.size;
    for (name, bytes) in [("padding to a block", padding), ("verity hash tree", verity.hash_bytes)] {
        if bytes > 0 {
            census.parts.push(Part { name: name.into(), bytes });
            census.size += bytes;
        }
    }
    Ok(verity)
}

fn summary(tree: &RootTree, plan: &BuildPlan) -> TreeSummary {
    let inodes = tree.entries().filter(|entry| entry.hard_link_to.is_none());
    let (mut count, mut data_bytes) = (0, 0);
    for entry in inodes {
        count += 1;
        if let Kind::File(body) = &entry.inode.kind {
            data_bytes += body.data_bytes();
        }
    }
    TreeSummary {
        fingerprint: plan.fingerprint.clone(),
        inputs: plan.inputs.clone(),
        entries: tree.len() as u64,
        inodes: count,
        data_bytes,
    }
}

/// The spec's filesystem, or the one of the command line: with the spec's options where the type is the same.
fn choose_filesystem(
    spec: &ImageSpec,
    named: Option<FilesystemKind>,
    notes: &mut Vec<String>,
) -> Result<Option<Filesystem>> {
    let Some(own) = spec.filesystem.clone() else {
        if named.is_some() {
            let name = &spec.name;
            bail!(PlanError(format!("{name} is a base without an image of its own, so --filesystem does not apply")));
        }
        return Ok(None);
    };
    match named.filter(|kind| *kind != own.kind()) {
        None => Ok(Some(own)),
        Some(kind) => {
            if own.kind() == FilesystemKind::Ext4 {
                notes.push(format!(
                    "min-size, max-size and headroom do not apply to {kind}: it is as large as its content"
                ));
            }
            Ok(Some(Filesystem::default_of(kind)))
        }
    }
}
