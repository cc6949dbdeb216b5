//! ext4, written straight from a tree: exactly as large as asked, growable, the same bytes every time.
//!
//! `count` asks what the tree needs, `plan` finds the size and gives everything its blocks (`layout` says what a group
//! keeps for itself), `write` puts it there in one sweep. The structures are those of the kernel's
//! `Documentation/filesystems/ext4/`.

mod census;
mod checksum;
mod directory;
mod error;
mod extents;
mod group_descriptor;
mod groups;
mod hash;
pub mod identity;
mod inode;
mod inventory;
mod journal;
mod layout;
mod on_disk;
mod options;
mod output;
mod plan;
mod preallocate;
pub mod size;
mod superblock;
#[cfg(test)]
mod tests;
mod write;
mod writer_thread;
mod xattr;

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result};
use snug_rootfs::digest::{Digest, StreamHash};
use snug_rootfs::tree::{Inode, RootTree, Timestamp, image_time};

pub use self::census::{Census, Part};
pub use self::error::Ext4Error;
use self::hash::NameHasher;
use self::identity::Description;
use self::identity::Identity;
use self::inventory::Inventory;
pub use self::options::{Ext4Options, Ext4Writer};
use self::output::Output;
use self::plan::Plan;
use self::size::{SizeDecision, SizePolicy};
use self::write::Writing;
use self::writer_thread::ImageFile;
pub use self::xattr::XattrError;

/// Bytes of the superblock's label.
const MAX_LABEL: usize = 16;
/// More reserved blocks than this mke2fs refuses as well.
const MAX_RESERVED_PERCENT: u8 = 50;
/// Only root looks into lost+found.
const LOST_FOUND_MODE: u16 = 0o700;

/// Who is told how far the writing is.
pub trait Meter: Sync {
    /// How many bytes there will be.
    fn expect_bytes(&self, total: u64);

    /// `bytes` more are written.
    fn advance(&self, bytes: u64);
}

/// Tells nobody.
impl Meter for () {
    fn expect_bytes(&self, _total: u64) {}

    fn advance(&self, _bytes: u64) {}
}

/// The native writer.
#[derive(Debug, Clone)]
pub struct NativeExt4 {
    options: Ext4Options,
    time: Option<i64>,
    checksum_seed: bool,
}

impl NativeExt4 {
    /// Checks what can be checked without a tree.
    pub fn new(options: &Ext4Options) -> Result<Self, Ext4Error> {
        let length = options.label.as_ref().map_or(0, String::len);
        if length > MAX_LABEL {
            return Err(Ext4Error::LabelTooLong { length, limit: MAX_LABEL });
        }
        if options.reserved_percent > MAX_RESERVED_PERCENT {
            return Err(Ext4Error::ReservedPercent { percent: options.reserved_percent, limit: MAX_RESERVED_PERCENT });
        }
        Ok(NativeExt4 { options: options.clone(), time: None, checksum_seed: true })
    }

    /// The time the filesystem is said to be made, in seconds since the epoch, instead of [`image_time`].
    pub fn made_at(self, seconds: i64) -> Self {
        NativeExt4 { time: Some(seconds), ..self }
    }

    /// Without the feature metadata_csum_seed, for readers that do not know it (before Linux 4.4): then the UUID cannot be
    /// changed without rewriting every checksum.
    pub fn without_checksum_seed(self) -> Self {
        NativeExt4 { checksum_seed: false, ..self }
    }

    /// What [`Self::write`] would decide, without writing.
    pub fn decide(&self, tree: &RootTree, policy: &SizePolicy) -> Result<SizeDecision, Ext4Error> {
        let lost_found = Inode::directory(LOST_FOUND_MODE);
        let identity = Identity::new(tree, &self.options);
        let inventory = Inventory::new(tree, &lost_found, NameHasher::new(identity.hash_seed))?;
        Ok(Plan::new(inventory, policy, &self.options)?.decision)
    }

    /// Writes `tree` to `output`, sized by `policy`, and answers what every byte is for. On an error `output` may be left
    /// behind for the caller to remove.
    pub fn write(&self, tree: &RootTree, policy: &SizePolicy, output: &Path, meter: &dyn Meter) -> Result<Census> {
        Ok(self.write_with(tree, policy, output, meter, None)?.0)
    }

    /// As [`Self::write`], and answers the SHA-256 of the image as well, taken while writing.
    pub fn write_hashed(
        &self,
        tree: &RootTree,
        policy: &SizePolicy,
        output: &Path,
        meter: &dyn Meter,
    ) -> Result<(Census, Digest)> {
        let hash = StreamHash::start().context("start a thread")?;
        let (census, digest) = self.write_with(tree, policy, output, meter, Some(hash))?;
        Ok((census, digest.expect("a hash was given")))
    }

    fn write_with(
        &self,
        tree: &RootTree,
        policy: &SizePolicy,
        output: &Path,
        meter: &dyn Meter,
        hash: Option<StreamHash>,
    ) -> Result<(Census, Option<Digest>)> {
        let time = self.time.unwrap_or_else(|| image_time(tree));
        let mut lost_found = Inode::directory(LOST_FOUND_MODE);
        lost_found.mtime = Timestamp::from_seconds(time.max(0));
        let identity = Identity::new(tree, &self.options);
        let inventory = Inventory::new(tree, &lost_found, NameHasher::new(identity.hash_seed))?;
        let plan = Plan::new(inventory, policy, &self.options).map_err(|error| match error {
            Ext4Error::Size(error) => size::explain(error, tree),
            other => other.into(),
        })?;
        let description = Description {
            identity,
            time,
            label: self.options.label.as_deref().unwrap_or_default().as_bytes(),
            checksum_seed: self.checksum_seed,
        };
        let image = empty_file(output).with_context(|| format!("create {}", output.display()))?;
        image.set_len(plan.decision.bytes).with_context(|| format!("size {}", output.display()))?;
        meter.expect_bytes(plan.end * crate::size::BLOCK_SIZE);
        let hash = thread::scope(|scope| {
            let mut pieces = {
                let file = ImageFile { file: &image, meter };
                Output::start(scope, file, plan.body_ranges(), tree.bodies(), hash).context("start a thread")?
            };
            let gathered = Writing::new(&plan, &description, &mut pieces).run();
            // Where writing failed, that is why gathering could not go on.
            let hash = pieces.finish()?;
            gathered.map(|()| hash)
        });
        let hash = hash.with_context(|| format!("write {}", output.display()))?;
        let digest = hash.map(|hash| hash.finish(plan.decision.bytes));
        Ok((census::census(&plan), digest))
    }
}

/// Makes `path` an empty file. One that is empty already is not truncated: a filesystem takes that for the replacement of a
/// file's content, and writes it to disk as soon as it is closed (ext4's `auto_da_alloc`).
fn empty_file(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    if file.metadata()?.len() > 0 {
        file.set_len(0)?;
    }
    Ok(file)
}
