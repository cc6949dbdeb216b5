//! Builds one image: tree, image file, check, manifest.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base16ct::lower::encode_string as hex;
use serde::Serialize;
use snug_rootfs::listing::Listing;
use snug_rootfs::tree::{Kind, RootTree};
use snug_rootfs::{packages, tar};
use snug_spec::ImageSpec;

use super::order::{ImageState, Order};
use super::write::{Digests, write};
use crate::atomic::Partial;
use crate::check::{self, CheckInput};
use crate::filesystem;
use crate::manifest::{Manifest, TreeSummary, contents_beside, manifest_beside, write_contents};
use crate::plan::BuildPlan;
use crate::report::progress::Progress;
use crate::tree::Assembly;
use crate::tree::first_stage;

/// The result of building one image.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum BuildOutcome {
    Built {
        image: PathBuf,
        manifest: Box<Manifest>,
    },
    UpToDate {
        image: PathBuf,
        manifest: Box<Manifest>,
    },
    /// The spec has no filesystem: only its tree was made.
    Base {
        tree: PathBuf,
    },
}

impl Order<'_> {
    /// Builds the image below `output`, unless it is up to date.
    pub fn build(&self, assembly: &Assembly, output: &Path, progress: &Progress) -> Result<BuildOutcome> {
        let (Some(filesystem), Some(image)) = (&self.filesystem, self.image(output)) else {
            let tree = assembly.tree(&self.chain, progress)?;
            return Ok(BuildOutcome::Base { tree: tree.path().to_path_buf() });
        };
        if let Some(folder) = image.parent() {
            // Partial files of a killed run, whatever the type of image.
            Partial::sweep(folder, "")?;
        }
        let fingerprint = self.fingerprint()?;
        if !assembly.refresh.everything()
            && let ImageState::UpToDate(manifest) = self.freshness(output)?
        {
            return Ok(BuildOutcome::UpToDate { image, manifest });
        }
        // Fail on a folder that cannot be written to before the tree is built.
        drop(Partial::begin(&image)?);
        // Likewise on a filesystem that this host cannot write.
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
            let subject = CheckInput {
                image: written.partial.path(),
                manifest: &manifest,
                meant: Ok(Listing::of(&tree)),
                placed: self.placed.clone(),
                max_size: self.sizing.max_size,
            };
            check::check_before_publishing(subject, progress)?;
        }
        // Until all files are published, the old manifest would describe the new ones.
        let place = manifest_beside(&image);
        if place.exists() {
            fs::remove_file(&place).with_context(|| format!("cannot replace {}", place.display()))?;
        }
        list.publish()?;
        written.partial.publish()?;
        manifest.write(&place)?;
        Ok(BuildOutcome::Built { image, manifest: manifest.into() })
    }
}

/// Returns the tree of `spec` as its image has it: the one in the cache at `tar`, with the first stage installed.
pub fn finished_tree(tar: &Path, spec: &ImageSpec) -> Result<RootTree> {
    let mut tree = tar::read_file(File::open(tar)?, &tar::Limits::default(), &mut |_| {})
        .with_context(|| format!("cannot read the finished tree {}", tar.display()))?;
    first_stage::install(&mut tree, spec.overlay)
        .with_context(|| format!("cannot put the first stage into the tree of {}", spec.name))?;
    Ok(tree)
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
