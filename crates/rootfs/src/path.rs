//! Paths in a tree: bytes, bounded, and never outside the root.

use std::cmp::Ordering;
use std::fmt;

use memchr::{memchr, memchr_iter, memrchr};

use crate::printable::is_printable;

/// Longest name of one directory entry, in bytes (`NAME_MAX`; ext4, squashfs and erofs agree).
pub const NAME_MAX: usize = 255;
/// Longest path, in bytes (`PATH_MAX` counts a terminating NUL on top).
pub const PATH_MAX: usize = 4096;

/// A path inside the tree: raw bytes, relative to the root, without leading, trailing or doubled slashes and without
/// `.` or `..` components. The root itself is the empty path.
///
/// Paths order by component, so that a directory is directly followed by everything below it (`a`, `a/b`, `a-c`).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TreePath(Box<[u8]>);

/// Why bytes are not a [`TreePath`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It has a `..` component; of [`TreePath::resolved`], one that leads above the root.
    #[error("the path leaves the root through `..`")]
    Escapes,
    /// It is longer than [`PATH_MAX`]; its length in bytes.
    #[error("the path is {0} bytes long, more than {PATH_MAX}")]
    TooLong(usize),
    /// A component is longer than [`NAME_MAX`]; its length in bytes.
    #[error("the name is {0} bytes long, more than {NAME_MAX}")]
    NameTooLong(usize),
    /// It holds a NUL byte.
    #[error("the path holds a NUL byte")]
    Nul,
}

impl TreePath {
    /// The root directory itself.
    pub fn root() -> Self {
        TreePath(Box::default())
    }

    /// Parses a path as tar streams and specs write it: a leading `/` or `./`, doubled slashes, `.` components and a
    /// trailing slash are dropped.
    pub fn new(raw: impl AsRef<[u8]>) -> Result<Self, PathError> {
        let raw = raw.as_ref();
        if memchr(0, raw).is_some() {
            return Err(PathError::Nul);
        }
        // Nearly all are clean but for their ends.
        let middle = raw.strip_prefix(b"./").unwrap_or(raw);
        let middle = middle.strip_suffix(b"/").unwrap_or(middle);
        if middle.len() <= PATH_MAX && is_clean(middle) {
            return Ok(TreePath(middle.into()));
        }
        TreePath::cleaned(raw, |_| Err(PathError::Escapes))
    }

    /// Parses a path as [`Self::new`] does and resolves its `..` components by the text alone: `a/../b` is `b`, whatever `a`
    /// is. One that leads above the root is an error.
    pub fn resolved(raw: impl AsRef<[u8]>) -> Result<Self, PathError> {
        TreePath::cleaned(raw.as_ref(), |above| {
            if above.is_empty() {
                return Err(PathError::Escapes);
            }
            above.truncate(memrchr(b'/', above).unwrap_or(0));
            Ok(())
        })
    }

    /// Drops what a path can do without. `ascend` is called for each `..`, with the path before it.
    fn cleaned(raw: &[u8], ascend: impl Fn(&mut Vec<u8>) -> Result<(), PathError>) -> Result<Self, PathError> {
        if memchr(0, raw).is_some() {
            return Err(PathError::Nul);
        }
        let mut clean = Vec::with_capacity(raw.len());
        for name in raw.split(|&byte| byte == b'/') {
            match name {
                b"" | b"." => continue,
                b".." => ascend(&mut clean)?,
                _ if name.len() > NAME_MAX => return Err(PathError::NameTooLong(name.len())),
                _ => {
                    if !clean.is_empty() {
                        clean.push(b'/');
                    }
                    clean.extend_from_slice(name);
                }
            }
        }
        if clean.len() > PATH_MAX {
            return Err(PathError::TooLong(clean.len()));
        }
        Ok(TreePath(clean.into_boxed_slice()))
    }

    /// Returns the path without a leading slash; empty for the root.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the root directory.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the last component; empty for the root.
    pub fn name(&self) -> &[u8] {
        match memrchr(b'/', &self.0) {
            Some(slash) => &self.0[slash + 1..],
            None => &self.0,
        }
    }

    /// Returns the path of the entry `name` of this directory; `None` where that is no valid path.
    pub fn join(&self, name: &[u8]) -> Option<TreePath> {
        TreePath::new([self.as_bytes(), b"/", name].concat()).ok()
    }

    /// Returns the directory that holds this path; `None` for the root.
    pub fn parent(&self) -> Option<TreePath> {
        self.parent_bytes().map(|parent| TreePath(parent.into()))
    }

    /// Returns the bytes of [`Self::parent`], without allocating.
    pub fn parent_bytes(&self) -> Option<&[u8]> {
        let end = memrchr(b'/', &self.0).unwrap_or(0);
        (!self.is_root()).then(|| &self.0[..end])
    }

    /// Returns the number of components; 0 for the root.
    pub fn depth(&self) -> usize {
        if self.is_root() { 0 } else { 1 + memchr_iter(b'/', &self.0).count() }
    }

