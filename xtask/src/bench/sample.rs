//! A tar with the shape of a real root filesystem and the same bytes on every machine, for benchmarks without an image.

use std::io::{self, Write};

use anyhow::Result;
use snug_rootfs::tar::{self, TarOptions};
use snug_rootfs::tree::{Body, BodySource, Inode, Kind, ReadAt, RootTree, Timestamp, TreePath};

use crate::report::progress::Stage;

/// File sizes of a Debian root with Node.js and a large npm package: how many of ten thousand files are smaller than so many
/// bytes. Half of all files are below 1.5 KiB.
const SIZES: [(u64, u64); 12] = [
    (0, 0),
    (100, 32),
    (1_000, 179),
    (2_500, 555),
    (5_000, 1_486),
    (7_000, 4_032),
    (8_500, 10_749),
    (9_500, 35_136),
    (9_900, 140_000),
    (9_980, 600_000),
    (9_999, 2_000_000),
    (10_000, 9_144_216),
];
const FILES: u64 = 48_000;
/// Sizes of the few programs that are as large as all small files together, in bytes.
const LARGE: [u64; 4] = [115_000_000, 60_000_000, 31_000_000, 18_000_000];
/// Files in each directory.
const FILES_PER_DIRECTORY: u64 = 12;
/// Files for each symlink.
const FILES_PER_SYMLINK: u64 = 55;
/// Modification time of everything: 2025-01-01, in seconds since the epoch.
const TIME: i64 = 1_735_689_600;
/// Bytes after which content repeats: more than the windows of compressors.
const PERIOD: usize = 8 << 20;

/// A generator of pseudo-random numbers (SplitMix64, Steele, Lea and Flood 2014).
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}

/// Generated file content: text of common and rare words, like source code, repeated.
struct Words(Vec<u8>);

impl Words {
    fn new(numbers: &mut SplitMix64) -> Self {
        let words: Vec<Vec<u8>> =
            (0..4096).map(|_| (0..2 + numbers.below(9)).map(|_| b'a' + numbers.below(26) as u8).collect()).collect();
        let mut bytes = Vec::with_capacity(PERIOD + 16);
        while bytes.len() < PERIOD {
            // Some words are common, most are rare.
            let rank = numbers.below(64) * numbers.below(64);
            bytes.extend_from_slice(&words[rank as usize]);
            bytes.push(if numbers.below(8) == 0 { b'\n' } else { b' ' });
        }
        bytes.truncate(PERIOD);
        Words(bytes)
    }
}

impl ReadAt for Words {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut at = (offset % PERIOD as u64) as usize;
        let mut rest = buffer;
        while !rest.is_empty() {
            let count = rest.len().min(PERIOD - at);
            let (now, later) = rest.split_at_mut(count);
            now.copy_from_slice(&self.0[at..at + count]);
            (rest, at) = (later, 0);
        }
        Ok(())
    }
}

/// Writes the tar: about 53,000 names and a gigabyte.
pub fn write_sample(out: &mut dyn Write, stage: &Stage) -> Result<()> {
    let tree = sample(FILES)?;
    tar::write(&tree, out, TarOptions::FAITHFUL, &mut |bytes| stage.advance_to(bytes))?;
    Ok(())
}

fn sample(files: u64) -> Result<RootTree> {
    let mut numbers = SplitMix64(0);
    let mut tree = RootTree::new(BodySource::new(Words::new(&mut numbers)));
    let mut put = |path: &str, kind: Kind, mode: u16| -> Result<()> {
        let mut inode = Inode::new(kind, mode);
        inode.mtime = Timestamp::from_seconds(TIME);
        tree.insert(TreePath::new(path)?, inode)?;
        Ok(())
    };
    put("", Kind::Directory, 0o755)?;
    for (number, size) in LARGE.into_iter().enumerate() {
        put(&format!("usr/bin/program-{number}"), Kind::File(Body::contiguous(size, number as u64)), 0o755)?;
    }
    for number in 0..files {
        // Packages of a few directories each, three levels deep.
        let directory = number / FILES_PER_DIRECTORY;
        let (package, part) = (directory / 4, directory % 4);
        let folder = format!("usr/lib/node_modules/package-{package:04}/part-{part}");
        if number % FILES_PER_DIRECTORY == 0 {
            put(&folder, Kind::Directory, 0o755)?;
        }
        let size = size(&mut numbers);
        let body = Body::contiguous(size, numbers.below(PERIOD as u64));
        put(&format!("{folder}/module-{number}.js"), Kind::File(body), 0o644)?;
        if number % FILES_PER_SYMLINK == 0 {
            let target = format!("module-{number}.js").into_bytes();
            put(&format!("{folder}/latest-{number}"), Kind::Symlink(target.into()), 0o777)?;
        }
    }
    Ok(tree)
}

/// Returns a random file size with the distribution of [`SIZES`].
fn size(numbers: &mut SplitMix64) -> u64 {
    let rank = numbers.below(10_000);
    let steps = SIZES.windows(2).find(|pair| rank < pair[1].0);
    let (low, high) = steps.map_or((0, 0), |pair| (pair[0].1, pair[1].1));
    low + numbers.below(high - low + 1)
}

#[cfg(test)]
mod tests {
    use base16ct::lower::encode_string as hex;
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn it_is_the_same_every_time_and_reads_as_a_tree() {
        let tar = || {
            let mut bytes = Vec::new();
            let mut tree = sample(600).unwrap();
            tree.remove(&TreePath::new("usr/bin").unwrap());
            tar::write(&tree, &mut bytes, TarOptions::FAITHFUL, &mut |_| {}).unwrap();
            bytes
        };
        let bytes = tar();
        assert_eq!(hex(&Sha256::digest(&bytes)), hex(&Sha256::digest(tar())));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let read = tar::read_file(file, &tar::Limits::default(), &mut |_| {}).unwrap();
        assert!(read.len() > 660, "{}", read.len());
    }
}
