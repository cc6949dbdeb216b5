//! Blocks of zeros are holes, whatever an archive says of them: a file takes as many blocks as it has blocks of content, and
//! the same content has the same [`runs`](Body::runs), whether it came as a sparse file or with its zeros written out.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use nix::unistd::{Whence, lseek64};

use super::body::{BLOCK, Body, BodySource, DataRange, Extents};
use super::inode::{InodeId, Kind};
use super::tree::RootTree;

/// Bytes at the start of a block that are looked at first: a block of data seldom begins with as many zeros, and reading a
/// few bytes of a cached file takes a fraction of the time that reading it whole takes.
const SAMPLE: usize = 16;
/// Bytes of a large file that one thread looks through at a time.
const PIECE: u64 = 16 << 20;
/// Files, or pieces of them, that a thread takes at a time: neighbours in the source, and so many that threads seldom contend.
const BATCH: usize = 64;

/// Whether all bytes are zero.
#[inline]
pub fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// Returns the parts of `bytes`, which begin at `offset` of a file, that are not zeros: blocks of the file, or what of them is
/// in `bytes`; adjacent ones together.
pub fn data_parts(offset: u64, bytes: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let block = |at: usize| {
            let left = BLOCK - (offset + at as u64) % BLOCK;
            at..bytes.len().min(at + left as usize)
        };
        while next < bytes.len() && is_zero(&bytes[block(next)]) {
            next = block(next).end;
        }
        let start = next;
        while next < bytes.len() && !is_zero(&bytes[block(next)]) {
            next = block(next).end;
        }
        (start < next).then_some(start..next)
    })
}

/// Collects the data ranges of a body in ascending order and merges those that are adjacent in both file and source.
#[derive(Debug, Default)]
pub(crate) struct Ranges(Vec<DataRange>);

impl Ranges {
    fn of(ranges: impl IntoIterator<Item = DataRange>) -> Self {
        let mut merged = Ranges::default();
        ranges.into_iter().for_each(|range| merged.push(range));
        merged
    }

    pub(crate) fn push(&mut self, range: DataRange) {
        match self.0.last_mut() {
            _ if range.length == 0 => {}
            Some(last) if last.offset + last.length == range.offset && last.source + last.length == range.source => {
                last.length += range.length;
            }
            _ => self.0.push(range),
        }
    }

    pub(crate) fn into_extents(self) -> Extents {
        self.0.into_iter().collect()
    }
}

/// Returns `body` without its blocks of zeros. `read` fills a buffer from an address of the source.
pub fn without_zeros(body: &Body, mut read: impl FnMut(&mut [u8], u64) -> io::Result<()>) -> io::Result<Body> {
    let mut ranges = Ranges::default();
    for range in body.extents.as_slice() {
        data_in(range, &mut read, &mut ranges)?;
    }
    Ok(Body { size: body.size, extents: ranges.into_extents() })
}

/// Adds the parts of `range` that are not blocks of zeros.
fn data_in(
    range: &DataRange,
    read: &mut impl FnMut(&mut [u8], u64) -> io::Result<()>,
    into: &mut Ranges,
) -> io::Result<()> {
    let (mut sample, mut whole) = ([0; SAMPLE], [0; BLOCK as usize]);
    for DataRange { offset, length, source } in pieces(*range, BLOCK) {
        let sample = &mut sample[..SAMPLE.min(length as usize)];
        read(sample, source)?;
        let is_hole = is_zero(sample) && {
            let whole = &mut whole[..length as usize];
            read(whole, source)?;
            is_zero(whole)
        };
        if !is_hole {
            into.push(DataRange { offset, length, source });
        }
    }
    Ok(())
}

/// Cuts a range at the multiples of `size` in its file.
fn pieces(range: DataRange, size: u64) -> impl Iterator<Item = DataRange> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let offset = range.offset + done;
        let length = (size - offset % size).min(range.length - done);
        let piece = DataRange { offset, length, source: range.source + done };
        done += length;
        (length > 0).then_some(piece)
    })
}

