//! The source of an archive: a file, where bodies stay where they are, or a pipe, whose bodies are copied to a spool.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::error::TarError;
use crate::holes::{self, Ranges, Stored};
use crate::spool::{self, Spool};
use crate::tree::{BLOCK, DataRange, Extents};

/// Bytes read at once from a file: enough for several small members, and little to read in vain before a large one is
/// skipped.
const FILE_WINDOW: usize = 16 << 10;
/// Bytes that the kernel reads ahead of a search for zeros: what keeps a disk busy meanwhile.
const READ_AHEAD: u64 = 8 << 20;
/// Bytes of one advice to read ahead: of a longer one the kernel reads no more than the disk's `read_ahead_kb`, by default.
const ADVICE: u64 = 128 << 10;
/// Bytes read at once from a pipe, so that its two ends seldom wait for each other.
const STREAM_BUFFER: usize = spool::BUFFER;

/// Bytes of a pipe that are read in vain: the rest of most exports, and some seconds of an endless one.
const DRAIN_MAX: u64 = 16 << 30;

/// An archive, read from its start to its end.
pub(super) trait Input {
    /// Returns the bytes read or skipped since the start of the archive.
    fn offset(&self) -> u64;

    /// Fills `buffer` as far as the input goes. Returns how many bytes it was.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TarError>;

    /// Returns up to `length` of the next bytes without consuming them.
    fn peek(&mut self, length: usize) -> Result<&[u8], TarError>;

    /// Consumes the data of a body, which follows without gaps: `ranges` are offset and length of each part of it, in order.
    /// Returns where to read it, without its blocks of zeros.
    fn keep(&mut self, ranges: &[(u64, u64)]) -> Result<Kept, TarError>;

    /// Skips the next `length` bytes. Returns how many of them there were.
    fn skip(&mut self, length: u64) -> Result<u64, TarError>;

    /// Completes the bodies: flushes the spool.
    fn finish(&mut self) -> Result<(), TarError>;

    /// Reads the rest of a pipe and discards it, so that the program that writes it is not killed by a closed pipe: up to
    /// [`DRAIN_MAX`], since some never end.
    fn drain(&mut self);
}

/// What became of the data of a body.
pub(super) enum Kept {
    /// It can be read from these ranges.
    At(Extents),
    /// The input ends this many bytes too early.
    Missing(u64),
}

/// A seekable archive.
pub(super) struct FileInput {
    file: File,
    /// Where to look for blocks of zeros; `None`: nowhere, so that bodies are as the archive states them.
    searched: Option<Stored>,
    /// Up to where the kernel was told to read ahead.
    ahead: u64,
    length: u64,
    window: Vec<u8>,
    /// Offset of the window's first byte.
    window_at: u64,
    /// Next byte to read.
    at: u64,
}

impl FileInput {
    /// Leaves blocks of zeros out of bodies.
    pub(super) fn new(file: File) -> Result<Self, TarError> {
        let searched = Stored::of(&file).map_err(|source| TarError::Read { offset: 0, source })?;
        Ok(FileInput { searched: Some(searched), ..FileInput::as_stated(file)? })
    }

    /// Reads nothing of bodies.
    pub(super) fn as_stated(mut file: File) -> Result<Self, TarError> {
        let length = file.seek(SeekFrom::End(0)).map_err(|source| TarError::Read { offset: 0, source })?;
        let window = Vec::with_capacity(FILE_WINDOW);
        Ok(FileInput { file, searched: None, ahead: 0, length, window, window_at: 0, at: 0 })
    }

    /// Returns the window's bytes from the cursor on, refilled if it holds fewer than `wanted`.
    fn fill(&mut self, wanted: usize) -> Result<&[u8], TarError> {
        let window_end = self.window_at + self.window.len() as u64;
        if self.at < self.window_at || self.at + wanted as u64 > window_end {
            let left = self.length.saturating_sub(self.at);
            let size = usize::try_from(left).map_or(FILE_WINDOW, |left| left.min(FILE_WINDOW));
            self.window.resize(size, 0);
            self.window_at = self.at;
            let filled = read_at_most(&self.file, &mut self.window, self.at)
                .map_err(|source| TarError::Read { offset: self.at, source })?;
            self.window.truncate(filled);
        }
        Ok(&self.window[(self.at - self.window_at) as usize..])
    }

