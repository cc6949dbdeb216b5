//! Verifies the dm-verity hash tree of a sealed image against its root hash.
//!
//! Written from the format alone (cryptsetup's wiki, "DMVerity"; the kernel's
//! Documentation/admin-guide/device-mapper/verity.rst); shares no code with what writes the hash tree. Runs
//! `veritysetup verify` as well where it is installed, which does not say *which* block is wrong.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use base16ct::lower::encode_string as hex;
use sha2::{Digest, Sha256};
use snug_process::child;
use snug_process::program::HostProgram;

use super::verdict::{Check, Finding};
use crate::report::progress::{Stage, human_bytes};

const QUESTION: &str = "verity";
const VERITYSETUP: HostProgram = HostProgram { name: "veritysetup", package: "cryptsetup-bin" };

/// `struct verity_sb`: the signature, then the offsets of the fields that are read here, in bytes.
const SIGNATURE: &[u8; 8] = b"verity\0\0";
const HASH_TYPE: usize = 12;
const ALGORITHM: std::ops::Range<usize> = 32..64;
const DATA_BLOCK_SIZE: usize = 64;
const HASH_BLOCK_SIZE: usize = 68;
const DATA_BLOCKS: usize = 72;
const SALT_LENGTH: usize = 80;
const SALT: usize = 88;
const SALT_MAX: usize = 256;

/// The only block size and the only digest (SHA-256) that the tool seals with, in bytes.
const BLOCK: usize = 4096;
const DIGEST: usize = 32;
const FANOUT: u64 = (BLOCK / DIGEST) as u64;
/// Most wrong blocks that are reported.
const MAX_FINDINGS: usize = 100;

/// The hash tree as the manifest describes it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seal<'a> {
    /// In hexadecimal digits.
    pub root_hash: &'a str,
    /// Offset of the verity superblock, in bytes.
    pub hash_offset: u64,
}

/// Hashes every block of data and of the hash tree and compares up to the root hash.
pub(super) fn check(image: &Path, seal: Seal, stage: &Stage) -> Check {
    let started = Instant::now();
    let mut check = match verify(image, seal, stage) {
        Ok(wrong) if wrong.is_empty() => {
            let said = format!("{} match the root hash {:.16}…", human_bytes(seal.hash_offset), seal.root_hash);
            Check::passed(QUESTION, "SHA-256", said)
        }
        Ok(wrong) => {
            let said = match wrong.len() {
                1 => "1 block does not match the root hash".to_owned(),
                count => format!("{count} blocks do not match the root hash"),
            };
            Check::failed(QUESTION, "SHA-256", said).with_findings(wrong)
        }
        Err(error) => return Check::broken(QUESTION, "SHA-256", &error).took(started.elapsed()),
    };
    match veritysetup(image, seal) {
        Ok(None) => check.notes.push(format!("veritysetup was not run: {}", VERITYSETUP.missing().in_a_line())),
        Ok(Some((name, verdict))) => {
            check.judge = format!("{}, {name}", check.judge);
            if let Err(said) = verdict {
                check.findings.push(Finding { place: "veritysetup verify".into(), what: said });
                check = check.fail();
            }
        }
        Err(error) => return Check::broken(QUESTION, VERITYSETUP.name, &error).took(started.elapsed()),
    }
    check.took(started.elapsed())
}

/// Returns the blocks that do not match their digest in the hash tree; the digest of the top block is the root hash.
fn verify(image: &Path, seal: Seal, stage: &Stage) -> Result<Vec<Finding>> {
    let file = File::open(image).with_context(|| format!("cannot open {}", image.display()))?;
    let superblock = Superblock::read(&file, seal.hash_offset)?;
    stage.expect_bytes(superblock.data_blocks * BLOCK as u64);
    let levels = superblock.levels(seal.hash_offset);
    let mut wrong = Vec::new();
    let mut below = vec![0; BLOCK];
    let mut above = vec![0; BLOCK];
    // Each level, the data first, is compared with the digests in the level above it.
    let data = (0, superblock.data_blocks);
    for (depth, (start, blocks)) in std::iter::once(data).chain(levels.iter().copied()).enumerate() {
        for index in 0..blocks {
            file.read_exact_at(&mut below, (start + index) * BLOCK as u64).context("the image is too short")?;
            let digest = superblock.hash(&below);
            let matches = match levels.get(depth) {
                Some((parents, _)) => {
                    if index % FANOUT == 0 {
                        file.read_exact_at(&mut above, (parents + index / FANOUT) * BLOCK as u64)
                            .context("the image is too short")?;
                    }
                    let at = (index % FANOUT) as usize * DIGEST;
                    above[at..at + DIGEST] == digest
                }
                None => hex(&digest) == seal.root_hash,
            };
            if !matches && wrong.len() < MAX_FINDINGS {
                wrong.push(finding(depth, levels.len(), start + index));
            }
            if depth == 0 {
                stage.advance(BLOCK as u64);
            }
        }
    }
    Ok(wrong)
}

fn finding(depth: usize, levels: usize, block: u64) -> Finding {
    let what = match depth {
        0 => "this block of the filesystem was changed".to_owned(),
        top if top == levels => "the top of the hash tree does not match the root hash".to_owned(),
        level => format!("this block of level {level} of the hash tree was changed"),
    };
    Finding { place: format!("block {block} (byte {})", block * BLOCK as u64), what }
}

/// The fields of the verity superblock that verifying needs.
struct Superblock {
    data_blocks: u64,
    salt: Vec<u8>,
}

