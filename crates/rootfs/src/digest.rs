//! SHA-256 of images and of file contents, computed on separate threads while an image is written.

use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, Scope, ScopedJoinHandle};

use base16ct::lower::encode_string as hex;
use sha2::{Digest as _, Sha256};

use crate::body::BLOCK;
use crate::buffer_pool::{Producer, buffer_pool};
use crate::holes;
use crate::regular_file;
use crate::tree::{Body, BodySource, InodeId, Kind, RootTree};

/// A SHA-256 digest.
pub type Digest = [u8; 32];

/// The digest of a file's content, in one of two forms, which the content alone decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentDigest {
    /// SHA-256 of the whole content, holes read as zeros.
    Whole(Digest),
    /// Of a file with more than [`MAX_HASHED_HOLES`] bytes in blocks of zeros, so that its digest costs what its data cost:
    /// SHA-256 over its size and, for each block of 4096 bytes that is not all zeros, in order, the offset of the block and
    /// its bytes, which are fewer in a last block that is not whole. Both numbers are of eight bytes, little-endian.
    Data(Digest),
}

impl fmt::Display for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ContentDigest::Whole(digest) => f.write_str(&hex(digest)),
            ContentDigest::Data(digest) => write!(f, "{} of its data", hex(digest)),
        }
    }
}

/// The most bytes of a file in blocks of zeros that are hashed as such: below a second of time.
pub const MAX_HASHED_HOLES: u64 = 1 << 30;

/// Buffers that may wait to be hashed. Few, so that they are still in the cache when they are.
const WAITING: usize = 3;
/// Bytes read at once from a body or an image.
const PIECE: usize = 128 << 10;
/// Bodies that a thread takes at a time: neighbours in the source, and so many that threads seldom contend.
const BATCH: usize = 256;
/// A piece of a hole.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The digest of a file that is written from front to back, with gaps that read as zeros. A thread computes it.
pub struct StreamHash<'scope> {
    /// Of the file, in bytes.
    size: u64,
    pieces: Producer<Piece>,
    thread: ScopedJoinHandle<'scope, State>,
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
    /// Hashes zeros up to `offset`. `advance` is called with the bytes of each step.
    fn pad_to(&mut self, offset: u64, advance: &mut dyn FnMut(u64)) {
        while self.length < offset {
            let zeros = &ZEROS[..(offset - self.length).min(ZEROS.len() as u64) as usize];
            self.hash.update(zeros);
            self.length += zeros.len() as u64;
            advance(zeros.len() as u64);
        }
    }
}

impl<'scope> StreamHash<'scope> {
    /// Starts the thread. The file has `size` bytes; `advance` is called with the bytes that were hashed.
    pub fn start(
        scope: &'scope Scope<'scope, '_>,
        size: u64,
        mut advance: impl FnMut(u64) + Send + 'scope,
    ) -> io::Result<Self> {
        let (pieces, consumer) = buffer_pool::<Piece>(WAITING);
        let thread = thread::Builder::new().name("image digest".into()).spawn_scoped(scope, move || {
            let mut state = State { hash: Sha256::new(), length: 0 };
            while let Some(piece) = consumer.receive() {
                assert!(piece.offset >= state.length, "pieces come in order");
                state.pad_to(piece.offset, &mut advance);
                state.hash.update(&piece.buffer[..piece.length]);
                state.length += piece.length as u64;
                advance(piece.length as u64);
                consumer.recycle(piece.buffer);
            }
            state
        })?;
        Ok(StreamHash { size, pieces, thread })
    }

    /// Hashes the first `length` bytes of `buffer`, which are those at `offset` of the file: not before the end of the last
    /// piece. Returns another buffer to fill; a new one is empty.
    pub fn take(&mut self, offset: u64, buffer: Vec<u8>, length: usize) -> Vec<u8> {
        self.pieces.send(Piece { offset, buffer, length }).expect("the thread takes pieces until this is dropped")
    }

