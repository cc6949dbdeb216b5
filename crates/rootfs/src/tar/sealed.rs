//! Archives that carry their own digest, so that a damaged one is noticed before it is used.
//!
//! The digest is SHA-256 over all that is before it, in a global header of its own ([`SEAL_RECORD`]) in front of the end marker:
//! GNU tar and bsdtar ignore it (Python's tarfile wants an entry behind it), and an archive that was cut short has none.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

use base16ct::lower::encode_string as hex;
use sha2::{Digest as _, Sha256};

use super::header::{BLOCK, BLOCK_U64, RECORD_U64};
use super::pax::put_record;
use super::write::{TarOptions, Writer};
use crate::digest;
use crate::tree::RootTree;

/// The record of the last global header.
const SEAL_RECORD: &[u8] = b"SNUG.sha256";
/// Hexadecimal digits of a digest.
const DIGITS: usize = 2 * size_of::<digest::Digest>();
/// Bytes behind the seal at most: the end marker, and what pads the archive to whole records.
const TAIL: u64 = RECORD_U64 + 2 * BLOCK_U64;

/// As [`write()`](super::write()) with [`TarOptions::OWN`], and sealed.
pub fn write_sealed(tree: &RootTree, out: impl Write, progress: &mut dyn FnMut(u64)) -> io::Result<()> {
    let out = Hashing { out, hash: Sha256::new() };
    let mut writer = Writer::new(tree, out, TarOptions::OWN, progress);
    writer.entries(tree, &|_| true)?;
    writer.flush()?;
    let digest = writer.out.hash.clone().finalize().into();
    writer.global_header(&record(&digest))?;
    writer.end()
}

/// Whether an archive of [`write_sealed`] is as it was written.
pub fn is_whole(file: &File) -> io::Result<bool> {
    let Some((sealed, found)) = find_seal(file)? else { return Ok(false) };
    let part = Part { file, at: 0, end: sealed };
    Ok(found == record(&digest::of_reader(part, &mut |_| {})?))
}

/// Returns the digest that an archive of [`write_sealed`] carries, as hex, without checking it; `None` where there is none.
pub fn seal(file: &File) -> io::Result<Option<String>> {
    let Some((_, found)) = find_seal(file)? else { return Ok(None) };
    // The record ends with its value and a newline.
    let digits = found.len().checked_sub(DIGITS + 1).and_then(|start| found.get(start..found.len() - 1));
    let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    Ok(digits.and_then(|digits| String::from_utf8(digits.to_vec()).ok()))
}

/// Returns where the header of the seal begins, and the record in it.
fn find_seal(file: &File) -> io::Result<Option<(u64, Vec<u8>)>> {
    let length = file.metadata()?.len();
    let mut tail = vec![0; usize::try_from(length.min(TAIL)).unwrap_or_default()];
    let tail_at = length - tail.len() as u64;
    file.read_exact_at(&mut tail, tail_at)?;
    // The last block that is not zeros, which is that of the record.
    let blocks: Vec<&[u8]> = tail.chunks(BLOCK).collect();
    let Some(last) = blocks.iter().rposition(|block| block.iter().any(|&byte| byte != 0)) else { return Ok(None) };
    let Some(sealed) = (tail_at + last as u64 * BLOCK_U64).checked_sub(BLOCK_U64) else { return Ok(None) };
    let (found, rest) = blocks[last].split_at(record(&Default::default()).len().min(blocks[last].len()));
    if !length.is_multiple_of(RECORD_U64) || rest.iter().any(|&byte| byte != 0) {
        return Ok(None);
    }
    Ok(Some((sealed, found.to_vec())))
}

fn record(digest: &digest::Digest) -> Vec<u8> {
    let mut record = Vec::new();
    put_record(&mut record, SEAL_RECORD, hex(digest).as_bytes());
    record
}

/// A part of a file, whose position stays where it is.
struct Part<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..left], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

struct Hashing<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
