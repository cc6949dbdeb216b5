//! The 512-byte header block: its fields, and the numbers in them.
//!
//! POSIX.1-2024 `pax`, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".

use std::ops::Range;

use memchr::memchr;

/// Tar's unit: headers are one block, bodies are padded to whole ones.
pub(super) const BLOCK: usize = 512;
/// `BLOCK`, where file offsets are computed.
pub(super) const BLOCK_U64: u64 = BLOCK as u64;
/// GNU tar and Python pad an archive to whole records of twenty blocks.
pub(super) const RECORD_U64: u64 = 20 * BLOCK_U64;

pub(super) const NAME: Range<usize> = 0..100;
pub(super) const MODE: Range<usize> = 100..108;
pub(super) const UID: Range<usize> = 108..116;
pub(super) const GID: Range<usize> = 116..124;
pub(super) const SIZE: Range<usize> = 124..136;
pub(super) const MTIME: Range<usize> = 136..148;
pub(super) const CHECKSUM: Range<usize> = 148..156;
pub(super) const TYPEFLAG: usize = 156;
pub(super) const LINKNAME: Range<usize> = 157..257;
pub(super) const MAGIC: Range<usize> = 257..265;
pub(super) const DEVMAJOR: Range<usize> = 329..337;
pub(super) const DEVMINOR: Range<usize> = 337..345;
pub(super) const PREFIX: Range<usize> = 345..500;
/// Where GNU's old sparse header keeps its first four ranges.
pub(super) const GNU_SPARSE: Range<usize> = 386..482;
pub(super) const GNU_SPARSE_EXTENDED: usize = 482;
pub(super) const GNU_REALSIZE: Range<usize> = 483..495;

pub(super) const POSIX_MAGIC: &[u8; 8] = b"ustar\x0000";

/// One header block.
#[derive(Clone)]
pub(super) struct Header(pub [u8; BLOCK]);

/// A field that holds no number.
#[derive(Debug)]
pub(super) struct BadNumber;

impl Header {
    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|&byte| byte == 0)
    }

    /// Whether the stored checksum is right. Some old writers summed signed bytes, so either sum is accepted.
    pub(super) fn checksum_fits(&self) -> bool {
        let Ok(stored) = number(&self.0[CHECKSUM]) else { return false };
        // The field itself counts as spaces.
        let field = &self.0[CHECKSUM];
        let unsigned = sum(&self.0) - sum_of(field, u32::from) + u32::from(b' ') * field.len() as u32;
        if stored == i128::from(unsigned) {
            return true;
        }
        let negative = |bytes| sum_of(bytes, |byte| u32::from(byte >> 7));
        stored == i128::from(unsigned) - 256 * i128::from(negative(&self.0) - negative(field))
    }

    /// Whether the prefix field is a part of the name: only with the magic of POSIX. GNU keeps times there, V7 nothing.
    pub(super) fn has_prefix(&self) -> bool {
        self.0[MAGIC][..6] == POSIX_MAGIC[..6] && self.0[PREFIX.start] != 0
    }

    pub(super) fn typeflag(&self) -> u8 {
        self.0[TYPEFLAG]
    }

    /// Returns a field's text, up to its first NUL.
    pub(super) fn text(&self, field: Range<usize>) -> &[u8] {
        let bytes = &self.0[field];
        &bytes[..memchr(0, bytes).unwrap_or(bytes.len())]
    }

    pub(super) fn number(&self, field: Range<usize>) -> Result<i128, BadNumber> {
        number(&self.0[field])
    }
}

/// Sums the bytes of a block, eight at a time: it is computed for every header.
fn sum(block: &[u8; BLOCK]) -> u32 {
    /// Every second byte of a word. In four lanes of 16 bits, 64 words of twice 255 do not overflow.
    const EVEN: u64 = 0x00ff_00ff_00ff_00ff;
    let (words, _) = block.as_chunks::<8>();
    let lanes = words
        .iter()
        .map(|word| u64::from_le_bytes(*word))
        .fold(0_u64, |lanes, word| lanes.wrapping_add(word & EVEN).wrapping_add(word >> 8 & EVEN));
    (0..4).map(|lane| (lanes >> (16 * lane)) as u32 & 0xffff).sum()
}

fn sum_of(bytes: &[u8], value: impl Fn(u8) -> u32) -> u32 {
    bytes.iter().map(|&byte| value(byte)).sum()
}

