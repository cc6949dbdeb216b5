//! Blocks of zeros are holes, whatever an archive says of them: a file takes as many blocks as it has blocks of content, and
//! the same content has the same [`runs`](Body::runs), whether it came as a sparse file or with its zeros written out.

use std::fs::File;
use std::io;
use std::iter;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

use nix::unistd::{Whence, lseek64};

use super::body::{BLOCK, Body, DataRange, Extents};

/// Bytes on each side of the boundary between two blocks that are looked at first: one read of a cached file, which costs
/// about as much as reading a whole block, then mostly tells of two that they are data. A line of the processor's cache is
/// fetched whole anyway.
const SAMPLE: u64 = 64;

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
    iter::from_fn(move || {
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
pub(crate) fn data_in(
    range: &DataRange,
    read: &mut impl FnMut(&mut [u8], u64) -> io::Result<()>,
    into: &mut Ranges,
) -> io::Result<()> {
    let mut samples = [0; 2 * SAMPLE as usize];
    let mut pieces = pieces(*range, BLOCK);
    while let Some(first) = pieces.next() {
        let second = pieces.next();
        let before = first.length.min(SAMPLE);
        let after = second.map_or(0, |second| second.length.min(SAMPLE));
        let samples = &mut samples[..(before + after) as usize];
        read(samples, first.source + first.length - before)?;
        let (end_of_first, start_of_second) = samples.split_at(before as usize);
        for (piece, sample) in iter::once((first, end_of_first)).chain(second.map(|second| (second, start_of_second))) {
            if !(is_zero(sample) && is_hole(&piece, read)?) {
                into.push(piece);
            }
        }
    }
    Ok(())
}

/// Whether all of a range, a block at most, is zeros.
fn is_hole(piece: &DataRange, read: &mut impl FnMut(&mut [u8], u64) -> io::Result<()>) -> io::Result<bool> {
    let whole = &mut [0; BLOCK as usize][..piece.length as usize];
    read(whole, piece.source)?;
    Ok(is_zero(whole))
}

/// Cuts a range at the multiples of `size` in its file.
pub(crate) fn pieces(range: DataRange, size: u64) -> impl Iterator<Item = DataRange> {
    let mut done = 0;
    iter::from_fn(move || {
        let offset = range.offset + done;
        let length = (size - offset % size).min(range.length - done);
        let piece = DataRange { offset, length, source: range.source + done };
        done += length;
        (length > 0).then_some(piece)
    })
}

/// Which parts of a file are stored: all, unless it is sparse.
#[derive(Debug)]
pub(crate) struct Stored(Option<Vec<Range<u64>>>);

impl Stored {
    /// Of an open file, whose cursor moves.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let about = file.metadata()?;
        // `st_blocks` counts 512-byte units whatever the block size.
        let is_sparse = about.is_file() && about.blocks().saturating_mul(512) < about.len();
        Ok(Stored(is_sparse.then(|| data_ranges(file, about.len())).transpose()?))
    }

    /// Returns the parts of `range`, whose source is an offset in the file, that are stored.
    pub(crate) fn parts(&self, range: DataRange) -> impl Iterator<Item = DataRange> {
        let end = range.source + range.length;
        let mut at = range.source;
        iter::from_fn(move || {
            let part = self.after(at).filter(|part| part.start < end)?;
            let (from, until) = (part.start.max(at), part.end.min(end));
            at = until;
            let offset = range.offset + (from - range.source);
            Some(DataRange { offset, length: until - from, source: from })
        })
        .take_while(|part| part.length > 0)
    }

    /// Returns the first part that ends after `at`.
    pub(crate) fn after(&self, at: u64) -> Option<Range<u64>> {
        match &self.0 {
            None => Some(0..u64::MAX),
            Some(parts) => parts.get(parts.partition_point(|part| part.end <= at)).cloned(),
        }
    }
}

/// Returns which parts of a file of `size` bytes are not holes (lseek(2), SEEK_DATA and SEEK_HOLE); all of it where its
/// filesystem knows no holes. The file's cursor moves.
pub fn data_ranges(file: &File, size: u64) -> io::Result<Vec<Range<u64>>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let offset = |at: u64| i64::try_from(at).map_err(io::Error::other);
    let mut position = 0;
    while position < size {
        let data = match lseek64(file, offset(position)?, Whence::SeekData) {
            Ok(data) => data as u64,
            Err(nix::Error::ENXIO) => break,
            Err(nix::Error::EINVAL) => {
                ranges.push(position..size);
                break;
            }
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
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;
    use crate::tree::BodySource;

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
            content in content(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4)
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
            let source = BodySource::new(source);
            let found = without_zeros(&stated, |buffer, at| source.read_exact_at(buffer, at)).unwrap();
            prop_assert_eq!(blocks_of(&found), blocks(&content));
            prop_assert!(source.read_to_vec(&found).unwrap() == content);
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

    #[test]
    fn holes_of_a_sparse_file_are_passed_over() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[5; 8192]).unwrap();
        let stored = |file: &File, offset, length, source| {
            let stored = Stored::of(file).unwrap();
            let parts = stored.parts(DataRange { offset, length, source });
            parts.map(|part| (part.offset, part.length, part.source)).collect::<Vec<_>>()
        };
        assert_eq!(stored(&file, 7, 8000, 100), [(7, 8000, 100)]);
        file.set_len(8 << 30).unwrap();
        file.write_all_at(&[6; 4096], 4 << 30).unwrap();
        assert_eq!(stored(&file, 7, 8 << 29, 100), [(7, 8092, 100), (7 + (4 << 30) - 100, 100, 4 << 30)]);
        assert_eq!(stored(&file, 0, 1 << 30, 1 << 30), []);
    }
}
