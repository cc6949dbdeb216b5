//! Finished images: they appear under their name complete or not at all, described by a manifest, which
//! names the list of their contents.

mod contents;
mod manifest;
mod partial;
mod sync_ahead;
pub mod verity;

pub use contents::{CONTENTS_FILE, ContentsFile, contents_beside, read_contents, write_contents};
pub use manifest::{MANIFEST_FILE, Manifest, TreeSummary, manifest_beside};
pub use partial::Partial;
pub use verity::Verity;