    /// Adds the parts of `range` that are not blocks of zeros, as far as they are to be searched for.
    fn search(&mut self, range: DataRange, into: &mut Ranges) -> io::Result<()> {
        let Some(stored) = &self.searched else {
            into.push(range);
            return Ok(());
        };
        for part in stored.parts(range).flat_map(|part| holes::pieces(part, READ_AHEAD / 4)) {
            self.ahead = read_ahead(&self.file, stored, part.source, self.ahead);
            // Small bodies were read with their headers.
            let mut read = |buffer: &mut [u8], at| match within(&self.window, self.window_at, buffer.len(), at) {
                Some(found) => {
                    buffer.copy_from_slice(found);
                    Ok(())
                }
                None => self.file.read_exact_at(buffer, at),
            };
            holes::data_in(&part, &mut read, into)?;
        }
        Ok(())
    }
}

/// Returns `length` bytes from `at` of the file, of which `window` holds the bytes from `window_at` on.
fn within(window: &[u8], window_at: u64, length: usize, at: u64) -> Option<&[u8]> {
    let start = usize::try_from(at.checked_sub(window_at)?).ok()?;
    window.get(start..start.checked_add(length)?)
}

/// Has the kernel read what comes after `at` of what is stored, unless it was told to up to `ahead` and that is still far. It
/// does not by itself where a few bytes of every other page are read. Returns up to where it was told to.
fn read_ahead(file: &File, stored: &Stored, at: u64, ahead: u64) -> u64 {
    if ahead >= at + READ_AHEAD / 2 {
        return ahead;
    }
    let until = stored.after(at).map_or(at, |part| part.end.min(at + READ_AHEAD));
    let mut from = ahead.max(at);
    while from < until {
        let length = ADVICE.min(until - from);
        // It is an advice: without it, reading only takes longer.
        let _ = posix_fadvise(file, from as i64, length as i64, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
        from += length;
    }
    from
}

fn read_at_most(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

impl Input for FileInput {
    fn offset(&self) -> u64 {
        self.at
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let wanted = (buffer.len() - filled).min(FILE_WINDOW);
            let found = self.fill(wanted)?;
            let count = found.len().min(wanted);
            if count == 0 {
                break;
            }
            buffer[filled..filled + count].copy_from_slice(&found[..count]);
            filled += count;
            self.at += count as u64;
        }
        Ok(filled)
    }

    fn peek(&mut self, length: usize) -> Result<&[u8], TarError> {
        let found = self.fill(length.min(FILE_WINDOW))?;
        Ok(&found[..found.len().min(length)])
    }

    fn keep(&mut self, ranges: &[(u64, u64)]) -> Result<Kept, TarError> {
        let length = ranges.iter().map(|(_, length)| length).sum();
        let mut source = self.at;
        let passed = self.skip(length)?;
        if passed < length {
            return Ok(Kept::Missing(length - passed));
        }
        let mut kept = Ranges::default();
        for &(offset, length) in ranges {
            self.search(DataRange { offset, length, source }, &mut kept)
                .map_err(|error| TarError::Read { offset: source, source: error })?;
            source += length;
        }
        Ok(Kept::At(kept.into_extents()))
    }

    fn skip(&mut self, length: u64) -> Result<u64, TarError> {
        let passed = length.min(self.length.saturating_sub(self.at));
        self.at += passed;
        Ok(passed)
    }

    fn finish(&mut self) -> Result<(), TarError> {
        Ok(())
    }

    fn drain(&mut self) {}
}

/// An archive that can only be read once, such as a pipe.
pub(super) struct StreamInput<'a> {
    input: Box<dyn Read + 'a>,
    buffer: Box<[u8]>,
    /// The unread part of the buffer.
    start: usize,
    end: usize,
    at: u64,
    spool: Spool,
}

impl<'a> StreamInput<'a> {
    /// Bodies are appended to `spool`, so that several archives can share one.
    pub(super) fn new(input: Box<dyn Read + 'a>, spool: File) -> Result<Self, TarError> {
        let buffer = vec![0; STREAM_BUFFER].into_boxed_slice();
        let spool = Spool::new(spool).map_err(|source| TarError::Spool { source })?;
        Ok(StreamInput { input, buffer, start: 0, end: 0, at: 0, spool })
    }

