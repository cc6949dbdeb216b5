//! The entries of an archive, in its order.

use std::fs::File;
use std::io::Read;

use super::end_marker::EndMarker;
use super::error::{EntryName, TarError};
use super::header::{BLOCK, BLOCK_U64, GID, Header, MODE, UID, padding};
use super::headers::Headers;
use super::input::{FileInput, Input, Kept, StreamInput};
use super::limits::{Budget, NAME_COST};
use super::member::Member;
use super::own;
use super::sparse::{Map, TextMap};
use super::text_acls::pending;
use crate::acl::{self, Acl, TextAcl};
use crate::adjustments::{Adjustment, Adjustments};
use crate::tree::{
    Body, DataRange, Extents, Inode, Kind, PathError, RootTree, TreePath, XATTR_NAME_MAX, XATTR_VALUE_MAX,
};

/// Longest symlink target, in bytes: `PATH_MAX` of the kernel counts a terminating NUL.
const SYMLINK_MAX: usize = 4095;
/// What a data range of a sparse file costs in memory, in bytes.
const RANGE_COST: u64 = size_of::<DataRange>() as u64;

/// One entry of an archive. Whether its parent or the target of a hard link exists shows when it is applied to a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A name with an inode of its own.
    Inode {
        /// The entry's name.
        path: TreePath,
        /// What it names.
        inode: Inode,
    },
    /// A further name of another entry's inode.
    HardLink {
        /// The entry's name.
        path: TreePath,
        /// An earlier name of the inode.
        target: TreePath,
        /// Content that came with this name, for all names of the inode: cpio and some pax writers store it with the last
        /// of them.
        body: Option<Body>,
    },
}

impl Entry {
    /// The entry's name.
    pub fn path(&self) -> &TreePath {
        match self {
            Entry::Inode { path, .. } | Entry::HardLink { path, .. } => path,
        }
    }

    /// Adds `by` to the addresses of the content: the archive begins there in a larger source.
    pub(crate) fn move_body(&mut self, by: u64) {
        if let Entry::Inode { inode: Inode { kind: Kind::File(body), .. }, .. }
        | Entry::HardLink { body: Some(body), .. } = self
        {
            body.extents.move_by(by);
        }
    }
}

/// Reads the entries of an archive one after the other. It ends after the first error.
pub struct Reader<'a> {
    headers: Headers<'a>,
    adjustments: Adjustments,
    /// Whether the archive is one of ours, whose records of our own are believed.
    is_own: bool,
}

impl<'a> Reader<'a> {
    /// Reads an archive that can be sought in: bodies are ranges of the file, without their blocks of zeros, for which a few
    /// bytes of each are read.
    pub fn from_file(file: File, end_marker: EndMarker, budget: &'a mut Budget) -> Result<Self, TarError> {
        Ok(Reader::new(Box::new(FileInput::new(file)?), end_marker, budget))
    }

    /// As [`Self::from_file`], with the ranges that the archive states: only headers are read.
    pub fn from_file_as_stated(file: File, end_marker: EndMarker, budget: &'a mut Budget) -> Result<Self, TarError> {
        Ok(Reader::new(Box::new(FileInput::as_stated(file)?), end_marker, budget))
    }

    /// Reads an archive that was written with [`TarOptions::OWN`](super::TarOptions::OWN).
    pub(crate) fn from_own(file: File, budget: &'a mut Budget) -> Result<Self, TarError> {
        Ok(Reader::from_file_as_stated(file, EndMarker::Required, budget)?.own())
    }

    /// Reads an archive from a pipe. Bodies are appended to `spool`, a temporary file, and are ranges of it; the last of
    /// them can be read from there once there is no next entry.
    pub fn from_stream(
        input: impl Read + 'a,
        spool: File,
        end_marker: EndMarker,
        budget: &'a mut Budget,
    ) -> Result<Self, TarError> {
        let input = StreamInput::new(Box::new(input), spool)?;
        Ok(Reader::new(Box::new(input), end_marker, budget))
    }

    fn new(input: Box<dyn Input + 'a>, end_marker: EndMarker, budget: &'a mut Budget) -> Self {
        Reader { headers: Headers::new(input, end_marker, budget), adjustments: Adjustments::default(), is_own: false }
    }

    /// Believes what the archive says in [records of our own](super::own).
    pub(crate) fn own(mut self) -> Self {
        self.is_own = true;
        self
    }

    /// Returns what one of our own archives has said so far of what was adjusted of its tree.
    pub(super) fn own_adjustments(&self) -> Result<Adjustments, TarError> {
        match &self.headers.globals().adjustments {
            Some(json) if self.is_own => own::adjustments(json),
            _ => Ok(Adjustments::default()),
        }
    }

