//! Reading an archive into a tree.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::rc::Rc;

use super::acl::{self, Acl};
use super::error::{EntryName, TarError};
use super::header::{BLOCK, BLOCK_U64, GID, Header, MODE, NAME, UID, padding};
use super::input::{FileInput, Input, Kept, StreamInput};
use super::limits::Limits;
use super::member::{Member, header_name, stored_size};
use super::pax::Records;
use super::sparse::{Map, TextMap};
use crate::builder::TreeBuilder;
use crate::tree::{Body, BodySource, Inode, Kind, RootTree, TreePath};

/// Longest symlink target, in bytes: `PATH_MAX` of the kernel counts a terminating NUL.
const SYMLINK_MAX: usize = 4095;
/// Longest name of an extended attribute, in bytes (`XATTR_NAME_MAX`).
const XATTR_NAME_MAX: usize = 255;
/// Bytes between two reports of progress.
const TELLING: u64 = 1 << 20;
/// What an inode costs beside its variable parts, for the bound on memory: its name in the tree's map.
const NAME_COST: u64 = 64;

/// First bytes of what is often given for a tar by mistake: the format, and the command and file name for the hint.
const COMPRESSED: [(&[u8], &str, &str, &str); 6] = [
    (b"\x1f\x8b", "gzip", "gzip -dc", "x.tar.gz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc", "x.tar.zst"),
    (b"\xfd7zXZ\0", "xz", "xz -dc", "x.tar.xz"),
    (b"BZh", "bzip2", "bzip2 -dc", "x.tar.bz2"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -dc", "x.tar.lz4"),
    (b"PK\x03\x04", "zip", "bsdtar -cf - --format pax @-", "< x.zip"),
];

/// Reads a tar that can be sought in: only headers are read, and bodies stay where they are. `progress` is told the
/// bytes passed since the start.
pub fn read_file(file: File, limits: &Limits, progress: &mut dyn FnMut(u64)) -> Result<RootTree, TarError> {
    let bodies = file.try_clone().map_err(|source| TarError::Read { offset: 0, source })?;
    let mut reader = Reader::new(FileInput::new(file)?, RootTree::new(BodySource::new(bodies)), limits);
    reader.read(progress)?;
    Ok(reader.tree.finish())
}

/// Reads a tar from a pipe. Bodies are appended to `spool`, a temporary file that the tree then reads from. Whatever
/// happens, the input is read to its end, so that its writer ends by itself and can be asked how it went. `progress` is
/// told the bytes read since the start.
pub fn read_stream(
    input: impl Read,
    spool: File,
    limits: &Limits,
    progress: &mut dyn FnMut(u64),
) -> Result<RootTree, TarError> {
    let bodies = spool.try_clone().map_err(|source| TarError::Spool { source })?;
    let mut reader = Reader::new(StreamInput::new(input, spool)?, RootTree::new(BodySource::new(bodies)), limits);
    let result = reader.read(progress);
    reader.input.drain();
    result?;
    reader.input.flush()?;
    Ok(reader.tree.finish())
}

/// What one entry of a layer says. Layers are changes to a tree that only who applies them has: a hard link's target, a
/// parent directory or what a whiteout hides may stand in a layer below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Put {
        path: TreePath,
        inode: Inode,
    },
    Link {
        path: TreePath,
        target: TreePath,
        /// Content that came with this name, for all names of the inode.
        body: Option<Body>,
    },
}

impl Change {
    pub fn path(&self) -> &TreePath {
        match self {
            Change::Put { path, .. } | Change::Link { path, .. } => path,
        }
    }
}

/// What was read so far, counted against [`Limits`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub entries: u64,
    pub data_bytes: u64,
    pub metadata_bytes: u64,
}

/// Reads a layer from a pipe, as [`read_stream`] does a tree, and answers its changes in the archive's order. `counts`
/// goes on from the layers before.
///
/// A layer is believed less strictly, as container engines do: absolute names are relative to the root, and the end
/// marker may be missing, because a digest proves that the layer is whole.
pub fn read_layer(
    input: impl Read,
    spool: File,
    limits: &Limits,
    counts: &mut Counts,
) -> Result<Vec<Change>, TarError> {
    let nothing = RootTree::new(BodySource::new(Vec::new()));
    let mut reader = Reader::new(StreamInput::new(input, spool)?, nothing, limits);
    reader.layer = Some(Vec::new());
    reader.counts = *counts;
    let result = reader.read(&mut |_| {});
    reader.input.drain();
    result?;
    reader.input.flush()?;
    *counts = reader.counts;
    Ok(reader.layer.unwrap_or_default())
}

