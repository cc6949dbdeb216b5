//! What an image says of itself: a manifest, which names the list of its contents.

mod list;
mod manifest;

pub use list::{CONTENTS_FILE, ContentsFile, contents_beside, read_contents, write_contents};
pub use manifest::{MANIFEST_FILE, Manifest, TreeSummary, manifest_beside};
