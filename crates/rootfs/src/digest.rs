//! SHA-256 of images and of file bodies, computed on separate threads while an image is written.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use sha2::{Digest as _, Sha256};

use crate::buffer_pool::{Producer, buffer_pool};
use crate::tree::{Body, BodySource, InodeId, Kind, RootTree};

/// A SHA-256 digest.
pub type Digest = [u8; 32];

/// Buffers that may wait to be hashed. Few, so that they are still in the cache when they are.
const WAITING: usize = 3;
/// Bytes read at once from a body or an image.
const PIECE: usize = 128 << 10;
/// Bodies that a thread takes at a time: neighbours in the source, and so many that threads seldom contend.
const BATCH: usize = 256;
/// A piece of a hole.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The digest of a file that is written from front to back, with gaps that read as zeros. A thread computes it.
pub struct StreamHash {
    pieces: Producer<Piece>,
    thread: JoinHandle<State>,
}

struct Piece {
    offset: u64,
    buffer: Vec<u8>,
    length: usize,
}

/// The bytes hashed so far.
struct State {
    hash: Sha256,
    /// In bytes.
    length: u64,
}

impl State {
    fn pad_to(&mut self, offset: u64) {
        while self.length < offset {
            let zeros = &ZEROS[..(offset - self.length).min(ZEROS.len() as u64) as usize];
            self.hash.update(zeros);
            self.length += zeros.len() as u64;
        }
    }
}

impl StreamHash {
    /// Starts the thread.
    pub fn start() -> io::Result<Self> {
        let (pieces, consumer) = buffer_pool::<Piece>(WAITING);
        let thread = thread::Builder::new().name("image digest".into()).spawn(move || {
            let mut state = State { hash: Sha256::new(), length: 0 };
            while let Some(piece) = consumer.receive() {
                assert!(piece.offset >= state.length, "pieces come in order");
                state.pad_to(piece.offset);
                state.hash.update(&piece.buffer[..piece.length]);
                state.length += piece.length as u64;
                consumer.recycle(piece.buffer);
            }
            state
        })?;
        Ok(StreamHash { pieces, thread })
    }

    /// Hashes the first `length` bytes of `buffer`, which are those at `offset` of the file: not before the end of the last
    /// piece. Returns another buffer to fill; a new one is empty.
    pub fn take(&mut self, offset: u64, buffer: Vec<u8>, length: usize) -> Vec<u8> {
        self.pieces.send(Piece { offset, buffer, length }).expect("the thread takes pieces until this is dropped")
    }

    /// Returns the digest of the file, which has `size` bytes.
    pub fn finish(self, size: u64) -> Digest {
        drop(self.pieces);
        let mut state = self.thread.join().expect("hashing does not panic");
        state.pad_to(size);
        state.hash.finalize().into()
    }
}

/// Computes the digest of a file.
pub fn of_file(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; PIECE]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hash.finalize().into()),
            Ok(count) => hash.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Returns a buffer for [`of_body`].
pub fn body_buffer() -> Vec<u8> {
    vec![0; PIECE]
}

/// The digests of all file bodies of a tree, holes read as zeros. They are computed from the tree's source, by no code that
/// writers of images use, so that what an image holds can be compared with them.
#[derive(Debug, Clone)]
pub struct BodyDigests(Vec<Option<Digest>>);

