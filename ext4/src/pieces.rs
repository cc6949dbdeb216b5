//! Finished pieces of the image on their way into the file. A thread of their own writes them, so that the next ones are
//! read meanwhile, and hands each to the digest where one is wanted.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::{self, Scope, ScopedJoinHandle};

use nix::fcntl::{FallocateFlags, fallocate};
use snug_rootfs::digest::StreamHash;

use super::Meter;
use super::structures::BLOCK;

/// Pieces that may wait to be written. Few, so that they are still in a cache when it comes to them.
const WAITING: usize = 2;
/// Zero blocks in a row from which on a hole in the image file is worth its own write call.
const HOLE: usize = 8;

/// The file that becomes the image.
#[derive(Clone, Copy)]
pub struct ImageFile<'a> {
    pub file: &'a File,
    /// Is told of what is written.
    pub meter: &'a dyn Meter,
}

/// The beginning of a buffer, and where in the image it belongs.
pub struct Piece {
    /// In bytes.
    pub start: u64,
    pub buffer: Vec<u8>,
    /// Bytes of the buffer that count; whole blocks.
    pub filled: usize,
    /// The place in the file is reserved: what stays a hole must be given back.
    pub reserved: bool,
}

/// The way to the thread, and back from it.
pub struct Pieces<'scope> {
    full: SyncSender<Piece>,
    empty: Receiver<Vec<u8>>,
    thread: ScopedJoinHandle<'scope, io::Result<Option<StreamHash>>>,
    /// Buffers that were handed out beside the caller's own.
    lent: usize,
}

impl<'scope> Pieces<'scope> {
    /// Starts the thread.
    pub fn start(
        scope: &'scope Scope<'scope, '_>,
        image: ImageFile<'scope>,
        mut hash: Option<StreamHash>,
    ) -> io::Result<Self> {
        let (full, pieces) = sync_channel::<Piece>(WAITING);
        let (back, empty) = channel();
        let work = move || {
            for piece in pieces {
                image.write(&piece)?;
                image.meter.advance(piece.filled as u64);
                let buffer = match &mut hash {
                    Some(hash) => hash.take(piece.start, piece.buffer, piece.filled),
                    None => piece.buffer,
                };
                // Nobody may be waiting for it any more.
                let _ = back.send(buffer);
            }
            Ok(hash)
        };
        let thread = thread::Builder::new().name("image".into()).spawn_scoped(scope, work)?;
        Ok(Pieces { full, empty, thread, lent: 0 })
    }

    /// Takes a piece, and answers another buffer; a new one is empty. An error here says no more than that the thread has
    /// ended; [`Self::finish`] says why.
    pub fn take(&mut self, piece: Piece) -> io::Result<Vec<u8>> {
        let ended = || io::Error::other("the image is no longer written");
        self.full.send(piece).map_err(|_| ended())?;
        if self.lent <= WAITING {
            self.lent += 1;
            return Ok(self.empty.try_recv().unwrap_or_default());
        }
        self.empty.recv().map_err(|_| ended())
    }

    /// Waits until all is written, and gives the digest back.
    pub fn finish(self) -> io::Result<Option<StreamHash>> {
        drop(self.full);
        self.thread.join().expect("writing does not panic")
    }
}

impl ImageFile<'_> {
    /// Writes what is not zero.
    fn write(&self, piece: &Piece) -> io::Result<()> {
        let filled = &piece.buffer[..piece.filled];
        let (blocks, _) = filled.as_chunks::<BLOCK>();
        let place = |block: usize| piece.start + (block * BLOCK) as u64;
        let mut from = 0;
        while from < blocks.len() {
            let data = data_blocks(&blocks[from..]);
            if data > 0 {
                self.file.write_all_at(&filled[from * BLOCK..(from + data) * BLOCK], place(from))?;
            }
            from += data;
            let zeros = blocks[from..].iter().take_while(|block| is_zero(block)).count();
            if zeros > 0 && piece.reserved {
                self.give_back(place(from), (zeros * BLOCK) as u64)?;
            }
            from += zeros;
        }
        Ok(())
    }

    /// Reserves disk for bytes that are about to be written: a full disk shows now, and each write finds its place instead of
    /// looking for one (a sixth of the time that writing takes on ext4). Answers `false` where the host's filesystem cannot.
    pub fn reserve(&self, offset: u64, length: u64) -> io::Result<bool> {
        self.allocate(FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, length)
    }

    fn give_back(&self, offset: u64, length: u64) -> io::Result<()> {
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        self.allocate(punch, offset, length).map(drop)
    }

    /// fallocate(2); a full disk and a failing one are errors, everything else is a filesystem that cannot.
    fn allocate(&self, flags: FallocateFlags, offset: u64, length: u64) -> io::Result<bool> {
        let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else { return Ok(false) };
        match fallocate(self.file, flags, offset, length) {
            Ok(()) => Ok(true),
            Err(error @ (nix::Error::ENOSPC | nix::Error::EDQUOT | nix::Error::EIO | nix::Error::EFBIG)) => {
                Err(error.into())
            }
            Err(_) => Ok(false),
        }
    }
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn reserved_zeros_are_holes_again_and_data_is_where_it_was_put() {
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
        let reserved = image.reserve(length, length).unwrap();
        thread::scope(|scope| {
            let mut pieces = Pieces::start(scope, image, Some(StreamHash::start().unwrap())).unwrap();
            pieces.take(Piece { start: length, buffer, filled: BLOCKS * BLOCK, reserved }).unwrap();
            pieces.finish().unwrap()
        });
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes[..BLOCKS * BLOCK].iter().all(|byte| *byte == 0) && bytes[BLOCKS * BLOCK..] == expected);
        // st_blocks counts 512-byte units. A tmpfs, whose pages may be huge ones, takes what it likes.
        if reserved && !is_tmpfs(&path) {
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
            let mut pieces = Pieces::start(scope, image, None).unwrap();
            let piece = || Piece { start: 0, buffer: vec![1; BLOCK], filled: BLOCK, reserved: false };
            while pieces.take(piece()).is_ok() {}
            pieces.finish().map(drop).unwrap_err()
        });
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