    /// Moves the unread bytes to the front of the buffer and reads once more from the input.
    fn refill(&mut self) -> Result<(), TarError> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let count = loop {
            match self.input.read(&mut self.buffer[self.end..]) {
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TarError::Read { offset: self.at, source }),
            }
        };
        self.end += count;
        Ok(())
    }

    /// Passes the next `length` bytes to `take` in pieces. Returns how many of them there were.
    fn each(&mut self, length: u64, mut take: impl FnMut(&[u8])) -> Result<u64, TarError> {
        let mut left = length;
        while left > 0 {
            if self.start == self.end {
                self.refill()?;
                if self.start == self.end {
                    break;
                }
            }
            let count = usize::try_from(left).map_or(self.end - self.start, |left| left.min(self.end - self.start));
            take(&self.buffer[self.start..self.start + count]);
            self.start += count;
            self.at += count as u64;
            left -= count as u64;
        }
        Ok(length - left)
    }

    /// Appends the next `length` bytes, which are at `offset` of a body, to the spool. Returns how many of them there were.
    fn spool(&mut self, mut offset: u64, length: u64, kept: &mut Ranges) -> Result<u64, TarError> {
        let end = offset + length;
        while offset < end {
            // Pieces end with a block of the file, so that none is looked at in two halves.
            let block_left = (BLOCK - offset % BLOCK).min(end - offset) as usize;
            let found = self.peek(block_left)?.len();
            if found == 0 {
                break;
            }
            let buffered = ((self.end - self.start) as u64).min(end - offset);
            let count = match buffered {
                _ if found < block_left => found as u64,
                all if offset + all == end => all,
                some => some - (offset + some) % BLOCK,
            };
            let piece = &self.buffer[self.start..self.start + count as usize];
            self.spool.append(offset, piece, kept).map_err(|source| TarError::Spool { source })?;
            self.start += count as usize;
            self.at += count;
            offset += count;
        }
        Ok(length - (end - offset))
    }
}

impl Input for StreamInput<'_> {
    fn offset(&self) -> u64 {
        self.at
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let mut filled = 0;
        self.each(buffer.len() as u64, |piece| {
            buffer[filled..filled + piece.len()].copy_from_slice(piece);
            filled += piece.len();
        })?;
        Ok(filled)
    }

    fn peek(&mut self, length: usize) -> Result<&[u8], TarError> {
        while self.end - self.start < length.min(STREAM_BUFFER) {
            let before = self.end - self.start;
            self.refill()?;
            if self.end - self.start == before {
                break;
            }
        }
        let found = &self.buffer[self.start..self.end];
        Ok(&found[..found.len().min(length)])
    }

    fn keep(&mut self, ranges: &[(u64, u64)]) -> Result<Kept, TarError> {
        let mut kept = Ranges::default();
        let mut left: u64 = ranges.iter().map(|(_, length)| length).sum();
        for &(offset, length) in ranges {
            let passed = self.spool(offset, length, &mut kept)?;
            left -= passed;
            if passed < length {
                return Ok(Kept::Missing(left));
            }
        }
        Ok(Kept::At(kept.into_extents()))
    }

    fn skip(&mut self, length: u64) -> Result<u64, TarError> {
        self.each(length, |_| ())
    }

    fn finish(&mut self) -> Result<(), TarError> {
        self.spool.flush().map_err(|source| TarError::Spool { source })
    }

    fn drain(&mut self) {
        let mut left = DRAIN_MAX;
        self.start = self.end;
        while left > 0 && self.refill().is_ok() && self.start < self.end {
            left = left.saturating_sub((self.end - self.start) as u64);
            self.start = self.end;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_that_shrinks_while_it_is_searched_is_an_error() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 64 << 10]).unwrap();
        let mut input = FileInput::new(file.try_clone().unwrap()).unwrap();
        file.set_len(40_000).unwrap();
        assert!(matches!(input.keep(&[(0, 32 << 10)]), Ok(Kept::At(_))));
        let kept = input.keep(&[(0, 32 << 10)]);
        assert!(matches!(kept, Err(TarError::Read { offset: 32_768, .. })));
    }
}
