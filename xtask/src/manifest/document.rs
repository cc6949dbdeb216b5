//! `manifest.json`: an image's filesystem, size and inputs. The same inputs give the same manifest: it has no times and no
//! paths of the machine.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use snug_ext4::Census;
use snug_formats::Filesystem;
use snug_rootfs::packages::InstalledPackage;

use super::ContentsFile;
use crate::atomic::Partial;
use crate::bases::oci::Resolution;
use crate::filesystem::verity::Verity;
use crate::plan::Inputs;

/// Name of the manifest, beside its image.
pub const MANIFEST_FILE: &str = "manifest.json";

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
    /// The list of all entries with their digests.
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

/// Returns the path of the manifest that belongs to an image file.
pub fn manifest_beside(image: &Path) -> PathBuf {
    image.with_file_name(MANIFEST_FILE)
}

impl Manifest {
    /// Raised when a field changes its meaning or is removed.
    pub const SCHEMA: u32 = 2;

    /// Reads the manifest at `path`. Returns `None` if it is missing, invalid or of another schema.
    pub fn read(path: &Path) -> Option<Self> {
        let manifest: Manifest = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        (manifest.schema == Self::SCHEMA).then_some(manifest)
    }

    /// Writes the manifest, completely or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        let partial = Partial::begin(path)?;
        let mut file = BufWriter::new(fs::OpenOptions::new().write(true).open(partial.path())?);
        serde_json::to_writer_pretty(&mut file, self)?;
        writeln!(file)?;
        file.into_inner().context("cannot write the manifest")?;
        partial.publish()?;
        Ok(())
    }
}
