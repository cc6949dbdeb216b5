//! The manifest of an image, and the list of its contents that the manifest names.

mod document;
mod list;

pub use document::{MANIFEST_FILE, Manifest, TreeSummary, manifest_beside};
pub use list::{CONTENTS_FILE, ContentsFile, contents_beside, read_contents, write_contents};