    /// Adds to the tree's adjustments those that the archive states and those of reading it.
    pub(crate) fn hand_over_adjustments(&mut self, tree: &mut RootTree) -> Result<(), TarError> {
        tree.note_all(self.own_adjustments()?);
        tree.note_all(self.take_adjustments());
        Ok(())
    }

    /// Returns what of the entries so far was taken otherwise than the archive has it, and forgets it.
    pub fn take_adjustments(&mut self) -> Adjustments {
        std::mem::take(&mut self.adjustments)
    }

    /// Returns the next entry, and `None` at the end of the archive or after an error.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut header = Header([0; BLOCK]);
        let entry = match self.headers.next_member(&mut header) {
            Ok(Some(member)) => self.entry(&member).map(Some),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        if entry.is_err() {
            self.headers.end();
        }
        entry
    }

    /// Returns the bytes that were read or skipped since the start of the archive.
    pub fn offset(&self) -> u64 {
        self.headers.input.offset()
    }

    /// Reads the rest of a stream and discards it, so that the program that writes it is not killed by a closed pipe.
    pub fn drain(&mut self) {
        self.headers.end();
        self.headers.input.drain();
    }

    /// What the archive may use, and has used.
    pub(crate) fn budget(&mut self) -> &mut Budget {
        self.headers.budget
    }

    /// Reads a member's data and makes the entry.
    fn entry(&mut self, member: &Member) -> Result<Entry, TarError> {
        let entry = || EntryName::new(&member.name);
        let path = self.path(member)?;
        let kind = match member.header.typeflag() {
            b'1' => return self.hard_link(member, path),
            // V7 had no type for directories and marked them by the slash.
            0 | b'0' | b'7' if member.name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File(self.body(member)?),
            b'2' => Kind::Symlink(self.symlink_target(member)?),
            b'3' => {
                let (major, minor) = member.device()?;
                Kind::CharacterDevice { major, minor }
            }
            b'4' => {
                let (major, minor) = member.device()?;
                Kind::BlockDevice { major, minor }
            }
            b'5' => Kind::Directory,
            b'6' if self.is_own && member.records.is_socket => Kind::Socket,
            b'6' => Kind::Fifo,
            b'D' => return Err(TarError::Unsupported { entry: entry(), what: "GNU incremental archives" }),
            b'M' => return Err(TarError::Unsupported { entry: entry(), what: "multi-volume archives" }),
            typeflag => return Err(TarError::UnknownType { entry: entry(), typeflag }),
        };
        if !matches!(kind, Kind::File(_)) && member.stored > 0 {
            return Err(TarError::UnexpectedData { entry: entry(), kind: kind.noun(), size: member.stored });
        }
        if path.is_root() && kind != Kind::Directory {
            return Err(TarError::RootNotDirectory { entry: entry(), kind: kind.noun() });
        }
        let inode = self.inode(member, kind)?;
        let target = if let Kind::Symlink(target) = &inode.kind { target.len() } else { 0 };
        self.headers.budget.charge_entry(path.as_bytes().len() + target, &self.headers.last)?;
        Ok(Entry::Inode { path, inode })
    }

    /// Resolves a member's name inside the root.
    fn path(&mut self, member: &Member) -> Result<TreePath, TarError> {
        let entry = || EntryName::new(&member.name);
        if member.name.is_empty() {
            if member.header.typeflag() != b'5' {
                return Err(TarError::EmptyName { offset: self.headers.input.offset() - BLOCK_U64 });
            }
            let offset = self.headers.input.offset() - BLOCK_U64;
            self.adjustments.note(Adjustment::EmptyName, || format!("the directory at byte {offset}"));
        }
        self.resolve(&member.name, Adjustment::AbsoluteName, || entry().to_string()).map_err(|reason| match reason {
            PathError::Escapes => TarError::LeavesRoot { entry: entry() },
            reason => TarError::Path { entry: entry(), reason },
        })
    }

    /// Resolves a name that the archive writes, and notes what it took: that it is `absolute`, or has `..` components.
    fn resolve(
        &mut self,
        raw: &[u8],
        absolute: Adjustment,
        describe: impl Fn() -> String,
    ) -> Result<TreePath, PathError> {
        let path = match TreePath::new(raw) {
            Err(PathError::Escapes) => {
                let path = TreePath::resolved(raw)?;
                self.adjustments.note(Adjustment::ParentInName, &describe);
                path
            }
            path => path?,
        };
        if raw.first() == Some(&b'/') {
            self.adjustments.note(absolute, &describe);
        }
        Ok(path)
    }

