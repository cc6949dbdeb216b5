//! Finished pieces of the image on their way into the file. A thread of their own writes them, so that the next ones are
//! read meanwhile, and hands each to the digest where one is wanted.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::thread::{self, Scope, ScopedJoinHandle};

use snug_rootfs::buffer_pool::{Relay, relay};
use snug_rootfs::digest::StreamHash;

use super::Meter;
use super::on_disk::BLOCK;
use super::preallocate::Reservation;

/// Pieces that are written or wait for it. Few, so that they are still in a cache when it comes to them.
const WAITING: usize = 3;
/// Blocks of one write call, which end at multiples of it in the image: the kernel caches each call as one folio where it finds
/// memory for it. 128 KiB is what `cp` writes at once; where memory is in pieces, looking for four times as much takes longer
/// than all the rest.
const AT_ONCE: usize = (128 << 10) / BLOCK;
/// Zero blocks in a row from which on a hole in the image file is worth its own write call.
const HOLE: usize = 8;

/// The file that becomes the image.
#[derive(Clone, Copy)]
pub(crate) struct ImageFile<'a> {
    pub file: &'a File,
    /// Is told of what is written.
    pub meter: &'a dyn Meter,
}

/// The beginning of a buffer, and where in the image it belongs.
pub(crate) struct Piece {
    /// In bytes.
    pub start: u64,
    pub buffer: Vec<u8>,
    /// Bytes of the buffer that count; whole blocks.
    pub filled: usize,
}

/// The way to the thread, and back from it.
pub(crate) struct Pieces<'scope> {
    relay: Relay<Piece>,
    thread: ScopedJoinHandle<'scope, io::Result<Option<StreamHash>>>,
}

impl<'scope> Pieces<'scope> {
    /// Starts the thread. `solid` are ranges in bytes, ascending, that will be written without a gap: disk is reserved there.
    pub(crate) fn start(
        scope: &'scope Scope<'scope, '_>,
        image: ImageFile<'scope>,
        solid: Vec<Range<u64>>,
        mut hash: Option<StreamHash>,
    ) -> io::Result<Self> {
        let (relay, runner) = relay::<Piece>(WAITING);
        let mut reservation = Reservation::new(image.file, solid);
        let work = move || {
            while let Some(piece) = runner.next() {
                reservation.advance(piece.start..piece.start + piece.filled as u64)?;
                image.write(&piece, &mut reservation)?;
                image.meter.advance(piece.filled as u64);
                let buffer = match &mut hash {
                    Some(hash) => hash.take(piece.start, piece.buffer, piece.filled),
                    None => piece.buffer,
                };
                runner.give_back(buffer);
            }
            reservation.give_back()?;
            Ok(hash)
        };
        let thread = thread::Builder::new().name("image".into()).spawn_scoped(scope, work)?;
        Ok(Pieces { relay, thread })
    }

    /// Takes a piece, and answers another buffer; a new one is empty. An error here says no more than that the thread has
    /// ended; [`Self::finish`] says why.
    pub(crate) fn take(&mut self, piece: Piece) -> io::Result<Vec<u8>> {
        self.relay.pass(piece).ok_or_else(|| io::Error::other("the image is no longer written"))
    }

    /// Waits until all is written, and gives the digest back.
    pub(crate) fn finish(self) -> io::Result<Option<StreamHash>> {
        drop(self.relay);
        self.thread.join().expect("writing does not panic")
    }
}

impl ImageFile<'_> {
    /// Writes what is not zero.
    fn write(&self, piece: &Piece, reservation: &mut Reservation) -> io::Result<()> {
        let filled = &piece.buffer[..piece.filled];
        let (blocks, _) = filled.as_chunks::<BLOCK>();
        let place = |block: usize| piece.start + (block * BLOCK) as u64;
        let mut from = 0;
        while from < blocks.len() {
            let to_boundary = AT_ONCE - (place(from) / BLOCK as u64) as usize % AT_ONCE;
            let data = data_blocks(&blocks[from..blocks.len().min(from + to_boundary)]);
            if data > 0 {
                self.file.write_all_at(&filled[from * BLOCK..(from + data) * BLOCK], place(from))?;
            }
            from += data;
            let zeros = blocks[from..].iter().take_while(|block| is_zero(block)).count();
            reservation.skip(place(from)..place(from + zeros))?;
            from += zeros;
        }
        Ok(())
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
        let solid = Vec::from_iter(Some(length..2 * length));
        thread::scope(|scope| {
            let mut pieces = Pieces::start(scope, image, solid, Some(StreamHash::start().unwrap())).unwrap();
            pieces.take(Piece { start: length, buffer, filled: BLOCKS * BLOCK }).unwrap();
            pieces.finish().unwrap()
        });
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes[..BLOCKS * BLOCK].iter().all(|byte| *byte == 0) && bytes[BLOCKS * BLOCK..] == expected);
        // st_blocks counts 512-byte units. A tmpfs, whose pages may be huge ones, takes what it likes.
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
            let mut pieces = Pieces::start(scope, image, Vec::new(), None).unwrap();
            let piece = || Piece { start: 0, buffer: vec![1; BLOCK], filled: BLOCK };
            while pieces.take(piece()).is_ok() {}
            pieces.finish().map(drop).unwrap_err()
        });
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
