//! Layer blobs in the cache: verified by digest before they are read, decompressed as a stream, and verified again by the
//! digest of the uncompressed archive.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use anyhow::{Context, Result};
use flate2::read::MultiGzDecoder;
use sha2::Digest as _;
use snug_rootfs::oci::Digest;

use super::zstd::Zstd;

/// Bytes read at once.
const BUFFER: usize = 256 << 10;

/// First bytes of the formats of layers. The media type is not used: many layers in registries have a wrong one.
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// What the sixteen magic numbers of a skippable frame share (RFC 8878, 3.1.2); some zstd layers begin with one.
const ZSTD_SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];

/// Returns the digest of a file.
pub(super) fn digest_of(path: &Path) -> Result<Digest> {
    let digest =
        snug_rootfs::digest::of_file(path, &mut |_| {}).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Digest::from(digest))
}

/// Returns the tar archive in a layer's blob, decompressed.
pub(super) fn unpack(path: &Path) -> Result<Box<dyn Read>> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut start = [0; 4];
    let mut filled = 0;
    while filled < start.len() {
        match file.read(&mut start[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    file.rewind()?;
    let file = BufReader::with_capacity(BUFFER, file);
    Ok(if start.starts_with(GZIP) {
        Box::new(MultiGzDecoder::new(file))
    } else if start.starts_with(ZSTD) || start[1..].starts_with(ZSTD_SKIPPABLE) {
        Box::new(Zstd::new(file))
    } else {
        // A tar archive, or an error of the tar reader.
        Box::new(file)
    })
}

/// Hashes what passes through it.
pub(super) struct Hashing<R> {
    input: R,
    hash: sha2::Sha256,
}

impl<R: Read> Hashing<R> {
    pub(super) fn new(input: R) -> Self {
        Hashing { input, hash: sha2::Sha256::new() }
    }

    /// Returns the digest of all that was read.
    pub(super) fn digest(self) -> Digest {
        Digest::finish(self.hash)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    /// A megabyte that packs neither to nothing nor not at all.
    fn content() -> Vec<u8> {
        (0..1_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> (at / 65_536 % 32)) as u8).collect()
    }

    fn pack(words: &[&str], content: &[u8]) -> Vec<u8> {
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{words:?}: {error}"));
        let mut input = child.stdin.take().unwrap();
        let content = content.to_vec();
        let feeding = std::thread::spawn(move || input.write_all(&content));
        let output = child.wait_with_output().unwrap();
        feeding.join().unwrap().unwrap();
        assert!(output.status.success(), "{words:?}");
        output.stdout
    }

    #[track_caller]
    fn assert_unpacks(packed: &[u8], expected: &[u8]) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(packed).unwrap();
        let mut found = Vec::new();
        unpack(file.path()).unwrap().read_to_end(&mut found).unwrap();
        assert!(found == expected, "{} bytes instead of {}", found.len(), expected.len());
    }

    #[test]
    fn layers_packed_by_other_programs_are_unpacked() {
        let content = content();
        assert_unpacks(&content, &content);
        assert_unpacks(b"", b"");
        let gzip = pack(&["gzip", "-6"], &content);
        assert_unpacks(&gzip, &content);
        // Several members, as parallel packers write.
        assert_unpacks(&[gzip.as_slice(), &gzip].concat(), &[content.as_slice(), &content].concat());
        if snug_process::program::find("zstd").is_none() {
            assert!(std::env::var_os("SNUG_TESTS_NO_SKIP").is_none(), "needs zstd");
            eprintln!("SKIPPED: needs zstd");
            return;
        }
        for options in [&["-1"][..], &["-19", "--long=27"], &["-3", "--no-check"], &["-5", "-B100000", "-T2"]] {
            let zstd = pack(&[&["zstd", "-q", "-c"], options].concat(), &content);
            assert_unpacks(&zstd, &content);
            // Frames that say nothing, between and behind, as zstd:chunked has them.
            let nothing = [b"\x50\x2a\x4d\x18\x05\0\0\0".as_slice(), b"12345"].concat();
            let frames = [&nothing, &zstd, &nothing, &zstd, &nothing].map(Vec::as_slice).concat();
            assert_unpacks(&frames, &[content.as_slice(), &content].concat());
        }
        assert_unpacks(&pack(&["zstd", "-q", "-c"], b""), b"");
    }

    #[test]
    fn a_damaged_or_cut_layer_is_an_error() {
        let gzip = pack(&["gzip", "-6"], &content());
        let mut packed = vec![gzip];
        if snug_process::program::find("zstd").is_some() {
            packed.push(pack(&["zstd", "-q", "-c"], &content()));
        }
        for whole in packed {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(&whole[..whole.len() / 2]).unwrap();
            assert!(unpack(file.path()).unwrap().read_to_end(&mut Vec::new()).is_err());
        }
    }
}
