//! `image.toml`: reading, validating, and the errors that point at what is wrong.
//!
//! No I/O beyond reading files. Start at [`ImageSet::load`] for a folder of images, or [`read_image`] for one.

pub mod error;
pub mod model;
mod nearest;

pub use error::{SpecError, SpecErrors};
pub use model::{Document, ImageSpec, Located};

/// The file that makes a folder an image.
pub const SPEC_FILE: &str = "image.toml";
/// The folder beside the images whose files any of them may take.
pub const SHARED_FOLDER: &str = "shared";
