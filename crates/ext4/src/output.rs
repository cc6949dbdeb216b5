//! Composes the image in chunks from front to back: metadata as bytes, file contents read straight from their source.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::thread::Scope;

use nix::sys::uio::preadv;
use snug_rootfs::digest::StreamHash;
use snug_rootfs::tree::{Body, BodySource};

use super::on_disk::BLOCK;
use super::writer_thread::{Chunk, ImageFile, WriterThread};

/// Bytes of a chunk: enough that waking the other thread costs little, few enough to stay in the processor's shared cache
/// until they are written. With a quarter of it a write takes a twelfth longer; twice as much does not fit the cache. Chunks
/// end at multiples of it in the image.
const BUFFER: usize = 1 << 20;
/// The longest gap in bytes between two bodies in the source that is read and discarded to save a system call: the headers
/// and padding of a tar.
const MAX_GAP: u64 = 16 << 10;
/// Bytes of all gaps in one vectored read.
const MAX_GAPS: usize = 64 << 10;
/// Bodies of one vectored read; Linux takes 1024 buffers (`UIO_MAXIOV`), half of them for gaps.
const MAX_READS: usize = 512;

/// A part of the buffer that is still to be read from the source of the bodies.
#[derive(Debug, Clone, Copy)]
struct Read {
    /// Offset in the source in bytes.
    source: u64,
    /// Offset in the buffer in bytes.
    at: usize,
    /// In bytes.
    length: usize,
}

/// Collects adjacent blocks into chunks; a jump begins another chunk. Blocks must come in ascending order; blocks that are
/// never written are holes.
pub(crate) struct Output<'scope> {
    bodies: &'scope BodySource,
    writer: WriterThread<'scope>,
    buffer: Vec<u8>,
    /// Offset of the buffer in the image in bytes.
    start: u64,
    filled: usize,
    /// Bytes up to which the buffer is filled before it is written.
    capacity: usize,
    reads: Vec<Read>,
    /// Where gaps are read to.
    discarded: Vec<u8>,
}

impl<'scope> Output<'scope> {
    /// Starts the writer thread, which also feeds `hash` if there is one. `dense_ranges` are ascending ranges in bytes that
    /// will be written without a gap.
    pub(crate) fn start(
        scope: &'scope Scope<'scope, '_>,
        file: ImageFile<'scope>,
        dense_ranges: Vec<Range<u64>>,
        bodies: &'scope BodySource,
        hash: Option<StreamHash<'scope>>,
    ) -> io::Result<Self> {
        Ok(Output {
            bodies,
            writer: WriterThread::start(scope, file, dense_ranges, hash)?,
            buffer: vec![0; BUFFER],
            start: 0,
            filled: 0,
            capacity: BUFFER,
            reads: Vec::new(),
            discarded: vec![0; MAX_GAPS],
        })
    }

