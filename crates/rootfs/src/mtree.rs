//! Listings in mtree(5), which bsdtar, mtree and go-mtree read, too. Extended attributes are written as go-mtree writes them.
//!
//! Each entry is a line, in the order of the tree, the root first as `.`:
//!
//! ```text
//! #mtree
//! /set type=file uid=0 gid=0 mode=644
//! . type=dir mode=755 time=1700000000.000000000
//! ./etc/hosts time=1700000000.000000000 size=20 sha256digest=4a1f…
//! ./usr/bin/ping mode=755 time=… size=… sha256digest=… xattr.security.capability=AQAAAg…
//! ./usr/bin/perl mode=755 nlink=2 inode=1 time=… size=… sha256digest=…
//! ```
//!
//! Only files of several names have `nlink` and `inode`: names with the same `inode` are one file.
//!
//! A file with more than 1 GiB in blocks of zeros has the keyword `sha256data` instead of `sha256digest`, which mtree(5) does
//! not know: [`ContentDigest::Data`], for which no zeros are hashed.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use anyhow::{Context, Result, bail};
use base16ct::lower::encode_string as hex;
use base64::prelude::{BASE64_STANDARD, Engine as _};

use crate::digest::{ContentDigest, Digest};
use crate::listing::{Content, Listing, Record};
use crate::tree::{Inode, Kind, Timestamp, TreePath};

const SIGNATURE: &str = "#mtree";
const DEFAULTS: &str = "/set type=file uid=0 gid=0 mode=644";
const DEFAULT_MODE: u16 = 0o644;
const XATTR: &str = "xattr.";
/// Keyword of [`ContentDigest::Whole`].
const WHOLE: &str = "sha256digest";
/// Keyword of [`ContentDigest::Data`].
const DATA: &str = "sha256data";

/// Writes a listing.
pub fn write(listing: &Listing, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{SIGNATURE}\n{DEFAULTS}")?;
    let links = Links::of(listing);
    let mut line = Vec::new();
    for (path, record) in &listing.records {
        line.clear();
        put_path(&mut line, path);
        put_attributes(&mut line, record, links.of_file(path, record))?;
        line.push(b'\n');
        out.write_all(&line)?;
    }
    Ok(())
}

/// The files of several names.
struct Links<'a> {
    /// By the first name of each: its number, counted from 1 in order, and how many names it has.
    files: BTreeMap<&'a TreePath, (usize, usize)>,
}

impl<'a> Links<'a> {
    fn of(listing: &'a Listing) -> Self {
        let mut files: BTreeMap<&TreePath, (usize, usize)> = BTreeMap::new();
        for first in listing.records.values().filter_map(|record| record.hard_link_to.as_ref()) {
            // The first name counts too.
            files.entry(first).or_insert((0, 1)).1 += 1;
        }
        for ((number, _), next) in files.values_mut().zip(1..) {
            *number = next;
        }
        Links { files }
    }

    fn of_file(&self, path: &TreePath, record: &Record) -> Option<(usize, usize)> {
        self.files.get(record.hard_link_to.as_ref().unwrap_or(path)).copied()
    }
}

fn put_path(line: &mut Vec<u8>, path: &TreePath) {
    line.push(b'.');
    if !path.is_root() {
        line.push(b'/');
        escape(line, path.as_bytes());
    }
}

fn put_attributes(line: &mut Vec<u8>, record: &Record, links: Option<(usize, usize)>) -> io::Result<()> {
    let inode = &record.inode;
    let device = |line: &mut Vec<u8>, kind, major, minor| write!(line, " type={kind} device=native,{major},{minor}");
    match &inode.kind {
        Kind::File(_) => {}
        Kind::Directory => write!(line, " type=dir")?,
        Kind::Fifo => write!(line, " type=fifo")?,
        Kind::Socket => write!(line, " type=socket")?,
        Kind::CharacterDevice { major, minor } => device(line, "char", major, minor)?,
        Kind::BlockDevice { major, minor } => device(line, "block", major, minor)?,
        Kind::Symlink(target) => {
            write!(line, " type=link link=")?;
            escape(line, target);
        }
    }
    if inode.mode != DEFAULT_MODE {
        write!(line, " mode={:o}", inode.mode)?;
    }
    for (key, id) in [("uid", inode.uid), ("gid", inode.gid)] {
        if id != 0 {
            write!(line, " {key}={id}")?;
        }
    }
    if let Some((number, names)) = links {
        write!(line, " nlink={names} inode={number}")?;
    }
    write!(line, " time={}.{:09}", inode.mtime.seconds, inode.mtime.nanoseconds)?;
    if let Kind::File(Content { size, digest }) = &inode.kind {
        write!(line, " size={size}")?;
        if let Some(digest) = digest {
            match digest {
                ContentDigest::Whole(digest) => write!(line, " {WHOLE}={}", hex(digest))?,
                ContentDigest::Data(digest) => write!(line, " {DATA}={}", hex(digest))?,
            }
        }
    }
    for (name, value) in &inode.xattrs {
        write!(line, " {XATTR}")?;
        escape(line, name);
        write!(line, "={}", BASE64_STANDARD.encode(value))?;
    }
    Ok(())
}

/// Writes bytes outside printable ASCII, and those with a meaning in mtree, as a backslash and three octal digits (vis(3)).
fn escape(line: &mut Vec<u8>, bytes: &[u8]) {
    for &byte in bytes {
        match byte {
            b'\\' | b'#' | b'=' | b'*' | b'?' | b'[' => put_octal(line, byte),
            b'!'..=b'~' => line.push(byte),
            _ => put_octal(line, byte),
        }
    }
}

