//! Writes a tree as an image file, with digests and dm-verity.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result};
use snug_ext4::size::SizePolicy;
use snug_ext4::{Census, Part};
use snug_rootfs::digest::{self, BodyDigests, Digest};
use snug_rootfs::tree::{Entry, Kind, RootTree};

use crate::atomic::Partial;
use crate::filesystem::FilesystemWriter;
use crate::filesystem::verity::{self, Verity};
use crate::report::progress::{Progress, human_bytes};

/// Which digests are taken while an image is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Digests {
    None,
    Image,
    /// Of the image, and of every file in it.
    All,
}

/// An image that was written but not published.
pub struct Written {
    pub partial: Partial,
    pub census: Census,
    /// Of the image file, if it was asked for.
    pub sha256: Option<Digest>,
    /// Of the files, if they were asked for.
    pub bodies: Option<BodyDigests>,
    /// The parameters to open it with, if it is sealed.
    pub verity: Option<Verity>,
}

/// Returns how many threads hash file bodies: the writer and the digest of the image keep one core busy, and more than a few
/// threads only wait for the disk.
fn body_threads() -> usize {
    thread::available_parallelism().map_or(1, |cores| (cores.get() - 1).clamp(1, 4))
}

/// Writes a tree, to which [`fit`](super::fit) has been applied, as an image into the `partial` file, which is then to be published; `seal` closes it with dm-verity.
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
    if digests == Digests::All {
        stage.expect_also(data_bytes(tree));
    }
    let (written, bodies) = thread::scope(|scope| {
        let hash = || BodyDigests::of(tree, body_threads(), &stop, &|bytes| stage.advance(bytes));
        let bodies = (digests == Digests::All).then(|| scope.spawn(hash));
        // A seal extends the image, so its digest is taken afterwards.
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
    let verity = match seal {
        true => Some(seal_image(tree, &partial, &mut census, progress)?),
        false => None,
    };
    partial.send_rest();
    if seal && digests != Digests::None {
        let stage = progress.stage("hash the image");
        stage.expect_bytes(census.size);
        let hashed = digest::of_file(partial.path(), &mut |bytes| stage.advance(bytes));
        sha256 = Some(hashed.context("cannot read the image again")?);
        stage.finish("");
    }
    Ok(Written { partial, census, sha256, bodies, verity })
}

/// Returns the bytes of all files that are not holes.
fn data_bytes(tree: &RootTree) -> u64 {
    let bytes = |entry: Entry| match &entry.inode.kind {
        Kind::File(body) if entry.hard_link_to.is_none() => body.data_bytes(),
        _ => 0,
    };
    tree.entries().map(bytes).sum()
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
