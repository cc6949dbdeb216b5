//! Sparse files, in the four formats that GNU tar has written. All become one list of ranges.
//!
//! GNU tar manual, "Storing Sparse Files".

use super::header::{BLOCK, GNU_REALSIZE, GNU_SPARSE, GNU_SPARSE_EXTENDED, Header, number};
use super::text::decimal;

/// An offset and a length, both fields of twelve bytes.
const OLD_RANGE: usize = 24;
/// In an extension block of the old format: 21 ranges, then whether another block follows.
const OLD_EXTENDED: usize = 504;
/// Longest number in a 1.0 map: the digits of `u64::MAX`.
const MAX_DIGITS: usize = 20;

/// Why a map is refused.
pub(super) type Reason = &'static str;

/// The data ranges of a sparse file as the archive states them: offset and length, in bytes.
#[derive(Debug, Default)]
pub(super) struct Map {
    pub ranges: Vec<(u64, u64)>,
    max_ranges: usize,
}

impl Map {
    pub(super) fn new(max_ranges: usize) -> Self {
        Map { ranges: Vec::new(), max_ranges }
    }

    /// A flat list of offsets and lengths.
    pub(super) fn from_flat(flat: &[u64]) -> Result<Self, Reason> {
        if flat.len() % 2 == 1 {
            return Err("an offset without a length");
        }
        Ok(Map { ranges: flat.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect(), max_ranges: usize::MAX })
    }

    fn push(&mut self, offset: u64, length: u64) -> Result<(), Reason> {
        if self.ranges.len() >= self.max_ranges {
            return Err("too many ranges");
        }
        self.ranges.push((offset, length));
        Ok(())
    }

    /// Reads the four ranges of an old GNU header. Returns the file's real size, and whether an extension block follows.
    pub(super) fn read_old_header(&mut self, header: &Header) -> Result<(u64, bool), Reason> {
        self.read_old_ranges(&header.0[GNU_SPARSE])?;
        let size = header.number(GNU_REALSIZE).ok().and_then(|size| u64::try_from(size).ok());
        Ok((size.ok_or("the real size is not a number")?, header.0[GNU_SPARSE_EXTENDED] != 0))
    }

    /// Reads the ranges of an extension block. Returns whether another one follows.
    pub(super) fn read_old_extension(&mut self, block: &[u8; BLOCK]) -> Result<bool, Reason> {
        self.read_old_ranges(&block[..OLD_EXTENDED])?;
        Ok(block[OLD_EXTENDED] != 0)
    }

    fn read_old_ranges(&mut self, fields: &[u8]) -> Result<(), Reason> {
        for range in fields.chunks_exact(OLD_RANGE) {
            // An empty field ends the list; an offset of 0 is written as digits.
            if range[0] == 0 {
                break;
            }
            let field = |bytes| number(bytes).ok().and_then(|value| u64::try_from(value).ok()).ok_or("not a number");
            self.push(field(&range[..OLD_RANGE / 2])?, field(&range[OLD_RANGE / 2..])?)?;
        }
        Ok(())
    }

    /// Returns the ranges of a file of `size` bytes, of which `stored` bytes of data follow.
    pub(super) fn into_ranges(self, size: u64, stored: u64) -> Result<Vec<(u64, u64)>, Reason> {
        let (mut taken, mut end) = (0_u64, 0_u64);
        for &(offset, length) in &self.ranges {
            if offset < end {
                return Err("ranges overlap or are not sorted");
            }
            end = offset.checked_add(length).filter(|&end| end <= size).ok_or("a range ends after the file")?;
            taken = taken.checked_add(length).filter(|&taken| taken <= stored).ok_or("more data than is stored")?;
        }
        if taken == stored { Ok(self.ranges) } else { Err("less data than is stored") }
    }
}

/// Reads the map that version 1.0 puts before the data: the number of ranges, then offset and length of each, all in
/// decimal and ended by newlines. It is read block by block, because only its content tells how long it is.
#[derive(Debug)]
pub(super) struct TextMap {
    map: Map,
    digits: Vec<u8>,
    count: Option<u64>,
    offset: Option<u64>,
}

impl TextMap {
    pub(super) fn new(max_ranges: usize) -> Self {
        TextMap { map: Map::new(max_ranges), digits: Vec::with_capacity(MAX_DIGITS), count: None, offset: None }
    }

    /// Reads the next block of the map. Returns whether it was the last.
    pub(super) fn read(&mut self, block: &[u8]) -> Result<bool, Reason> {
        for &byte in block {
            if self.is_complete() {
                break;
            }
            if byte != b'\n' {
                if self.digits.len() >= MAX_DIGITS {
                    return Err("not a number");
                }
                self.digits.push(byte);
                continue;
            }
            let value = decimal(&self.digits).ok_or("not a number")?;
            self.digits.clear();
            match (self.count, self.offset.take()) {
                (None, _) => self.count = Some(value),
                (Some(_), None) => self.offset = Some(value),
                (Some(_), Some(offset)) => self.map.push(offset, value)?,
            }
        }
        Ok(self.is_complete())
    }

    fn is_complete(&self) -> bool {
        self.count.is_some_and(|count| self.map.ranges.len() as u64 >= count)
    }

    pub(super) fn into_map(self) -> Map {
        self.map
    }
}
