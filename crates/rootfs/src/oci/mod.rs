//! Names of images in registries: references and digests, in the form in which specs, registries and manifests write them.

mod digest;
mod reference;

pub use digest::Digest;
pub use reference::{Reference, ReferenceError};
