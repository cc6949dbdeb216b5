//! A temporary file for the contents of files, in which blocks of zeros take no space.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

use super::body::{Body, DataRange};
use super::holes::{self, Ranges};

/// Bytes that are written at once: the largest size of a pipe (pipe-max-size), from which most of them come.
pub(crate) const BUFFER: usize = 1 << 20;

/// A file that bodies are appended to, one after the other and without padding. It is read as a
/// [`BodySource`](crate::tree::BodySource) once it is flushed.
#[derive(Debug)]
pub struct Spool {
    file: File,
    /// Bytes appended, those still pending included.
    length: u64,
    pending: Vec<u8>,
}

impl Spool {
    /// Appends to what `file` holds already.
    pub fn new(mut file: File) -> io::Result<Self> {
        let length = file.seek(SeekFrom::End(0))?;
        Ok(Spool { file, length, pending: Vec::with_capacity(BUFFER) })
    }

    /// Appends a small body.
    pub fn add_bytes(&mut self, bytes: &[u8]) -> io::Result<Body> {
        let mut ranges = Ranges::default();
        self.append(0, bytes, &mut ranges)?;
        Ok(Body { size: bytes.len() as u64, extents: ranges.into_extents() })
    }

    /// Appends the content of a file, whose holes are not read.
    pub fn add_file(&mut self, from: &File) -> io::Result<Body> {
        let size = from.metadata()?.size();
        let (mut ranges, mut buffer) = (Ranges::default(), vec![0; BUFFER]);
        for part in holes::data_ranges(from, size)? {
            let mut at = part.start;
            while at < part.end {
                // Pieces begin and end with blocks, so that none is looked at in two halves.
                let end = part.end.min((at + BUFFER as u64) / BUFFER as u64 * BUFFER as u64);
                let piece = &mut buffer[..(end - at) as usize];
                from.read_exact_at(piece, at)?;
                self.append(at, piece, &mut ranges)?;
                at = end;
            }
        }
        Ok(Body { size, extents: ranges.into_extents() })
    }

    /// Appends a part of a body, which begins at `offset` of it, without its blocks of zeros, and adds the ranges of the
    /// rest.
    pub(crate) fn append(&mut self, offset: u64, bytes: &[u8], ranges: &mut Ranges) -> io::Result<()> {
        for part in holes::data_parts(offset, bytes) {
            let (offset, source) = (offset + part.start as u64, self.length);
            ranges.push(DataRange { offset, length: part.len() as u64, source });
            self.put(&bytes[part])?;
        }
        Ok(())
    }

    fn put(&mut self, piece: &[u8]) -> io::Result<()> {
        if self.pending.len() + piece.len() > BUFFER {
            self.flush()?;
        }
        if self.pending.is_empty() && piece.len() >= BUFFER / 2 {
            self.file.write_all(piece)?;
        } else {
            self.pending.extend_from_slice(piece);
        }
        self.length += piece.len() as u64;
        Ok(())
    }

    /// Writes what is pending to the file.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.pending)?;
        self.pending.clear();
        Ok(())
    }

    /// Returns the complete file.
    pub fn finish(mut self) -> io::Result<File> {
        self.flush()?;
        Ok(self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::BodySource;

    #[test]
    fn zeros_and_holes_take_no_space() {
        let mut from = tempfile::tempfile().unwrap();
        // A block, a gigabyte of nothing, zeros that are written out, and a last byte.
        from.write_all(&[1; 4096]).unwrap();
        from.write_all_at(&vec![0; 3 << 20], 1 << 30).unwrap();
        from.write_all_at(&[2], 2 << 30).unwrap();
        let mut spool = Spool::new(tempfile::tempfile().unwrap()).unwrap();
        let text = spool.add_bytes(b"text").unwrap();
        let sparse = spool.add_file(&from).unwrap();
        let file = spool.finish().unwrap();
        assert_eq!(file.metadata().unwrap().len(), 4 + 4096 + 1);
        assert_eq!(sparse.runs().collect::<Vec<_>>(), [0..4096, 2 << 30..(2 << 30) + 1]);
        let bodies = BodySource::new(file);
        assert_eq!(bodies.read_to_vec(&text).unwrap(), b"text");
        let mut ends = [[0; 1]; 2];
        bodies.read_body_at(&mut ends[0], &sparse, 4095).unwrap();
        bodies.read_body_at(&mut ends[1], &sparse, 2 << 30).unwrap();
        assert_eq!(ends, [[1], [2]]);
    }
}
