//! The inputs of images: Debian roots, OCI images and programs built by cargo; and packages of other suites, unpacked for
//! the tool itself.

pub mod cargo;
pub mod debian;
pub mod oci;
pub mod unpacked;
