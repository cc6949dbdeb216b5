//! Proving an image: that it holds together, and that a machine starts from it.

pub mod boot;
