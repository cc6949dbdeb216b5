//! Reads ext4 without privileges: names and inodes with debugfs, contents of files with ext4-view.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use snug_rootfs::digest::{ContentDigest, ContentHash};
use snug_rootfs::listing::{Content, Listing, Record, Unreadable};
use snug_rootfs::tree::{BLOCK, Body, DataRange, Inode, Kind, TreePath};

use super::ReadBack;
use super::debugfs::{Debugfs, Extent, Stat};
use crate::report::progress::Stage;

/// Inode of the root directory, and of lost+found, which is ext4's own.
const ROOT: u32 = 2;
const LOST_AND_FOUND: u32 = 11;
/// Bodies are read in pieces of this size.
const BUFFER: usize = 1 << 20;
/// Bytes of a hole that are read in the time in which a seek passes one block.
const SEEK_RATIO: u64 = 128;

pub(super) fn read(image: &Path, bodies: bool, stage: &Stage) -> Result<ReadBack> {
    let debugfs = Debugfs::new(image)?;
    let numbers = names(&debugfs)?;
    let mut inodes: Vec<u32> = numbers.values().copied().collect();
    inodes.sort_unstable();
    inodes.dedup();
    let stats: HashMap<u32, Stat> = inodes.iter().copied().zip(debugfs.stat(&inodes)?).collect();
    let targets = targets(&debugfs, &stats)?;
    let xattrs = xattrs(&debugfs, &stats)?;

    let mut listing = Listing::default();
    let mut first_names: HashMap<u32, TreePath> = HashMap::new();
    for (path, &inode) in &numbers {
        let stat = &stats[&inode];
        let found = Inode {
            kind: kind(stat, targets.get(&inode)).with_context(|| path.to_string())?,
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            mtime: stat.mtime,
            xattrs: xattrs.get(&inode).cloned().unwrap_or_default(),
        };
        let hard_link_to = first_names.get(&inode).filter(|_| !found.is_directory()).cloned();
        first_names.entry(inode).or_insert_with(|| path.clone());
        listing.records.insert(path.clone(), Record { inode: found, hard_link_to });
    }
    let mut judge = Debugfs::name()?;
    let mut unreadable = Vec::new();
    if bodies {
        let extents = |path: &TreePath| numbers.get(path).and_then(|inode| stats[inode].extents.as_deref());
        unreadable = read_bodies(image, &mut listing, &extents, stage)?;
        judge = format!("ext4-view, {judge}");
    }
    Ok(ReadBack::new(listing, unreadable, judge))
}

/// Returns every name with its inode number.
fn names(debugfs: &Debugfs) -> Result<BTreeMap<TreePath, u32>> {
    let mut names = BTreeMap::from([(TreePath::root(), ROOT)]);
    let mut directories = HashSet::from([ROOT]);
    let mut level = vec![(TreePath::root(), ROOT)];
    while !level.is_empty() {
        let inodes: Vec<u32> = level.iter().map(|(_, inode)| *inode).collect();
        let listings = debugfs.list(&inodes)?;
        let folders = std::mem::take(&mut level);
        for ((folder, _), listing) in folders.iter().zip(listings) {
            for entry in listing.into_iter().filter(|entry| entry.inode != LOST_AND_FOUND) {
                let path =
                    folder.join(&entry.name).ok_or_else(|| anyhow!("{folder} holds a name that none may have"))?;
                if entry.is_directory {
                    ensure!(directories.insert(entry.inode), "{path} is a directory with a second name");
                    level.push((path.clone(), entry.inode));
                }
                ensure!(!names.contains_key(&path), "{path} stands twice in its directory");
                names.insert(path, entry.inode);
            }
        }
    }
    Ok(names)
}

fn kind(stat: &Stat, target: Option<&Vec<u8>>) -> Result<Kind<Content>> {
    let device = || stat.device.context("a device without a number");
    Ok(match stat.kind.as_str() {
        "directory" => Kind::Directory,
        "regular" => Kind::File(Content { size: stat.size, digest: None }),
        "symlink" => Kind::Symlink(target.context("a symlink without a target")?.clone().into()),
        "character special" => {
            let (major, minor) = device()?;
            Kind::CharacterDevice { major, minor }
        }
        "block special" => {
            let (major, minor) = device()?;
            Kind::BlockDevice { major, minor }
        }
        "FIFO" => Kind::Fifo,
        "socket" => Kind::Socket,
        other => bail!("an inode of the type {other:?}"),
    })
}