struct Reader<'a, I> {
    input: I,
    tree: TreeBuilder,
    /// Where this is a layer, its changes so far; the tree stays empty then.
    layer: Option<Vec<Change>>,
    limits: &'a Limits,
    /// What `g` headers said for all that follows.
    globals: Rc<Records>,
    /// What was said about the entry that comes next.
    next: Announced,
    /// The name of the last header, for errors about what follows it.
    last: Vec<u8>,
    counts: Counts,
}

/// Extended headers that wait for their entry.
#[derive(Default)]
struct Announced {
    /// Where the first of them stands.
    offset: Option<u64>,
    records: Option<Records>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<'a, I: Input> Reader<'a, I> {
    fn new(input: I, tree: RootTree, limits: &'a Limits) -> Self {
        let (globals, next) = (Rc::default(), Announced::default());
        let tree = TreeBuilder::new(tree);
        Reader { input, tree, layer: None, limits, globals, next, last: Vec::new(), counts: Counts::default() }
    }

    fn read(&mut self, progress: &mut dyn FnMut(u64)) -> Result<(), TarError> {
        self.recognise()?;
        let mut told = 0;
        let mut header = Header([0; BLOCK]);
        while self.header(&mut header)? {
            self.member(&header)?;
            let offset = self.input.offset();
            if offset - told >= TELLING {
                progress(offset);
                told = offset;
            }
        }
        if let Some(offset) = self.next.offset {
            return Err(TarError::DanglingExtendedHeader { offset });
        }
        self.padding_to_end()?;
        progress(self.input.offset());
        Ok(())
    }

    /// Says what is wrong with input that is no tar at all.
    fn recognise(&mut self) -> Result<(), TarError> {
        let start = self.input.peek(BLOCK)?;
        if start.is_empty() {
            return if self.layer.is_some() { Ok(()) } else { Err(TarError::Empty) };
        }
        for (magic, format, command, sample) in COMPRESSED {
            if start.starts_with(magic) {
                return Err(TarError::Compressed { format, command, sample });
            }
        }
        match start.try_into().map(Header) {
            Ok(header) if header.is_zero() || header.checksum_fits() => Ok(()),
            _ => Err(TarError::NotTar),
        }
    }

    /// Reads the next header; `false` at the end marker.
    fn header(&mut self, header: &mut Header) -> Result<bool, TarError> {
        let offset = self.input.offset();
        let missing_end = |last: &[u8], offset| TarError::MissingEnd { offset, after: EntryName::new(last) };
        match self.input.read(&mut header.0)? {
            0 if self.layer.is_some() => return Ok(false),
            0 => return Err(missing_end(&self.last, offset)),
            BLOCK => {}
            _ => return Err(TarError::TruncatedHeader { offset }),
        }
        if header.is_zero() {
            return match self.input.read(&mut header.0)? {
                BLOCK if header.is_zero() => Ok(false),
                BLOCK => Err(TarError::LoneZeroBlock { offset }),
                0 if self.layer.is_some() => Ok(false),
                _ => Err(missing_end(&self.last, offset)),
            };
        }
        if !header.checksum_fits() {
            return Err(TarError::Checksum { offset, after: EntryName::new(&self.last) });
        }
        Ok(true)
    }

    /// What follows the end marker may only be the padding of the last record.
    fn padding_to_end(&mut self) -> Result<(), TarError> {
        let mut buffer = [0; 16 * BLOCK];
        loop {
            let offset = self.input.offset();
            let count = self.input.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            if let Some(at) = buffer[..count].iter().position(|&byte| byte != 0) {
                return Err(TarError::TrailingData { offset: offset + at as u64 });
            }
        }
    }

    fn member(&mut self, header: &Header) -> Result<(), TarError> {
        match header.typeflag() {
            b'x' | b'g' | b'L' | b'K' => return self.extended_header(header),
            // A volume label names the archive, not a file.
            b'V' => {
                self.remember_name(header.text(NAME));
                return self.skip_body(stored_size(header, &self.last)?);
            }
            _ => {}
        }
        let member = self.announced_member(header)?;
        let entry = || EntryName::new(&member.name);
        if member.name.is_empty() {
            return Err(TarError::EmptyName { offset: self.input.offset() - BLOCK_U64 });
        }
        if member.name[0] == b'/' && self.layer.is_none() {
            return Err(TarError::AbsoluteName { entry: entry() });
        }
        let path = TreePath::new(&member.name).map_err(|reason| TarError::Path { entry: entry(), reason })?;
        let kind = match member.header.typeflag() {
            b'1' => return self.hard_link(&member, path),
            // V7 had no type for directories and marked them by the slash.
            0 | b'0' | b'7' if member.name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File(self.body(&member)?),
            b'2' => Kind::Symlink(self.symlink_target(&member)?),
            b'3' => {
                let (major, minor) = member.device()?;
                Kind::CharacterDevice { major, minor }
            }
            b'4' => {
                let (major, minor) = member.device()?;
                Kind::BlockDevice { major, minor }
            }
            b'5' => Kind::Directory,
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
        let inode = self.inode(&member, kind)?;
        self.insert(path, inode)
    }

    fn remember_name(&mut self, name: &[u8]) {
        self.last.clear();
        self.last.extend_from_slice(name);
    }

    /// Keeps what an extended header says for the entry that follows it.
    fn extended_header(&mut self, header: &Header) -> Result<(), TarError> {
        self.remember_name(header.text(NAME));
        let offset = self.input.offset() - BLOCK_U64;
        let content = self.extended_content(header, offset)?;
        let malformed = |reason| TarError::BadExtendedHeader { offset, reason };
        let max_ranges = self.limits.sparse_ranges;
        if header.typeflag() == b'g' {
            self.charge(content.len() as u64)?;
            return Rc::make_mut(&mut self.globals).read(&content, max_ranges).map_err(malformed);
        }
        let next = &mut self.next;
        next.offset.get_or_insert(offset);
        let is_second = match header.typeflag() {
            b'x' => {
                let mut records = Records::clone(&self.globals);
                records.read(&content, max_ranges).map_err(malformed)?;
                next.records.replace(records).is_some()
            }
            b'L' => next.long_name.replace(without_terminator(content)).is_some(),
            _ => next.long_link.replace(without_terminator(content)).is_some(),
        };
        if is_second { Err(malformed("it is the second of its kind for one entry")) } else { Ok(()) }
    }

    fn extended_content(&mut self, header: &Header, offset: u64) -> Result<Vec<u8>, TarError> {
        let size = stored_size(header, &self.last)?;
        let max = self.limits.extended_header_bytes;
        if size > max {
            return Err(TarError::ExtendedHeaderTooLarge { offset, size, max });
        }
        let mut content = vec![0; size as usize];
        let count = self.input.read(&mut content)?;
        if count < content.len() {
            let missing = (content.len() - count) as u64;
            return Err(TarError::Truncated { entry: EntryName::new(&self.last), missing });
        }
        self.input.skip(padding(size))?;
        Ok(content)
    }

    /// Brings a header together with what was announced for it.
    fn announced_member<'h>(&mut self, header: &'h Header) -> Result<Member<'h>, TarError> {
        let announced = std::mem::take(&mut self.next);
        let has_records = announced.records.is_some();
        let records = announced.records.map_or_else(|| self.globals.clone(), Rc::new);
        let said = records.sparse.name.as_ref().or(records.path.as_ref()).cloned().or(announced.long_name);
        let name = said.map_or_else(|| header_name(header), Cow::from);
        self.remember_name(&name);
        let stored = match records.size {
            Some(size) => size,
            None => stored_size(header, &name)?,
        };
        Ok(Member { header, name, records, has_records, long_link: announced.long_link, stored })
    }

