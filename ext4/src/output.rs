//! The image file, written in large pieces from front to back: metadata as bytes, bodies straight from their source.
//! A digest of the file can be taken on the way.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;

use nix::sys::uio::preadv;
use snug_rootfs::digest::{Digest, StreamHash};
use snug_rootfs::tree::{Body, BodySource};

use super::Meter;
use super::structures::BLOCK;

/// Bytes that are gathered before they are written: large enough to make calls rare, small enough to stay in a core's own
/// cache between being read and being written (1 MiB costs twice the time of either call). Pieces end at multiples of it in
/// the image, so that the kernel can cache each as one folio.
const BUFFER: usize = 256 << 10;
/// Zero blocks in a row from which on a hole in the image file is worth its own write call.
const HOLE: usize = 8;
/// Bytes between two bodies in the source that are read over instead of being skipped by another call: headers and
/// padding of a tar.
const GAP: u64 = 16 << 10;
/// Bytes of gaps in one vectored read.
const VOID: usize = 64 << 10;
/// Bodies of one vectored read; Linux takes 1024 pieces (`UIO_MAXIOV`), half of them gaps.
const PIECES: usize = 512;

/// A piece of the buffer that is still to be read from the bodies.
#[derive(Debug, Clone, Copy)]
struct Read {
    source: u64,
    at: usize,
    length: usize,
}

/// Gathers neighbouring blocks; a jump starts a new piece. Blocks are put in ascending order; what is never put stays a
/// hole.
pub struct Output<'image> {
    file: &'image File,
    bodies: &'image BodySource,
    meter: &'image dyn Meter,
    hash: Option<StreamHash>,
    buffer: Vec<u8>,
    /// Where the buffer begins in the image, in bytes.
    start: u64,
    filled: usize,
    /// Bytes up to which the buffer is filled before it is written.
    capacity: usize,
    reads: Vec<Read>,
    /// Where gaps are read to.
    void: Vec<u8>,
}

impl<'image> Output<'image> {
    /// With a `hash`, all that is put is given to it as well.
    pub fn new(
        file: &'image File,
        bodies: &'image BodySource,
        meter: &'image dyn Meter,
        hash: Option<StreamHash>,
    ) -> Self {
        Output {
            file,
            bodies,
            meter,
            hash,
            buffer: vec![0; BUFFER],
            start: 0,
            filled: 0,
            capacity: BUFFER,
            reads: Vec::new(),
            void: vec![0; VOID],
        }
    }

    /// Room for up to `length` bytes at `offset` of the image: where in the buffer, and how many.
    fn room(&mut self, offset: u64, length: usize) -> io::Result<(usize, usize)> {
        if offset != self.start + self.filled as u64 || self.filled == self.capacity {
            self.flush()?;
            assert!(offset >= self.start, "the image is written from front to back");
            self.start = offset;
            self.capacity = BUFFER - (offset % BUFFER as u64) as usize;
        }
        let length = length.min(self.capacity - self.filled);
        let at = self.filled;
        self.filled += length;
        Ok((at, length))
    }

    /// Puts whole blocks from `block` on.
    pub fn put(&mut self, block: u64, mut bytes: &[u8]) -> io::Result<()> {
        let mut offset = block * BLOCK as u64;
        while !bytes.is_empty() {
            let (at, length) = self.room(offset, bytes.len())?;
            let (now, later) = bytes.split_at(length);
            self.buffer[at..at + length].copy_from_slice(now);
            offset += length as u64;
            bytes = later;
        }
        Ok(())
    }

    /// Puts `blocks` blocks of a body, from its block `logical` on, from `block` on; zeros where it has no data.
    pub fn put_body(&mut self, block: u64, body: &Body, logical: u32, blocks: u32) -> io::Result<()> {
        let mut offset = block * BLOCK as u64;
        let mut from = u64::from(logical) * BLOCK as u64;
        let end = from + u64::from(blocks) * BLOCK as u64;
        while from < end {
            let wanted = usize::try_from(end - from).unwrap_or(BUFFER);
            let (at, length) = self.room(offset, wanted)?;
            self.gather(at, length, body, from);
            offset += length as u64;
            from += length as u64;
        }
        Ok(())
    }