    fn hard_link(&mut self, member: &Member, path: TreePath) -> Result<Entry, TarError> {
        let entry = || EntryName::new(&member.name);
        let raw = member.link_name();
        let name = || EntryName::new(raw);
        let describe = || format!("{}, hard link to {}", entry(), name());
        let target = self.resolve(raw, Adjustment::AbsoluteLink, describe).map_err(|reason| match reason {
            PathError::Escapes => TarError::LinkLeavesRoot { entry: entry(), target: name() },
            reason => TarError::LinkPath { entry: entry(), target: name(), reason },
        })?;
        self.headers.budget.charge_entry(path.as_bytes().len() + target.as_bytes().len(), &self.headers.last)?;
        let has_data = member.stored > 0 && self.hard_link_has_data(member)?;
        let body = if has_data { Some(self.body(member)?) } else { None };
        Ok(Entry::HardLink { path, target, body })
    }

    /// Whether a hard link with a size has data. In a pax archive it does. Older writers gave the size of the file and stored
    /// nothing: then the next block is a header, or the end.
    fn hard_link_has_data(&mut self, member: &Member) -> Result<bool, TarError> {
        if member.has_records {
            return Ok(true);
        }
        let next = self.headers.input.peek(BLOCK)?;
        Ok(next.try_into().map(Header).is_ok_and(|header| !header.is_zero() && !header.checksum_fits()))
    }

    fn symlink_target(&self, member: &Member) -> Result<Box<[u8]>, TarError> {
        let target = member.link_name();
        let entry = || EntryName::new(&member.name);
        if target.is_empty() {
            return Err(TarError::EmptySymlink { entry: entry() });
        }
        if target.contains(&0) {
            return Err(TarError::NulInSymlink { entry: entry() });
        }
        if target.len() > SYMLINK_MAX {
            return Err(TarError::SymlinkTooLong { entry: entry(), length: target.len(), max: SYMLINK_MAX });
        }
        Ok(target.into())
    }

    /// Reads a member's data and returns its body.
    fn body(&mut self, member: &Member) -> Result<Body, TarError> {
        let bad_map = |reason| TarError::BadSparseMap { entry: EntryName::new(&member.name), reason };
        let mut stored = member.stored;
        let sparse = &member.records.sparse;
        let (map, size) = if member.header.typeflag() == b'S' {
            let mut map = Map::new(self.headers.budget.limits().sparse_ranges);
            let (size, mut extended) = map.read_old_header(member.header).map_err(bad_map)?;
            while extended {
                extended = map.read_old_extension(&self.map_block(member)?).map_err(bad_map)?;
            }
            (map, size)
        } else if sparse.is_sparse {
            let size = sparse.size.ok_or_else(|| bad_map("no real size"))?;
            match (sparse.major.unwrap_or(0), sparse.minor.unwrap_or(0)) {
                (0, _) => (Map::from_flat(&sparse.map).map_err(bad_map)?, size),
                (1, 0) => {
                    let mut text = TextMap::new(self.headers.budget.limits().sparse_ranges);
                    let mut complete = false;
                    while !complete {
                        stored = stored.checked_sub(BLOCK_U64).ok_or_else(|| bad_map("it is cut short"))?;
                        complete = text.read(&self.map_block(member)?).map_err(bad_map)?;
                    }
                    (text.into_map(), size)
                }
                _ => return Err(bad_map("unknown version")),
            }
        } else {
            self.bounded(member, stored)?;
            return Ok(Body { size: stored, extents: self.keep(member, &[(0, stored)])? });
        };
        self.headers.charge(RANGE_COST * map.ranges.len() as u64)?;
        let ranges = map.into_ranges(size, stored).map_err(bad_map)?;
        self.bounded(member, size)?;
        Ok(Body { size, extents: self.keep(member, &ranges)? })
    }

    /// Refuses a file that is larger than `off_t` can count.
    fn bounded(&self, member: &Member, size: u64) -> Result<(), TarError> {
        if i64::try_from(size).is_ok() {
            return Ok(());
        }
        let entry = EntryName::new(&member.name);
        Err(TarError::OutOfRange { entry, field: "size", value: size.into() })
    }

    fn map_block(&mut self, member: &Member) -> Result<[u8; BLOCK], TarError> {
        let mut block = [0; BLOCK];
        match self.headers.input.read(&mut block)? {
            BLOCK => Ok(block),
            count => Err(TarError::Truncated { entry: EntryName::new(&member.name), missing: (BLOCK - count) as u64 }),
        }
    }