    /// Returns the digest of the file.
    pub fn finish(mut self) -> Digest {
        // Only a file that was written whole is hashed to its end.
        self.take(self.size, Vec::new(), 0);
        drop(self.pieces);
        self.thread.join().expect("hashing does not panic").hash.finalize().into()
    }
}

/// Computes the digest of a regular file, or of a block device. `advance` is called with the bytes of each step.
pub fn of_file(path: &Path, advance: &mut dyn FnMut(u64)) -> io::Result<Digest> {
    of_reader(regular_file::open_finite(path)?, advance)
}

/// As [`of_file`], of all that is left to read.
pub fn of_reader(mut input: impl Read, advance: &mut dyn FnMut(u64)) -> io::Result<Digest> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; PIECE]);
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return Ok(hash.finalize().into()),
            Ok(count) => {
                hash.update(&buffer[..count]);
                advance(count as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Returns a buffer for [`of_body`].
pub fn body_buffer() -> Vec<u8> {
    vec![0; PIECE]
}

/// The digests of all file bodies of a tree. They are computed from the tree's source, by no code that
/// writers of images use, so that what an image holds can be compared with them.
#[derive(Debug, Clone)]
pub struct BodyDigests(Vec<Option<ContentDigest>>);

impl BodyDigests {
    /// Reads every body once, in the order of the source, on `threads` threads (at least one). Once `stop` is set the rest
    /// is left out: for callers that no longer need the digests. `advance` is called with the bytes of data of each body.
    pub fn of(tree: &RootTree, threads: usize, stop: &AtomicBool, advance: &(dyn Fn(u64) + Sync)) -> io::Result<Self> {
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
        let work = || -> io::Result<Vec<(InodeId, ContentDigest)>> {
            let (mut done, mut buffer) = (Vec::new(), body_buffer());
            while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                for (id, body) in *batch {
                    done.push((*id, of_body(tree.bodies(), body, &mut buffer)?));
                    advance(body.data_bytes());
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
    pub fn get(&self, id: InodeId) -> Option<&ContentDigest> {
        self.0.get(RootTree::slot(id))?.as_ref()
    }
}

/// Computes the digest of one body through a buffer of [`body_buffer`].
pub fn of_body(source: &BodySource, body: &Body, buffer: &mut [u8]) -> io::Result<ContentDigest> {
    let mut hash = ContentHash::new(body.size);
    if body.size > MAX_HASHED_HOLES {
        let body = holes::without_zeros(body, |buffer, at| source.read_exact_at(buffer, at))?;
        hash.decide(body.hole_bytes());
    }
    for run in body.runs() {
        let mut at = run.start;
        while at < run.end {
            let length = (run.end - at).min(buffer.len() as u64) as usize;
            let piece = &mut buffer[..length];
            source.read_body_at(piece, body, at)?;
            hash.update(at, piece);
            at += length as u64;
        }
    }
    Ok(hash.finish())
}

/// The digest of a content that goes by from its start to its end, with gaps that read as zeros.
pub struct ContentHash {
    size: u64,
    /// Bytes in blocks of zeros so far.
    zeros: u64,
    /// End of what has gone by.
    end: u64,
    whole: Option<State>,
    data: Option<Sha256>,
}

impl ContentHash {
    /// Of a content of `size` bytes, at least `holes` of which are in blocks of zeros.
    pub fn with_holes(size: u64, holes: u64) -> Self {
        let mut hash = ContentHash::new(size);
        if holes > MAX_HASHED_HOLES {
            hash.decide(holes);
        }
        hash
    }

    /// Of a content of `size` bytes. As long as it may have too many zeros, both digests are computed.
    pub fn new(size: u64) -> Self {
        let whole = Some(State { hash: Sha256::new(), length: 0 });
        let data = (size > MAX_HASHED_HOLES).then(|| Sha256::new_with_prefix(size.to_le_bytes()));
        ContentHash { size, zeros: 0, end: 0, whole, data }
    }

    /// Settles which digest it will be, where all bytes in blocks of zeros are known.
    fn decide(&mut self, zeros: u64) {
        match zeros > MAX_HASHED_HOLES {
            true => self.whole = None,
            false => self.data = None,
        }
    }

    /// Hashes the next bytes, which are at `offset`, a multiple of [`BLOCK`], and end with a block or with the content.
    pub fn update(&mut self, offset: u64, bytes: &[u8]) {
        debug_assert!(offset.is_multiple_of(BLOCK) && offset >= self.end);
        self.pass_zeros(offset - self.end);
        self.end = offset;
        let Some(data) = &mut self.data else {
            self.end += bytes.len() as u64;
            return self.update_whole(offset, bytes);
        };
        let parts: Vec<_> = holes::data_parts(offset, bytes).collect();
        for part in &parts {
            for (block, at) in bytes[part.clone()].chunks(BLOCK as usize).zip((part.start..).step_by(BLOCK as usize)) {
                data.update((offset + at as u64).to_le_bytes());
                data.update(block);
            }
        }
        let mut done = 0;
        for part in parts {
            self.pass_zeros((part.start - done) as u64);
            done = part.end;
            self.update_whole(offset + part.start as u64, &bytes[part]);
        }
        self.pass_zeros((bytes.len() - done) as u64);
        self.end += bytes.len() as u64;
    }

    fn update_whole(&mut self, offset: u64, bytes: &[u8]) {
        if let Some(whole) = &mut self.whole {
            whole.pad_to(offset, &mut |_| {});
            whole.hash.update(bytes);
            whole.length += bytes.len() as u64;
        }
    }

    fn pass_zeros(&mut self, bytes: u64) {
        self.zeros += bytes;
        if self.zeros > MAX_HASHED_HOLES {
            self.whole = None;
        }
    }

    /// Returns the digest of the whole content.
    pub fn finish(mut self) -> ContentDigest {
        self.pass_zeros(self.size - self.end);
        match (self.whole, self.data) {
            (Some(mut whole), _) => {
                whole.pad_to(self.size, &mut |_| {});
                ContentDigest::Whole(whole.hash.finalize().into())
            }
            (None, Some(data)) => ContentDigest::Data(data.finalize().into()),
            (None, None) => unreachable!("a content that may have too many zeros has both"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{DataRange, Inode, TreePath};

    #[test]
    fn a_stream_with_gaps_has_the_digest_of_its_bytes() {
        let mut expected = vec![0; 700_000];
        let hashed = AtomicUsize::new(0);
        let advance = |bytes| {
            hashed.fetch_add(bytes as usize, Ordering::Relaxed);
        };
        let digest = thread::scope(|scope| {
            let mut hash = StreamHash::start(scope, expected.len() as u64, advance).unwrap();
            for (at, offset) in [0_usize, 4096, 12_288, 300_000, 300_010, 500_000, 600_000].into_iter().enumerate() {
                let bytes = [at as u8 + 1; 10];
                expected[offset..offset + bytes.len()].copy_from_slice(&bytes);
                // What follows the length is not hashed.
                let buffer = [&bytes[..], b"rest"].concat();
                hash.take(offset as u64, buffer, bytes.len());
            }
            hash.finish()
        });
        assert_eq!(digest, Digest::from(Sha256::digest(&expected)));
        assert_eq!(hashed.into_inner(), expected.len());
        let empty = thread::scope(|scope| StreamHash::start(scope, 0, |_| {}).unwrap().finish());
        assert_eq!(empty, Digest::from(Sha256::digest(b"")));
    }

    fn digests(tree: &RootTree, threads: usize) -> BodyDigests {
        BodyDigests::of(tree, threads, &AtomicBool::new(false), &|_| {}).unwrap()
    }

    fn whole(bytes: &[u8]) -> ContentDigest {
        ContentDigest::Whole(Sha256::digest(bytes).into())
    }

    #[test]
    fn bodies_are_hashed_with_their_holes() {
        let mut tree = RootTree::new(BodySource::new(b"datamore".to_vec()));
        let mut file = |name: &str, body: Body| {
            tree.insert(TreePath::new(name).unwrap(), Inode::new(Kind::File(body), 0o644)).unwrap()
        };
        let sparse = [(2, 4, 0), (100_000, 4, 4)].map(|(offset, length, source)| DataRange { offset, length, source });
        let sparse = file("sparse", Body { size: 200_000, extents: sparse.into_iter().collect() });
        let plain = file("plain", Body::contiguous(8, 0));
        let empty = file("empty", Body::default());
        let directory = tree.insert(TreePath::new("directory").unwrap(), Inode::directory(0o755)).unwrap();
        let mut bytes = vec![0; 200_000];
        bytes[2..6].copy_from_slice(b"data");
        bytes[100_000..100_004].copy_from_slice(b"more");
        for threads in [1, 3] {
            let digests = digests(&tree, threads);
            assert_eq!(digests.get(sparse), Some(&whole(&bytes)));
            assert_eq!(digests.get(plain), Some(&whole(b"datamore")));
            assert_eq!(digests.get(empty), Some(&whole(b"")));
            assert_eq!(digests.get(directory), None);
        }
    }

    /// The definition in the documentation, written once more.
    fn by_definition(size: u64, blocks: &[(u64, &[u8])]) -> ContentDigest {
        let mut hash = Sha256::new_with_prefix(size.to_le_bytes());
        for (offset, bytes) in blocks {
            hash.update(offset.to_le_bytes());
            hash.update(bytes);
        }
        ContentDigest::Data(hash.finalize().into())
    }

    #[test]
    fn a_file_of_holes_is_hashed_by_its_data_however_they_are_stated() {
        const SIZE: u64 = (8 << 30) + 100;
        // Two blocks of data, zeros, and the last block, which is not whole.
        let mut source = vec![0; 5 * 4096];
        source[5] = 1;
        source[4096..8192].fill(2);
        source[16_383] = 3;
        let last = SIZE / 4096 * 4096;
        let expected = by_definition(
            SIZE,
            &[
                (1 << 32, &source[..4096]),
                ((1 << 32) + 4096, &source[4096..8192]),
                (last, &source[16_384 - 100..16_384]),
            ],
        );
        let stated = [
            // All that is there, with zeros.
            vec![(1 << 32, 3 * 4096, 0), (last, 100, 16_384 - 100)],
            // What is not zero, to the byte.
            vec![((1 << 32) + 5, 1, 5), ((1 << 32) + 4096, 4096, 4096), (last + 99, 1, 16_383)],
            // In pieces.
            vec![(1 << 20, 4096, 8192), (1 << 32, 4096, 0), ((1 << 32) + 4096, 4096, 4096), (last, 100, 16_384 - 100)],
        ];
        for ranges in stated {
            let range = |(offset, length, source)| DataRange { offset, length, source };
            let body = Body { size: SIZE, extents: ranges.into_iter().map(range).collect() };
            let found = of_body(&BodySource::new(source.clone()), &body, &mut body_buffer()).unwrap();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_stream_of_holes_is_hashed_as_a_body_is() {
        let size = MAX_HASHED_HOLES + 2 * BLOCK;
        for data in [&[0_u64][..], &[0, size - BLOCK], &[BLOCK]] {
            let mut source = vec![0; 8192];
            source[4000] = 7;
            let mut hash = ContentHash::new(size);
            let ranges = data.iter().map(|&offset| {
                // Of two blocks the second is zeros.
                let length = (size - offset).min(2 * BLOCK);
                hash.update(offset, &source[..length as usize]);
                DataRange { offset, length, source: 0 }
            });
            let body = Body { size, extents: ranges.collect() };
            let found = hash.finish();
            assert_eq!(of_body(&BodySource::new(source), &body, &mut body_buffer()).unwrap(), found);
            // With two blocks of data, as many zeros are left as are hashed.
            assert_eq!(matches!(found, ContentDigest::Whole(_)), data.len() == 2, "{data:?}");
        }
    }
}
