//! dm-verity: a hash tree behind a filesystem, by which the kernel refuses every block that has changed since the image was
//! made. The format is cryptsetup's (its wiki, "DMVerity"; kernel documentation, `admin-guide/device-mapper/verity.rst`).
//!
//! The filesystem is followed by a block with the verity superblock and by the levels of the hash tree, the top level first. A
//! block of a level holds the hashes of 128 blocks of the level below; the lowest level holds those of the filesystem's blocks.
//! A hash is SHA-256 over the salt and the block. The hash of the top block is the root hash, the only thing that has to be
//! trusted.

use std::fs::{File, OpenOptions};
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, ensure};
use base16ct::lower::encode_string as hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use snug_ext4::identity::{self, uuid_text};
use snug_rootfs::tree::RootTree;

use crate::report::progress::Stage;

/// Bytes of a block, of data and of hashes.
pub const BLOCK: usize = 4096;
const DIGEST: usize = 32;
/// Hashes in a block of the hash tree.
const FANOUT: u64 = (BLOCK / DIGEST) as u64;
/// Bytes of a sector, the unit of device-mapper tables.
const SECTOR: u64 = 512;

/// `struct verity_sb` of cryptsetup: signature, version and hash type.
const SIGNATURE: &[u8; 8] = b"verity\0\0";
const VERSION: u32 = 1;
/// The salt is hashed before the block; in type 0, of Chrome OS, after it.
const HASH_TYPE: u32 = 1;
const ALGORITHM: &str = "sha256";

/// Name of the mapped device in [`Verity`]'s command lines.
const DEVICE_NAME: &str = "root";
/// The disk in [`Verity`]'s command lines: the first one of a microVM.
const DISK: &str = "/dev/vda";

/// Bytes of a salt.
pub const SALT: usize = 32;

/// UUID and salt of a hash tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed {
    pub uuid: [u8; 16],
    pub salt: [u8; SALT],
}

impl Seed {
    /// Derives both from the tree, as the UUID of the filesystem is, so that a build is reproducible.
    pub fn of(tree: &RootTree) -> Self {
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&identity::seed("snug verity uuid 1", &[], tree)[..16]);
        Seed { uuid: identity::own_uuid(uuid), salt: identity::seed("snug verity salt 1", &[], tree) }
    }
}

/// How to open a sealed image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Verity {
    /// Hexadecimal; the only thing that has to be trusted.
    pub root_hash: String,
    /// Hexadecimal.
    pub salt: String,
    /// As RFC 9562 writes it.
    pub uuid: String,
    /// Blocks of the filesystem, of 4096 bytes.
    pub data_blocks: u64,
    /// Offset of the verity superblock in bytes, which is the size of the filesystem.
    pub hash_offset: u64,
    /// Bytes of the verity superblock and the hash tree.
    pub hash_bytes: u64,
    /// An argument for a kernel with CONFIG_DM_INIT, and for our initramfs; used together with root=/dev/dm-0.
    pub kernel_argument: String,
    /// A command that opens the image as /dev/mapper/root.
    pub veritysetup: String,
    /// A command that does the same without reading the verity superblock.
    pub dmsetup: String,
}

impl Verity {
    /// Returns root hash and command lines as text for people.
    pub fn lines(&self) -> String {
        format!(
            "verity root hash {}\n  kernel   {} root=/dev/dm-0\n  or       {}\n  or       {}\n",
            self.root_hash, self.kernel_argument, self.veritysetup, self.dmsetup
        )
    }

    fn new(hash_tree: &HashTree, seed: &Seed, root_hash: &[u8; DIGEST]) -> Self {
        let (root_hash, salt) = (hex(root_hash), hex(&seed.salt));
        let (blocks, offset) = (hash_tree.data_blocks, hash_tree.superblock_at());
        let sectors = blocks * (BLOCK as u64 / SECTOR);
        let table = format!(
            "0 {sectors} verity 1 {DISK} {DISK} {BLOCK} {BLOCK} {blocks} {} {ALGORITHM} {root_hash} {salt}",
            blocks + 1
        );
        Verity {
            kernel_argument: format!("dm-mod.create=\"{DEVICE_NAME},,,ro,{table}\""),
            veritysetup: format!("veritysetup open --hash-offset={offset} {DISK} {DEVICE_NAME} {DISK} {root_hash}"),
            dmsetup: format!("dmsetup create {DEVICE_NAME} --readonly --table '{table}'"),
            root_hash,
            salt,
            uuid: uuid_text(&seed.uuid),
            data_blocks: blocks,
            hash_offset: offset,
            hash_bytes: hash_tree.end() - offset,
        }
    }
}

/// Where the levels of a hash tree are, in blocks of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HashTree {
    data_blocks: u64,
    /// First block and number of blocks of each level, the lowest first.
    levels: Vec<(u64, u64)>,
}

