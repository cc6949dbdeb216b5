//! A root filesystem as data: read once and safely from a tar stream, changed as a tree, written back as a tar.

pub mod accounts;
mod body;
pub mod buffer_pool;
pub mod capabilities;
pub mod digest;
pub mod disk;
pub mod glob;
mod inode;
pub mod layers;
pub mod listing;
pub mod mtree;
mod names;
pub mod normalise;
pub mod packages;
mod path;
pub mod platform;
pub mod tar;
pub mod tree;