    fn hard_link(&mut self, member: &Member, path: TreePath) -> Result<(), TarError> {
        let entry = || EntryName::new(&member.name);
        let raw = member.link_name();
        let name = || EntryName::new(raw);
        if raw.first() == Some(&b'/') && self.layer.is_none() {
            return Err(TarError::AbsoluteLink { entry: entry(), target: name() });
        }
        let bad_path = |reason| TarError::LinkPath { entry: entry(), target: name(), reason };
        let target = TreePath::new(raw).map_err(bad_path)?;
        if target == path {
            return Err(TarError::HardLinkToItself { entry: entry() });
        }
        self.charge_entry(path.as_bytes().len() as u64)?;
        if self.layer.is_some() {
            self.charge(target.as_bytes().len() as u64)?;
            let has_data = member.stored > 0 && self.hard_link_has_data(member)?;
            let body = if has_data { Some(self.body(member)?) } else { None };
            self.layer.get_or_insert_default().push(Change::Link { path, target, body });
            return Ok(());
        }
        let slots = self.tree.inode_slots();
        self.tree.link(path.clone(), &target)?;
        self.charge_implied(path.as_bytes().len() as u64, slots)?;
        if member.stored == 0 || !self.hard_link_has_data(member)? {
            return Ok(());
        }
        // cpio and some pax writers store the data with a later name. It is the content of all of them.
        let body = self.body(member)?;
        match self.tree.get_mut(&path).map(|inode| &mut inode.kind) {
            Some(Kind::File(old)) => *old = body,
            other => {
                let kind = other.map_or("nothing", |kind| kind.noun());
                return Err(TarError::HardLinkData { entry: entry(), target: name(), kind });
            }
        }
        Ok(())
    }

