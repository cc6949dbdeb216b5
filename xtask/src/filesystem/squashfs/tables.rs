//! Where the tables of a squashfs image are, read from its superblock.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use snug_ext4::{Census, Part};
use snug_rootfs::adjustments::Adjustments;

/// `struct squashfs_super_block` (the kernel's `fs/squashfs/squashfs_fs.h`; Documentation/filesystems/squashfs.rst),
/// little-endian.
const SUPERBLOCK_BYTES: u64 = 96;
const MAGIC: u32 = 0x7371_7368;
/// The address of a table that the image does not have.
const NO_TABLE: u64 = u64::MAX;

/// Accounts for every byte of the image, from the addresses of the tables in its superblock.
pub(super) fn census(image: &Path, writer: &str) -> Result<Census> {
    let file = File::open(image).with_context(|| format!("cannot open {}", image.display()))?;
    let size = file.metadata()?.len();
    let parts = parts(&file, size).with_context(|| format!("cannot read the superblock of {}", image.display()))?;
    Ok(Census { size, writer: writer.to_owned(), parts, decision: None, adjustments: Adjustments::default() })
}

/// Returns the parts of the image from front to back: superblock, file data, then the tables in the order in which they were
/// written. Where a field of the superblock is the address of an index, the table starts at the first address in that index.
fn parts(file: &File, size: u64) -> Result<Vec<Part>> {
    let mut superblock = [0; SUPERBLOCK_BYTES as usize];
    file.read_exact_at(&mut superblock, 0)?;
    let u64_at = |at: usize| u64::from_le_bytes(superblock[at..at + 8].try_into().expect("eight bytes"));
    ensure!(superblock[..4] == MAGIC.to_le_bytes(), "no squashfs magic");
    let pointer = |at: u64| -> Result<u64> {
        let mut slot = [0; 8];
        file.read_exact_at(&mut slot, at)?;
        Ok(u64::from_le_bytes(slot))
    };
    let [used, ids, xattrs, inodes, directories, fragments, exports] = [40, 48, 56, 64, 72, 80, 88].map(u64_at);
    let fragment_count = u32::from_le_bytes(superblock[16..20].try_into().expect("four bytes"));

    let mut starts =
        vec![("superblock", 0), ("file data", SUPERBLOCK_BYTES), ("inodes", inodes), ("directories", directories)];
    if fragments != NO_TABLE && fragment_count > 0 {
        starts.push(("fragment table", pointer(fragments)?));
    }
    if exports != NO_TABLE {
        starts.push(("export table", pointer(exports)?));
    }
    starts.push(("id table", pointer(ids)?));
    if xattrs != NO_TABLE {
        starts.push(("xattrs", pointer(xattrs)?));
    }
    starts.push(("padding", used));
    starts.sort_by_key(|(_, start)| *start);
    let ends = starts.iter().skip(1).map(|(_, start)| *start).chain([size]).collect::<Vec<_>>();
    ensure!(ends.iter().all(|end| *end <= size), "its tables lie outside the file");
    Ok(starts
        .into_iter()
        .zip(ends)
        .filter(|((_, start), end)| end > start)
        .map(|((name, start), end)| Part { name: name.into(), bytes: end - start })
        .collect())
}
