//! The manifest of an image, and the list of its contents that the manifest names.

mod list;
mod manifest;

pub use list::{CONTENTS_FILE, ContentsFile, contents_beside, read_contents, write_contents};
pub use manifest::{MANIFEST_FILE, Manifest, TreeSummary, manifest_beside};
