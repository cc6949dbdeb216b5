//! The records of a pax extended header, and how numbers, times and attributes are written in them.
//!
//! POSIX.1-2024 `pax`, "pax Extended Header": records `"%d %s=%s\n", length, keyword, value`, where the length counts
//! the whole record. The length alone decides where a value ends, so a value may hold newlines and NULs.

use std::collections::BTreeMap;
use std::rc::Rc;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::limits::NAME_COST;
use super::own::{ADJUSTMENTS_RECORD, SOCKET, TYPE_RECORD};
use super::text::{Reason, decimal};
use super::text_acls::{ACCESS_RECORD, DEFAULT_RECORD};
use crate::acl;
use crate::tree::{Timestamp, Xattrs};

/// As libarchive writes attribute values, with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// What extended headers say about an entry. A key that is absent leaves the header block's word standing.
#[derive(Debug, Clone, Default)]
pub(super) struct Records {
    pub path: Option<Vec<u8>>,
    pub linkpath: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<Bounded>,
    /// By full name, decoded.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Access control lists in text, by the attribute in which the kernel keeps them.
    pub acls: BTreeMap<&'static [u8], Vec<u8>>,
    pub sparse: SparseRecords,
    /// [`ADJUSTMENTS_RECORD`].
    pub adjustments: Option<Rc<[u8]>>,
    /// Whether [`TYPE_RECORD`] says that it is a socket.
    pub is_socket: bool,
}

/// A time as an archive has it: in more bits than any filesystem has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounded {
    /// The nearest one that 64 bits of seconds hold.
    pub time: Timestamp,
    /// Whether that is another one.
    pub was_moved: bool,
}

impl Bounded {
    pub(super) fn new(seconds: i128, nanoseconds: u32) -> Self {
        let held = seconds.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        Bounded { time: Timestamp { seconds: held, nanoseconds }, was_moved: i128::from(held) != seconds }
    }
}

/// The `GNU.sparse.*` records; GNU tar manual, "PAX Format, Versions 0.0, 0.1 and 1.0".
#[derive(Debug, Clone, Default)]
pub(super) struct SparseRecords {
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub name: Option<Vec<u8>>,
    /// `GNU.sparse.realsize` (1.0) or `GNU.sparse.size` (0.x).
    pub size: Option<u64>,
    /// `GNU.sparse.map` of 0.1, or the offset and length records of 0.0, flat.
    pub map: Vec<u64>,
    pub is_sparse: bool,
}

impl Records {
    /// Reads the records of one extended header on top of what is known. `max_ranges` bounds the sparse map.
    pub(super) fn read(&mut self, mut rest: &[u8], max_ranges: usize) -> Result<(), Reason> {
        while !rest.is_empty() {
            // Some writers pad the last record with NULs.
            if rest.iter().all(|&byte| byte == 0) {
                break;
            }
            let space = rest.iter().take(20).position(|&byte| byte == b' ').ok_or("a record without a length")?;
            let length = decimal(&rest[..space]).ok_or("a record's length is not a number")?;
            let length = usize::try_from(length).ok().filter(|&length| length > space + 1 && length <= rest.len());
            let length = length.ok_or("a record's length reaches outside the header")?;
            let (record, after) = rest.split_at(length);
            rest = after;
            let record = record[space + 1..].strip_suffix(b"\n").ok_or("a record does not end with a newline")?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or("a record without `=`")?;
            self.set(&record[..equals], &record[equals + 1..], max_ranges)?;
        }
        Ok(())
    }

    /// Returns what a copy costs in memory, in bytes.
    pub(super) fn cost(&self) -> u64 {
        let words = [&self.path, &self.linkpath, &self.sparse.name].map(|word| word.as_ref().map_or(0, Vec::len));
        let xattrs = self.xattrs.iter().map(|(name, value)| NAME_COST + (name.len() + value.len()) as u64);
        let lists = self.acls.values().map(|text| NAME_COST + text.len() as u64);
        let rest = words.iter().sum::<usize>() + size_of_val(self.sparse.map.as_slice());
        xattrs.chain(lists).sum::<u64>() + rest as u64
    }