/// Parses a numeric field: octal text that spaces may surround and a NUL may end, or GNU's base-256, a big-endian two's
/// complement number whose first bit is set as a mark. An empty field is 0.
pub(super) fn number(field: &[u8]) -> Result<i128, BadNumber> {
    debug_assert!(field.len() <= 12);
    // The usual form, digits and a NUL, is parsed without the general case below.
    let mut digits = 0_u64;
    for (at, byte) in field.iter().enumerate() {
        match byte.wrapping_sub(b'0') {
            digit @ 0..=7 => digits = digits << 3 | u64::from(digit),
            _ if *byte == 0 && at > 0 => return Ok(digits.into()),
            _ => break,
        }
    }
    if field[0] & 0x80 != 0 {
        // The marking bit is not part of the number; the next one is its sign.
        let negative = field[0] & 0x40 != 0;
        let first = if negative { i128::from(field[0]) - 0x100 } else { i128::from(field[0] & 0x7f) };
        return Ok(field[1..].iter().fold(first, |value, &byte| (value << 8) | i128::from(byte)));
    }
    let text = field.split(|&byte| byte == 0).next().unwrap_or_default().trim_ascii();
    let mut value = 0_i128;
    for &byte in text {
        if !(b'0'..=b'7').contains(&byte) {
            return Err(BadNumber);
        }
        value = (value << 3) | i128::from(byte - b'0');
    }
    Ok(value)
}

/// Writes `value` as octal digits and a NUL, or as base-256 where the digits do not fit.
pub(super) fn put_number(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    if value < 1 << (3 * digits).min(63) {
        let mut rest = value;
        for slot in field[..digits].iter_mut().rev() {
            *slot = b'0' + (rest & 7) as u8;
            rest >>= 3;
        }
        field[digits] = 0;
    } else {
        field.fill(0);
        let bytes = value.to_be_bytes();
        let start = field.len().saturating_sub(bytes.len());
        let skipped = bytes.len() - (field.len() - start);
        field[start..].copy_from_slice(&bytes[skipped..]);
        field[0] |= 0x80;
    }
}

/// Sets the checksum; the last change to a header.
pub(super) fn seal(block: &mut [u8; BLOCK]) {
    block[CHECKSUM].fill(b' ');
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    put_number(&mut block[CHECKSUM.start..CHECKSUM.end - 1], sum);
}

/// Returns the bytes between `size` and the next multiple of a block.
pub(super) fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK_U64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_read_however_they_are_written() {
        let read = |field: &[u8]| number(field).ok();
        assert_eq!(read(b"0000644\0"), Some(0o644));
        assert_eq!(read(b"00000000644"), Some(0o644));
        assert_eq!(read(b"777777777777"), Some(0o777_777_777_777));
        assert_eq!(read(b"   644 \0"), Some(0o644));
        assert_eq!(read(b"644 \0\0\0"), Some(0o644));
        assert_eq!(read(b"644\0junk"), Some(0o644));
        assert_eq!(read(&[0; 8]), Some(0));
        assert_eq!(read(b"64 4\0"), None);
        assert_eq!(read(b"0000648\0"), None);
        assert_eq!(read(b"\x80\0\0\0\0\0\x01\x00"), Some(256));
        assert_eq!(read(&[0xff; 12]), Some(-1));
    }

    proptest! {
        #[test]
        fn either_sum_of_a_header_is_taken(bytes in prop::collection::vec(any::<u8>(), BLOCK), off in 0_u8..3) {
            let mut header = Header(bytes.try_into().expect("a block"));
            header.0[CHECKSUM].fill(b' ');
            let unsigned: i64 = header.0.iter().map(|&byte| i64::from(byte)).sum();
            let signed: i64 = header.0.iter().map(|&byte| i64::from(byte as i8)).sum();
            for sum in [unsigned, signed] {
                let mut field = [0; 8];
                field.copy_from_slice(&(sum + i64::from(off)).to_be_bytes());
                // Base-256: a mark, and the number's own sign behind it.
                field[0] = if sum + i64::from(off) < 0 { 0xff } else { 0x80 };
                header.0[CHECKSUM].copy_from_slice(&field);
                let other = if sum == unsigned { signed } else { unsigned };
                prop_assert_eq!(header.checksum_fits(), off == 0 || sum + i64::from(off) == other);
            }
        }
    }
}