    fn keep(&mut self, member: &Member, ranges: &[(u64, u64)]) -> Result<Extents, TarError> {
        let stored = ranges.iter().map(|(_, length)| length).sum();
        self.headers.budget.charge_data(stored, &member.name)?;
        match self.headers.input.keep(ranges)? {
            Kept::At(extents) => {
                self.headers.input.skip(padding(stored))?;
                Ok(extents)
            }
            Kept::Missing(missing) => Err(TarError::Truncated { entry: EntryName::new(&member.name), missing }),
        }
    }

    fn inode(&mut self, member: &Member, kind: Kind) -> Result<Inode, TarError> {
        let mut inode = Inode::new(kind, (member.number(MODE, "mode")? & 0o7777) as u16);
        inode.uid = member.id(UID, "uid", member.records.uid)?;
        inode.gid = member.id(GID, "gid", member.records.gid)?;
        let mtime = member.mtime()?;
        inode.mtime = mtime.time;
        if mtime.was_moved {
            self.adjustments.note(Adjustment::TimeRange, || {
                format!("{}, of more seconds than 64 bits hold", EntryName::new(&member.name))
            });
        }
        for (name, value) in &member.records.xattrs {
            self.add_xattr(member, &mut inode, name, value)?;
        }
        for (&name, text) in &member.records.acls {
            self.add_acl(member, name, text, &mut inode)?;
        }
        Ok(inode)
    }

    /// Adds an extended attribute, unless Linux itself has no such one: then no filesystem could hold it.
    fn add_xattr(&mut self, member: &Member, inode: &mut Inode, name: &[u8], value: &[u8]) -> Result<(), TarError> {
        let described = || format!("{} of {}", EntryName::new(name), EntryName::new(&member.name));
        // One that is left out takes time: a global header may have many, for every entry.
        self.headers.charge(NAME_COST)?;
        if name.is_empty() || name.contains(&0) || name.len() > XATTR_NAME_MAX {
            self.adjustments.note(Adjustment::XattrName, described);
            return Ok(());
        }
        let is_large = value.len() > XATTR_VALUE_MAX;
        if !is_large || name == acl::ACCESS {
            self.headers.charge((name.len() + value.len()) as u64)?;
        }
        if is_large {
            self.adjustments.note(Adjustment::XattrSize, described);
            // Else the owning group would get what the list grants to others by name.
            if let Some(acl) = Some(value).filter(|_| name == acl::ACCESS).and_then(Acl::from_xattr) {
                inode.set_permissions(acl.mode_without());
            }
            return Ok(());
        }
        inode.xattrs.insert(name.into(), value.into());
        Ok(())
    }

    /// Adds an access control list that the archive has as text, unless it has the attribute too. One with names in it is kept
    /// as text until the accounts of the whole tree are known ([`resolve_acls`](super::text_acls::resolve_acls)).
    fn add_acl(
        &mut self,
        member: &Member,
        name: &'static [u8],
        text: &[u8],
        inode: &mut Inode,
    ) -> Result<(), TarError> {
        if text.is_empty() || inode.xattrs.contains_key(name) {
            return Ok(());
        }
        // Each entry reads the text of a global header anew.
        self.headers.charge(NAME_COST + text.len() as u64)?;
        let described = || format!("{} of {}", EntryName::new(name), EntryName::new(&member.name));
        let acl = match TextAcl::parse(text) {
            Ok(acl) => acl,
            Err(reason) => {
                self.adjustments.note(Adjustment::AclInvalid, || format!("{}: {reason}", described()));
                return Ok(());
            }
        };
        // With names, too, it is the entries that count: text is longer than numbers.
        let is_large = acl.xattr_bytes() > XATTR_VALUE_MAX;
        if name == acl::ACCESS {
            inode.set_permissions(if is_large { acl.mode_without() } else { acl.mode() });
            if acl.is_minimal() {
                return Ok(());
            }
        }
        if is_large {
            self.adjustments.note(Adjustment::XattrSize, described);
            return Ok(());
        }
        match acl.numeric() {
            Some(acl) => self.add_xattr(member, inode, name, &acl.to_xattr()),
            None => {
                self.headers.charge(NAME_COST + text.len() as u64)?;
                inode.xattrs.insert(pending(name).into(), text.into());
                Ok(())
            }
        }
    }
}

impl Iterator for Reader<'_> {
    type Item = Result<Entry, TarError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_entry().transpose()
    }
}
