//! Images of OCI registries as bases: a reference is resolved to one manifest, its blobs come into the cache, and its
//! layers are merged into one tree.
//!
//! A tag keeps the manifest it was first resolved to until `--refresh`, so that builds repeat and work offline. Every digest
//! is verified: the pin, the index, the manifest, the configuration, and each layer, compressed and uncompressed (OCI
//! image-spec, descriptor.md and config.md).

mod blob;
mod error;
mod manifest;
mod skopeo;
mod source;
mod zstd;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result};
use base16ct::lower::encode_string as hex;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use snug_rootfs::layers::{LIMITS, Layers};
use snug_rootfs::oci::{Digest, Reference};
use snug_rootfs::platform::Platform;
use snug_rootfs::regular_file;
use snug_rootfs::tree::RootTree;

use crate::atomic::Partial;
use crate::cache::Cache;
use crate::error::{self as errors, Failure};
use crate::report::amounts::{self, entries};
use crate::report::progress::{Progress, human_bytes};

pub use error::OciError;

use manifest::{Config, Document, ImageManifest};

/// Part of every fingerprint: raised when the same layers merge into another tree than before.
const MERGE_FORMAT: u32 = 3;

/// The folder of the cache's downloads.
const DOWNLOADS: &str = "oci";
/// What a reference was resolved to, beside its downloads.
const RECORD: &str = "resolved.json";
/// skopeo's name for the manifest in a folder.
const MANIFEST: &str = "manifest.json";

/// What a reference means on one platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Resolution {
    /// The reference as the spec has it.
    pub reference: Reference,
    pub platform: Platform,
    /// The image index, where the reference names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<Digest>,
    /// The image manifest, which names configuration and layers by digest.
    pub manifest: Digest,
}

impl Resolution {
    /// Returns the base in a few words.
    pub fn describe(&self) -> String {
        /// Digits of a digest that are shown to people.
        const DIGITS: usize = 12;
        format!("{} (sha256:{} for {})", self.reference, &self.manifest.hex()[..DIGITS], self.platform)
    }

    /// Returns the SHA-256 over what determines the base's tree, as hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        hex(&Sha256::digest(format!("oci {MERGE_FORMAT} {}", self.manifest)))
    }

    /// Returns the name of the base's tree in the cache.
    pub fn tree_name(&self) -> String {
        source::file_name(&self.reference, self.platform)
    }

    /// Returns the folder of the reference's downloads.
    fn folder(&self, cache: &Cache) -> Result<PathBuf> {
        folder_of(cache, &self.reference, self.platform)
    }
}

/// Returns the folder of a reference's downloads, and makes it where it is missing.
fn folder_of(cache: &Cache, reference: &Reference, platform: Platform) -> Result<PathBuf> {
    let folder = cache.downloads(DOWNLOADS)?.join(source::file_name(reference, platform));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// When a reference is resolved by its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asking {
    Never,
    IfUnknown,
    /// Whenever the registry may have changed it.
    Anew,
}

/// Resolves references, each once a run.
pub struct Resolver {
    asking: Asking,
    progress: Progress,
    known: Mutex<BTreeMap<(Reference, Platform), Resolution>>,
    /// What was said of registries that do not answer, which are asked once a run.
    silent: Mutex<BTreeMap<String, String>>,
}

impl Resolver {
    /// Makes a resolver that asks registries for references that no earlier run has resolved; with `refresh`, for every tag.
    pub fn new(refresh: bool, progress: Progress) -> Self {
        let asking = if refresh { Asking::Anew } else { Asking::IfUnknown };
        Resolver { asking, progress, known: Mutex::default(), silent: Mutex::default() }
    }

    /// Makes a resolver of what earlier runs resolved, which asks no registry.
    pub fn from_cache() -> Self {
        Resolver {
            asking: Asking::Never,
            progress: Progress::hidden(),
            known: Mutex::default(),
            silent: Mutex::default(),
        }
    }

    /// Returns the manifest that `reference` names on `platform`: as this run or an earlier one resolved it, or else by asking
    /// the registry.
    pub fn resolve(&self, reference: &Reference, platform: Platform) -> Result<Resolution> {
        let mut known = self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let key = (reference.clone(), platform);
        if let Some(resolution) = known.get(&key) {
            return Ok(resolution.clone());
        }
        let resolution = self.look_up(reference, platform)?;
        known.insert(key, resolution.clone());
        Ok(resolution)
    }

    /// Whether a run has resolved `reference` on `platform`, so that no registry need be asked.
    pub fn knows(&self, reference: &Reference, platform: Platform) -> Result<bool> {
        let record = folder_of(&Cache::open()?, reference, platform)?.join(RECORD);
        Ok(read_record(&record, reference, platform).is_some())
    }

