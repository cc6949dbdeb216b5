//! Checks of an image: its filesystem is sound, it holds the tree that it was made from, and a machine boots from it.
//!
//! [`check_image`] makes all checks that need the file alone; [`boot`] boots it in QEMU.

pub mod boot;
mod compare;
mod fits;
mod fsck;
mod readers;
mod report;
mod verdict;
mod verity;

use std::path::Path;
use std::time::Instant;

pub use fits::SizeLimit;
pub use readers::Reader;
pub use report::CheckReport;
pub use verdict::{Check, Finding, State};

use compare::differences;
use readers::ReadBack;

use crate::error::Failure;
use crate::manifest::{CONTENTS_FILE, Manifest};
use crate::plan::hash_file;
use crate::report::amounts::count;
use crate::report::progress::{Progress, Stage, human_bytes};
use snug_formats::FilesystemKind;
use snug_rootfs::listing::Listing;
use snug_rootfs::tree::TreePath;

/// An image and what it is compared with.
pub struct CheckInput<'a> {
    pub image: &'a Path,
    pub manifest: &'a Manifest,
    /// The tree that the image was made from, or why it is not known any more, which fails the check.
    pub meant: Result<Listing, String>,
    /// Paths that specs put into the image by name: what is there is meant to be.
    pub placed: Vec<TreePath>,
    /// The largest size of an ext4 that the spec allows, in bytes.
    pub max_size: Option<u64>,
}

/// Makes the quick checks of an image that is about to be published.
///
/// # Errors
///
/// [`Failure::Check`] with the report, if a check fails.
pub fn check_before_publishing(subject: CheckInput, progress: &Progress) -> Result<(), Failure> {
    let stage = progress.stage("check the image");
    let (image, kind) = (subject.image.to_path_buf(), subject.manifest.filesystem.kind());
    let name = subject.manifest.name.clone();
    let (checks, _) = check_image(subject, Depth::Quick, Reader::Auto, &Progress::hidden());
    let report = CheckReport::new(&name, image, kind, checks);
    if !report.passed {
        return Err(Failure::Check(report.as_text()));
    }
    stage.finish("");
    Ok(())
}

/// How thoroughly an image is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Without the content of files and without the image's digest.
    Quick,
    Full,
}

/// Makes all checks that do not boot the image. Returns them, and the tree that the image holds if it can be read.
pub fn check_image(
    subject: CheckInput,
    depth: Depth,
    reader: Reader,
    progress: &Progress,
) -> (Vec<Check>, Option<Listing>) {
    let kind = subject.manifest.filesystem.kind();
    let mut checks = Vec::new();
    if depth == Depth::Full {
        let stage = progress.stage("hash the image");
        if let Ok(about) = subject.image.metadata() {
            stage.expect_bytes(about.len());
        }
        checks.push(digest(&subject, &stage));
        stage.finish("");
    }
    if let (Some(verity), Depth::Full) = (&subject.manifest.verity, depth) {
        let seal = verity::Seal { root_hash: &verity.root_hash, hash_offset: verity.hash_offset };
        let stage = progress.stage("verify the hash tree");
        checks.push(verity::check(subject.image, seal, &stage));
        stage.finish("");
    }
    let stage = progress.stage("fsck");
    checks.push(fsck::check(subject.image, kind));
    stage.finish("");
    let stage = progress.stage("read the image back");
    if let Ok(meant) = &subject.meant {
        stage.expect_bytes(meant.file_bytes());
    }
    let (check, reading) = tree(&subject, kind, depth, reader, &stage);
    stage.finish("");
    checks.push(check);
    if let Some(reading) = reading {
        // `max-size` is the limit of the filesystem: the hash tree comes on top.
        let size = subject.manifest.verity.as_ref().map_or(subject.manifest.census.size, |verity| verity.hash_offset);
        // The read-only types are as large as their content: `max-size` is not theirs (docs/architecture.md, "Sizing").
        let max_size = subject.max_size.filter(|_| kind == FilesystemKind::Ext4);
        let limit = SizeLimit { size, max_size };
        checks.push(fits::check(&reading.listing, subject.meant.as_ref().ok(), &subject.placed, limit));
        return (checks, Some(reading.listing));
    }
    (checks, None)
}

/// Checks that the file's SHA-256 is that of the manifest.
fn digest(subject: &CheckInput, stage: &Stage) -> Check {
    const QUESTION: &str = "digest";
    let started = Instant::now();
    let check = match hash_file(subject.image, &mut |bytes| stage.advance(bytes)) {
        Ok(sha256) if sha256 == subject.manifest.sha256 => Check::passed(QUESTION, "SHA-256", "matches the manifest"),
        Ok(sha256) => {
            let meant = &subject.manifest.sha256;
            Check::failed(
                QUESTION,
                "SHA-256",
                format!("{sha256} instead of {meant}: it was changed since it was built"),
            )
        }
        Err(error) => Check::broken(QUESTION, "SHA-256", &error),
    };
    check.took(started.elapsed())
}

/// Checks that the image holds the tree that it was made from. Returns what was read of it as well.
fn tree(
    subject: &CheckInput,
    kind: FilesystemKind,
    depth: Depth,
    reader: Reader,
    stage: &Stage,
) -> (Check, Option<ReadBack>) {
    const QUESTION: &str = "tree";
    let started = Instant::now();
    let bodies = depth == Depth::Full;
    let mut reading = match readers::read(subject.image, kind, reader, bodies, stage) {
        Ok(reading) => reading,
        Err(readers::ReadError::NoReader(why)) => {
            return (Check::skipped(QUESTION, why).took(started.elapsed()), None);
        }
        Err(error) => return (Check::broken(QUESTION, kind.as_str(), &error.into()).took(started.elapsed()), None),
    };
    let meant = match &subject.meant {
        Ok(meant) => meant,
        Err(why) => return (Check::failed(QUESTION, CONTENTS_FILE, why).took(started.elapsed()), Some(reading)),
    };
    let mut unseen = reading.skipped_properties();
    if !bodies {
        unseen.insert(compare::Property::Bodies);
    }
    let mut findings = differences(meant, &reading.listing, &unseen);
    // A read error says more than that the content is missing.
    findings.retain(|finding| !reading.unreadable.iter().any(|unreadable| unreadable.place == finding.place));
    findings.append(&mut reading.unreadable);
    let names = count(meant.records.len(), "name");
    let said = match (findings.len(), bodies) {
        (0, true) => format!("{names} and {} of content match", human_bytes(meant.file_bytes())),
        (0, false) => format!("no difference in {names}; content was not read"),
        (found, _) => format!("{} in {names}", count(found, "difference")),
    };
    let mut notes = std::mem::take(&mut reading.notes);
    notes.extend(reading.unseen.iter().map(|(property, why)| format!("not compared: {property}: {why}")));
    let check = Check::passed(QUESTION, reading.judge.as_str(), said).with_findings(findings).with_notes(notes);
    (check.took(started.elapsed()), Some(reading))
}