impl BodyDigests {
    /// Reads every body once, in the order of the source, on `threads` threads (at least one). Once `stop` is set the rest
    /// is left out: for callers that no longer need the digests.
    pub fn of(tree: &RootTree, threads: usize, stop: &AtomicBool) -> io::Result<Self> {
        let mut bodies: Vec<(InodeId, &Body)> = tree
            .entries()
            .filter(|entry| entry.hard_link_to.is_none())
            .filter_map(|entry| match &entry.inode.kind {
                Kind::File(body) => Some((entry.id, body)),
                _ => None,
            })
            .collect();
        bodies.sort_unstable_by_key(|(_, body)| body.extents.as_slice().first().map_or(0, |range| range.source));
        let batches: Vec<_> = bodies.chunks(BATCH).collect();
        let next = AtomicUsize::new(0);
        let work = || -> io::Result<Vec<(InodeId, Digest)>> {
            let (mut done, mut buffer) = (Vec::new(), body_buffer());
            while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                for (id, body) in *batch {
                    done.push((*id, of_body(tree.bodies(), body, &mut buffer)?));
                }
            }
            Ok(done)
        };
        let mut digests = vec![None; tree.inode_slots()];
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
            for worker in workers {
                for (id, digest) in worker.join().expect("hashing does not panic")? {
                    digests[RootTree::slot(id)] = Some(digest);
                }
            }
            Ok(BodyDigests(digests))
        })
    }

    /// Returns the digest of an inode; `None` where it is not a file, or has no name.
    pub fn get(&self, id: InodeId) -> Option<&Digest> {
        self.0.get(RootTree::slot(id))?.as_ref()
    }
}

/// Computes the digest of one body, its holes read as zeros, through a buffer of [`body_buffer`].
pub fn of_body(source: &BodySource, body: &Body, buffer: &mut [u8]) -> io::Result<Digest> {
    let mut state = State { hash: Sha256::new(), length: 0 };
    for range in body.extents.as_slice() {
        state.pad_to(range.offset);
        let end = range.source + range.length;
        let mut at = range.source;
        while at < end {
            let length = (end - at).min(buffer.len() as u64) as usize;
            let piece = &mut buffer[..length];
            source.read_exact_at(piece, at)?;
            state.hash.update(&*piece);
            at += piece.len() as u64;
        }
        state.length += range.length;
    }
    state.pad_to(body.size);
    Ok(state.hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{DataRange, Inode, TreePath};

    #[test]
    fn a_stream_with_gaps_has_the_digest_of_its_bytes() {
        let mut hash = StreamHash::start().unwrap();
        let mut expected = vec![0; 700_000];
        for (at, offset) in [0_usize, 4096, 12_288, 300_000, 300_010, 500_000, 600_000].into_iter().enumerate() {
            let bytes = [at as u8 + 1; 10];
            expected[offset..offset + bytes.len()].copy_from_slice(&bytes);
            // What follows the length is not hashed.
            let buffer = [&bytes[..], b"rest"].concat();
            hash.take(offset as u64, buffer, bytes.len());
        }
        assert_eq!(hash.finish(expected.len() as u64), Digest::from(Sha256::digest(&expected)));
        assert_eq!(StreamHash::start().unwrap().finish(0), Digest::from(Sha256::digest(b"")));
    }

    #[test]
    fn bodies_are_hashed_with_their_holes() {
        let mut tree = RootTree::new(BodySource::new(b"datamore".to_vec()));
        let mut file = |name: &str, body: Body| {
            tree.insert(TreePath::new(name).unwrap(), Inode::new(Kind::File(body), 0o644)).unwrap()
        };
        let sparse = [(2, 4, 0), (100_000, 4, 4)].map(|(offset, length, source)| DataRange { offset, length, source });
        let sparse = file("sparse", Body { size: 200_000, extents: sparse.into_iter().collect() });
        let whole = file("whole", Body::contiguous(8, 0));
        let empty = file("empty", Body::default());
        let directory = tree.insert(TreePath::new("directory").unwrap(), Inode::directory(0o755)).unwrap();
        let mut bytes = vec![0; 200_000];
        bytes[2..6].copy_from_slice(b"data");
        bytes[100_000..100_004].copy_from_slice(b"more");
        for threads in [1, 3] {
            let digests = BodyDigests::of(&tree, threads, &AtomicBool::new(false)).unwrap();
            assert_eq!(digests.get(sparse), Some(&Sha256::digest(&bytes).into()));
            assert_eq!(digests.get(whole), Some(&Sha256::digest(b"datamore").into()));
            assert_eq!(digests.get(empty), Some(&Sha256::digest(b"").into()));
            assert_eq!(digests.get(directory), None);
        }
    }
}
