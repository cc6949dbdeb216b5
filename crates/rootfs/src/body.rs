//! File contents as ranges of the file that they are read from.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Bytes of a block, the unit of holes: what ext4 and the page cache of the kernel allocate at once.
pub const BLOCK: u64 = 4096;

/// A file's content: its length, and which ranges of it hold data.
///
/// Ranges are sorted, do not touch or overlap, are not empty, and end at `size` at the latest; all between them is a
/// hole and reads as zeros. Archives state ranges of any granularity, the same content in different ways; [`Self::runs`]
/// are those that count. Readers of archives leave out [blocks of zeros](super::holes), so that the runs are a property of
/// the content alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Body {
    /// `st_size`, in bytes.
    pub size: u64,
    /// The ranges that hold data.
    pub extents: Extents,
}

/// The data ranges of a body. Nearly every file has none or one, which need no allocation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Extents {
    /// An empty file, or one hole.
    #[default]
    None,
    /// One range.
    One(DataRange),
    /// Two ranges or more.
    Many(Box<[DataRange]>),
}

impl Extents {
    /// Returns the ranges in order.
    pub fn as_slice(&self) -> &[DataRange] {
        match self {
            Extents::None => &[],
            Extents::One(range) => std::slice::from_ref(range),
            Extents::Many(ranges) => ranges,
        }
    }
}

impl Extents {
    /// Adds `by` to all addresses.
    pub(crate) fn move_by(&mut self, by: u64) {
        let ranges = match self {
            Extents::None => &mut [],
            Extents::One(range) => std::slice::from_mut(range),
            Extents::Many(ranges) => ranges,
        };
        ranges.iter_mut().for_each(|range| range.source += by);
    }
}

impl FromIterator<DataRange> for Extents {
    fn from_iter<I: IntoIterator<Item = DataRange>>(ranges: I) -> Self {
        let mut ranges = ranges.into_iter();
        match (ranges.next(), ranges.next()) {
            (None, _) => Extents::None,
            (Some(only), None) => Extents::One(only),
            (Some(first), Some(second)) => Extents::Many([first, second].into_iter().chain(ranges).collect()),
        }
    }
}

/// A range of a file that holds data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataRange {
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// Address in the tree's [`BodySource`].
    pub source: u64,
}

impl Body {
    /// A body without holes, stored in one piece.
    pub fn contiguous(size: u64, source: u64) -> Self {
        let extents =
            if size == 0 { Extents::None } else { Extents::One(DataRange { offset: 0, length: size, source }) };
        Body { size, extents }
    }

    /// Returns the parts of the file, in bytes, whose blocks hold data: ranges are rounded outwards to [`BLOCK`]s, runs that
    /// touch are merged, and the last one ends with the file at the latest.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> {
        let mut ranges = self.extents.as_slice().iter().peekable();
        let end_of = |range: &DataRange| (range.offset + range.length).next_multiple_of(BLOCK).min(self.size);
        std::iter::from_fn(move || {
            let first = ranges.next()?;
            let start = first.offset - first.offset % BLOCK;
            let mut end = end_of(first);
            while let Some(range) = ranges.next_if(|range| range.offset - range.offset % BLOCK <= end) {
                end = end_of(range);
            }
            Some(start..end)
        })
    }

    /// Returns the bytes of all [`Self::runs`].
    pub fn data_bytes(&self) -> u64 {
        self.runs().map(|run| run.end - run.start).sum()
    }

    /// Returns the bytes outside all [`Self::runs`].
    pub fn hole_bytes(&self) -> u64 {
        self.size - self.data_bytes()
    }
}

/// Where bodies are read from: a file that can be read at an offset, shared by all its readers, and bytes in memory.
///
/// A [`DataRange::source`] is an address here: an offset in the file, or with the top bit set one in memory.
#[derive(Clone)]
pub struct BodySource {
    file: Arc<dyn ReadAt>,
    memory: Arc<Vec<u8>>,
}

/// Marks an address in memory.
const IN_MEMORY: u64 = 1 << 63;

/// Positioned reads, which threads can share: there is no cursor.
pub trait ReadAt: Send + Sync {
    /// Fills `buffer` from `offset`; an early end is [`io::ErrorKind::UnexpectedEof`].
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Returns the open file that holds `offset`, and the offset in it, for copies inside the kernel.
    fn file_at(&self, _offset: u64) -> Option<(&File, u64)> {
        None
    }
}

impl ReadAt for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    fn file_at(&self, offset: u64) -> Option<(&File, u64)> {
        Some((self, offset))
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let range = usize::try_from(offset).ok().and_then(|start| self.get(start..start.checked_add(buffer.len())?));
        buffer.copy_from_slice(range.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Files one behind the other, as one source.
#[derive(Debug, Default)]
pub(crate) struct FileChain {
    /// Each with the address of its first byte, ascending.
    files: Vec<(u64, File)>,
    end: u64,
}

impl FileChain {
    /// Adds a file behind the others and returns the address of its first byte. Its length must not change any more.
    pub(crate) fn add(&mut self, file: File) -> io::Result<u64> {
        let start = self.end;
        self.end += file.metadata()?.len();
        self.files.push((start, file));
        Ok(start)
    }
}

impl ReadAt for FileChain {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let (file, offset) = self.file_at(offset).ok_or(io::ErrorKind::UnexpectedEof)?;
        FileExt::read_exact_at(file, buffer, offset)
    }

    fn file_at(&self, offset: u64) -> Option<(&File, u64)> {
        let after = self.files.partition_point(|(start, _)| *start <= offset);
        let (start, file) = self.files.get(after.checked_sub(1)?)?;
        Some((file, offset - start))
    }
}

impl BodySource {
    /// A source of one file, with nothing in memory yet.
    pub fn new(source: impl ReadAt + 'static) -> Self {
        BodySource { file: Arc::new(source), memory: Arc::default() }
    }

