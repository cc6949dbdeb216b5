//! Tar streams to and from a [`RootTree`](super::tree::RootTree).
//!
//! A [`Reader`] yields the entries of an archive; [`read_file`] and [`read_stream`] make trees of them. They read what
//! `docker export`, `podman export`, mmdebstrap, GNU tar, bsdtar and Python write: V7, ustar, GNU
//! and POSIX pax headers, sparse files in all four formats, binary extended attributes. It trusts nothing: every
//! length is bounded by [`Limits`], and hostile input is a [`TarError`] that names the entry. [`write()`] makes one
//! canonical pax archive of a tree, the same bytes whatever the order in which the tree was built.
//!
//! Owners are numbers: user and group names, which mean something only on the machine of the archive, are ignored. Access
//! control lists are the extended attributes that the kernel keeps them in (`system.posix_acl_access`), read from those or,
//! where an archive has no such attribute, from the text that bsdtar and GNU tar's `--acls` write.
//!
//! Sources: POSIX.1-2024 `pax`, "ustar Interchange Format" and "pax Interchange Format"; GNU tar manual, "Tar
//! Internals" (basic format, sparse formats); libarchive's `tar(5)`.

mod acl;
mod error;
mod header;
mod headers;
mod input;
mod limits;
mod member;
mod pax;
mod policy;
mod read;
mod sparse;
mod text;
mod tree;
mod write;

pub use error::{EntryName, TarError};
pub use limits::{Budget, Limits};
pub use policy::Policy;
pub use read::{Entry, Reader};
pub(crate) use tree::set_link_body;
pub use tree::{read_file, read_stream};
pub use write::{TarOptions, write, write_some};

#[cfg(test)]
mod tests;
