//! Finished images: they appear under their name complete or not at all, described by a manifest.

mod manifest;
mod partial;
pub mod verity;

pub use manifest::{MANIFEST_FILE, Manifest, TreeSummary, manifest_beside};
pub use partial::Partial;
pub use verity::Verity;
