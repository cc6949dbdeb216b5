//! What images start from and take in: Debian roots, images of registries, programs built by cargo; and programs of other
//! suites, unpacked for the tool itself.

pub mod cargo;
pub mod debian;
pub mod oci;
pub mod unpacked;
