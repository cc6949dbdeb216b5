//! Builds one image: tree, image file, check, manifest.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base16ct::lower::encode_string as hex;
use serde::Serialize;
use snug_formats::FilesystemKind;
use snug_rootfs::listing::Listing;
use snug_rootfs::packages;
use snug_rootfs::tree::{Kind, RootTree};

use super::fit::fit;
use super::order::{ImageState, Order};
use super::write::{Digests, write};
use crate::atomic::{self, Partial, set};
use crate::cache::Tree;
use crate::check::{self, CheckInput};
use crate::error::Failure;
use crate::filesystem;
use crate::manifest::{self, Manifest, TreeSummary, contents_beside, manifest_beside, write_contents};
use crate::plan::BuildPlan;
use crate::report::progress::Progress;
use crate::report::render;
use crate::tree::Assembly;
use crate::tree::first_stage::{self, Missed, Needs};

/// The result of building one image.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum BuildOutcome {
    Built {
        #[serde(serialize_with = "render::path")]
        image: PathBuf,
        manifest: Box<Manifest>,
    },
    UpToDate {
        #[serde(serialize_with = "render::path")]
        image: PathBuf,
        manifest: Box<Manifest>,
    },
    /// The spec has no filesystem: only its tree was made.
    Base {
        #[serde(serialize_with = "render::path")]
        tree: PathBuf,
    },
}

impl Order<'_> {
    /// Builds the image below `output`, unless it is up to date.
    pub fn build(&self, assembly: &Assembly, output: &Path, progress: &Progress) -> Result<BuildOutcome> {
        let (Some(filesystem), Some(image)) = (&self.filesystem, self.image(output)) else {
            let tree = assembly.tree(&self.chain, progress)?;
            let adjustments = assembly.adjustments(&tree)?;
            match assembly.refresh.made(tree.path()) {
                true => assembly.strictness.judge(&adjustments, Some(&self.title()), progress)?,
                false => assembly.strictness.judge_again(&adjustments, Some(&self.title()))?,
            }
            return Ok(BuildOutcome::Base { tree: tree.path().to_path_buf() });
        };
        if let Some(folder) = image.parent() {
            // Partial files of a killed run, whatever the type of image.
            Partial::sweep(folder, "")?;
        }
        let fingerprint = self.fingerprint()?;
        // The list of the same inputs, from which the tree in the cache must not differ.
        let mut known_list = None;
        if !assembly.refresh.everything() {
            match self.freshness(output, progress)? {
                ImageState::UpToDate(manifest) => {
                    assembly.strictness.judge_again(&manifest.census.adjustments, Some(&self.title()))?;
                    return Ok(BuildOutcome::UpToDate { image, manifest });
                }
                ImageState::Changed { why, .. } => {
                    progress.note(format!("{}: {why}; it is written again", self.title()));
                    known_list = Manifest::read(&manifest_beside(&image)).ok().map(|manifest| manifest.contents.sha256);
                }
                ImageState::Base | ImageState::NeverBuilt | ImageState::Stale { .. } => {}
            }
        }
        // Fail on places that cannot be written to before the tree is built.
        for place in [&image, &contents_beside(&image), &manifest_beside(&image)] {
            refuse_folder(place)?;
            drop(Partial::begin(place)?);
        }
        // Likewise on a filesystem that this host cannot write.
        let writer = filesystem::writer(filesystem, progress)?;
        let (mut tree, mut _held) = self.finished_tree(assembly, progress)?;
        let write_tree = |tree: &mut RootTree, telling: &Progress| -> Result<_> {
            let adjustments = fit(tree, filesystem, assembly.strictness, Some(&self.title()), telling)?;
            let partial = Partial::begin(&image)?.sync_ahead()?;
            let mut written = write(tree, &*writer, self.verity, &self.sizing, partial, Digests::All, progress)?;
            written.census.adjustments = adjustments;
            let (sha256, bodies) = written.sha256.zip(written.bodies.as_ref()).context("the digests were asked for")?;
            let (list, contents) = write_contents(tree, bodies, &contents_beside(&image))?;
            Ok((written, sha256, list, contents))
        };
        let (mut written, mut sha256, mut list, mut contents) = write_tree(&mut tree, progress)?;
        if known_list.is_some_and(|known| known != contents.sha256) {
            progress.note(format!("{}: the tree in the cache was changed, too; it is made again", self.title()));
            drop((written, list));
            assembly.distrust(&self.chain);
            // What there is to say of it was said.
            let told = Progress::hidden();
            (tree, _held) = assembly.read(&self.chain, progress)?;
            self.finish(&mut tree, &told)?;
            (written, sha256, list, contents) = write_tree(&mut tree, &told)?;
        }

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
        let place = manifest_beside(&image);
        let described = manifest.prepare(&place)?;
        let folder = image.parent().context("an image has a folder")?;
        {
            // Two runs may publish the same image: each its three files together. That of the cache nobody else can take; that of
            // the folder keeps out runs with another cache.
            let _among_ours = assembly.cache.lock(&folder_lock(folder)?, || {})?;
            let _alone = atomic::lock_folder(folder);
            set::publish(vec![list, written.partial], described)?;
            // Without the time, the next look reads the files.
            let _ = manifest::stamp(&manifest, &place);
        }
        Ok(BuildOutcome::Built { image, manifest: manifest.into() })
    }

    /// Returns the tree as the image has it: the one in the cache, which is made where it is missing, with the first stage
    /// where it needs one. Also returns what holds it in the cache. What a machine would miss is told.
    pub fn finished_tree(&self, assembly: &Assembly, progress: &Progress) -> Result<(RootTree, Tree)> {
        let (mut tree, held) = assembly.read(&self.chain, progress)?;
        self.finish(&mut tree, progress)?;
        Ok((tree, held))
    }

    /// Puts the first stage into the tree where the image needs one. What a machine would miss is told.
    fn finish(&self, tree: &mut RootTree, progress: &Progress) -> Result<()> {
        // A base is started by no machine.
        if let Some(filesystem) = &self.filesystem {
            let read_only = self.verity || filesystem.kind() != FilesystemKind::Ext4;
            let needs = Needs {
                platform: self.target.platform,
                read_only,
                overlay: self.spec.overlay,
                overlay_device: self.spec.overlay_device,
            };
            let missed = first_stage::install(tree, needs)
                .with_context(|| format!("cannot finish the tree of {}", self.title()))?;
            for missed in missed {
                match missed {
                    Missed::Warning(what) => progress.warn(format!("warning: {}: {what}", self.title())),
                    Missed::Note(what) => progress.note(format!("note: {}: {what}", self.title())),
                }
            }
        }
        Ok(())
    }
}

/// Returns the name of a folder's lock in the cache, whatever its path.
fn folder_lock(folder: &Path) -> Result<String> {
    let about = fs::metadata(folder).with_context(|| format!("cannot look at {}", folder.display()))?;
    Ok(format!("results-{:x}-{:x}", about.dev(), about.ino()))
}

/// Refuses a folder in the place of a file, which no file can replace.
fn refuse_folder(place: &Path) -> Result<()> {
    if fs::symlink_metadata(place).is_ok_and(|about| about.is_dir()) {
        bail!(Failure::Usage(format!(
            "{} is a folder, where a file of the image belongs\nhint: move it away",
            place.display()
        )));
    }
    Ok(())
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
