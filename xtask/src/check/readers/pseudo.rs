//! Parses the pseudo file that `unsquashfs -pf` writes: one line for each name, then the content of all files (USAGE-4.5 of
//! squashfs-tools, "Pseudo file real file definitions").

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read};

use anyhow::{Context, Result, bail, ensure};
use snug_rootfs::digest::{ContentDigest, ContentHash};
use snug_rootfs::listing::{Content, Listing, Record};
use snug_rootfs::tree::{Kind, Timestamp, TreePath};

/// The three lines between names and bytes.
const DATA_MARK: [&[u8]; 3] = [b"#", b"# START OF DATA - DO NOT MODIFY", b"#"];
/// A line holds a path and a symlink's target, each of 4096 bytes at most, with a backslash before each byte.
const LINE_MAX: u64 = 1 << 15;
/// Size of the buffer through which contents are hashed, in bytes.
const BUFFER: usize = 1 << 16;

/// Offset and length of a file's content in the data, in bytes.
type Place = (u64, u64);

/// Reads the names and, with `bodies`, all the rest of the stream, of which every byte is hashed; `advance` is told the
/// bytes that went by.
pub(super) fn read(input: &mut dyn BufRead, bodies: bool, mut advance: impl FnMut(u64)) -> Result<Listing> {
    let mut records: BTreeMap<TreePath, Record> = BTreeMap::new();
    let mut links: Vec<(TreePath, TreePath)> = Vec::new();
    let mut places: BTreeMap<TreePath, Place> = BTreeMap::new();
    let mut line = Vec::new();
    loop {
        ensure!(read_line(input, &mut line)?, "the list of names ends early");
        if line == DATA_MARK[0] {
            for mark in &DATA_MARK[1..] {
                ensure!(read_line(input, &mut line)? && line == *mark, "no start of the data");
            }
            break;
        }
        let (path, rest) = name(&line)?;
        let path = TreePath::new(&path)?;
        let context = || format!("unsquashfs on {path}");
        if let Some(target) = rest.strip_prefix(b"L ") {
            links.push((path.clone(), TreePath::new(unescaped(target)).with_context(context)?));
            continue;
        }
        let (record, place) = record(rest).with_context(context)?;
        places.extend(place.map(|place| (path.clone(), place)));
        records.insert(path, record);
    }
    if bodies {
        let digests = hash(input, places.values().copied(), &mut advance)?;
        for (path, place) in &places {
            if let Some(Kind::File(content)) = records.get_mut(path).map(|record| &mut record.inode.kind) {
                content.digest = digests.get(place).copied();
            }
        }
    }
    linked(&mut records, links)?;
    Ok(Listing { records })
}

/// Gives every hard link the record of its inode; all but the first in order refer to that.
fn linked(records: &mut BTreeMap<TreePath, Record>, links: Vec<(TreePath, TreePath)>) -> Result<()> {
    let mut names: BTreeMap<TreePath, Vec<TreePath>> = BTreeMap::new();
    for (path, target) in links {
        names.entry(target).or_default().push(path);
    }
    for (target, mut names) in names {
        let record = records.remove(&target).with_context(|| format!("{} links to nothing", names[0]))?;
        names.push(target);
        names.sort();
        let first = names[0].clone();
        for name in names {
            let hard_link_to = (name != first).then(|| first.clone());
            records.insert(name, Record { hard_link_to, ..record.clone() });
        }
    }
    Ok(())
}

/// Reads one line without its newline. Returns `false` at the end of the stream. An escaped newline belongs to a name.
fn read_line(input: &mut dyn BufRead, line: &mut Vec<u8>) -> Result<bool> {
    line.clear();
    loop {
        let limit = LINE_MAX.saturating_sub(line.len() as u64);
        let read = input.take(limit).read_until(b'\n', line)?;
        if read == 0 || line.last() != Some(&b'\n') {
            ensure!(line.is_empty(), "a line without end");
            return Ok(false);
        }
        let backslashes = line[..line.len() - 1].iter().rev().take_while(|&&byte| byte == b'\\').count();
        if backslashes % 2 == 0 {
            line.pop();
            return Ok(true);
        }
    }
}

/// Returns the name at the start of a line, and the rest of the line.
fn name(line: &[u8]) -> Result<(Vec<u8>, &[u8])> {
    let mut name = Vec::new();
    let mut bytes = line.iter().enumerate();
    while let Some((at, &byte)) = bytes.next() {
        match byte {
            b'\\' => name.push(*bytes.next().context("a line ends in a backslash")?.1),
            b' ' => return Ok((name, &line[at + 1..])),
            byte => name.push(byte),
        }
    }
    bail!("unsquashfs lists {:?}", line.escape_ascii().to_string())
}

fn unescaped(raw: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut bytes = raw.iter();
    while let Some(&byte) = bytes.next() {
        plain.push(if byte == b'\\' { bytes.next().copied().unwrap_or(byte) } else { byte });
    }
    plain
}

