//! Writes ext4 images straight from a [`RootTree`], without root and without a mount. An image is exactly as large as its
//! [`SizePolicy`] says, can be grown online, and has the same bytes whenever the same tree is written with the same options.
//!
//! ```
//! use snug_ext4::size::SizePolicy;
//! use snug_ext4::{Ext4Options, NativeExt4};
//! use snug_rootfs::tree::{BodySource, Inode, RootTree, TreePath};
//!
//! # fn main() -> anyhow::Result<()> {
//! let mut tree = RootTree::new(BodySource::new(Vec::new()));
//! tree.insert(TreePath::new("var/log")?, Inode::directory(0o755))?;
//! let folder = tempfile::tempdir()?;
//! let output = folder.path().join("rootfs.ext4");
//! let census = NativeExt4::new(&Ext4Options::default())?.write(&tree, &SizePolicy::default(), &output, &())?;
//! assert_eq!(std::fs::metadata(&output)?.len(), census.size);
//! # Ok(())
//! # }
//! ```
//!
//! An image is written in three steps. `inventory` numbers the inodes and counts the blocks that each of them needs; `plan`
//! decides the size and assigns every block (`layout` places the metadata of the block groups); `write` writes the image front
//! to back in one pass. The structures on disk follow the kernel's `Documentation/filesystems/ext4/`.

#![warn(missing_docs)]

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
mod overhead;
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
pub use self::inventory::{MAX_FILE, MAX_LINKS, TIMES};
pub use self::options::{Ext4Options, Ext4Writer};
use self::output::Output;
use self::plan::Plan;
use self::size::{SizeDecision, SizePolicy};
use self::write::ImageWriter;
use self::writer_thread::ImageFile;
pub use self::xattr::{XATTR_NAMESPACES, XattrError, xattrs_fit};

/// Bytes of `s_volume_name` in the superblock.
const MAX_LABEL: usize = 16;
/// The limit of `mke2fs -m`.
const MAX_RESERVED_PERCENT: u8 = 50;
/// As mke2fs makes lost+found: what e2fsck recovers is for root alone.
const LOST_FOUND_MODE: u16 = 0o700;

/// Receives the progress of a write. `()` ignores it.
pub trait Meter: Sync {
    /// Called once, before the first byte: `total` bytes will be written and hashed.
    fn expect_bytes(&self, total: u64);

    /// `bytes` more have been written or hashed. Called from the threads that do that.
    fn advance(&self, bytes: u64);
}

impl Meter for () {
    fn expect_bytes(&self, _total: u64) {}

    fn advance(&self, _bytes: u64) {}
}

/// Writes ext4 images.
#[derive(Debug, Clone)]
pub struct NativeExt4 {
    options: Ext4Options,
}

impl NativeExt4 {
    /// A writer with these options; [`Ext4Options::writer`] is not looked at.
    ///
    /// # Errors
    ///
    /// [`Ext4Error::LabelTooLong`] and [`Ext4Error::ReservedPercent`]. Limits that depend on the tree are checked by
    /// [`Self::decide`] and [`Self::write`].
    pub fn new(options: &Ext4Options) -> Result<Self, Ext4Error> {
        let length = options.label.as_ref().map_or(0, String::len);
        if length > MAX_LABEL {
            return Err(Ext4Error::LabelTooLong { length, limit: MAX_LABEL });
        }
        if options.reserved_percent > MAX_RESERVED_PERCENT {
            return Err(Ext4Error::ReservedPercent { percent: options.reserved_percent, limit: MAX_RESERVED_PERCENT });
        }
        Ok(NativeExt4 { options: options.clone() })
    }

    /// Returns the size that [`Self::write`] would choose, and why, without writing anything.
    ///
    /// # Errors
    ///
    /// Any [`Ext4Error`] that the tree, the options or the policy cause.
    pub fn decide(&self, tree: &RootTree, policy: &SizePolicy) -> Result<SizeDecision, Ext4Error> {
        let lost_found = Inode::directory(LOST_FOUND_MODE);
        let identity = Identity::new(tree, &self.options);
        let inventory = Inventory::new(tree, &lost_found, NameHasher::new(identity.hash_seed))?;
        Ok(Plan::new(inventory, policy, &self.options)?.decision)
    }

    /// Writes `tree` to `output`, sized by `policy`, and returns what every byte of the image is used for. An existing file
    /// is overwritten. The inodes' times are the tree's; the filesystem's own is [`image_time`].
    ///
    /// # Errors
    ///
    /// An [`Ext4Error`] before the first byte is written, or an I/O error, on which `output` may be left incomplete for the
    /// caller to remove.
    pub fn write(&self, tree: &RootTree, policy: &SizePolicy, output: &Path, meter: &dyn Meter) -> Result<Census> {
        Ok(self.write_with(tree, policy, output, meter, false)?.0)
    }

    /// As [`Self::write`], and also returns the SHA-256 of the image, computed while it is written.
    ///
    /// # Errors
    ///
    /// As [`Self::write`].
    pub fn write_hashed(
        &self,
        tree: &RootTree,
        policy: &SizePolicy,
        output: &Path,
        meter: &dyn Meter,
    ) -> Result<(Census, Digest)> {
        let (census, digest) = self.write_with(tree, policy, output, meter, true)?;
        Ok((census, digest.expect("it was asked for")))
    }

    fn write_with(
        &self,
        tree: &RootTree,
        policy: &SizePolicy,
        output: &Path,
        meter: &dyn Meter,
        hashed: bool,
    ) -> Result<(Census, Option<Digest>)> {
        let time = image_time(tree);
        let mut lost_found = Inode::directory(LOST_FOUND_MODE);
        lost_found.mtime = Timestamp::from_seconds(time.max(0));
        let identity = Identity::new(tree, &self.options);
        let inventory = Inventory::new(tree, &lost_found, NameHasher::new(identity.hash_seed))?;
        let plan = Plan::new(inventory, policy, &self.options).map_err(|error| match error {
            Ext4Error::Size(error) => size::explain(error, tree),
            other => other.into(),
        })?;
        let description =
            Description { identity, time, label: self.options.label.as_deref().unwrap_or_default().as_bytes() };
        let image = empty_file(output).with_context(|| format!("create {}", output.display()))?;
        image.set_len(plan.decision.bytes).with_context(|| format!("size {}", output.display()))?;
        let size = plan.decision.bytes;
        meter.expect_bytes(plan.end * crate::size::BLOCK_SIZE + if hashed { size } else { 0 });
        let digest = thread::scope(|scope| {
            let hash = hashed.then(|| StreamHash::start(scope, size, |bytes| meter.advance(bytes)));
            let hash = hash.transpose().context("start a thread")?;
            let mut output = {
                let file = ImageFile { file: &image, meter };
                Output::start(scope, file, plan.body_ranges(), tree.bodies(), hash).context("start a thread")?
            };
            let composed = ImageWriter::new(&plan, &description, &mut output).run();
            // An error of the writer thread is the cause of one that `run` returns.
            let hash = output.finish()?;
            composed.map(|()| hash.map(StreamHash::finish))
        });
        let digest = digest.with_context(|| format!("write {}", output.display()))?;
        Ok((census::census(&plan), digest))
    }
}

/// Opens `path` as an empty file. A file that is empty already is not truncated: ext4 would take that for the replacement of
/// a file's content and write it to disk as soon as it is closed (mount option `auto_da_alloc`).
fn empty_file(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    if file.metadata()?.len() > 0 {
        file.set_len(0)?;
    }
    Ok(file)
}