    /// Makes space for up to `length` bytes at `offset` of the image; returns where in the buffer, and how many.
    fn allocate(&mut self, offset: u64, length: usize) -> io::Result<(usize, usize)> {
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

    /// Writes whole blocks, the first as block `block`.
    pub(crate) fn put(&mut self, block: u64, mut bytes: &[u8]) -> io::Result<()> {
        let mut offset = block * BLOCK as u64;
        while !bytes.is_empty() {
            let (at, length) = self.allocate(offset, bytes.len())?;
            let (now, later) = bytes.split_at(length);
            self.buffer[at..at + length].copy_from_slice(now);
            offset += length as u64;
            bytes = later;
        }
        Ok(())
    }

    /// Returns block `block` as zeros to be filled in. The buffer was last read by another processor: zeroing it is quicker
    /// than copying a block composed elsewhere.
    pub(crate) fn block(&mut self, block: u64) -> io::Result<&mut [u8; BLOCK]> {
        let (at, length) = self.allocate(block * BLOCK as u64, BLOCK)?;
        let bytes = <&mut [u8; BLOCK]>::try_from(&mut self.buffer[at..at + length]);
        let bytes = bytes.expect("the buffer ends with a block");
        bytes.fill(0);
        Ok(bytes)
    }

    /// Writes `blocks` blocks of a body from its block `logical` on, the first as block `block`; holes become zeros.
    pub(crate) fn put_body(&mut self, block: u64, body: &Body, logical: u32, blocks: u32) -> io::Result<()> {
        let mut offset = block * BLOCK as u64;
        let mut from = u64::from(logical) * BLOCK as u64;
        let end = from + u64::from(blocks) * BLOCK as u64;
        while from < end {
            let wanted = usize::try_from(end - from).unwrap_or(BUFFER);
            let (at, length) = self.allocate(offset, wanted)?;
            self.queue_reads(at, length, body, from);
            offset += length as u64;
            from += length as u64;
        }
        Ok(())
    }

    /// Fills `length` bytes at `at` with the body from `from` on: its holes now, its data with the next flush.
    fn queue_reads(&mut self, at: usize, length: usize, body: &Body, from: u64) {
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

    /// Performs the queued reads and passes the buffer to the writer thread.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.read()?;
        if self.filled == 0 {
            return Ok(());
        }
        let buffer = std::mem::take(&mut self.buffer);
        let chunk = Chunk { start: self.start, buffer, filled: self.filled };
        self.buffer = self.writer.write(chunk)?;
        self.buffer.resize(BUFFER, 0);
        self.start += self.filled as u64;
        self.filled = 0;
        Ok(())
    }

    /// Waits until everything that was flushed is written, and returns the digest.
    pub(crate) fn finish(self) -> io::Result<Option<StreamHash<'scope>>> {
        self.writer.finish()
    }

    /// Performs the queued reads, those of bodies that are close together in the source by one call.
    fn read(&mut self) -> io::Result<()> {
        let mut reads = self.reads.as_slice();
        while let Some(first) = reads.first() {
            let mut end = first.source + first.length as u64;
            let (mut count, mut gaps) = (1, 0);
            for next in &reads[1..] {
                let gap = next.source.wrapping_sub(end);
                if count == MAX_READS || gap > MAX_GAP || gaps + gap > MAX_GAPS as u64 {
                    break;
                }
                end = next.source + next.length as u64;
                gaps += gap;
                count += 1;
            }
            let (now, later) = reads.split_at(count);
            // Reads this close together are of one file: addresses of two files differ by far more than a gap.
            let together = match self.bodies.file_at(first.source) {
                Some((file, offset)) if count > 1 => {
                    read_together(file, offset, now, &mut self.buffer, &mut self.discarded)?
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

/// Performs all of `reads`, the first of which is at `offset` of the file, by one vectored read. Returns `false` where it
/// came up short and each must be read on its own.
fn read_together(
    file: &File,
    offset: u64,
    reads: &[Read],
    buffer: &mut [u8],
    discarded: &mut [u8],
) -> io::Result<bool> {
    // All gaps could share the same bytes, but Rust lends each only once.
    let mut slices: Vec<IoSliceMut> = Vec::with_capacity(2 * reads.len());
    let (mut rest, mut discarded) = (buffer, discarded);
    let (mut position, mut total) = (0, 0);
    let mut source = reads[0].source;
    for read in reads {
        let gap = (read.source - source) as usize;
        if gap > 0 {
            let (now, later) = std::mem::take(&mut discarded).split_at_mut(gap);
            slices.push(IoSliceMut::new(now));
            discarded = later;
        }
        let (_, behind) = rest.split_at_mut(read.at - position);
        let (now, later) = behind.split_at_mut(read.length);
        slices.push(IoSliceMut::new(now));
        rest = later;
        position = read.at + read.length;
        source = read.source + read.length as u64;
        total += gap + read.length;
    }
    let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(preadv(file, &mut slices, offset)? == total)
}
