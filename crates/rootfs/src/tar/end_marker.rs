//! What proves that an archive is whole.

/// Whether an archive has to have its end marker, two zero blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndMarker {
    /// It is the only sign that the program which writes the archive was not cut short.
    Required,
    /// The archive may end without it, and an empty input is an archive of nothing: for a layer, whose digest proves that it
    /// is whole, as container engines take it.
    Optional,
}
