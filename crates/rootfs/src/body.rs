//! File contents as ranges of what they are read from; no content is held in memory unless the tool wrote it.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A file's content: its length, and which ranges of it hold data.
///
/// Ranges are sorted, do not touch or overlap, are not empty, and end at `size` at the latest; all between them is a
/// hole and reads as zeros.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Body {
    /// `st_size`, in bytes.
    pub size: u64,
    pub extents: Extents,
}

/// The data ranges of a body. Nearly every file has none or one, which cost no allocation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Extents {
    #[default]
    None,
    One(DataRange),
    Many(Box<[DataRange]>),
}

impl Extents {
    pub fn as_slice(&self) -> &[DataRange] {
        match self {
            Extents::None => &[],
            Extents::One(range) => std::slice::from_ref(range),
            Extents::Many(ranges) => ranges,
        }
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

/// `length` bytes of a file, from `offset` in the file, stored at `source` in the tree's [`BodySource`]. All in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataRange {
    pub offset: u64,
    pub length: u64,
    pub source: u64,
}

impl Body {
    /// A body without holes, stored in one piece.
    pub fn contiguous(size: u64, source: u64) -> Self {
        let extents =
            if size == 0 { Extents::None } else { Extents::One(DataRange { offset: 0, length: size, source }) };
        Body { size, extents }
    }

    /// Bytes of data, holes not counted.
    pub fn data_bytes(&self) -> u64 {
        self.extents.as_slice().iter().map(|range| range.length).sum()
    }
}

/// Where bodies are read from: files that can be read at an offset, shared by all that read them, and bytes in memory.
///
/// A [`DataRange::source`] is an address in this. Its top bit says "in memory", the next fifteen bits say which of the
/// files, the rest is the offset there. The first file's addresses are its offsets.
#[derive(Clone)]
pub struct BodySource {
    files: Arc<Vec<Arc<dyn ReadAt>>>,
    memory: Arc<Vec<u8>>,
}

/// Marks an address in memory.
const IN_MEMORY: u64 = 1 << 63;
/// Below this bit an address is an offset: 256 TiB a file.
const FILE_SHIFT: u32 = 48;
const OFFSET_MASK: u64 = (1 << FILE_SHIFT) - 1;
const MAX_FILES: usize = 1 << (63 - FILE_SHIFT);

/// Positioned reads, without a cursor to fight over.
pub trait ReadAt: Send + Sync {
    /// Fills `buffer` from `offset`; an early end is [`io::ErrorKind::UnexpectedEof`].
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// The open file behind the source, for copies inside the kernel.
    fn as_file(&self) -> Option<&File> {
        None
    }
}

impl ReadAt for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    fn as_file(&self) -> Option<&File> {
        Some(self)
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let range = usize::try_from(offset).ok().and_then(|start| self.get(start..start.checked_add(buffer.len())?));
        buffer.copy_from_slice(range.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl BodySource {
    pub fn new(source: impl ReadAt + 'static) -> Self {
        BodySource { files: Arc::new(vec![Arc::new(source)]), memory: Arc::default() }
    }

    /// Fills `buffer` from an address. A range lies within one file.
    pub fn read_exact_at(&self, buffer: &mut [u8], source: u64) -> io::Result<()> {
        if source & IN_MEMORY != 0 {
            return self.memory.read_exact_at(buffer, source & !IN_MEMORY);
        }
        self.file(source).ok_or(io::ErrorKind::UnexpectedEof)?.read_exact_at(buffer, source & OFFSET_MASK)
    }

    /// The whole of a body, holes as zeros; for small files.
    pub fn read_to_vec(&self, body: &Body) -> io::Result<Vec<u8>> {
        let too_large = |_| io::Error::from(io::ErrorKind::OutOfMemory);
        let mut bytes = vec![0; usize::try_from(body.size).map_err(too_large)?];
        for range in body.extents.as_slice() {
            let (start, length) = (range.offset as usize, range.length as usize);
            self.read_exact_at(&mut bytes[start..start + length], range.source)?;
        }
        Ok(bytes)
    }

    /// The open file behind the source, if all bodies lie in one.
    pub fn as_file(&self) -> Option<&File> {
        match self.files.as_slice() {
            [only] if self.memory.is_empty() => only.as_file(),
            _ => None,
        }
    }

    /// The open file that holds an address, and the offset in it, for copies inside the kernel.
    pub fn file_at(&self, source: u64) -> Option<(&File, u64)> {
        if source & IN_MEMORY != 0 {
            return None;
        }
        Some((self.file(source)?.as_file()?, source & OFFSET_MASK))
    }

    fn file(&self, source: u64) -> Option<&dyn ReadAt> {
        self.files.get((source >> FILE_SHIFT) as usize).map(|file| &**file)
    }

    /// Keeps `bytes` in memory and answers their address. For the few small files that the tool itself writes.
    pub fn add_bytes(&mut self, bytes: &[u8]) -> u64 {
        let memory = Arc::make_mut(&mut self.memory);
        let source = IN_MEMORY | memory.len() as u64;
        memory.extend_from_slice(bytes);
        source
    }

    /// Takes in all that `other` reads from, so that its bodies can move here; `None` past 32,768 files.
    pub fn adopt(&mut self, other: &BodySource) -> Option<Relocation> {
        if self.files.len() + other.files.len() > MAX_FILES {
            return None;
        }
        let relocation = Relocation { files: self.files.len() as u64, memory: self.memory.len() as u64 };
        Arc::make_mut(&mut self.files).extend(other.files.iter().cloned());
        if !other.memory.is_empty() {
            Arc::make_mut(&mut self.memory).extend_from_slice(&other.memory);
        }
        Some(relocation)
    }
}

/// Where an adopted source's addresses have moved to; see [`BodySource::adopt`].
#[derive(Debug, Clone, Copy)]
pub struct Relocation {
    files: u64,
    memory: u64,
}

impl Relocation {
    /// The same body, at its new address.
    pub fn body(&self, body: &Body) -> Body {
        let moved = |range: &DataRange| {
            let distance = if range.source & IN_MEMORY != 0 { self.memory } else { self.files << FILE_SHIFT };
            DataRange { source: range.source + distance, ..*range }
        };
        Body { size: body.size, extents: body.extents.as_slice().iter().map(moved).collect() }
    }
}

impl fmt::Debug for BodySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BodySource({} files, {} bytes in memory)", self.files.len(), self.memory.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_of_two_trees_and_of_memory_are_read_from_one_source() {
        let mut ours = BodySource::new(b"ours".to_vec());
        let memory = ours.add_bytes(b"memory");
        let mut theirs = BodySource::new(b"theirs".to_vec());
        let kept = Body::contiguous(4, theirs.add_bytes(b"kept"));
        let relocation = ours.adopt(&theirs).unwrap();
        let read = |body: &Body| {
            let mut bytes = vec![0; body.size as usize];
            ours.read_exact_at(&mut bytes, body.extents.as_slice()[0].source).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(read(&Body::contiguous(4, 0)), "ours");
        assert_eq!(read(&Body::contiguous(6, memory)), "memory");
        assert_eq!(read(&relocation.body(&Body::contiguous(5, 1))), "heirs");
        assert_eq!(read(&relocation.body(&kept)), "kept");
        assert!(ours.read_exact_at(&mut [0; 2], memory + 9).is_err());
        assert!(ours.read_exact_at(&mut [0], 7 << FILE_SHIFT).is_err());
    }
}
