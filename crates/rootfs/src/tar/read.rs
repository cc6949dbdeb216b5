//! The entries of an archive, in its order.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::rc::Rc;

use super::entry::Entry;
use super::error::{EntryName, TarError};
use super::header::{BLOCK, BLOCK_U64, Header, NAME, padding};
use super::input::{FileInput, Input, StreamInput};
use super::limits::Budget;
use super::member::{Member, header_name, stored_size};
use super::pax::Records;

/// First bytes of what is often given for a tar by mistake: the format, and the command and file name for the hint.
const COMPRESSED: [(&[u8], &str, &str, &str); 6] = [
    (b"\x1f\x8b", "gzip", "gzip -dc", "x.tar.gz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc", "x.tar.zst"),
    (b"\xfd7zXZ\0", "xz", "xz -dc", "x.tar.xz"),
    (b"BZh", "bzip2", "bzip2 -dc", "x.tar.bz2"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -dc", "x.tar.lz4"),
    (b"PK\x03\x04", "zip", "bsdtar -cf - --format pax @-", "< x.zip"),
];

/// What a [`Reader`] accepts besides whole archives of relative names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Accept absolute names and hard link targets, as relative to the root.
    pub absolute_names: bool,
    /// Accept an archive that ends without its end marker, and an empty input as an archive of nothing.
    pub unterminated: bool,
}

impl Policy {
    /// Nothing else: an absolute name is a mistake of who made the archive, and a missing end marker the only sign of an
    /// archive that was cut short.
    pub const STRICT: Policy = Policy { absolute_names: false, unterminated: false };
    /// What container engines accept in a layer, whose digest proves that it is whole.
    pub const LAYER: Policy = Policy { absolute_names: true, unterminated: true };
}

/// Reads the entries of an archive one after the other. It ends after the first error.
pub struct Reader<'a> {
    pub(super) input: Box<dyn Input + 'a>,
    pub(super) budget: &'a mut Budget,
    pub(super) policy: Policy,
    stage: Stage,
    /// What `g` headers said for all that follows.
    globals: Rc<Records>,
    /// What was said about the entry that comes next.
    next: Announced,
    /// The name of the last header, for errors about what follows it.
    pub(super) last: Vec<u8>,
}

/// How far a reader has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Start,
    Entries,
    End,
}

/// Extended headers that wait for their entry.
#[derive(Default)]
struct Announced {
    /// Where the first of them stands.
    offset: Option<u64>,
    records: Option<Records>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<'a> Reader<'a> {
    /// Reads an archive that can be sought in: only headers are read, and bodies are ranges of the file.
    pub fn from_file(file: File, policy: Policy, budget: &'a mut Budget) -> Result<Self, TarError> {
        Ok(Self::new(Box::new(FileInput::new(file)?), policy, budget))
    }

    /// Reads an archive from a pipe. Bodies are appended to `spool`, a temporary file, and are ranges of it; the last of
    /// them can be read from there once there is no next entry.
    pub fn from_stream(
        input: impl Read + 'a,
        spool: File,
        policy: Policy,
        budget: &'a mut Budget,
    ) -> Result<Self, TarError> {
        Ok(Self::new(Box::new(StreamInput::new(Box::new(input), spool)?), policy, budget))
    }

    fn new(input: Box<dyn Input + 'a>, policy: Policy, budget: &'a mut Budget) -> Self {
        let (globals, next) = (Rc::default(), Announced::default());
        Reader { input, budget, policy, stage: Stage::Start, globals, next, last: Vec::new() }
    }

    /// Returns the next entry, and `None` at the end of the archive or after an error.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let before = std::mem::replace(&mut self.stage, Stage::End);
        match before {
            Stage::Start => self.recognise()?,
            Stage::Entries => {}
            Stage::End => return Ok(None),
        }
        let mut header = Header([0; BLOCK]);
        while self.header(&mut header)? {
            if let Some(entry) = self.entry_or_announcement(&header)? {
                self.stage = Stage::Entries;
                return Ok(Some(entry));
            }
        }
        if let Some(offset) = self.next.offset {
            return Err(TarError::DanglingExtendedHeader { offset });
        }
        self.padding_to_end()?;
        self.input.finish()?;
        Ok(None)
    }