    /// In a pax archive a hard link's size counts data that follows. Older writers left the size of the file there and
    /// stored nothing: then the next block is a header, or the end.
    fn hard_link_has_data(&mut self, member: &Member) -> Result<bool, TarError> {
        if member.has_records {
            return Ok(true);
        }
        let next = self.input.peek(BLOCK)?;
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

    /// Passes over a member's data and answers where it lies.
    fn body(&mut self, member: &Member) -> Result<Body, TarError> {
        let bad_map = |reason| TarError::BadSparseMap { entry: EntryName::new(&member.name), reason };
        let mut stored = member.stored;
        let sparse = &member.records.sparse;
        let (map, size) = if member.header.typeflag() == b'S' {
            let mut map = Map::new(self.limits.sparse_ranges);
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
                    let mut text = TextMap::new(self.limits.sparse_ranges);
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
            let source = self.keep(member, stored)?;
            return self.bounded(member, Body::contiguous(stored, source));
        };
        self.charge(24 * map.ranges.len() as u64)?;
        let source = self.keep(member, stored)?;
        let body = map.into_body(size, stored, source).map_err(bad_map)?;
        self.bounded(member, body)
    }

    /// No file may be larger than `off_t` counts.
    fn bounded(&self, member: &Member, body: Body) -> Result<Body, TarError> {
        if i64::try_from(body.size).is_ok() {
            return Ok(body);
        }
        let entry = EntryName::new(&member.name);
        Err(TarError::OutOfRange { entry, field: "size", value: body.size.into() })
    }

    fn map_block(&mut self, member: &Member) -> Result<[u8; BLOCK], TarError> {
        let mut block = [0; BLOCK];
        match self.input.read(&mut block)? {
            BLOCK => Ok(block),
            count => Err(TarError::Truncated { entry: EntryName::new(&member.name), missing: (BLOCK - count) as u64 }),
        }
    }

    fn keep(&mut self, member: &Member, stored: u64) -> Result<u64, TarError> {
        let max = self.limits.data_bytes;
        let total = self.counts.data_bytes.checked_add(stored).filter(|&total| total <= max);
        let too_much = || TarError::TooMuch { entry: EntryName::new(&member.name), what: "bytes of data", max };
        self.counts.data_bytes = total.ok_or_else(too_much)?;
        match self.input.keep(stored)? {
            Kept::At(source) => {
                self.input.skip(padding(stored))?;
                Ok(source)
            }
            Kept::Missing(missing) => Err(TarError::Truncated { entry: EntryName::new(&member.name), missing }),
        }
    }

    fn skip_body(&mut self, stored: u64) -> Result<(), TarError> {
        let passed = self.input.skip(stored)?;
        if passed < stored {
            return Err(TarError::Truncated { entry: EntryName::new(&self.last), missing: stored - passed });
        }
        self.input.skip(padding(stored))?;
        Ok(())
    }

    fn inode(&mut self, member: &Member, kind: Kind) -> Result<Inode, TarError> {
        let mut inode = Inode::new(kind, (member.number(MODE, "mode")? & 0o7777) as u16);
        inode.uid = member.id(UID, "uid", member.records.uid)?;
        inode.gid = member.id(GID, "gid", member.records.gid)?;
        inode.mtime = member.mtime()?;
        for (name, value) in &member.records.xattrs {
            let entry = || EntryName::new(&member.name);
            let bad = |reason| TarError::BadXattr { entry: entry(), name: EntryName::new(name), reason };
            if name.is_empty() || name.contains(&0) {
                return Err(bad("its name is empty or holds a NUL byte"));
            }
            if name.len() > XATTR_NAME_MAX {
                return Err(bad("its name is longer than 255 bytes"));
            }
            if value.len() > self.limits.xattr_bytes {
                let (length, max) = (value.len(), self.limits.xattr_bytes);
                return Err(TarError::XattrTooLarge { entry: entry(), name: EntryName::new(name), length, max });
            }
            self.charge(NAME_COST + (name.len() + value.len()) as u64)?;
            inode.xattrs.insert(name.as_slice().into(), value.as_slice().into());
        }
        for (&name, text) in &member.records.acls {
            self.add_acl(member, name, text, &mut inode)?;
        }
        Ok(inode)
    }

    /// Adds a list that the archive has in text, unless it has the attribute as well.
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
        let acl = Acl::parse(text).map_err(|reason| TarError::BadXattr {
            entry: EntryName::new(&member.name),
            name: EntryName::new(name),
            reason,
        })?;
        if name == acl::ACCESS {
            inode.mode = inode.mode & !0o777 | acl.mode();
            if acl.is_minimal() {
                return Ok(());
            }
        }
        let value = acl.to_xattr();
        if value.len() > self.limits.xattr_bytes {
            let (length, max) = (value.len(), self.limits.xattr_bytes);
            let (entry, name) = (EntryName::new(&member.name), EntryName::new(name));
            return Err(TarError::XattrTooLarge { entry, name, length, max });
        }
        self.charge(NAME_COST + (name.len() + value.len()) as u64)?;
        inode.xattrs.insert(name.into(), value.into());
        Ok(())
    }