    fn look_up(&self, reference: &Reference, platform: Platform) -> Result<Resolution> {
        let record = folder_of(&Cache::open()?, reference, platform)?.join(RECORD);
        // A digest always names the same manifest.
        let may_change = reference.pin().is_none();
        if let Some(resolution) = read_record(&record, reference, platform)
            && !(self.asking == Asking::Anew && may_change)
        {
            return Ok(resolution);
        }
        if self.asking == Asking::Never {
            return Err(OciError::Unresolved(reference.to_string()).into());
        }
        let mut silent = self.silent.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(said) = silent.get(reference.registry()) {
            return Err(Failure::Unreachable(said.clone()).into());
        }
        let stage = self.progress.stage(format!("resolve {reference}"));
        let resolution = ask(reference, platform).inspect_err(|error| {
            if let Some(said) = errors::unreachable(error) {
                silent.insert(reference.registry().to_owned(), said.to_owned());
            }
        })?;
        write_record(&record, &resolution)?;
        stage.finish(&resolution.manifest.to_string());
        Ok(resolution)
    }
}

fn read_record(path: &Path, reference: &Reference, platform: Platform) -> Option<Resolution> {
    let resolution: Resolution =
        serde_json::from_slice(&regular_file::read(path, manifest::MAX_DOCUMENT).ok()?).ok()?;
    (resolution.reference == *reference && resolution.platform == platform).then_some(resolution)
}

fn write_record(path: &Path, resolution: &Resolution) -> Result<()> {
    let partial = Partial::begin(path)?;
    partial.file()?.write_all(&serde_json::to_vec_pretty(resolution)?).context("cannot write to the cache")?;
    partial.publish()?;
    Ok(())
}

fn ask(reference: &Reference, platform: Platform) -> Result<Resolution> {
    let bytes = skopeo::manifest(&source::of_reference(reference), reference)?;
    let digest = Digest::of(&bytes);
    if let Some(expected) = reference.pin().filter(|pin| *pin != digest) {
        let reference = reference.to_string();
        return Err(OciError::Damaged { what: "the manifest", reference, expected, found: digest }.into());
    }
    let (index, manifest) = match manifest::parse(&bytes, reference)? {
        Document::Index(entries) => (Some(digest), manifest::choose(&entries, platform, reference)?),
        Document::Image(_) => (None, digest),
    };
    Ok(Resolution { reference: reference.clone(), platform, index, manifest })
}

/// An image in the cache, its manifest and configuration checked, its layers not yet.
#[derive(Debug)]
pub struct Image {
    folder: PathBuf,
    reference: Reference,
    manifest: ImageManifest,
    config: Config,
}

/// Returns the merged layers of an image. It is downloaded where the cache does not have it whole; that it is damaged there is said
/// once. `spool` makes an empty temporary file, which takes the bodies of files.
pub fn tree(
    cache: &Cache,
    resolution: &Resolution,
    spool: &dyn Fn() -> Result<File>,
    progress: &Progress,
) -> Result<RootTree> {
    let folder = resolution.folder(cache)?.join(resolution.manifest.hex());
    let was_cached = folder.is_dir();
    let tree = || fetch(cache, resolution, progress)?.tree(spool()?, progress);
    match tree() {
        // What a registry sent is not asked for again.
        Err(error) if was_cached && is_damaged(&error) => {
            progress
                .warn(format!("{}: the copy in the cache is damaged; it is downloaded again", resolution.reference));
            if folder.is_dir() {
                remove(&folder)?;
            }
            tree()
        }
        result => result,
    }
}

/// Whether an image in the cache is not the one that was downloaded.
fn is_damaged(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<OciError>() {
        Some(error) => matches!(error, OciError::DamagedCopy { .. } | OciError::Damaged { .. }),
        // A file that is missing or cannot be read.
        None => error.root_cause().downcast_ref::<io::Error>().is_some_and(|error| {
            error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::EIO as i32)
        }),
    }
}

/// Returns an image from the cache, downloading it where it is missing.
fn fetch(cache: &Cache, resolution: &Resolution, progress: &Progress) -> Result<Image> {
    let reference = resolution.reference.clone();
    let shelf = resolution.folder(cache)?;
    let folder = shelf.join(resolution.manifest.hex());
    if !folder.is_dir() {
        let source = source::of_manifest(&reference, &resolution.manifest);
        // An image that cannot be used is refused before its layers are downloaded.
        let bytes = skopeo::manifest(&source, &reference)?;
        let manifest = image_manifest(&bytes, resolution, &reference)?;
        let stage = progress.stage(format!("download {reference}"));
        let total = manifest.layers.iter().map(|layer| layer.size).sum();
        stage.expect_bytes(total);
        let work = cache.work_folder("oci")?;
        let arriving = work.path().join("image");
        skopeo::download(&source, &arriving, &reference, &stage)?;
        drop_older(&shelf)?;
        fs::rename(&arriving, &folder).with_context(|| format!("cannot rename to {}", folder.display()))?;
        stage.finish(&human_bytes(total));
    }
    let image = Image::open(&folder, resolution, reference);
    if image.is_err() {
        // The copy is damaged; it is downloaded again.
        remove(&folder)?;
    }
    image
}