    /// Fills `buffer` from an address.
    pub fn read_exact_at(&self, buffer: &mut [u8], source: u64) -> io::Result<()> {
        match source & IN_MEMORY {
            0 => self.file.read_exact_at(buffer, source),
            _ => self.memory.read_exact_at(buffer, source & !IN_MEMORY),
        }
    }

    /// Reads a whole body, holes as zeros. For small files.
    pub fn read_to_vec(&self, body: &Body) -> io::Result<Vec<u8>> {
        let too_large = |_| io::Error::from(io::ErrorKind::OutOfMemory);
        let mut bytes = vec![0; usize::try_from(body.size).map_err(too_large)?];
        self.read_body_at(&mut bytes, body, 0)?;
        Ok(bytes)
    }

    /// Fills `buffer` from `offset` of a body, holes as zeros. The body must not end before.
    pub fn read_body_at(&self, buffer: &mut [u8], body: &Body, offset: u64) -> io::Result<()> {
        let end = offset + buffer.len() as u64;
        let ranges = body.extents.as_slice();
        let first = ranges.partition_point(|range| range.offset + range.length <= offset);
        let mut done = offset;
        for range in ranges[first..].iter().take_while(|range| range.offset < end) {
            let (from, until) = (range.offset.max(offset), (range.offset + range.length).min(end));
            buffer[(done - offset) as usize..(from - offset) as usize].fill(0);
            let part = &mut buffer[(from - offset) as usize..(until - offset) as usize];
            self.read_exact_at(part, range.source + (from - range.offset))?;
            done = until;
        }
        buffer[(done - offset) as usize..].fill(0);
        Ok(())
    }

    /// Returns the open file that holds an address, and the offset in it, for copies inside the kernel.
    pub fn file_at(&self, source: u64) -> Option<(&File, u64)> {
        if source & IN_MEMORY != 0 { None } else { self.file.file_at(source) }
    }

    /// Keeps `bytes` in memory and returns their address. For the few small files that are written by hand.
    pub fn add_bytes(&mut self, bytes: &[u8]) -> u64 {
        let memory = Arc::make_mut(&mut self.memory);
        let source = IN_MEMORY | memory.len() as u64;
        memory.extend_from_slice(bytes);
        source
    }
}

impl fmt::Debug for BodySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BodySource({} bytes in memory)", self.memory.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(size: u64, ranges: &[(u64, u64, u64)]) -> Body {
        let range = |&(offset, length, source)| DataRange { offset, length, source };
        Body { size, extents: ranges.iter().map(range).collect() }
    }

    #[test]
    fn runs_are_whole_blocks_up_to_the_end_of_the_file() {
        let runs = |body: Body| body.runs().collect::<Vec<_>>();
        assert_eq!(runs(Body::default()), []);
        assert_eq!(runs(body(9000, &[])), []);
        assert_eq!(runs(Body::contiguous(9000, 7)), Vec::from_iter(Some(0..9000)));
        // Two ranges in one block, one in the next, and one in the last, which is not whole.
        let sparse = body(30_000, &[(10, 5, 0), (20, 4, 0), (5000, 1, 0), (28_700, 1, 0)]);
        assert_eq!(runs(sparse.clone()), [0..8192, 28_672..30_000]);
        assert_eq!((sparse.data_bytes(), sparse.hole_bytes()), (9520, 20_480));
    }

    #[test]
    fn parts_of_a_body_are_read_with_their_holes() {
        let source = BodySource::new(b"abcdef".to_vec());
        let body = body(12, &[(2, 3, 0), (8, 2, 4)]);
        let whole = source.read_to_vec(&body).unwrap();
        assert_eq!(whole, b"\0\0abc\0\0\0ef\0\0");
        for (start, end) in (0..12).flat_map(|start| (start..=12).map(move |end| (start, end))) {
            let mut part = vec![9; end - start];
            source.read_body_at(&mut part, &body, start as u64).unwrap();
            assert_eq!(part, whole[start..end]);
        }
    }

    #[test]
    fn bodies_are_read_from_their_file_and_from_memory() {
        let mut source = BodySource::new(b"file".to_vec());
        let memory = source.add_bytes(b"memory");
        let read = |body: &Body| {
            let mut bytes = vec![0; body.size as usize];
            source.read_exact_at(&mut bytes, body.extents.as_slice()[0].source).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(read(&Body::contiguous(3, 1)), "ile");
        assert_eq!(read(&Body::contiguous(6, memory)), "memory");
        assert!(source.read_exact_at(&mut [0; 2], memory + 9).is_err());
        assert!(source.read_exact_at(&mut [0], 4).is_err());
    }
}