fn targets(debugfs: &Debugfs, stats: &HashMap<u32, Stat>) -> Result<HashMap<u32, Vec<u8>>> {
    let symlinks = stats.iter().filter(|(_, stat)| stat.kind == "symlink");
    let (short, long): (Vec<_>, Vec<_>) = symlinks.partition(|(_, stat)| stat.target.is_some());
    let mut long: Vec<(u32, u64)> = long.into_iter().map(|(inode, stat)| (*inode, stat.size)).collect();
    long.sort_unstable();
    let mut targets: HashMap<u32, Vec<u8>> =
        short.into_iter().filter_map(|(inode, stat)| Some((*inode, stat.target.clone()?))).collect();
    targets.extend(long.iter().map(|(inode, _)| *inode).zip(debugfs.long_targets(&long)?));
    Ok(targets)
}

type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

fn xattrs(debugfs: &Debugfs, stats: &HashMap<u32, Stat>) -> Result<HashMap<u32, Xattrs>> {
    let mut wanted: Vec<(u32, String)> =
        stats.iter().flat_map(|(inode, stat)| stat.xattrs.iter().map(move |name| (*inode, name.clone()))).collect();
    wanted.sort_unstable();
    let values = debugfs.xattrs(&wanted)?;
    let mut xattrs: HashMap<u32, Xattrs> = HashMap::new();
    for ((inode, name), value) in wanted.into_iter().zip(values) {
        xattrs.entry(inode).or_default().insert(name.into_bytes().into(), value.into());
    }
    Ok(xattrs)
}

/// Adds the digests of all files. Returns the files that cannot be read.
fn read_bodies<'a>(
    image: &Path,
    listing: &mut Listing,
    extents: &dyn Fn(&TreePath) -> Option<&'a [Extent]>,
    stage: &Stage,
) -> Result<Vec<Unreadable>> {
    let filesystem = ext4_view::Ext4::load_from_path(image)
        .map_err(|error| anyhow!("ext4-view cannot open {}: {error}", image.display()))?;
    let mut unreadable = Vec::new();
    let mut digests: HashMap<TreePath, ContentDigest> = HashMap::new();
    let mut buffer = vec![0; BUFFER];
    for (path, record) in &mut listing.records {
        let Kind::File(Content { size, digest }) = &mut record.inode.kind else { continue };
        *digest = match &record.hard_link_to {
            Some(first) => digests.get(first).copied(),
            None => match hash(&filesystem, path, &body(*size, extents(path)), &mut buffer) {
                Ok(found) => Some(found),
                Err(error) => {
                    unreadable.push(Unreadable { path: path.clone(), error });
                    None
                }
            },
        };
        if let Some(digest) = digest {
            digests.insert(path.clone(), *digest);
        }
        stage.advance(*size);
    }
    Ok(unreadable)
}

/// Returns where a file of `size` bytes holds data: in its `extents`, if it has any, and everywhere else.
fn body(size: u64, extents: Option<&[Extent]>) -> Body {
    let Some(extents) = extents else { return Body::contiguous(size, 0) };
    // A file may have blocks behind its end.
    let range = |&(first, last): &Extent| {
        let offset = first * BLOCK;
        DataRange { offset, length: ((last + 1) * BLOCK).min(size).saturating_sub(offset), source: offset }
    };
    Body { size, extents: extents.iter().map(range).filter(|range| range.length > 0).collect() }
}

fn hash(filesystem: &ext4_view::Ext4, path: &TreePath, body: &Body, buffer: &mut [u8]) -> io::Result<ContentDigest> {
    let absolute = [b"/", path.as_bytes()].concat();
    let refused = |error: &dyn std::fmt::Display| io::Error::other(error.to_string());
    let absolute = ext4_view::Path::try_from(absolute.as_slice()).map_err(|error| refused(&error))?;
    let mut file = filesystem.open(absolute).map_err(|error| refused(&error))?;
    let mut hash = ContentHash::with_holes(body.size, body.hole_bytes());
    for run in body.runs() {
        // Seeking counts all blocks from the start of the file, so it is worth its while for long holes only.
        let hole = run.start - file.position();
        if hole / SEEK_RATIO >= file.position() / BLOCK {
            file.seek_to(run.start).map_err(|error| refused(&error))?;
        }
        while file.position() < run.end {
            let at = file.position();
            let wanted = ((run.end - at).min(buffer.len() as u64)) as usize;
            let piece = &mut buffer[..wanted];
            let mut filled = 0;
            while filled < piece.len() {
                match file.read_bytes(&mut piece[filled..]).map_err(|error| refused(&error))? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    length => filled += length,
                }
            }
            hash.update(at, piece);
        }
    }
    Ok(hash.finish())
}