    /// Fills `length` bytes at `at` with the body from `from` on: zeros now, data with the next flush.
    fn gather(&mut self, at: usize, length: usize, body: &Body, from: u64) {
        let until = from + length as u64;
        let ranges = body.extents.as_slice();
        let first = ranges.partition_point(|range| range.offset + range.length <= from);
        let place = |position: u64| at + (position - from) as usize;
        let mut done = from;
        for range in ranges[first..].iter().take_while(|range| range.offset < until) {
            let start = range.offset.max(from);
            let end = (range.offset + range.length).min(until);
            self.buffer[place(done)..place(start)].fill(0);
            let source = range.source + (start - range.offset);
            self.reads.push(Read { source, at: place(start), length: (end - start) as usize });
            done = end;
        }
        self.buffer[place(done)..place(until)].fill(0);
    }

    /// Reads what is missing and writes the buffer.
    pub fn flush(&mut self) -> io::Result<()> {
        self.read()?;
        self.write()?;
        self.meter.advance(self.filled as u64);
        if let Some(hash) = &mut self.hash {
            let full = std::mem::take(&mut self.buffer);
            self.buffer = hash.take(self.start, full, self.filled);
            self.buffer.resize(BUFFER, 0);
        }
        self.start += self.filled as u64;
        self.filled = 0;
        Ok(())
    }

    fn write(&self) -> io::Result<()> {
        let filled = &self.buffer[..self.filled];
        let (blocks, _) = filled.as_chunks::<BLOCK>();
        let mut from = 0;
        while from < blocks.len() {
            let data = data_blocks(&blocks[from..]);
            if data > 0 {
                let bytes = &filled[from * BLOCK..(from + data) * BLOCK];
                self.file.write_all_at(bytes, self.start + (from * BLOCK) as u64)?;
            }
            from += data;
            from += blocks[from..].iter().take_while(|block| is_zero(block)).count();
        }
        Ok(())
    }

    /// The digest of an image of `size` bytes, where one was asked for.
    pub fn digest(self, size: u64) -> Option<Digest> {
        debug_assert!(self.filled == 0, "flushed");
        self.hash.map(|hash| hash.finish(size))
    }

    /// Neighbouring bodies of the source in one call each, gaps between them read into the void.
    fn read(&mut self) -> io::Result<()> {
        let mut reads = self.reads.as_slice();
        while let Some(first) = reads.first() {
            let mut end = first.source + first.length as u64;
            let (mut count, mut gaps) = (1, 0);
            for next in &reads[1..] {
                let gap = next.source.wrapping_sub(end);
                if count == PIECES || gap > GAP || gaps + gap > VOID as u64 {
                    break;
                }
                end = next.source + next.length as u64;
                gaps += gap;
                count += 1;
            }
            let (now, later) = reads.split_at(count);
            let together = match self.bodies.as_file() {
                Some(file) if count > 1 => read_together(file, now, &mut self.buffer, &mut self.void)?,
                _ => false,
            };
            if !together {
                for read in now {
                    self.bodies.read_exact_at(&mut self.buffer[read.at..read.at + read.length], read.source)?;
                }
            }
            reads = later;
        }
        self.reads.clear();
        Ok(())
    }
}

/// One vectored read over all of `reads`; `false` where it came short and each must be read on its own.
fn read_together(file: &File, reads: &[Read], buffer: &mut [u8], void: &mut [u8]) -> io::Result<bool> {
    // Gaps all land in the same bytes, but a slice can be lent out once only: each gap gets its own part.
    let mut pieces: Vec<IoSliceMut> = Vec::with_capacity(2 * reads.len());
    let (mut rest, mut void) = (buffer, void);
    let (mut position, mut total) = (0, 0);
    let mut source = reads[0].source;
    for read in reads {
        let gap = (read.source - source) as usize;
        if gap > 0 {
            let (now, later) = std::mem::take(&mut void).split_at_mut(gap);
            pieces.push(IoSliceMut::new(now));
            void = later;
        }
        let (_, behind) = rest.split_at_mut(read.at - position);
        let (now, later) = behind.split_at_mut(read.length);
        pieces.push(IoSliceMut::new(now));
        rest = later;
        position = read.at + read.length;
        source = read.source + read.length as u64;
        total += gap + read.length;
    }
    let offset = i64::try_from(reads[0].source).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(preadv(file, &mut pieces, offset)? == total)
}

/// How many blocks from the first on belong to one write: up to a hole of [`HOLE`] blocks, or a shorter one at the end.
fn data_blocks(blocks: &[[u8; BLOCK]]) -> usize {
    let (mut data, mut zeros) = (0, 0);
    for (at, block) in blocks.iter().enumerate() {
        if is_zero(block) {
            zeros += 1;
            if zeros == HOLE {
                break;
            }
        } else {
            zeros = 0;
            data = at + 1;
        }
    }
    data
}

fn is_zero(block: &[u8; BLOCK]) -> bool {
    let (words, _) = block.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0)
}