/// Leaves the blocks of zeros out of all bodies of a tree, in `threads` threads (at least one). Where the source is a sparse
/// file itself, its holes are not read. `progress` is called with the bytes of data that were looked through so far.
pub fn find(tree: &mut RootTree, threads: usize, progress: &mut dyn FnMut(u64)) -> io::Result<()> {
    let bodies = tree.bodies().clone();
    let stored = Stored::of(&bodies)?;
    let mut pending: Vec<(InodeId, DataRange)> = Vec::new();
    for (id, inode) in tree.inodes() {
        if let Kind::File(body) = &inode.kind {
            let ranges = body.extents.as_slice().iter();
            pending.extend(ranges.flat_map(|range| pieces(*range, PIECE)).map(|piece| (id, piece)));
        }
    }
    // In the order of the source, in which it is read ahead; those of one body stay in the order of the file.
    pending.sort_by_key(|(_, piece)| piece.source);
    let batches: Vec<_> = pending.chunks(BATCH).collect();
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let work = |progress: &mut dyn FnMut(u64)| -> io::Result<Vec<(usize, Vec<DataRange>)>> {
        let mut changed = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(batch) = batches.get(at) else { return Ok(changed) };
            for ((_, piece), index) in batch.iter().zip(at * BATCH..) {
                let mut found = Ranges::default();
                stored.each(&bodies, piece, |part| {
                    data_in(&part, &mut |buffer, source| bodies.read_exact_at(buffer, source), &mut found)
                })?;
                if found.0 != [*piece] {
                    changed.push((index, found.0));
                }
            }
            let passed = batch.iter().map(|(_, piece)| piece.length).sum();
            progress(done.fetch_add(passed, Ordering::Relaxed) + passed);
        }
    };
    let mut changed: HashMap<usize, Vec<DataRange>> = thread::scope(|scope| {
        let workers: Vec<_> = (1..threads.max(1)).map(|_| scope.spawn(|| work(&mut |_| {}))).collect();
        let mut changed = HashMap::from_iter(work(progress)?);
        for worker in workers {
            changed.extend(worker.join().expect("reading does not panic")?);
        }
        io::Result::Ok(changed)
    })?;
    let touched: HashSet<InodeId> = changed.keys().map(|index| pending[*index].0).collect();
    let mut ranges: HashMap<InodeId, Vec<DataRange>> = HashMap::new();
    for (index, (id, piece)) in pending.into_iter().enumerate().filter(|(_, (id, _))| touched.contains(id)) {
        ranges.entry(id).or_default().extend(changed.remove(&index).unwrap_or_else(|| vec![piece]));
    }
    for (id, mut ranges) in ranges {
        ranges.sort_unstable_by_key(|range| range.offset);
        tree.set_extents(id, Ranges::of(ranges).into_extents());
    }
    Ok(())
}

/// Which parts of the file behind a source are stored: all, unless it is sparse.
struct Stored(Option<Vec<Range<u64>>>);

impl Stored {
    fn of(bodies: &BodySource) -> io::Result<Self> {
        let Some((file, 0)) = bodies.file_at(0) else { return Ok(Stored(None)) };
        let about = file.metadata()?;
        // `st_blocks` counts 512-byte units whatever the block size.
        let is_sparse = about.is_file() && about.blocks().saturating_mul(512) < about.len();
        Ok(Stored(is_sparse.then(|| data_ranges(file, about.len())).transpose()?))
    }

    /// Passes on the parts of `range` that are stored.
    fn each(
        &self,
        bodies: &BodySource,
        range: &DataRange,
        mut take: impl FnMut(DataRange) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(stored) = self.0.as_ref().filter(|_| bodies.file_at(range.source).is_some()) else {
            return take(*range);
        };
        let end = range.source + range.length;
        let first = stored.partition_point(|part| part.end <= range.source);
        for part in stored[first..].iter().take_while(|part| part.start < end) {
            let (from, until) = (part.start.max(range.source), part.end.min(end));
            take(DataRange { offset: range.offset + (from - range.source), length: until - from, source: from })?;
        }
        Ok(())
    }
}