/// Removes the images that the reference was resolved to before.
fn drop_older(shelf: &Path) -> Result<()> {
    for entry in fs::read_dir(shelf)? {
        let path = entry?.path();
        if path.is_dir() {
            remove(&path)?;
        }
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))
}

fn image_manifest(bytes: &[u8], resolution: &Resolution, reference: &Reference) -> Result<ImageManifest> {
    let (expected, found) = (resolution.manifest, Digest::of(bytes));
    if found != expected {
        let reference = reference.to_string();
        return Err(OciError::Damaged { what: "the manifest", reference, expected, found }.into());
    }
    match manifest::parse(bytes, reference)? {
        Document::Image(manifest) => Ok(manifest),
        Document::Index(_) => {
            let (what, reason) = ("index", "it names another index".to_owned());
            Err(OciError::Malformed { reference: reference.to_string(), what, reason }.into())
        }
    }
}

impl Image {
    fn open(folder: &Path, resolution: &Resolution, reference: Reference) -> Result<Self> {
        let bytes = regular_file::read(&folder.join(MANIFEST), manifest::MAX_DOCUMENT)
            .context("the image in the cache has no manifest")?;
        let manifest = image_manifest(&bytes, resolution, &reference)?;
        let config = &manifest.config;
        let path = folder.join(config.digest.hex());
        if config.size > manifest::MAX_DOCUMENT {
            let (count, max) = (config.size, manifest::MAX_DOCUMENT);
            let what = "bytes of configuration";
            return Err(OciError::TooMuch { reference: reference.to_string(), what, count, max }.into());
        }
        let bytes = regular_file::read(&path, manifest::MAX_DOCUMENT)
            .with_context(|| format!("cannot read {}", path.display()))?;
        compare("the configuration", Digest::of(&bytes), config.digest, &reference)?;
        let config = Config::parse(&bytes, manifest.layers.len(), resolution.platform, &reference)?;
        Ok(Image { folder: folder.to_path_buf(), reference, manifest, config })
    }

    /// Merges the layers into a tree. `spool`, an empty temporary file, takes the bodies of files. A damaged layer is an error
    /// before anything is read out of it, and the copy in the cache is removed.
    pub fn tree(&self, spool: File, progress: &Progress) -> Result<RootTree> {
        let count = self.manifest.layers.len();
        let stage = progress.stage(format!("merge {} of {}", amounts::count(count, "layer"), self.reference));
        stage.expect_bytes(self.manifest.layers.iter().map(|layer| layer.size).sum());
        let mut layers = Layers::new(spool, &LIMITS)?;
        for (at, (layer, expected)) in self.manifest.layers.iter().zip(self.config.diff_ids()).enumerate() {
            let digest = layer.digest;
            let path = self.folder.join(digest.hex());
            if let Err(error) = check("the layer", &path, digest, &self.reference) {
                remove(&self.folder)?;
                return Err(error);
            }
            let mut unpacked = blob::Hashing::new(blob::unpack(&path)?);
            let reference = || self.reference.to_string();
            layers.apply(&mut unpacked).map_err(|source| OciError::Layer {
                reference: reference(),
                number: at + 1,
                count,
                digest,
                source: Box::new(source),
            })?;
            let found = unpacked.digest();
            if found != *expected {
                let expected = *expected;
                return Err(OciError::WrongContent { reference: reference(), digest, expected, found }.into());
            }
            stage.advance(layer.size);
        }
        let tree = layers.finish().with_context(|| format!("cannot merge the layers of {}", self.reference))?;
        stage.finish(&entries(tree.len()));
        Ok(tree)
    }
}

/// Fails where a blob of the cache does not have the digest that it is named by.
fn check(what: &'static str, path: &Path, expected: Digest, reference: &Reference) -> Result<()> {
    compare(what, blob::digest_of(path)?, expected, reference)
}

fn compare(what: &'static str, found: Digest, expected: Digest, reference: &Reference) -> Result<()> {
    if found != expected {
        let reference = reference.to_string();
        return Err(OciError::DamagedCopy { what, reference, expected, found }.into());
    }
    Ok(())
}
