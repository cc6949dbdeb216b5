//! A root filesystem as data: read once and safely from a tar stream, changed as a tree, written back as a tar.

mod body;
pub mod capabilities;
pub mod digest;
pub mod disk;
pub mod glob;
mod growing;
pub mod layers;
pub mod mtree;
pub mod normalise;
pub mod packages;
mod path;
pub mod relay;
pub mod tar;
pub mod tree;