/// Finds which parts of a file of `size` bytes are not holes (lseek(2), SEEK_DATA and SEEK_HOLE). The file's cursor moves.
pub(crate) fn data_ranges(file: &File, size: u64) -> io::Result<Vec<Range<u64>>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let offset = |at: u64| i64::try_from(at).map_err(io::Error::other);
    let mut position = 0;
    while position < size {
        let data = match lseek64(file, offset(position)?, Whence::SeekData) {
            Ok(data) => data as u64,
            Err(nix::Error::ENXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let hole = (lseek64(file, offset(data)?, Whence::SeekHole)? as u64).min(size);
        if hole > data {
            ranges.push(data..hole);
        }
        position = hole;
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;
    use crate::inode::Inode;
    use crate::tree::{ReadAt, TreePath};

    /// A content of blocks, of which some are zeros, and a part of one.
    fn content() -> impl Strategy<Value = Vec<u8>> {
        let block = prop_oneof![
            Just(vec![0; 4096]),
            Just(vec![7; 4096]),
            // One byte that is not zero, wherever it is.
            (0..4096_usize).prop_map(|at| {
                let mut block = vec![0; 4096];
                block[at] = 1;
                block
            }),
        ];
        (prop::collection::vec(block, 0..12), prop::collection::vec(any::<u8>(), 0..4096))
            .prop_map(|(blocks, tail)| [blocks.concat(), tail].concat())
    }

    /// The blocks that are not zeros, by another way than that of the code.
    fn blocks(content: &[u8]) -> Vec<usize> {
        let block = |at: &usize| content[at * 4096..content.len().min(at * 4096 + 4096)].iter().any(|byte| *byte > 0);
        (0..content.len().div_ceil(4096)).filter(block).collect()
    }

    fn blocks_of(body: &Body) -> Vec<usize> {
        body.runs().flat_map(|run| (run.start / 4096) as usize..run.end.div_ceil(4096) as usize).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

        #[test]
        fn exactly_the_blocks_of_zeros_are_left_out(
            content in content(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4), threads in 1..3_usize
        ) {
            // Stated in ranges of any length, each somewhere else in the source.
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(content.len() + 1)).collect();
            cuts.extend([0, content.len()]);
            cuts.sort_unstable();
            let (mut source, mut ranges) = (vec![9], Vec::new());
            for pair in cuts.windows(2).filter(|pair| pair[0] < pair[1]) {
                let (offset, length) = (pair[0] as u64, (pair[1] - pair[0]) as u64);
                ranges.push(DataRange { offset, length, source: source.len() as u64 });
                source.extend_from_slice(&content[pair[0]..pair[1]]);
                source.push(9);
            }
            let size = content.len() as u64;
            let stated = Body { size, extents: ranges.into_iter().collect() };
            let mut tree = RootTree::new(BodySource::new(source));
            let path = TreePath::new("file").unwrap();
            tree.insert(path.clone(), Inode::new(Kind::File(stated.clone()), 0o644)).unwrap();
            let mut seen = 0;
            find(&mut tree, threads, &mut |bytes| seen = bytes).unwrap();
            let Some(Kind::File(found)) = tree.get(&path).map(|inode| inode.kind.clone()) else { panic!("a file") };
            prop_assert_eq!(blocks_of(&found), blocks(&content));
            prop_assert!(tree.bodies().read_to_vec(&found).unwrap() == content);
            prop_assert!(threads > 1 || seen == size);
            let alone = without_zeros(&stated, |buffer, at| tree.bodies().read_exact_at(buffer, at)).unwrap();
            prop_assert_eq!(alone, found);
        }

        #[test]
        fn parts_of_data_are_those_of_whole_blocks(content in content(), offset in 0..9000_u64) {
            let parts: Vec<_> = data_parts(offset, &content).collect();
            prop_assert!(parts.windows(2).all(|pair| pair[0].end < pair[1].start));
            let mut rebuilt = vec![0; content.len()];
            for part in &parts {
                rebuilt[part.clone()].copy_from_slice(&content[part.clone()]);
                prop_assert!(part.start == 0 || (offset + part.start as u64).is_multiple_of(BLOCK));
            }
            prop_assert!(rebuilt == content);
        }
    }

    /// A sparse file that counts the bytes that are read of it.
    struct Counted(File, std::sync::Arc<AtomicU64>);

    impl ReadAt for Counted {
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            self.1.fetch_add(buffer.len() as u64, Ordering::Relaxed);
            ReadAt::read_exact_at(&self.0, buffer, offset)
        }

        fn as_file(&self) -> Option<&File> {
            Some(&self.0)
        }
    }

    #[test]
    fn holes_of_the_source_are_not_read() {
        const SIZE: u64 = 8 << 30;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[5; 4096]).unwrap();
        file.set_len(SIZE).unwrap();
        let read = std::sync::Arc::new(AtomicU64::new(0));
        let mut tree = RootTree::new(BodySource::new(Counted(file, read.clone())));
        let path = TreePath::new("file").unwrap();
        tree.insert(path.clone(), Inode::new(Kind::File(Body::contiguous(SIZE, 0)), 0o644)).unwrap();
        let memory = tree.add_body(b"in memory");
        tree.insert(TreePath::new("memory").unwrap(), Inode::new(Kind::File(memory), 0o644)).unwrap();
        find(&mut tree, 2, &mut |_| {}).unwrap();
        let body = |path: &str| match &tree.get(&TreePath::new(path).unwrap()).unwrap().kind {
            Kind::File(body) => body.clone(),
            _ => panic!("a file"),
        };
        assert!(body("file").runs().eq(Some(0..4096)));
        assert_eq!(tree.bodies().read_to_vec(&body("memory")).unwrap(), b"in memory");
        assert!(read.load(Ordering::Relaxed) < 1 << 20);
    }
}