impl HashTree {
    fn new(data_blocks: u64) -> Self {
        let mut sizes = Vec::new();
        let mut below = data_blocks;
        while below > 1 {
            below = below.div_ceil(FANOUT);
            sizes.push(below);
        }
        // The top level is first, directly behind the verity superblock.
        let mut at = data_blocks + 1;
        let mut levels: Vec<(u64, u64)> = Vec::new();
        for size in sizes.into_iter().rev() {
            levels.push((at, size));
            at += size;
        }
        levels.reverse();
        HashTree { data_blocks, levels }
    }

    /// Returns the offset of the verity superblock in bytes.
    fn superblock_at(&self) -> u64 {
        self.data_blocks * BLOCK as u64
    }

    /// Returns the bytes of filesystem, verity superblock and hash tree.
    fn end(&self) -> u64 {
        let tree: u64 = self.levels.iter().map(|(_, size)| size).sum();
        (self.data_blocks + 1 + tree) * BLOCK as u64
    }
}

/// Appends a verity superblock and a hash tree to the filesystem in `image`, which is padded to a whole block with zeros.
///
/// All cores hash, each a part of the image, with 512 KiB of memory each. Holes of the file stay holes.
pub fn seal(image: &Path, seed: &Seed, stage: &Stage) -> Result<Verity> {
    let file = OpenOptions::new().read(true).write(true).open(image);
    let file = file.with_context(|| format!("cannot open {}", image.display()))?;
    let size = file.metadata()?.len();
    ensure!(size > 0, "an empty image cannot be sealed");
    let hash_tree = HashTree::new(size.div_ceil(BLOCK as u64));
    file.set_len(hash_tree.end()).context("cannot extend the image for the hash tree")?;

    let salted = Sha256::new_with_prefix(seed.salt);
    let threads = thread::available_parallelism().map_or(1, NonZero::get) as u64;
    // From the lowest level to the top.
    let mut below = (0, hash_tree.data_blocks);
    for level in &hash_tree.levels {
        hash_level(&file, &salted, below, level.0, threads, stage)?;
        below = *level;
    }
    let mut top = vec![0; BLOCK];
    file.read_exact_at(&mut top, below.0 * BLOCK as u64)?;
    let root_hash = hash(&salted, &top);
    file.write_all_at(&superblock(&hash_tree, seed), hash_tree.superblock_at())
        .context("cannot write the hash tree")?;
    Ok(Verity::new(&hash_tree, seed, &root_hash))
}

fn hash(salted: &Sha256, block: &[u8]) -> [u8; DIGEST] {
    salted.clone().chain_update(block).finalize().into()
}

