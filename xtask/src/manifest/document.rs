//! `manifest.json`: an image's filesystem, size and inputs. The same inputs give the same manifest: it has no times and no
//! paths of the machine.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base16ct::lower::encode_string as hex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use snug_ext4::Census;
use snug_formats::{Filesystem, FilesystemKind};
use snug_rootfs::packages::InstalledPackage;
use snug_rootfs::regular_file::{self, RegularFileError};

use super::{ContentsFile, contents_beside};
use crate::atomic::{Partial, set};
use crate::bases::oci::Resolution;
use crate::filesystem::verity::Verity;
use crate::plan::Inputs;

/// Name of the manifest, beside its image.
pub const MANIFEST_FILE: &str = "manifest.json";
/// The field that holds the digest of all others.
const OWN_DIGEST: &str = "manifest-sha256";

/// The manifest of an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Manifest {
    /// [`Manifest::SCHEMA`]
    pub schema: u32,
    /// Version of the tool that wrote the image.
    pub snug: String,
    pub name: String,
    /// Where the image runs: `linux/amd64`.
    pub platform: String,
    /// Name of the image file beside the manifest.
    pub file: String,
    pub filesystem: Filesystem,
    /// SHA-256 over all inputs of the image, which is up to date as long as this is the same.
    pub fingerprint: String,
    /// SHA-256 of the image file.
    pub sha256: String,
    /// The list of all entries with their digests (docs/architecture.md, "Holes", for those of sparse files).
    pub contents: ContentsFile,
    /// The OCI image that this image is based on, with the digest that its tag was resolved to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oci: Option<Resolution>,
    pub tree: TreeSummary,
    /// Packages installed in the image, as listed by its package managers.
    #[serde(default)]
    pub packages: Vec<InstalledPackage>,
    pub census: Census,
    /// Root hash and place of the hash tree, if the image is sealed with dm-verity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verity: Option<Verity>,
}

/// The tree in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TreeSummary {
    /// SHA-256 over the inputs of the tree.
    pub fingerprint: String,
    /// SHA-256 over each kind of input.
    #[serde(default)]
    pub inputs: Inputs,
    /// Names, hard links included.
    pub entries: u64,
    pub inodes: u64,
    /// Bytes of file content, holes not counted.
    pub data_bytes: u64,
}

/// Returns the name of an image file of this type.
pub fn image_file(kind: FilesystemKind) -> String {
    format!("rootfs.{kind}")
}

/// Returns the path of the manifest that belongs to an image file.
pub fn manifest_beside(image: &Path) -> PathBuf {
    image.with_file_name(MANIFEST_FILE)
}

impl Manifest {
    /// Raised when a field changes its meaning or is removed.
    pub const SCHEMA: u32 = 3;
    /// Bytes of the largest manifest that is read. Of real ones, nearly all is packages, of 100 bytes each.
    const SIZE_MAX: u64 = 64 << 20;

    /// Reads the manifest at `place`, once it is settled which one that is: a run may have been ended while it published the
    /// image.
    pub fn read(place: &Path) -> Result<Self, ManifestError> {
        let others: Vec<PathBuf> = FilesystemKind::ALL
            .into_iter()
            .map(|kind| place.with_file_name(image_file(kind)))
            .chain([contents_beside(place)])
            .collect();
        // Who may not write there sees what is there.
        let _ = set::settle(&others, place, |waiting| Self::read_as_it_is(waiting).is_ok());
        Self::read_as_it_is(place)
    }

    fn read_as_it_is(path: &Path) -> Result<Self, ManifestError> {
        let bytes = regular_file::read(path, Self::SIZE_MAX).map_err(|error| match error {
            RegularFileError::Io(error) if error.kind() == io::ErrorKind::NotFound => ManifestError::Missing,
            error => ManifestError::Damaged(error.to_string()),
        })?;
        Self::parse(&bytes)
    }

    /// Reads the text of a manifest.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let damaged = |error: serde_json::Error| ManifestError::Damaged(error.to_string());
        let mut document: Value = serde_json::from_slice(bytes).map_err(damaged)?;
        if document.get("schema").and_then(Value::as_u64).is_some_and(|schema| schema != u64::from(Self::SCHEMA)) {
            return Err(ManifestError::OtherSchema);
        }
        let stated = document.as_object_mut().and_then(|fields| fields.remove(OWN_DIGEST));
        if stated.is_none_or(|stated| stated != digest_of(&document)) {
            return Err(ManifestError::Damaged("it was changed since it was written".to_owned()));
        }
        serde_json::from_value(document).map_err(damaged)
    }

    /// Writes the manifest beside `place`, to be published there with the image, with a digest of all its fields.
    pub fn prepare(&self, place: &Path) -> Result<Partial> {
        let partial = Partial::begin(place)?;
        let write = || -> Result<()> {
            let mut file = BufWriter::new(partial.file()?);
            let sha256 = digest_of(&serde_json::to_value(self)?);
            serde_json::to_writer_pretty(&mut file, &WithDigest { manifest: self, sha256 })?;
            writeln!(file)?;
            Ok(file.flush()?)
        };
        write().map_err(|error| partial.explain(error)).context("cannot write the manifest")?;
        Ok(partial)
    }
}

/// Why a manifest cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("there is no manifest")]
    Missing,
    #[error("{MANIFEST_FILE} is damaged: {0}")]
    Damaged(String),
    #[error("another version of the tool wrote {MANIFEST_FILE}")]
    OtherSchema,
}

/// A manifest as it is written.
#[derive(Serialize)]
struct WithDigest<'a> {
    #[serde(flatten)]
    manifest: &'a Manifest,
    #[serde(rename = "manifest-sha256")]
    sha256: String,
}

/// Returns the SHA-256, as hex, over a document as JSON without spaces, its keys sorted.
fn digest_of(document: &Value) -> String {
    hex(&Sha256::digest(document.to_string()))
}
