//! The members of an archive: header blocks, each with what extended headers say about it.

use std::borrow::Cow;
use std::rc::Rc;

use super::end_marker::EndMarker;
use super::error::{EntryName, TarError};
use super::header::{BLOCK, BLOCK_U64, Header, NAME, padding};
use super::input::Input;
use super::limits::Budget;
use super::member::{Member, header_name, stored_size};
use super::mistaken::{self, LOOKED_AT};
use super::pax::Records;

/// Bytes of zeros after the end marker: a record of GNU tar has no more than 2 GiB, and one of a few MiB is already rare.
/// `/dev/zero`, which begins with an end marker, has no end.
const PADDING_MAX: u64 = 2 << 30;

/// Reads headers one after the other. The data of a member must be read before the next header.
pub(super) struct Headers<'a> {
    pub input: Box<dyn Input + 'a>,
    pub budget: &'a mut Budget,
    end_marker: EndMarker,
    /// The name of the last header, for errors about what follows it.
    pub last: Vec<u8>,
    stage: Stage,
    /// Records of the global (`g`) headers so far.
    globals: Rc<Records>,
    /// The extended headers of the next entry.
    next: Announced,
}

/// How far the archive is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Start,
    Entries,
    End,
}

/// Extended headers whose entry has not come yet.
#[derive(Default)]
struct Announced {
    /// Offset of the first of them, in bytes.
    offset: Option<u64>,
    records: Option<Records>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<'a> Headers<'a> {
    pub(super) fn new(input: Box<dyn Input + 'a>, end_marker: EndMarker, budget: &'a mut Budget) -> Self {
        let (globals, next) = (Rc::default(), Announced::default());
        Headers { input, budget, end_marker, last: Vec::new(), stage: Stage::Start, globals, next }
    }

    /// Reads the next member's header into `header`. `None` at the end of the archive, which is then read to the end of
    /// the input.
    pub(super) fn next_member<'h>(&mut self, header: &'h mut Header) -> Result<Option<Member<'h>>, TarError> {
        match self.stage {
            Stage::Start => self.recognise()?,
            Stage::Entries => {}
            Stage::End => return Ok(None),
        }
        self.stage = Stage::Entries;
        while self.header(header)? {
            match header.typeflag() {
                b'x' | b'g' | b'L' | b'K' => self.extended_header(header)?,
                // A volume label names the archive, not a file.
                b'V' => {
                    self.remember_name(header.text(NAME));
                    self.skip_body(stored_size(header, &self.last)?)?;
                }
                _ => return self.announced_member(header).map(Some),
            }
        }
        self.stage = Stage::End;
        if let Some(offset) = self.next.offset {
            return Err(TarError::DanglingExtendedHeader { offset });
        }
        self.padding_to_end()?;
        self.input.finish()?;
        Ok(None)
    }

    /// Returns the records of the global headers so far.
    pub(super) fn globals(&self) -> &Records {
        &self.globals
    }

    /// Makes [`Self::next_member`] return `None` from now on.
    pub(super) fn end(&mut self) {
        self.stage = Stage::End;
    }

    /// Returns a helpful error for input that is no tar at all.
    fn recognise(&mut self) -> Result<(), TarError> {
        let start = self.input.peek(LOOKED_AT)?;
        if start.is_empty() {
            return if self.end_marker == EndMarker::Optional { Ok(()) } else { Err(TarError::Empty) };
        }
        let first = start.get(..BLOCK).and_then(|block| block.try_into().ok()).map(Header);
        // Before the magic numbers, which are names that a file may have.
        if first.as_ref().is_some_and(Header::checksum_fits) {
            return Ok(());
        }
        match mistaken::compressed(start).or_else(|| mistaken::foreign(start)) {
            Some(error) => Err(error),
            None if first.is_some_and(|header| header.is_zero()) => Ok(()),
            None => Err(TarError::NotTar),
        }
    }

    /// Reads the next header; `false` at the end marker.
    fn header(&mut self, header: &mut Header) -> Result<bool, TarError> {
        let offset = self.input.offset();
        let missing_end = |last: &[u8], offset| TarError::MissingEnd { offset, after: EntryName::new(last) };
        match self.input.read(&mut header.0)? {
            0 if self.end_marker == EndMarker::Optional => return Ok(false),
            0 => return Err(missing_end(&self.last, offset)),
            BLOCK => {}
            _ => return Err(TarError::TruncatedHeader { offset }),
        }
        if header.is_zero() {
            return match self.input.read(&mut header.0)? {
                BLOCK if header.is_zero() => Ok(false),
                BLOCK => Err(TarError::LoneZeroBlock { offset }),
                0 if self.end_marker == EndMarker::Optional => Ok(false),
                _ => Err(missing_end(&self.last, offset)),
            };
        }
        if !header.checksum_fits() {
            return Err(TarError::Checksum { offset, after: EntryName::new(&self.last) });
        }
        Ok(true)
    }

    /// Reads what follows the end marker, which may only be the padding of the last record.
    fn padding_to_end(&mut self) -> Result<(), TarError> {
        let mut buffer = [0; 16 * BLOCK];
        let end = self.input.offset();
        loop {
            let offset = self.input.offset();
            if offset - end > PADDING_MAX {
                return Err(TarError::Padding { max: PADDING_MAX });
            }
            let count = self.input.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            if let Some(at) = buffer[..count].iter().position(|&byte| byte != 0) {
                return Err(TarError::TrailingData { offset: offset + at as u64 });
            }
        }
    }

    fn remember_name(&mut self, name: &[u8]) {
        self.last.clear();
        self.last.extend_from_slice(name);
    }

    /// Keeps an extended header for the entry that follows it.
    fn extended_header(&mut self, header: &Header) -> Result<(), TarError> {
        self.remember_name(header.text(NAME));
        let offset = self.input.offset() - BLOCK_U64;
        let content = self.extended_content(header, offset)?;
        let malformed = |reason| TarError::BadExtendedHeader { offset, reason };
        let max_ranges = self.budget.limits().sparse_ranges;
        if header.typeflag() == b'g' {
            self.charge(content.len() as u64)?;
            return Rc::make_mut(&mut self.globals).read(&content, max_ranges).map_err(malformed);
        }
        if header.typeflag() == b'x' {
            self.charge(self.globals.cost())?;
        }
        let next = &mut self.next;
        next.offset.get_or_insert(offset);
        let is_second = match header.typeflag() {
            b'x' => {
                let mut records = Records::clone(&self.globals);
                records.read(&content, max_ranges).map_err(malformed)?;
                next.records.replace(records).is_some()
            }
            b'L' => next.long_name.replace(without_terminator(content)).is_some(),
            _ => next.long_link.replace(without_terminator(content)).is_some(),
        };
        if is_second { Err(malformed("it is the second of its kind for one entry")) } else { Ok(()) }
    }

    fn extended_content(&mut self, header: &Header, offset: u64) -> Result<Vec<u8>, TarError> {
        let size = stored_size(header, &self.last)?;
        let max = self.budget.limits().extended_header_bytes;
        if size > max {
            return Err(TarError::ExtendedHeaderTooLarge { offset, size, max });
        }
        let mut content = vec![0; size as usize];
        let count = self.input.read(&mut content)?;
        if count < content.len() {
            let missing = (content.len() - count) as u64;
            return Err(TarError::Truncated { entry: EntryName::new(&self.last), missing });
        }
        self.input.skip(padding(size))?;
        Ok(content)
    }

    /// Joins a header with its extended headers.
    fn announced_member<'h>(&mut self, header: &'h Header) -> Result<Member<'h>, TarError> {
        let announced = std::mem::take(&mut self.next);
        let has_records = announced.records.is_some();
        let records = announced.records.map_or_else(|| self.globals.clone(), Rc::new);
        let said = records.sparse.name.as_ref().or(records.path.as_ref()).cloned().or(announced.long_name);
        let name = said.map_or_else(|| header_name(header), Cow::from);
        self.remember_name(&name);
        let stored = match records.size {
            Some(size) => size,
            None => stored_size(header, &name)?,
        };
        Ok(Member { header, name, records, has_records, long_link: announced.long_link, stored })
    }

    fn skip_body(&mut self, stored: u64) -> Result<(), TarError> {
        let passed = self.input.skip(stored)?;
        if passed < stored {
            return Err(TarError::Truncated { entry: EntryName::new(&self.last), missing: stored - passed });
        }
        self.input.skip(padding(stored))?;
        Ok(())
    }

    /// Charges names, attributes and other metadata of the current entry.
    pub(super) fn charge(&mut self, bytes: u64) -> Result<(), TarError> {
        self.budget.charge_metadata(bytes, &self.last)
    }
}

/// GNU counts the NUL that ends a long name.
fn without_terminator(mut name: Vec<u8>) -> Vec<u8> {
    while name.last() == Some(&0) {
        name.pop();
    }
    name
}
