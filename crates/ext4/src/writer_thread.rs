//! The thread that writes finished chunks to the image file, and passes them to the digest if there is one, while the next
//! chunks are composed.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::thread::{self, Scope, ScopedJoinHandle};

use snug_rootfs::buffer_pool::{Producer, buffer_pool};
use snug_rootfs::digest::StreamHash;
use snug_rootfs::holes::is_zero;

use super::Meter;
use super::on_disk::BLOCK;
use super::preallocate::Preallocation;

/// Chunks that are being written or queued: few, so that they are still in the processor's cache when they are written.
const QUEUED: usize = 3;
/// The most blocks of one write call, which ends at a multiple of it in the image: the kernel caches each call as one folio
/// where it finds the memory. 128 KiB is what `cp` writes at once; where memory is fragmented, finding folios four times as
/// large takes longer than all the rest.
const BLOCKS_PER_WRITE: usize = (128 << 10) / BLOCK;
/// Zero blocks in a row from which on leaving a hole is worth another write call.
const MIN_HOLE: usize = 8;

/// The file that becomes the image.
#[derive(Clone, Copy)]
pub(crate) struct ImageFile<'a> {
    pub file: &'a File,
    pub meter: &'a dyn Meter,
}

/// A filled part of the image.
pub(crate) struct Chunk {
    /// Offset in the image in bytes.
    pub start: u64,
    pub buffer: Vec<u8>,
    /// Bytes of the buffer that are in use, from its start; whole blocks.
    pub filled: usize,
}

/// A handle to the thread.
pub(crate) struct WriterThread<'scope> {
    chunks: Producer<Chunk>,
    thread: ScopedJoinHandle<'scope, io::Result<Option<StreamHash<'scope>>>>,
}

impl<'scope> WriterThread<'scope> {
    /// Starts the thread. `dense_ranges` are ascending ranges in bytes that will be written without a gap: they are
    /// preallocated.
    pub(crate) fn start(
        scope: &'scope Scope<'scope, '_>,
        image: ImageFile<'scope>,
        dense_ranges: Vec<Range<u64>>,
        mut hash: Option<StreamHash<'scope>>,
    ) -> io::Result<Self> {
        let (chunks, consumer) = buffer_pool::<Chunk>(QUEUED);
        let mut preallocation = Preallocation::new(image.file, dense_ranges);
        let work = move || {
            while let Some(chunk) = consumer.receive() {
                preallocation.advance(chunk.start..chunk.start + chunk.filled as u64)?;
                image.write(&chunk, &mut preallocation)?;
                image.meter.advance(chunk.filled as u64);
                let buffer = match &mut hash {
                    Some(hash) => hash.take(chunk.start, chunk.buffer, chunk.filled),
                    None => chunk.buffer,
                };
                consumer.recycle(buffer);
            }
            preallocation.finish()?;
            Ok(hash)
        };
        let thread = thread::Builder::new().name("image".into()).spawn_scoped(scope, work)?;
        Ok(WriterThread { chunks, thread })
    }

    /// Queues a chunk and returns a buffer for the next one, which is empty if it is new. An error means only that the thread
    /// has ended; [`Self::finish`] returns the cause.
    pub(crate) fn write(&mut self, chunk: Chunk) -> io::Result<Vec<u8>> {
        self.chunks.send(chunk).ok_or_else(|| io::Error::other("the thread that writes the image has ended"))
    }

    /// Waits until everything is written, and returns the digest.
    pub(crate) fn finish(self) -> io::Result<Option<StreamHash<'scope>>> {
        drop(self.chunks);
        self.thread.join().expect("writing does not panic")
    }
}

impl ImageFile<'_> {
    /// Writes the blocks of `chunk` that are not zero.
    fn write(&self, chunk: &Chunk, preallocation: &mut Preallocation) -> io::Result<()> {
        let filled = &chunk.buffer[..chunk.filled];
        let (blocks, _) = filled.as_chunks::<BLOCK>();
        let offset = |block: usize| chunk.start + (block * BLOCK) as u64;
        let mut from = 0;
        while from < blocks.len() {
            let to_boundary = BLOCKS_PER_WRITE - (offset(from) / BLOCK as u64) as usize % BLOCKS_PER_WRITE;
            let data = data_blocks(&blocks[from..blocks.len().min(from + to_boundary)]);
            if data > 0 {
                self.file.write_all_at(&filled[from * BLOCK..(from + data) * BLOCK], offset(from))?;
            }
            from += data;
            let zeros = blocks[from..].iter().take_while(|block| is_zero(*block)).count();
            preallocation.skip(offset(from)..offset(from + zeros))?;
            from += zeros;
        }
        Ok(())
    }
}

/// Returns how many blocks, from the first on, go into one write: those before the first [`MIN_HOLE`] zero blocks in a row,
/// without zero blocks at the end.
fn data_blocks(blocks: &[[u8; BLOCK]]) -> usize {
    let (mut data, mut zeros) = (0, 0);
    for (at, block) in blocks.iter().enumerate() {
        if is_zero(block) {
            zeros += 1;
            if zeros == MIN_HOLE {
                break;
            }
        } else {
            zeros = 0;
            data = at + 1;
        }
    }
    data
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn preallocated_zeros_become_holes_and_data_is_at_its_offset() {
        const BLOCKS: usize = 64;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let length = (BLOCKS * BLOCK) as u64;
        file.set_len(2 * length).unwrap();
        let mut buffer = vec![0; BLOCKS * BLOCK];
        // A short hole is written, a long one and the end are not.
        for block in [0, 3, 20] {
            buffer[block * BLOCK + 7] = 1;
        }
        let expected = buffer.clone();
        let image = ImageFile { file: &file, meter: &() };
        let dense_ranges = Vec::from_iter(Some(length..2 * length));
        thread::scope(|scope| {
            let hash = Some(StreamHash::start(scope, 2 * length, |_| {}).unwrap());
            let mut writer = WriterThread::start(scope, image, dense_ranges, hash).unwrap();
            writer.write(Chunk { start: length, buffer, filled: BLOCKS * BLOCK }).unwrap();
            writer.finish().unwrap().map(StreamHash::finish)
        });
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes[..BLOCKS * BLOCK].iter().all(|byte| *byte == 0) && bytes[BLOCKS * BLOCK..] == expected);
        // st_blocks counts 512-byte units. On a tmpfs with huge pages it says nothing.
        if !is_tmpfs(&path) {
            assert_eq!(file.metadata().unwrap().blocks() * 512, 5 * BLOCK as u64);
        }
    }

    fn is_tmpfs(path: &std::path::Path) -> bool {
        use nix::sys::statfs::{TMPFS_MAGIC, statfs};
        statfs(path).unwrap().filesystem_type() == TMPFS_MAGIC
    }

    #[test]
    fn a_full_disk_ends_the_writing_with_its_own_error() {
        let file = File::options().write(true).open("/dev/full").unwrap();
        let image = ImageFile { file: &file, meter: &() };
        let error = thread::scope(|scope| {
            let mut writer = WriterThread::start(scope, image, Vec::new(), None).unwrap();
            let chunk = || Chunk { start: 0, buffer: vec![1; BLOCK], filled: BLOCK };
            while writer.write(chunk()).is_ok() {}
            writer.finish().map(drop).unwrap_err()
        });
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
