//! One member: its header together with the extended headers before it.

use std::borrow::Cow;
use std::ops::Range;
use std::rc::Rc;

use super::error::{EntryName, TarError};
use super::header::{DEVMAJOR, DEVMINOR, Header, LINKNAME, MTIME, NAME, PREFIX, SIZE};
use super::pax::{Bounded, Records};

/// A device's major number has 12 bits in Linux, its minor number 20.
const MAJOR_MAX: u32 = (1 << 12) - 1;
const MINOR_MAX: u32 = (1 << 20) - 1;

/// A header and what extended headers add to it.
pub(super) struct Member<'header> {
    pub header: &'header Header,
    /// The name as the archive writes it.
    pub name: Cow<'header, [u8]>,
    pub records: Rc<Records>,
    /// Whether it has a pax header of its own.
    pub has_records: bool,
    pub long_link: Option<Vec<u8>>,
    /// Bytes of data stored after the header.
    pub stored: u64,
}

impl Member<'_> {
    pub(super) fn number(&self, field: Range<usize>, what: &'static str) -> Result<i128, TarError> {
        number(self.header, field, what, &self.name)
    }

    pub(super) fn id(&self, field: Range<usize>, what: &'static str, said: Option<u64>) -> Result<u32, TarError> {
        let value = match said {
            Some(value) => value.into(),
            None => self.number(field, what)?,
        };
        // The largest, −1, means "no change" to chown(2) and cannot own a file.
        let id = u32::try_from(value).ok().filter(|&id| id != u32::MAX);
        id.ok_or_else(|| TarError::OutOfRange { entry: EntryName::new(&self.name), field: what, value })
    }

    pub(super) fn mtime(&self) -> Result<Bounded, TarError> {
        if let Some(time) = self.records.mtime {
            return Ok(time);
        }
        Ok(Bounded::new(self.number(MTIME, "mtime")?, 0))
    }

    pub(super) fn device(&self) -> Result<(u32, u32), TarError> {
        let part = |field, what, max: u32| {
            let value = self.number(field, what)?;
            let out_of_range = || TarError::OutOfRange { entry: EntryName::new(&self.name), field: what, value };
            u32::try_from(value).ok().filter(|&value| value <= max).ok_or_else(out_of_range)
        };
        Ok((part(DEVMAJOR, "device major number", MAJOR_MAX)?, part(DEVMINOR, "device minor number", MINOR_MAX)?))
    }

    pub(super) fn link_name(&self) -> &[u8] {
        let said = self.records.linkpath.as_ref().or(self.long_link.as_ref());
        said.map_or_else(|| self.header.text(LINKNAME), Vec::as_slice)
    }
}

fn number(header: &Header, field: Range<usize>, what: &'static str, name: &[u8]) -> Result<i128, TarError> {
    let bad = |_| {
        let value = header.0[field.clone()].to_vec();
        TarError::BadNumber { entry: EntryName::new(name), field: what, value }
    };
    header.number(field.clone()).map_err(bad)
}

/// Reads the size field: bytes of data after the header.
pub(super) fn stored_size(header: &Header, name: &[u8]) -> Result<u64, TarError> {
    let value = number(header, SIZE, "size", name)?;
    u64::try_from(value).map_err(|_| TarError::OutOfRange { entry: EntryName::new(name), field: "size", value })
}

/// Reads the name in the header block itself.
pub(super) fn header_name(header: &Header) -> Cow<'_, [u8]> {
    let name = header.text(NAME);
    if header.has_prefix() { [header.text(PREFIX), b"/", name].concat().into() } else { name.into() }
}
