//! Writing a tree as a canonical archive.

use std::io::{self, Write};
use std::ops::Range;

use super::header::{
    BLOCK, BLOCK_U64, CHECKSUM, DEVMAJOR, DEVMINOR, GID, LINKNAME, MAGIC, MODE, MTIME, NAME, POSIX_MAGIC, PREFIX,
    RECORD_U64, SIZE, TYPEFLAG, UID, padding, put_number, seal,
};
use super::own::{ADJUSTMENTS_RECORD, SOCKET, TYPE_RECORD, to_json};
use super::pax::{format_long_time, format_time, put_record, put_xattr};
use crate::tree::{Body, BodySource, Entry, Kind, RootTree, Timestamp};

/// Bytes written at once: what still fits into the cache of a core.
const BUFFER: usize = 256 << 10;
/// Largest number in a header field of eight bytes, as octal digits.
const OCTAL_7: u64 = (1 << 21) - 1;
/// Largest number in a header field of twelve bytes, as octal digits.
const OCTAL_11: u64 = (1 << 33) - 1;

/// How faithful the archive is to the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TarOptions {
    /// Write holes as holes (GNU sparse 1.0 in pax); else as zeros, for tools that know no sparse files.
    pub sparse: bool,
    /// Write fractions of seconds with all nine digits, for mkfs.erofs 1.8, which reads `.5` as five nanoseconds.
    pub long_fractions: bool,
    /// Write what tar has no form for in records of our own: sockets, as FIFOs that are none, and what was adjusted of the
    /// tree. For an archive that only this crate will read.
    pub own: bool,
}

impl TarOptions {
    /// All that the tree holds and a tar can.
    pub const FAITHFUL: TarOptions = TarOptions { sparse: true, long_fractions: false, own: false };
    /// All that the tree holds, and what was adjusted of it, for [`read_own`](super::read_own) and
    /// [`read_own_stream`](super::read_own_stream).
    pub const OWN: TarOptions = TarOptions { own: true, ..TarOptions::FAITHFUL };
    /// What `tar2sqfs`, `mksquashfs -tar` and `mkfs.erofs --tar` can read.
    pub const PLAIN: TarOptions = TarOptions { sparse: false, long_fractions: true, own: false };
}

/// Writes `tree` as a pax archive: sorted, the root as an explicit `./`, hard links after their first name, extended
/// headers only where an entry needs one, padded to whole records. Sockets are omitted, since tar has no type for them, unless
/// the options are [`TarOptions::OWN`].
/// `progress` is called with the bytes written since the start.
///
/// A path that is not UTF-8 is written byte for byte, as GNU tar does, without `hdrcharset=BINARY`, which it warns of.
pub fn write(tree: &RootTree, out: impl Write, options: TarOptions, progress: &mut dyn FnMut(u64)) -> io::Result<()> {
    write_some(tree, out, options, progress, &|_| true)
}

/// As [`write()`], with only the entries that `wanted` wants: a tar to be added to a root. Where the first name of an inode
/// is not wanted, the others must not be.
pub fn write_some(
    tree: &RootTree,
    out: impl Write,
    options: TarOptions,
    progress: &mut dyn FnMut(u64),
    wanted: &dyn Fn(&Entry) -> bool,
) -> io::Result<()> {
    let mut writer = Writer::new(tree, out, options, progress);
    writer.entries(tree, wanted)?;
    writer.end()
}

pub(super) struct Writer<'a, W> {
    pub(super) out: W,
    buffer: Vec<u8>,
    /// Bytes of the archive so far, those in the buffer included.
    written: u64,
    bodies: &'a BodySource,
    options: TarOptions,
    progress: &'a mut dyn FnMut(u64),
}

impl<'a, W: Write> Writer<'a, W> {
    pub(super) fn new(tree: &'a RootTree, out: W, options: TarOptions, progress: &'a mut dyn FnMut(u64)) -> Self {
        Writer { out, buffer: Vec::with_capacity(BUFFER), written: 0, bodies: tree.bodies(), options, progress }
    }

    /// Writes all entries that are wanted.
    pub(super) fn entries(&mut self, tree: &RootTree, wanted: &dyn Fn(&Entry) -> bool) -> io::Result<()> {
        if self.options.own && !tree.adjustments().is_empty() {
            let mut records = Vec::new();
            put_record(&mut records, ADJUSTMENTS_RECORD, &to_json(tree.adjustments()));
            self.global_header(&records)?;
        }
        for entry in tree.entries() {
            if (entry.inode.kind != Kind::Socket || self.options.own) && wanted(&entry) {
                self.entry(&entry)?;
            }
        }
        Ok(())
    }

