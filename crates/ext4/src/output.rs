//! The image file, gathered into pieces from front to back: metadata as bytes, bodies straight from their source.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::thread::Scope;

use nix::sys::uio::preadv;
use snug_rootfs::digest::StreamHash;
use snug_rootfs::tree::{Body, BodySource};

use super::on_disk::BLOCK;
use super::writer_thread::{ImageFile, Piece, Pieces};

/// Bytes that are gathered before they are handed on: large enough that waking the other thread does not count, small
/// enough to stay in the processor's shared cache until they are written. A quarter of it costs a twelfth more; twice of it
/// falls out of the cache. Pieces end at multiples of it in the image.
const BUFFER: usize = 1 << 20;
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
pub(crate) struct Output<'scope> {
    bodies: &'scope BodySource,
    pieces: Pieces<'scope>,
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

impl<'scope> Output<'scope> {
    /// With a `hash`, all that is put is given to it as well. `solid` are ranges in bytes, ascending, all of which will be put.
    pub(crate) fn start(
        scope: &'scope Scope<'scope, '_>,
        file: ImageFile<'scope>,
        solid: Vec<Range<u64>>,
        bodies: &'scope BodySource,
        hash: Option<StreamHash>,
    ) -> io::Result<Self> {
        Ok(Output {
            bodies,
            pieces: Pieces::start(scope, file, solid, hash)?,
            buffer: vec![0; BUFFER],
            start: 0,
            filled: 0,
            capacity: BUFFER,
            reads: Vec::new(),
            void: vec![0; VOID],
        })
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
    pub(crate) fn put(&mut self, block: u64, mut bytes: &[u8]) -> io::Result<()> {
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

    /// A block of zeros at `block`, to be filled in: into a buffer that another processor read last, zeros come quicker than
    /// copies of what is made elsewhere.
    pub(crate) fn block(&mut self, block: u64) -> io::Result<&mut [u8; BLOCK]> {
        let (at, length) = self.room(block * BLOCK as u64, BLOCK)?;
        let place = <&mut [u8; BLOCK]>::try_from(&mut self.buffer[at..at + length]);
        let place = place.expect("the buffer ends with a block");
        place.fill(0);
        Ok(place)
    }

    /// Puts `blocks` blocks of a body, from its block `logical` on, from `block` on; zeros where it has no data.
    pub(crate) fn put_body(&mut self, block: u64, body: &Body, logical: u32, blocks: u32) -> io::Result<()> {
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

    /// Reads what is missing and has the buffer written.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.read()?;
        if self.filled == 0 {
            return Ok(());
        }
        let buffer = std::mem::take(&mut self.buffer);
        let piece = Piece { start: self.start, buffer, filled: self.filled };
        self.buffer = self.pieces.take(piece)?;
        self.buffer.resize(BUFFER, 0);
        self.start += self.filled as u64;
        self.filled = 0;
        Ok(())
    }

    /// Waits until all is written that was flushed, and gives the digest back.
    pub(crate) fn finish(self) -> io::Result<Option<StreamHash>> {
        self.pieces.finish()
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
            // Addresses in one file differ by bytes, those of two by far more than a gap.
            let together = match self.bodies.file_at(first.source) {
                Some((file, offset)) if count > 1 => {
                    read_together(file, offset, now, &mut self.buffer, &mut self.void)?
                }
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

/// One vectored read over all of `reads`, the first of which stands at `offset` of the file; `false` where it came short and each must be read on its own.
fn read_together(file: &File, offset: u64, reads: &[Read], buffer: &mut [u8], void: &mut [u8]) -> io::Result<bool> {
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
    let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(preadv(file, &mut pieces, offset)? == total)
}
