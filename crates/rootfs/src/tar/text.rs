//! Numbers that archives write as text.

/// Why a record or a value is malformed.
pub(super) type Reason = &'static str;

/// Parses a decimal number of digits alone, within 64 bits.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, &byte| {
        byte.is_ascii_digit().then_some(())?;
        value.checked_mul(10)?.checked_add(u64::from(byte - b'0'))
    })
}