impl Superblock {
    fn read(file: &File, offset: u64) -> Result<Self> {
        let mut raw = vec![0; BLOCK];
        file.read_exact_at(&mut raw, offset).context("there is no verity superblock")?;
        ensure!(raw.starts_with(SIGNATURE), "there is no verity superblock at byte {offset}");
        let u32_at = |at: usize| u32::from_le_bytes(raw[at..at + 4].try_into().expect("four bytes"));
        let data_blocks = u64::from_le_bytes(raw[DATA_BLOCKS..DATA_BLOCKS + 8].try_into().expect("eight bytes"));
        let algorithm = raw[ALGORITHM].split(|&byte| byte == 0).next().unwrap_or_default();
        ensure!(u32_at(HASH_TYPE) == 1, "the verity hash type {} is not 1", u32_at(HASH_TYPE));
        ensure!(algorithm == b"sha256", "the verity hash is {}, not sha256", algorithm.escape_ascii());
        for (what, at) in [("data", DATA_BLOCK_SIZE), ("hash", HASH_BLOCK_SIZE)] {
            ensure!(u32_at(at) as usize == BLOCK, "verity {what} blocks of {} bytes", u32_at(at));
        }
        let salt_length = usize::from(u16::from_le_bytes([raw[SALT_LENGTH], raw[SALT_LENGTH + 1]]));
        ensure!(salt_length <= SALT_MAX, "a verity salt of {salt_length} bytes");
        if data_blocks.checked_mul(BLOCK as u64) != Some(offset) {
            bail!(
                "the verity superblock counts {data_blocks} data blocks, and lies behind {} of them",
                offset / BLOCK as u64
            );
        }
        Ok(Superblock { data_blocks, salt: raw[SALT..SALT + salt_length].to_vec() })
    }

    fn hash(&self, block: &[u8]) -> [u8; DIGEST] {
        Sha256::new().chain_update(&self.salt).chain_update(block).finalize().into()
    }

    /// Returns first block and number of blocks of each level of the hash tree, the lowest level first. On disk the top
    /// level comes first, behind the superblock's block.
    fn levels(&self, hash_offset: u64) -> Vec<(u64, u64)> {
        let mut sizes = Vec::new();
        let mut below = self.data_blocks;
        while below > 1 {
            below = below.div_ceil(FANOUT);
            sizes.push(below);
        }
        let mut start = hash_offset / BLOCK as u64 + 1;
        let mut levels = vec![(0, 0); sizes.len()];
        for (level, size) in levels.iter_mut().zip(&sizes).rev() {
            *level = (start, *size);
            start += size;
        }
        levels
    }
}

type Verdict = Result<(), String>;

/// Returns the name and verdict of veritysetup; `None` where it is not installed.
fn veritysetup(image: &Path, seal: Seal) -> Result<Option<(String, Verdict)>> {
    if VERITYSETUP.find().is_none() {
        return Ok(None);
    }
    let version = child::output(VERITYSETUP.command()?.arg("--version"))?;
    let version = String::from_utf8_lossy(&version.stdout).lines().next().unwrap_or("veritysetup").to_owned();
    let name = version.split(" flags").next().unwrap_or_default().to_owned();
    let mut command = VERITYSETUP.command()?;
    command.arg("verify").arg(image).arg(image).arg(seal.root_hash);
    let output = child::output(command.arg(format!("--hash-offset={}", seal.hash_offset)))?;
    let verdict = match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")),
    };
    Ok(Some((name, verdict)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::progress::Progress;

    /// Writes an image of `blocks` blocks with a hash tree by veritysetup. Returns it with its root hash.
    fn sealed(folder: &Path, blocks: usize) -> (std::path::PathBuf, String) {
        let image = folder.join("image");
        let content: Vec<u8> = (0..blocks * BLOCK).map(|at| (at / 7 % 251) as u8).collect();
        std::fs::write(&image, &content).unwrap();
        let output = VERITYSETUP
            .command()
            .unwrap()
            .arg("format")
            .args([&image, &image])
            .args(["--salt", "0123456789abcdef", &format!("--hash-offset={}", blocks * BLOCK)])
            .arg(format!("--data-blocks={blocks}"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8(output.stdout).unwrap();
        let hash = said.lines().find_map(|line| line.strip_prefix("Root hash:")).unwrap().trim().to_owned();
        (image, hash)
    }

    /// Images that veritysetup sealed pass, and one flipped bit is found in its block.
    #[test]
    fn a_changed_block_is_named() {
        if VERITYSETUP.find().is_none() {
            assert!(std::env::var_os("SNUG_TESTS_NO_SKIP").is_none(), "needs veritysetup");
            eprintln!("SKIPPED: needs veritysetup");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let stage = Progress::hidden().stage("");
        for blocks in [1, 2, 128, 129, 300] {
            let (image, root_hash) = sealed(folder.path(), blocks);
            let seal = Seal { root_hash: &root_hash, hash_offset: (blocks * BLOCK) as u64 };
            let passed = check(&image, seal, &stage);
            assert_eq!(passed.state, super::super::State::Passed, "{blocks}: {passed:?}");
            let file = File::options().read(true).write(true).open(&image).unwrap();
            let mut byte = [0];
            let victim = (blocks - 1) as u64;
            let at = victim * BLOCK as u64 + 77;
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 4], at).unwrap();
            let failed = check(&image, seal, &stage);
            assert_eq!(failed.state, super::super::State::Failed);
            assert_eq!(failed.findings[0].place, format!("block {victim} (byte {})", victim * BLOCK as u64));
            file.write_all_at(&byte, at).unwrap();
            let other = format!("{:064x}", 7);
            let wrong = verify(&image, Seal { root_hash: &other, ..seal }, &stage).unwrap();
            assert_eq!(wrong.len(), 1, "{wrong:?}");
        }
    }
}