    /// Returns the components, from the root down.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&byte| byte == b'/').filter(|name| !name.is_empty())
    }

    /// Whether this path is `ancestor` itself or below it.
    pub fn is_within(&self, ancestor: &TreePath) -> bool {
        ancestor.is_root()
            || (self.0.starts_with(&ancestor.0)
                && (self.0.len() == ancestor.0.len() || self.0[ancestor.0.len()] == b'/'))
    }
}

/// Whether the path is in the form that [`TreePath`] keeps: all components valid, none of them `.` or `..`.
fn is_clean(mut path: &[u8]) -> bool {
    loop {
        let end = memchr(b'/', path).unwrap_or(path.len());
        if !(1..=NAME_MAX).contains(&end) || matches!(&path[..end], b"." | b"..") {
            return false;
        }
        if end == path.len() {
            return true;
        }
        path = &path[end + 1..];
    }
}

impl Ord for TreePath {
    fn cmp(&self, other: &Self) -> Ordering {
        self.cmp_behind(other, 0)
    }
}

impl TreePath {
    /// Compares two paths whose first `shared` bytes are the same.
    pub(crate) fn cmp_behind(&self, other: &Self, shared: usize) -> Ordering {
        // Neighbours in a tree share most of their path: what is equal is passed over in strides.
        const STRIDE: usize = 16;
        let (a, b) = (&self.0[shared..], &other.0[shared..]);
        let strides = a.chunks_exact(STRIDE).zip(b.chunks_exact(STRIDE));
        let shared = strides.take_while(|(x, y)| x == y).count() * STRIDE;
        // A slash sorts before every byte that a name may hold, which makes byte order component order.
        let key = |&byte: &u8| if byte == b'/' { 0 } else { byte };
        a[shared..].iter().map(key).cmp(b[shared..].iter().map(key))
    }
}

impl PartialOrd for TreePath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Shows the path absolute, with what is not [printable](is_printable) escaped.
impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("/")?;
        escape_bytes(&self.0, f)
    }
}

/// Writes bytes for people to read: printable UTF-8 as it is, all else escaped.
pub(crate) fn escape_bytes(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for chunk in bytes.utf8_chunks() {
        for ch in chunk.valid().chars() {
            if is_printable(ch) { write!(f, "{ch}")? } else { write!(f, "{}", ch.escape_default())? }
        }
        for byte in chunk.invalid() {
            write!(f, "\\x{byte:02x}")?;
        }
    }
    Ok(())
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{self}`")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(raw: &str) -> TreePath {
        TreePath::new(raw).unwrap()
    }

    #[test]
    fn paths_are_cleaned_and_bounded() {
        assert_eq!(path("/usr//./bin/").as_bytes(), b"usr/bin");
        assert_eq!(path("./").as_bytes(), b"");
        assert_eq!(TreePath::new("a/../b"), Err(PathError::Escapes));
        assert_eq!(TreePath::new("x".repeat(256)), Err(PathError::NameTooLong(256)));
        assert_eq!(TreePath::new("ab/".repeat(1366)), Err(PathError::TooLong(4097)));
        assert_eq!(path("usr/bin").parent(), Some(path("usr")));
        assert_eq!(path("usr").parent(), Some(TreePath::root()));
        assert_eq!(TreePath::root().parent(), None);
    }

    proptest! {
        #[test]
        fn what_is_clean_already_is_read_as_all_else(raw in "[./a\\x00]{0,9}|(\\./)?([a.]{1,3}/){0,3}(b{254,256})?/?") {
            let names: Vec<&str> = raw.split('/').filter(|name| !["", "."].contains(name)).collect();
            let expected = if raw.contains('\0') {
                Err(PathError::Nul)
            } else if let Some(bad) = names.iter().find(|name| **name == ".." || name.len() > NAME_MAX) {
                Err(if *bad == ".." { PathError::Escapes } else { PathError::NameTooLong(bad.len()) })
            } else {
                Ok(names.join("/").into_bytes())
            };
            prop_assert_eq!(TreePath::new(&raw).map(|path| path.as_bytes().to_vec()), expected);
        }
    }

    #[test]
    fn dot_dot_is_resolved_by_the_text_and_never_above_the_root() {
        let resolved = |raw: &str| TreePath::resolved(raw).map(|path| path.to_string());
        for (raw, expected) in [
            ("a/../b", "/b"),
            ("a/b/../c", "/a/c"),
            ("/a/./b//..//../c/", "/c"),
            ("a/..", "/"),
            ("a/../", "/"),
            ("..a/b..", "/..a/b.."),
        ] {
            assert_eq!(resolved(raw).as_deref(), Ok(expected), "{raw}");
        }
        for raw in ["..", "/..", "../a", "a/../../b", "./../a", "a/b/../../.."] {
            assert_eq!(resolved(raw), Err(PathError::Escapes), "{raw}");
        }
        assert_eq!(resolved("a/../\0"), Err(PathError::Nul));
    }

    #[test]
    fn a_directory_is_followed_by_what_is_in_it() {
        let mut paths = [path("a-b"), path("a/z"), path("a"), path("a/b"), TreePath::root()];
        paths.sort();
        assert_eq!(paths.map(|path| path.to_string()), ["/", "/a", "/a/b", "/a/z", "/a-b"]);
    }
}