fn put_octal(line: &mut Vec<u8>, byte: u8) {
    line.extend_from_slice(&[b'\\', b'0' + (byte >> 6), b'0' + (byte >> 3 & 7), b'0' + (byte & 7)]);
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        if *first != b'\\' {
            bytes.push(*first);
            rest = behind;
            continue;
        }
        let digits = std::str::from_utf8(behind.get(..3)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 8).ok()?);
        rest = &behind[3..];
    }
    Some(bytes)
}

/// Reads what [`write()`] wrote. Errors name the line.
pub fn parse(text: &str) -> Result<Listing> {
    let mut lines = text.lines().zip(1..);
    for expected in [SIGNATURE, DEFAULTS] {
        if lines.next().is_none_or(|(line, _)| line != expected) {
            bail!("it does not begin with `{SIGNATURE}` and `{DEFAULTS}`");
        }
    }
    let mut first: HashMap<u64, TreePath> = HashMap::new();
    let mut listing = Listing::default();
    for (line, number) in lines {
        let (path, mut record, inode) = parse_line(line).with_context(|| format!("line {number}"))?;
        if let Some(inode) = inode {
            match first.get(&inode) {
                Some(first) => record.hard_link_to = Some(first.clone()),
                None => drop(first.insert(inode, path.clone())),
            }
        }
        listing.records.insert(path, record);
    }
    Ok(listing)
}

/// Reads a name, its record, and the number that the names of one file share.
fn parse_line(line: &str) -> Result<(TreePath, Record, Option<u64>)> {
    let mut words = line.split(' ');
    let path = words.next().and_then(unescape).context("no path")?;
    let mut inode = Inode::new(Kind::Directory, DEFAULT_MODE);
    let (mut kind, mut target, mut device) = ("file", Vec::new(), (0, 0));
    let (mut size, mut digest, mut number) = (0, None, None);
    for word in words {
        let (key, value) = word.split_once('=').with_context(|| format!("`{word}` has no value"))?;
        let bad = || format!("`{word}` cannot be read");
        match key {
            "type" => kind = value,
            "link" => target = unescape(value).with_context(bad)?,
            "mode" => inode.mode = u16::from_str_radix(value, 8).with_context(bad)?,
            "uid" => inode.uid = value.parse().with_context(bad)?,
            "gid" => inode.gid = value.parse().with_context(bad)?,
            "size" => size = value.parse().with_context(bad)?,
            "inode" => number = Some(value.parse().with_context(bad)?),
            "nlink" => {}
            "device" => device = parse_device(value).with_context(bad)?,
            "time" => {
                let (seconds, nanoseconds) = value.split_once('.').with_context(bad)?;
                let nanoseconds = nanoseconds.parse().with_context(bad)?;
                inode.mtime = Timestamp { seconds: seconds.parse().with_context(bad)?, nanoseconds };
            }
            WHOLE => digest = Some(ContentDigest::Whole(parse_digest(value).with_context(bad)?)),
            DATA => digest = Some(ContentDigest::Data(parse_digest(value).with_context(bad)?)),
            _ => {
                let name = key.strip_prefix(XATTR).and_then(unescape).with_context(bad)?;
                inode.xattrs.insert(name.into(), BASE64_STANDARD.decode(value).ok().with_context(bad)?.into());
            }
        }
    }
    let (major, minor) = device;
    inode.kind = match kind {
        "file" => Kind::File(Content { size, digest }),
        "dir" => Kind::Directory,
        "link" => Kind::Symlink(target.into()),
        "char" => Kind::CharacterDevice { major, minor },
        "block" => Kind::BlockDevice { major, minor },
        "fifo" => Kind::Fifo,
        "socket" => Kind::Socket,
        other => bail!("unknown type `{other}`"),
    };
    Ok((TreePath::new(path)?, Record { inode, hard_link_to: None }, number))
}

fn parse_device(value: &str) -> Option<(u32, u32)> {
    let (major, minor) = value.strip_prefix("native,")?.split_once(',')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn parse_digest(value: &str) -> Option<Digest> {
    let mut digest = Digest::default();
    (base16ct::lower::decode(value, &mut digest).ok()?.len() == digest.len()).then_some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_digest_are_read_back() {
        let file = |digest| Record::new(Kind::File(Content { size: 1, digest: Some(digest) }), 0o644);
        let records = [("data", ContentDigest::Data([7; 32])), ("whole", ContentDigest::Whole([8; 32]))];
        let records = records.map(|(name, digest)| (TreePath::new(name).unwrap(), file(digest)));
        let listing = Listing { records: records.into_iter().collect() };
        let mut text = Vec::new();
        write(&listing, &mut text).unwrap();
        assert_eq!(super::parse(std::str::from_utf8(&text).unwrap()).unwrap(), listing);
    }

    #[test]
    fn a_damaged_list_names_the_line() {
        let parse = |lines: &str| format!("{:#}", parse(&format!("{SIGNATURE}\n{DEFAULTS}\n{lines}")).unwrap_err());
        assert_eq!(
            parse(". type=dir time=0.0\n./a size=x"),
            "line 4: `size=x` cannot be read: invalid digit found in string"
        );
        assert_eq!(parse("./a sha256data=00"), "line 3: `sha256data=00` cannot be read");
        assert_eq!(parse("./a sha256digest=00"), "line 3: `sha256digest=00` cannot be read");
        assert_eq!(parse("./a type=door"), "line 3: unknown type `door`");
    }
}
