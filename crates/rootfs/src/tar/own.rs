//! What tar has no form for, in the archives that go from this reader's programs to themselves: records of their own in pax
//! headers, which POSIX keeps for that (`VENDOR.keyword`). Other programs ignore them, and so does the reader, unless the
//! caller says that the archive is one of these: strangers must not say what has become of their trees.

use super::error::TarError;
use crate::adjustments::Adjustments;

/// The record of the global header that has the tree's [`Adjustments`], as JSON.
pub(super) const ADJUSTMENTS_RECORD: &[u8] = b"SNUG.adjustments";
/// The record of a FIFO that is none: its value is [`SOCKET`].
pub(super) const TYPE_RECORD: &[u8] = b"SNUG.type";
/// A socket.
pub(super) const SOCKET: &[u8] = b"socket";

/// Returns the value of [`ADJUSTMENTS_RECORD`].
pub(super) fn to_json(adjustments: &Adjustments) -> Vec<u8> {
    serde_json::to_vec(adjustments).expect("it has no maps")
}

/// Reads what [`to_json`] wrote.
pub(super) fn adjustments(json: &[u8]) -> Result<Adjustments, TarError> {
    let malformed = |_| TarError::BadExtendedHeader { offset: 0, reason: "adjustments that are none" };
    serde_json::from_slice(json).map_err(malformed)
}
