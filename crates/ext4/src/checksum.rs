//! CRC-32C, the checksum of every ext4 metadata structure (kernel documentation, `filesystems/ext4/checksums.rst`).
//!
//! As the kernel's `crc32c_le`, the value is inverted neither before nor after, so that checksums chain.

/// The Castagnoli polynomial, bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The initial value where there is no seed.
pub(crate) const START: u32 = u32::MAX;

/// `TABLES[k][b]` is the checksum of byte `b` followed by `k` zero bytes ("slicing by 8": eight bytes in one step).
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            value = (value >> 1) ^ (POLYNOMIAL & (value & 1).wrapping_neg());
            bit += 1;
        }
        tables[0][byte] = value;
        byte += 1;
    }
    let mut level = 1;
    while level < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[level - 1][byte];
            tables[level][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        level += 1;
    }
    tables
}

/// Continues the checksum `crc` over `bytes`.
pub(crate) fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("sse4.2") {
        // SAFETY: the processor has SSE 4.2.
        return unsafe { by_instruction(crc, bytes) };
    }
    by_tables(crc, bytes)
}

/// SSE 4.2, which every x86-64 processor since 2011 has, includes an instruction for this polynomial.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn by_instruction(crc: u32, bytes: &[u8]) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u64};
    let (words, rest) = bytes.as_chunks::<8>();
    let crc = words.iter().fold(u64::from(crc), |crc, word| _mm_crc32_u64(crc, u64::from_le_bytes(*word)));
    // The upper half of its result is zero.
    rest.iter().fold(crc as u32, |crc, &byte| _mm_crc32_u8(crc, byte))
}

fn by_tables(crc: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut crc = crc;
    for word in words {
        let [a, b, c, d, e, f, g, h] = (u64::from_le_bytes(*word) ^ u64::from(crc)).to_le_bytes().map(usize::from);
        crc = TABLES[7][a]
            ^ TABLES[6][b]
            ^ TABLES[5][c]
            ^ TABLES[4][d]
            ^ TABLES[3][e]
            ^ TABLES[2][f]
            ^ TABLES[1][g]
            ^ TABLES[0][h];
    }
    rest.iter().fold(crc, |crc, &byte| (crc >> 8) ^ TABLES[0][usize::from(crc as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_rfc_3720() {
        // RFC 3720, appendix B.4; iSCSI inverts the result.
        assert_eq!(!crc32c(START, &[0; 32]), 0x8a91_36aa);
        assert_eq!(!crc32c(START, &[0xff; 32]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(!crc32c(START, &ascending), 0x46dd_794e);
        assert_eq!(!crc32c(START, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn with_and_without_the_instruction_it_is_the_same() {
        let bytes: Vec<u8> = (0..=255_u8).cycle().map(|byte| byte.wrapping_mul(167)).take(777).collect();
        for length in 0..bytes.len() {
            assert_eq!(crc32c(length as u32, &bytes[..length]), by_tables(length as u32, &bytes[..length]));
        }
    }

    #[test]
    fn chains_at_any_border() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
        for border in [0, 1, 7, 8, 9, 500, 999, 1000] {
            let (head, tail) = bytes.split_at(border);
            assert_eq!(crc32c(crc32c(START, head), tail), crc32c(START, &bytes));
        }
    }
}