    /// Returns the bytes that were read or skipped since the start of the archive.
    pub fn offset(&self) -> u64 {
        self.input.offset()
    }

    /// Reads the rest of a stream and discards it, so that the program that writes it is not killed by a closed pipe.
    pub fn drain(&mut self) {
        self.stage = Stage::End;
        self.input.drain();
    }

    /// Says what is wrong with input that is no tar at all.
    fn recognise(&mut self) -> Result<(), TarError> {
        let start = self.input.peek(BLOCK)?;
        if start.is_empty() {
            return if self.policy.unterminated { Ok(()) } else { Err(TarError::Empty) };
        }
        for (magic, format, command, sample) in COMPRESSED {
            if start.starts_with(magic) {
                return Err(TarError::Compressed { format, command, sample });
            }
        }
        match start.try_into().map(Header) {
            Ok(header) if header.is_zero() || header.checksum_fits() => Ok(()),
            _ => Err(TarError::NotTar),
        }
    }

    /// Reads the next header; `false` at the end marker.
    fn header(&mut self, header: &mut Header) -> Result<bool, TarError> {
        let offset = self.input.offset();
        let missing_end = |last: &[u8], offset| TarError::MissingEnd { offset, after: EntryName::new(last) };
        match self.input.read(&mut header.0)? {
            0 if self.policy.unterminated => return Ok(false),
            0 => return Err(missing_end(&self.last, offset)),
            BLOCK => {}
            _ => return Err(TarError::TruncatedHeader { offset }),
        }
        if header.is_zero() {
            return match self.input.read(&mut header.0)? {
                BLOCK if header.is_zero() => Ok(false),
                BLOCK => Err(TarError::LoneZeroBlock { offset }),
                0 if self.policy.unterminated => Ok(false),
                _ => Err(missing_end(&self.last, offset)),
            };
        }
        if !header.checksum_fits() {
            return Err(TarError::Checksum { offset, after: EntryName::new(&self.last) });
        }
        Ok(true)
    }

    /// What follows the end marker may only be the padding of the last record.
    fn padding_to_end(&mut self) -> Result<(), TarError> {
        let mut buffer = [0; 16 * BLOCK];
        loop {
            let offset = self.input.offset();
            let count = self.input.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            if let Some(at) = buffer[..count].iter().position(|&byte| byte != 0) {
                return Err(TarError::TrailingData { offset: offset + at as u64 });
            }
        }
    }

    /// Reads what follows a header. `None` for one that only says something about others.
    fn entry_or_announcement(&mut self, header: &Header) -> Result<Option<Entry>, TarError> {
        match header.typeflag() {
            b'x' | b'g' | b'L' | b'K' => self.extended_header(header).map(|()| None),
            // A volume label names the archive, not a file.
            b'V' => {
                self.remember_name(header.text(NAME));
                self.skip_body(stored_size(header, &self.last)?).map(|()| None)
            }
            _ => {
                let member = self.announced_member(header)?;
                self.entry(&member).map(Some)
            }
        }
    }

    fn remember_name(&mut self, name: &[u8]) {
        self.last.clear();
        self.last.extend_from_slice(name);
    }

    /// Keeps what an extended header says for the entry that follows it.
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

    /// Brings a header together with what was announced for it.
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

    /// Charges directories that the current entry implied.
    pub(super) fn charge_implied(&mut self, count: usize) -> Result<(), TarError> {
        self.budget.charge_implied(count, &self.last)
    }
}

impl Iterator for Reader<'_> {
    type Item = Result<Entry, TarError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_entry().transpose()
    }
}

/// GNU counts the NUL that ends a long name.
fn without_terminator(mut name: Vec<u8>) -> Vec<u8> {
    while name.last() == Some(&0) {
        name.pop();
    }
    name
}
