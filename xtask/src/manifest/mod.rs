//! The manifest of an image, and the list of its contents that the manifest names.

mod document;
mod integrity;
mod list;

pub use document::{MANIFEST_FILE, Manifest, ManifestError, TreeSummary, image_file, manifest_beside};
pub use integrity::stamp;
pub use list::{CONTENTS_FILE, ContentsFile, contents_beside, read_contents, write_contents, write_list};
