//! `contents.mtree`: the list of what an image holds, beside it.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base16ct::lower::encode_string as hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use snug_rootfs::digest::BodyDigests;
use snug_rootfs::listing::Listing;
use snug_rootfs::mtree;
use snug_rootfs::regular_file;
use snug_rootfs::tree::RootTree;

use crate::atomic::Partial;

/// Bytes of the longest list that is read: ten million entries, the most that a tree has, with 400 bytes each.
const SIZE_MAX: u64 = 4_000_000_000;

/// Name of the list, beside its image.
pub const CONTENTS_FILE: &str = "contents.mtree";

/// The list beside an image, as the manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentsFile {
    /// Name of the file beside the manifest.
    pub file: String,
    /// SHA-256 of it.
    pub sha256: String,
}

/// Where the list of an image file stands.
pub fn contents_beside(image: &Path) -> PathBuf {
    image.with_file_name(CONTENTS_FILE)
}

/// Writes the list of `tree` beside `place`, to be published there with the image that it describes.
pub fn write_contents(tree: &RootTree, digests: &BodyDigests, place: &Path) -> Result<(Partial, ContentsFile)> {
    let partial = Partial::begin(place)?;
    let file = partial.file()?;
    let mut out = Hashed { inner: BufWriter::new(file), hash: Sha256::new() };
    let listing = Listing::of_hashed(tree, digests);
    let written = mtree::write(&listing, &mut out).and_then(|()| out.inner.flush());
    written.map_err(|error| partial.explain(error.into())).with_context(|| format!("write {}", place.display()))?;
    let sha256 = hex(&out.hash.finalize());
    let file = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok((partial, ContentsFile { file, sha256 }))
}

/// Writes the list of `tree` alone.
pub fn write_list(tree: &RootTree, digests: &BodyDigests, out: impl Write) -> io::Result<()> {
    let mut out = BufWriter::new(out);
    mtree::write(&Listing::of_hashed(tree, digests), &mut out)?;
    out.flush()
}

struct Hashed<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Reads a list that [`write_contents`] wrote.
pub fn read_contents(place: &Path) -> Result<Listing> {
    let text = regular_file::read(place, SIZE_MAX).with_context(|| format!("cannot read {}", place.display()))?;
    let text = String::from_utf8(text).with_context(|| format!("{} is not UTF-8", place.display()))?;
    mtree::parse(&text).with_context(|| format!("cannot read {}", place.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use snug_rootfs::listing::Content;
    use snug_rootfs::tree::Body;
    use snug_tests::have;
    use snug_tests::trees::sample_tree;

    #[test]
    fn what_is_written_is_read_back() {
        let tree = sample_tree();
        let digests = BodyDigests::of(&tree, 1, &AtomicBool::new(false), &|_| {}).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join(CONTENTS_FILE);
        let (partial, about) = write_contents(&tree, &digests, &place).unwrap();
        partial.publish().unwrap();
        assert_eq!(about.sha256, hex(&Sha256::digest(fs::read(&place).unwrap())));
        let listing = read_contents(&place).unwrap();
        assert_eq!(listing, Listing::of_hashed(&tree, &digests));
        assert_eq!(listing.records.len(), tree.len());
        for entry in tree.entries() {
            let record = &listing.records[entry.path];
            assert_eq!(record.hard_link_to.as_ref(), entry.hard_link_to);
            let content = |body: &Body| Content { size: body.size, digest: digests.get(entry.id).copied() };
            assert_eq!(record.inode, entry.inode.map_content(content), "{}", entry.path);
        }
    }

    /// libarchive's reader is the witness that the format is mtree(5).
    #[test]
    fn bsdtar_reads_the_same_names() {
        if !have(&["bsdtar"]) {
            return;
        }
        let tree = sample_tree();
        let digests = BodyDigests::of(&tree, 1, &AtomicBool::new(false), &|_| {}).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join(CONTENTS_FILE);
        write_contents(&tree, &digests, &place).unwrap().0.publish().unwrap();
        let output = std::process::Command::new("bsdtar").arg("-tf").arg(&place).output().unwrap();
        let names = output.stdout.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).count();
        assert_eq!(names, tree.len(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