    /// Writes the end marker, and pads the archive to whole records.
    pub(super) fn end(mut self) -> io::Result<()> {
        self.zeros(2 * BLOCK_U64)?;
        self.zeros(self.written.next_multiple_of(RECORD_U64) - self.written)?;
        self.flush()?;
        self.out.flush()
    }

    fn entry(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let inode = entry.inode;
        let mut block = [0_u8; BLOCK];
        let mut records = Vec::new();
        let mut name = entry.path.as_bytes().to_vec();
        if entry.path.is_root() {
            name.extend_from_slice(b"./");
        } else if inode.is_directory() {
            name.push(b'/');
        }
        let (typeflag, link): (u8, &[u8]) = match (&inode.kind, entry.hard_link_to) {
            (_, Some(first)) => (b'1', first.as_bytes()),
            (Kind::File(_), None) => (b'0', b""),
            (Kind::Symlink(target), None) => (b'2', target),
            (Kind::CharacterDevice { .. }, None) => (b'3', b""),
            (Kind::BlockDevice { .. }, None) => (b'4', b""),
            (Kind::Directory, None) => (b'5', b""),
            (Kind::Fifo, None) => (b'6', b""),
            (Kind::Socket, None) => {
                put_record(&mut records, TYPE_RECORD, SOCKET);
                (b'6', b"")
            }
        };
        let body = match &inode.kind {
            Kind::File(body) if typeflag == b'0' => Some(body),
            _ => None,
        };
        let map = body.filter(|body| self.options.sparse && body.data_bytes() < body.size).map(sparse_map);
        let size = match (body, &map) {
            (Some(body), Some(map)) => map.len() as u64 + body.data_bytes(),
            (Some(body), None) => body.size,
            (None, _) => 0,
        };
        block[TYPEFLAG] = typeflag;
        block[MAGIC].copy_from_slice(POSIX_MAGIC);
        if let (Some(body), Some(_)) = (body, &map) {
            put_record(&mut records, b"GNU.sparse.major", b"1");
            put_record(&mut records, b"GNU.sparse.minor", b"0");
            put_record(&mut records, b"GNU.sparse.name", &name);
            put_record(&mut records, b"GNU.sparse.realsize", body.size.to_string().as_bytes());
            put_short(&mut block[NAME], &name);
        } else if !put_name(&mut block, &name) {
            put_record(&mut records, b"path", &name);
        }
        if link.len() > LINKNAME.len() {
            put_record(&mut records, b"linkpath", link);
        }
        put_short(&mut block[LINKNAME], link);
        put_number(&mut block[MODE], inode.mode.into());
        self.put_id(&mut block[UID], &mut records, b"uid", inode.uid);
        self.put_id(&mut block[GID], &mut records, b"gid", inode.gid);
        if size > OCTAL_11 {
            put_record(&mut records, b"size", size.to_string().as_bytes());
        }
        put_number(&mut block[SIZE], size.min(OCTAL_11));
        let time = inode.mtime;
        let whole = u64::try_from(time.seconds).unwrap_or(0).min(OCTAL_11);
        if Timestamp::from_seconds(whole as i64) != time {
            let text = if self.options.long_fractions { format_long_time(time) } else { format_time(time) };
            put_record(&mut records, b"mtime", text.as_bytes());
        }
        put_number(&mut block[MTIME], whole);
        if let Kind::CharacterDevice { major, minor } | Kind::BlockDevice { major, minor } = inode.kind {
            put_number(&mut block[DEVMAJOR], major.into());
            put_number(&mut block[DEVMINOR], minor.into());
        } else {
            put_number(&mut block[DEVMAJOR], 0);
            put_number(&mut block[DEVMINOR], 0);
        }
        if typeflag != b'1' {
            for (name, value) in &inode.xattrs {
                put_xattr(&mut records, name, value);
            }
        }
        if !records.is_empty() {
            self.extended_header(&block, entry.path.name(), &records)?;
        }
        seal(&mut block);
        self.put(&block)?;
        if let Some(map) = &map {
            self.put(map)?;
        }
        if let Some(body) = body {
            self.body(body, map.is_some())?;
            self.zeros(padding(size))?;
        }
        Ok(())
    }

    fn put_id(&self, field: &mut [u8], records: &mut Vec<u8>, key: &[u8], id: u32) {
        if u64::from(id) > OCTAL_7 {
            put_record(records, key, id.to_string().as_bytes());
        }
        put_number(field, u64::from(id).min(OCTAL_7));
    }

