//! A root filesystem as data: read from a tar stream, changed as a tree, written back as a canonical tar.
//!
//! A [`RootTree`](tree::RootTree) holds names and inodes; contents stay in the archive that they came from. [`tar`] reads
//! archives of any origin with bounds on everything and writes one canonical form, [`layers`] merges the layers of a
//! container image, [`disk`] writes a tree to real files and reads it back, [`listing`] and [`mtree`] state what a tree
//! holds. Nothing here depends on the rest of the workspace.
//!
//! ```
//! use snug_rootfs::tar::{self, Limits, TarOptions};
//! use snug_rootfs::tree::{BodySource, Inode, Kind, RootTree, TreePath};
//!
//! let mut tree = RootTree::new(BodySource::new(Vec::new()));
//! let hostname = tree.add_body(b"claw\n");
//! tree.insert(TreePath::new("/etc/hostname")?, Inode::new(Kind::File(hostname), 0o644))?;
//!
//! let mut archive = Vec::new();
//! tar::write(&tree, &mut archive, TarOptions::FAITHFUL, &mut |_| {})?;
//!
//! let spool = tempfile::tempfile()?;
//! let again = tar::read_stream(archive.as_slice(), spool, &Limits::default(), &mut |_| {})?;
//! let names: Vec<String> = again.entries().map(|entry| entry.path.to_string()).collect();
//! assert_eq!(names, ["/", "/etc", "/etc/hostname"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod accounts;
pub mod acl;
pub mod adjustments;
mod body;
pub mod buffer_pool;
pub mod capabilities;
pub mod changes;
pub mod container_archive;
pub mod digest;
pub mod disk;
pub mod fit;
pub mod glob;
pub mod holes;
mod inode;
pub mod layers;
pub mod listing;
pub mod mtree;
mod names;
pub mod normalise;
pub mod oci;
pub mod packages;
mod path;
pub mod platform;
pub mod printable;
pub mod regular_file;
pub mod spool;
pub mod stamp;
pub mod tar;
pub mod tree;