    fn set(&mut self, key: &[u8], value: &[u8], max_ranges: usize) -> Result<(), Reason> {
        match key {
            // An empty value takes the keyword back; the header block's word counts again.
            b"path" => self.path = (!value.is_empty()).then(|| value.into()),
            b"linkpath" => self.linkpath = (!value.is_empty()).then(|| value.into()),
            b"size" => self.size = optional(value, "a size that is not a number")?,
            b"uid" => self.uid = optional(value, "a uid that is not a number")?,
            b"gid" => self.gid = optional(value, "a gid that is not a number")?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(parse_time(value).ok_or("a time that is not a number")?),
            ACCESS_RECORD => drop(self.acls.insert(acl::ACCESS, value.into())),
            DEFAULT_RECORD => drop(self.acls.insert(acl::DEFAULT, value.into())),
            ADJUSTMENTS_RECORD => self.adjustments = Some(value.into()),
            TYPE_RECORD => self.is_socket = value == SOCKET,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.insert(decode_schily(name), value.into());
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let value = BASE64.decode(value).map_err(|_| "an extended attribute that is not base64")?;
                    self.xattrs.insert(decode_percent(name), value);
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(key, value, max_ranges)?;
                }
            }
        }
        Ok(())
    }
}

impl SparseRecords {
    fn set(&mut self, key: &[u8], value: &[u8], max_ranges: usize) -> Result<(), Reason> {
        let number = || decimal(value).ok_or("a sparse map that is not made of numbers");
        self.is_sparse = true;
        match key {
            b"major" => self.major = Some(number()?),
            b"minor" => self.minor = Some(number()?),
            b"name" => self.name = Some(value.into()),
            b"size" | b"realsize" => self.size = Some(number()?),
            b"offset" if self.map.len().is_multiple_of(2) => self.map.push(number()?),
            b"numbytes" if self.map.len() % 2 == 1 => self.map.push(number()?),
            b"offset" | b"numbytes" => return Err("sparse offsets and lengths do not alternate"),
            b"map" => {
                self.map.clear();
                for word in value.split(|&byte| byte == b',').filter(|_| !value.is_empty()) {
                    if self.map.len() / 2 >= max_ranges {
                        return Err("a sparse map with too many ranges");
                    }
                    self.map.push(decimal(word).ok_or("a sparse map that is not made of numbers")?);
                }
            }
            // `numblocks` only repeats the map's length.
            _ => {}
        }
        if self.map.len() / 2 > max_ranges { Err("a sparse map with too many ranges") } else { Ok(()) }
    }
}

fn optional(value: &[u8], reason: Reason) -> Result<Option<u64>, Reason> {
    if value.is_empty() { Ok(None) } else { decimal(value).map(Some).ok_or(reason) }
}

/// Seconds with an optional sign and fraction; finer than a nanosecond is cut towards the past, as GNU tar does. More seconds
/// than 64 bits have are the most that they have.
pub(super) fn parse_time(text: &[u8]) -> Option<Bounded> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let dot = digits.iter().position(|&byte| byte == b'.').unwrap_or(digits.len());
    let whole = &digits[..dot];
    if whole.is_empty() || !whole.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let whole = i128::from(decimal(whole).unwrap_or(u64::MAX));
    let fraction = digits.get(dot + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |place: usize| fraction.get(place).map_or(0, |&byte| i64::from(byte - b'0'));
    let mut nanos = (0..9).fold(0, |value, place| value * 10 + digit(place));
    if !negative {
        return Some(Bounded::new(whole, nanos as u32));
    }
    if fraction.iter().skip(9).any(|&byte| byte != b'0') {
        nanos += 1;
    }
    // −1.25 is a second and three quarters before the next: seconds −2, nanoseconds 750,000,000.
    let nanoseconds = ((NANOS_PER_SECOND - nanos) % NANOS_PER_SECOND) as u32;
    Some(Bounded::new(-whole - i128::from(nanos > 0), nanoseconds))
}

