//! What is accepted besides a well-formed archive of a root filesystem.

/// What a [`Reader`](super::Reader) accepts besides whole archives of relative names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Accept absolute names and hard link targets, as relative to the root.
    pub absolute_names: bool,
    /// Accept an archive that ends without its end marker, and an empty input as an archive of nothing.
    pub unterminated: bool,
}

impl Policy {
    /// Accepts neither: an absolute name is a mistake of the archive's author, and a missing end marker is the only sign that
    /// an archive was cut short.
    pub const STRICT: Policy = Policy { absolute_names: false, unterminated: false };
    /// What container engines accept in a layer, whose digest proves that it is whole.
    pub const LAYER: Policy = Policy { absolute_names: true, unterminated: true };
}