/// Hashes `count` blocks from `first` on, in `threads` threads, and writes the hashes to the blocks from `into` on.
fn hash_level(
    file: &File,
    salted: &Sha256,
    (first, count): (u64, u64),
    into: u64,
    threads: u64,
    stage: &Stage,
) -> Result<()> {
    // Whole blocks of hashes, so that no two threads write to the same block.
    let share = count.div_ceil(FANOUT).div_ceil(threads) * FANOUT;
    thread::scope(|scope| {
        let workers: Vec<_> = (0..count)
            .step_by(usize::try_from(share).context("the image is too large")?)
            .map(|start| {
                let part = start..count.min(start + share);
                scope.spawn(move || hash_part(file, salted, first, part, into, stage))
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("hashing does not panic"))
    })
}

fn hash_part(
    file: &File,
    salted: &Sha256,
    first: u64,
    part: std::ops::Range<u64>,
    into: u64,
    stage: &Stage,
) -> Result<()> {
    // Free space in an ext4 is zeros, whose hash is computed once.
    let zeros = [0; BLOCK];
    let of_zeros = hash(salted, &zeros);
    let mut data = vec![0; BLOCK * FANOUT as usize];
    let mut next = part.start;
    while next < part.end {
        let count = FANOUT.min(part.end - next) as usize;
        let data = &mut data[..count * BLOCK];
        file.read_exact_at(data, (first + next) * BLOCK as u64).context("cannot read the image")?;
        let mut hashes = [0; BLOCK];
        for (block, digest) in data.chunks_exact(BLOCK).zip(hashes.chunks_exact_mut(DIGEST)) {
            digest.copy_from_slice(&if *block == zeros { of_zeros } else { hash(salted, block) });
        }
        file.write_all_at(&hashes, (into + next / FANOUT) * BLOCK as u64).context("cannot write the hash tree")?;
        stage.advance(data.len() as u64);
        next += count as u64;
    }
    Ok(())
}

/// Encodes `struct verity_sb`, little-endian, padded to a block with zeros.
fn superblock(hash_tree: &HashTree, seed: &Seed) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, SIGNATURE);
    put(8, &VERSION.to_le_bytes());
    put(12, &HASH_TYPE.to_le_bytes());
    put(16, &seed.uuid);
    put(32, ALGORITHM.as_bytes());
    put(64, &(BLOCK as u32).to_le_bytes());
    put(68, &(BLOCK as u32).to_le_bytes());
    put(72, &hash_tree.data_blocks.to_le_bytes());
    put(80, &(SALT as u16).to_le_bytes());
    put(88, &seed.salt);
    block
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Command, Output};

    use super::*;
    use crate::report::progress::Progress;
    use snug_tests::have;

    const SEED: Seed = Seed { uuid: *b"0123456789abcdef", salt: [0x5a; SALT] };

    /// An image of this many blocks and bytes, a hole among them.
    fn image(folder: &Path, blocks: u64, bytes: u64) -> std::path::PathBuf {
        let path = folder.join(format!("image-{blocks}-{bytes}"));
        let file = File::create(&path).unwrap();
        for block in (0..blocks).filter(|block| block % 7 != 3) {
            file.write_all_at(&block.wrapping_mul(0x9e37_79b9).to_le_bytes(), block * BLOCK as u64 + 9).unwrap();
        }
        file.set_len(blocks * BLOCK as u64 + bytes).unwrap();
        path
    }

    fn seal_it(image: &Path) -> Verity {
        seal(image, &SEED, &Progress::hidden().stage("test")).unwrap()
    }

    fn veritysetup(words: &[&str]) -> Output {
        Command::new("/usr/sbin/veritysetup").args(words).output().unwrap()
    }

    /// The borders: one block, which has no tree; a full block of hashes and one more; two levels and three.
    #[test]
    fn veritysetup_makes_the_same_bytes_and_verifies_ours() {
        if !have(&["veritysetup"]) {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        for (blocks, bytes) in [(1, 0), (2, 0), (128, 0), (129, 0), (5000, 17), (128 * 128, 0), (128 * 128 + 1, 0)] {
            let ours = image(folder.path(), blocks, bytes);
            let theirs = folder.path().join("theirs");
            fs::copy(&ours, &theirs).unwrap();
            File::options().write(true).open(&theirs).unwrap().set_len((blocks + bytes.min(1)) * 4096).unwrap();
            let verity = seal_it(&ours);

            let (offset, count) = (verity.hash_offset.to_string(), verity.data_blocks.to_string());
            let theirs = theirs.to_str().unwrap();
            let words = ["--salt", &verity.salt, "--uuid", &verity.uuid, "--data-blocks", &count];
            let output = veritysetup(&[&["format", "--hash-offset", &offset][..], &words, &[theirs, theirs]].concat());
            assert!(output.status.success(), "{output:?}");
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(said.contains(&verity.root_hash), "{said}");
            let (ours_bytes, theirs_bytes) = (fs::read(&ours).unwrap(), fs::read(theirs).unwrap());
            assert!(ours_bytes == theirs_bytes, "{blocks} blocks and {bytes} bytes");
            assert_eq!(ours_bytes.len() as u64, verity.hash_offset + verity.hash_bytes);

            let ours = ours.to_str().unwrap();
            let verify = ["verify", "--hash-offset", &offset, ours, ours, &verity.root_hash];
            let output = veritysetup(&verify);
            assert!(output.status.success(), "{blocks} blocks: {output:?}");
            let file = OpenOptions::new().write(true).open(ours).unwrap();
            file.write_all_at(b"!", verity.hash_offset - 1).unwrap();
            assert!(!veritysetup(&verify).status.success(), "{blocks} blocks");
        }
    }

    #[test]
    fn sealing_keeps_holes_and_depends_on_the_seed() {
        use std::os::unix::fs::MetadataExt;

        let folder = tempfile::tempdir().unwrap();
        let path = image(folder.path(), 0, 64 << 20);
        let verity = seal_it(&path);
        assert!(fs::metadata(&path).unwrap().blocks() * 512 < 2 * verity.hash_bytes);
        let again = image(folder.path(), 0, 64 << 20);
        let salted = Seed { salt: [1; SALT], ..SEED };
        let other = seal(&again, &salted, &Progress::hidden().stage("test")).unwrap();
        assert_ne!(other.root_hash, verity.root_hash);
    }

    #[test]
    fn the_lines_are_ready_to_use() {
        let folder = tempfile::tempdir().unwrap();
        let verity = seal_it(&image(folder.path(), 300, 0));
        let lines = [verity.kernel_argument, verity.veritysetup, verity.dmsetup].join("\n");
        insta::assert_snapshot!(lines.replace(&verity.root_hash, "ROOT").replace(&verity.salt, "SALT"), @r#"
        dm-mod.create="root,,,ro,0 2400 verity 1 /dev/vda /dev/vda 4096 4096 300 301 sha256 ROOT SALT"
        veritysetup open --hash-offset=1228800 /dev/vda root /dev/vda ROOT
        dmsetup create root --readonly --table '0 2400 verity 1 /dev/vda /dev/vda 4096 4096 300 301 sha256 ROOT SALT'
        "#);
    }
}