/// The decimal text of a time, as short as it can be.
pub(super) fn format_time(time: Timestamp) -> String {
    let text = format_long_time(time);
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// The decimal text of a time, with nine digits of fraction.
pub(super) fn format_long_time(time: Timestamp) -> String {
    let nanos = i64::from(time.nanoseconds);
    let (sign, whole, fraction) = if time.seconds < 0 && nanos > 0 {
        ("-", (time.seconds + 1).unsigned_abs(), NANOS_PER_SECOND - nanos)
    } else {
        (if time.seconds < 0 { "-" } else { "" }, time.seconds.unsigned_abs(), nanos)
    };
    format!("{sign}{whole}.{fraction:09}")
}

/// Appends one record. Its length counts its own digits.
pub(super) fn put_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + " =\n".len();
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// Appends an attribute under the keyword that GNU tar, star and bsdtar read, with GNU tar's escape for the `=` that
/// would end the keyword.
pub(super) fn put_xattr(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let mut key = b"SCHILY.xattr.".to_vec();
    for &byte in name {
        match byte {
            b'%' => key.extend_from_slice(b"%25"),
            b'=' => key.extend_from_slice(b"%3D"),
            _ => key.push(byte),
        }
    }
    put_record(out, &key, value);
}

/// Returns the bytes that an archive has for the attributes of one inode, in its extended header.
pub fn xattrs_bytes(xattrs: &Xattrs) -> usize {
    let mut records = Vec::new();
    for (name, value) in xattrs {
        put_xattr(&mut records, name, value);
    }
    records.len()
}

/// GNU tar escapes just these two in a keyword.
fn decode_schily(name: &[u8]) -> Vec<u8> {
    decode(name, |code| match code {
        b"25" => Some(b'%'),
        b"3D" => Some(b'='),
        _ => None,
    })
}

/// libarchive escapes whatever is not printable.
fn decode_percent(name: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16);
    decode(name, |code| Some((digit(code[0])? * 16 + digit(code[1])?) as u8))
}

fn decode(name: &[u8], byte_for: impl Fn(&[u8]) -> Option<u8>) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut at = 0;
    while at < name.len() {
        let escaped = (name[at] == b'%').then(|| name.get(at + 1..at + 3)).flatten().and_then(&byte_for);
        plain.push(escaped.unwrap_or(name[at]));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_floored_and_written_back() {
        let time = |seconds, nanoseconds| Timestamp { seconds, nanoseconds };
        let held = |text: &[u8]| parse_time(text).map(|bounded| bounded.time);
        for (text, wanted) in [
            ("0", time(0, 0)),
            ("1.5", time(1, 500_000_000)),
            ("-1", time(-1, 0)),
            ("-1.25", time(-2, 750_000_000)),
            ("-0.000000001", time(-1, 999_999_999)),
            ("4294967296.123456789", time(4_294_967_296, 123_456_789)),
        ] {
            assert_eq!(held(text.as_bytes()), Some(wanted), "{text}");
            assert_eq!(format_time(wanted), text);
        }
        assert_eq!(held(b"-0.9999999999"), Some(time(-1, 0)));
        assert_eq!(held(b"-0.0000000001"), Some(time(-1, 999_999_999)));
        assert_eq!(held(b"1.9999999999"), Some(time(1, 999_999_999)));
        assert_eq!(held(b"-0.0"), Some(time(0, 0)));
        for bad in ["", "-", ".5", "1e9", "+1", "1.x", "--1"] {
            assert_eq!(held(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(held(b"99999999999999999999"), Some(time(i64::MAX, 0)));
        assert_eq!(held(b"-99999999999999999999"), Some(time(i64::MIN, 0)));
        for (text, was_moved) in [
            ("9223372036854775807", false),
            ("9223372036854775808", true),
            ("-9223372036854775808", false),
            ("-9223372036854775809", true),
        ] {
            let moved = parse_time(text.as_bytes()).is_some_and(|bounded| bounded.was_moved);
            assert_eq!(moved, was_moved, "{text}");
        }
        assert_eq!(format_time(time(i64::MIN, 0)), "-9223372036854775808");
    }

    #[test]
    fn a_record_counts_its_own_length() {
        for (value, prefix) in [(4, "9 k="), (5, "11 k="), (93, "99 k="), (94, "101 k=")] {
            let mut out = Vec::new();
            put_record(&mut out, b"k", &vec![b'v'; value]);
            assert!(out.starts_with(prefix.as_bytes()), "{}", out.escape_ascii());
            assert_eq!(out.len().to_string(), prefix.split(' ').next().unwrap());
        }
    }

    #[test]
    fn attribute_values_keep_every_byte_and_names_their_equals_sign() {
        let mut raw = Vec::new();
        put_xattr(&mut raw, b"user.a=b%", b"\0\n=\xff");
        put_record(&mut raw, b"LIBARCHIVE.xattr.user.l%20x", b"AAEC/w");
        put_record(&mut raw, b"SCHILY.xattr.user.empty", b"");
        let mut records = Records::default();
        records.read(&raw, 1).unwrap();
        let xattrs: Vec<(&[u8], &[u8])> = records.xattrs.iter().map(|(k, v)| (&k[..], &v[..])).collect();
        assert_eq!(
            xattrs,
            [
                (b"user.a=b%".as_slice(), b"\0\n=\xff".as_slice()),
                (b"user.empty", b""),
                (b"user.l x", b"\0\x01\x02\xff")
            ]
        );
    }
}