    fn insert(&mut self, path: TreePath, inode: Inode) -> Result<(), TarError> {
        let target = if let Kind::Symlink(target) = &inode.kind { target.len() } else { 0 };
        self.charge_entry((path.as_bytes().len() + target) as u64)?;
        if let Some(changes) = &mut self.layer {
            changes.push(Change::Put { path, inode });
            return Ok(());
        }
        let slots = self.tree.inode_slots();
        let length = path.as_bytes().len() as u64;
        self.tree.insert(path, inode)?;
        self.charge_implied(length, slots + 1)
    }

    fn charge_entry(&mut self, bytes: u64) -> Result<(), TarError> {
        self.counts.entries += 1;
        self.charge_slots()?;
        self.charge(NAME_COST + bytes)
    }

    /// Counts the directories that a path of `length` bytes brought with it; each has a path no longer than that.
    fn charge_implied(&mut self, length: u64, slots_before: usize) -> Result<(), TarError> {
        let implied = self.tree.inode_slots().saturating_sub(slots_before) as u64;
        self.charge_slots()?;
        self.charge(implied * (NAME_COST + length))
    }

    fn charge_slots(&self) -> Result<(), TarError> {
        let max = self.limits.entries as u64;
        if self.counts.entries.max(self.tree.inode_slots() as u64) <= max {
            return Ok(());
        }
        Err(TarError::TooMuch { entry: EntryName::new(&self.last), what: "entries", max })
    }

    fn charge(&mut self, bytes: u64) -> Result<(), TarError> {
        let max = self.limits.metadata_bytes;
        self.counts.metadata_bytes += bytes;
        if self.counts.metadata_bytes <= max {
            return Ok(());
        }
        Err(TarError::TooMuch { entry: EntryName::new(&self.last), what: "bytes of names and attributes", max })
    }
}

/// GNU counts the NUL that ends a long name.
fn without_terminator(mut name: Vec<u8>) -> Vec<u8> {
    while name.last() == Some(&0) {
        name.pop();
    }
    name
}
