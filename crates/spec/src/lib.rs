//! `image.toml`: reading, validating, and the errors that point at what is wrong.
//!
//! No I/O beyond reading files. Start at [`ImageSet::load`] for a folder of images, or [`read_image`] for one.

#![warn(missing_docs)]

pub mod error;
mod filesystem;
mod image;
pub mod inherit;
pub mod model;
mod names;
mod nearest;
mod placement;
mod reader;
mod sources;
pub mod values;

pub use error::{SpecError, SpecErrors};
pub use image::{parse_image, read_image};
pub use inherit::{ImageSet, Resolved};
pub use model::{Document, ImageSpec, Located};

/// Can this name an image? The error says what can.
pub fn check_image_name(text: &str) -> Result<(), String> {
    names::image(text).map_err(|problem| format!("{}\nhint: {}", problem.message, problem.help))
}

/// The file that makes a folder an image.
pub const SPEC_FILE: &str = "image.toml";
/// The folder beside the images whose files any of them may take.
pub const SHARED_FOLDER: &str = "shared";

#[cfg(test)]
mod tests;