    /// Writes `records` as the header of the whole archive.
    pub(super) fn global_header(&mut self, records: &[u8]) -> io::Result<()> {
        let mut block = [0_u8; BLOCK];
        block[MAGIC].copy_from_slice(POSIX_MAGIC);
        put_number(&mut block[MTIME], 0);
        self.header_of_records(block, b'g', b"global", records)
    }

    /// Writes `records` as an extended header of the entry whose block is `of`.
    fn extended_header(&mut self, of: &[u8; BLOCK], name: &[u8], records: &[u8]) -> io::Result<()> {
        self.header_of_records(*of, b'x', name, records)
    }

    fn header_of_records(
        &mut self,
        mut block: [u8; BLOCK],
        typeflag: u8,
        name: &[u8],
        records: &[u8],
    ) -> io::Result<()> {
        block[NAME].fill(0);
        block[PREFIX].fill(0);
        block[LINKNAME].fill(0);
        block[CHECKSUM].fill(0);
        put_short(&mut block[NAME], &[b"PaxHeaders/", name].concat());
        block[TYPEFLAG] = typeflag;
        put_number(&mut block[MODE], 0o644);
        put_number(&mut block[UID], 0);
        put_number(&mut block[GID], 0);
        put_number(&mut block[DEVMAJOR], 0);
        put_number(&mut block[DEVMINOR], 0);
        put_number(&mut block[SIZE], records.len() as u64);
        seal(&mut block);
        self.put(&block)?;
        self.put(records)?;
        self.zeros(padding(records.len() as u64))
    }

    fn body(&mut self, body: &Body, skip_holes: bool) -> io::Result<()> {
        let mut at = 0;
        for run in body.runs() {
            if !skip_holes {
                self.zeros(run.start - at)?;
            }
            at = run.end;
            self.data(body, run)?;
        }
        if skip_holes { Ok(()) } else { self.zeros(body.size - at) }
    }

    fn data(&mut self, body: &Body, run: Range<u64>) -> io::Result<()> {
        let mut at = run.start;
        while at < run.end {
            let start = self.room()?;
            let space = BUFFER - start;
            let count = usize::try_from(run.end - at).map_or(space, |left| left.min(space));
            self.buffer.resize(start + count, 0);
            self.bodies.read_body_at(&mut self.buffer[start..], body, at)?;
            self.written += count as u64;
            at += count as u64;
        }
        Ok(())
    }

    fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let start = self.room()?;
            let (now, later) = bytes.split_at(bytes.len().min(BUFFER - start));
            self.buffer.extend_from_slice(now);
            self.written += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    fn zeros(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            let start = self.room()?;
            let now = usize::try_from(count).map_or(BUFFER - start, |count| count.min(BUFFER - start));
            self.buffer.resize(start + now, 0);
            self.written += now as u64;
            count -= now as u64;
        }
        Ok(())
    }

    /// Bytes in the buffer, which has room for more.
    fn room(&mut self) -> io::Result<usize> {
        if self.buffer.len() == BUFFER {
            self.flush()?;
        }
        Ok(self.buffer.len())
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(&self.buffer)?;
        self.buffer.clear();
        (self.progress)(self.written);
        Ok(())
    }
}

/// Puts a name into the header block, split over name and prefix if need be; says no where it does not fit.
fn put_name(block: &mut [u8; BLOCK], name: &[u8]) -> bool {
    if name.len() <= NAME.len() {
        put_short(&mut block[NAME], name);
        return true;
    }
    // The slash between the two parts is not stored; what follows it must not be empty.
    let earliest = name.len() - NAME.len() - 1;
    let split = (earliest.max(1)..name.len() - 1).find(|&at| name[at] == b'/').filter(|&at| at <= PREFIX.len());
    match split {
        Some(at) => {
            put_short(&mut block[PREFIX], &name[..at]);
            put_short(&mut block[NAME], &name[at + 1..]);
            true
        }
        None => {
            put_short(&mut block[NAME], name);
            false
        }
    }
}

/// As much of `text` as the field holds.
fn put_short(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
}

/// The map of GNU sparse 1.0, padded to whole blocks. A hole at the end is marked by an empty range, as GNU tar does.
fn sparse_map(body: &Body) -> Vec<u8> {
    let end = body.runs().last().map_or(0, |run| run.end);
    let closing = (end < body.size).then_some(body.size..body.size);
    let mut map = format!("{}\n", body.runs().count() + usize::from(closing.is_some())).into_bytes();
    for run in body.runs().chain(closing) {
        map.extend_from_slice(format!("{}\n{}\n", run.start, run.end - run.start).as_bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}