/// `TYPE TIME MODE UID GID` and what the type adds.
fn record(rest: &[u8]) -> Result<(Record, Option<Place>)> {
    let mut fields = rest.splitn(6, |&byte| byte == b' ');
    let mut field = || fields.next().context("a line is too short");
    let letter = field()?;
    let number = |field: &[u8]| -> Result<u64> { Ok(std::str::from_utf8(field)?.parse()?) };
    let seconds: i64 = std::str::from_utf8(field()?)?.parse().context("a time")?;
    let mode = u16::from_str_radix(std::str::from_utf8(field()?)?, 8).context("a mode")?;
    let (uid, gid) = (number(field()?)?, number(field()?)?);
    let more = fields.next().unwrap_or_default();
    let numbers = || more.split(|&byte| byte == b' ').map(number).collect::<Result<Vec<u64>>>();
    let mut place = None;
    let kind = match letter {
        b"D" => Kind::Directory,
        b"R" => {
            let [size, offset, ..] = numbers()?[..] else { bail!("a file without a place") };
            place = Some((offset, size));
            Kind::File(Content { size, digest: None })
        }
        b"S" => Kind::Symlink(more.into()),
        b"C" | b"B" => {
            let [major, minor] = numbers()?[..] else { bail!("a device without numbers") };
            let (major, minor) = (u32::try_from(major)?, u32::try_from(minor)?);
            match letter {
                b"C" => Kind::CharacterDevice { major, minor },
                _ => Kind::BlockDevice { major, minor },
            }
        }
        b"I" if more == b"s" => Kind::Socket,
        b"I" => Kind::Fifo,
        other => bail!("the type {:?}", other.escape_ascii().to_string()),
    };
    let mut record = Record::new(kind, mode & 0o7777);
    record.inode.mtime = Timestamp::from_seconds(seconds);
    (record.inode.uid, record.inode.gid) = (u32::try_from(uid)?, u32::try_from(gid)?);
    Ok((record, place))
}

/// Hashes bodies as they go by, in the order of their places; several names may share one.
fn hash(
    input: &mut dyn BufRead,
    places: impl Iterator<Item = Place>,
    advance: &mut dyn FnMut(u64),
) -> Result<BTreeMap<Place, ContentDigest>> {
    let mut digests: BTreeMap<Place, Option<ContentDigest>> = places.map(|place| (place, None)).collect();
    let mut buffer = vec![0; BUFFER];
    let mut position = 0;
    for ((offset, size), digest) in &mut digests {
        let mut hash = ContentHash::new(*size);
        ensure!(*size == 0 || *offset >= position, "the bodies of two files overlap");
        if *size > 0 {
            let gap = io::copy(&mut input.take(*offset - position), &mut io::sink())?;
            position += gap;
        }
        let mut left = *size;
        while left > 0 {
            let length = left.min(BUFFER as u64) as usize;
            input.read_exact(&mut buffer[..length]).context("the data ends early")?;
            hash.update(*size - left, &buffer[..length]);
            left -= length as u64;
        }
        position += *size;
        advance(*size);
        *digest = Some(hash.finish());
    }
    io::copy(input, &mut io::sink())?;
    Ok(digests.into_iter().filter_map(|(place, digest)| Some((place, digest?))).collect())
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn names_links_and_bytes_are_understood() {
        let mut stream = &b"/ D 1795591121 755 0 0\n\
            z R 1795591121 4644 5 6 3 0\n\
            d D 1795591121 1777 0 0\n\
            d/l S 0 777 0 0 x y\n\
            a L z\n\
            n C 0 644 0 0 1 3\n\
            p I 0 644 0 0 f\n\
            sp\\ ace\\\"q\\\\ R 0 644 0 0 7 3\n\
            #\n# START OF DATA - DO NOT MODIFY\n#\nhi\nsp ace\n"[..];
        let listing = read(&mut stream, true, |_| {}).unwrap();
        let of = |path: &str| &listing.records[&TreePath::new(path).unwrap()];
        let body = |bytes: &[u8]| {
            let digest = Some(ContentDigest::Whole(Sha256::digest(bytes).into()));
            Kind::File(Content { size: bytes.len() as u64, digest })
        };
        assert_eq!((&of("a").inode.kind, &of("a").hard_link_to), (&body(b"hi\n"), &None));
        assert_eq!(of("z").hard_link_to, TreePath::new("a").ok());
        assert_eq!((of("z").inode.mode, of("z").inode.uid, of("z").inode.gid), (0o4644, 5, 6));
        assert_eq!(of("sp ace\"q\\").inode.kind, body(b"sp ace\n"));
        assert_eq!(of("d/l").inode.kind, Kind::Symlink(b"x y".as_slice().into()));
        assert_eq!(of("n").inode.kind, Kind::CharacterDevice { major: 1, minor: 3 });
        assert_eq!(of("p").inode.kind, Kind::Fifo);
        assert_eq!(of("").inode.mtime.seconds, 1_795_591_121);
        assert!(read(&mut &b"/ D 0 755 0 0\n"[..], true, |_| {}).is_err());
    }
}
