//! Tar streams to and from a [`RootTree`](super::tree::RootTree).
//!
//! A [`Reader`] yields the entries of an archive; [`read_file`] and [`read_stream`] make trees of them, the same tree of
//! the same content, however an archive states its holes. Names are resolved
//! inside the root, as in the layers of an image: what is taken otherwise than it is written is counted in the tree's
//! [`adjustments`](crate::tree::RootTree::adjustments), and only what would leave the root is refused. They read what
//! `docker export`, `podman export`, mmdebstrap, GNU tar, bsdtar and Python write: V7, ustar, GNU
//! and POSIX pax headers, sparse files in all four formats, binary extended attributes. It trusts nothing: every
//! length is bounded by [`Limits`], and hostile input is a [`TarError`] that names the entry. [`write()`] makes one
//! canonical pax archive of a tree, the same bytes whatever the order in which the tree was built.
//!
//! Owners are numbers: user and group names, which mean something only on the machine of the archive, are ignored. Access
//! control lists are the extended attributes that the kernel keeps them in (`system.posix_acl_access`), read from those or,
//! where an archive has no such attribute, from the text that bsdtar and GNU tar's `--acls` write. Names in that text which
//! come without a number are looked up in the archive's own `/etc/passwd` and `/etc/group`.
//!
//! Sources: POSIX.1-2024 `pax`, "ustar Interchange Format" and "pax Interchange Format"; GNU tar manual, "Tar
//! Internals" (basic format, sparse formats); libarchive's `tar(5)`.

mod end_marker;
mod error;
mod header;
mod headers;
mod input;
mod limits;
mod member;
mod mistaken;
mod own;
mod pax;
mod placement;
mod read;
mod sealed;
mod sparse;
mod text;
mod text_acls;
mod tree;
mod write;

pub use end_marker::EndMarker;
pub use error::{EntryName, TarError};
pub use limits::{Budget, Limits};
pub use pax::xattrs_bytes;
pub(crate) use placement::Placement;
pub use read::{Entry, Reader};
pub use sealed::{is_whole, seal, write_sealed};
pub(crate) use text_acls::resolve_acls;
pub use tree::{own_adjustments, read_as_stated, read_file, read_own, read_own_stream, read_stream};
pub use write::{TarOptions, write, write_some};

#[cfg(test)]
mod tests;
