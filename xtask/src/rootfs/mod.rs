//! A root filesystem as data: read once and safely from a tar stream, changed as a tree, written back as a tar.

pub mod capabilities;
pub mod disk;
pub mod tar;
pub mod tree;
