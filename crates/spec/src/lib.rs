//! Reads and validates `image.toml`, the spec of an image, and reports every error of a spec at its place.
//!
//! [`ImageSet::load`] reads a folder of images and [`ImageSet::resolve`] what they inherit from each other; [`read_image`]
//! reads a single one and [`parse_image`] a text. The files that a spec names are looked for, and nothing is written.
//!
//! ```
//! use std::path::Path;
//!
//! let text = "base = { debian = \"trixie\" }\npakages = [\"curl\"]\n".to_owned();
//! let errors = snug_spec::parse_image(Path::new("images/web"), text).unwrap_err();
//! assert_eq!(
//!     errors.to_string(),
//!     "error: unknown key `pakages`
//!  --> images/web/image.toml:2:1
//!   |
//! 2 | pakages = [\"curl\"]
//!   | ^^^^^^^
//!   = help: did you mean `packages`?"
//! );
//! ```

#![forbid(unsafe_code)]
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
pub use names::suite_help;

/// Checks the name of an image. The error says which names are valid.
pub fn check_image_name(text: &str) -> Result<(), String> {
    names::image(text).map_err(|problem| format!("{}\nhint: {}", problem.message, problem.help))
}

/// The name of a spec in an image's folder.
pub const SPEC_FILE: &str = "image.toml";
/// The folder beside the images whose files all of them may use.
pub const SHARED_FOLDER: &str = "shared";

#[cfg(test)]
mod tests;
