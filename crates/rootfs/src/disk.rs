//! Writing a [`RootTree`] to real files, and reading real files as a tree.
//!
//! Both run inside the user namespace that owns the files, so that uids are the image's. What such a namespace cannot
//! create (device nodes, `trusted.*` attributes) is recorded in [`StandIns`] and restored by [`walk`].

mod long_path;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, linkat};

use self::long_path::Reached;
use super::holes;
use super::regular_file;
use super::tar::{Budget, EntryName, Limits};
use super::tree::{Body, BodySource, DataRange, Entry, Inode, Kind, ReadAt, RootTree, Timestamp, TreePath};

/// Bytes copied at once: many for a system call, few enough for the cache.
const COPY_BUFFER: usize = 1 << 20;

/// Stand-ins for what could not be created as a file, by (device, inode number) of each.
///
/// Every stand-in is held open: its inode number cannot be given to another file while this value lives.
#[derive(Debug, Default)]
pub struct StandIns {
    by_inode: HashMap<(u64, u64), StandIn>,
}

#[derive(Debug)]
struct StandIn {
    /// Keeps the inode number in use.
    _held: OwnedFd,
    /// The device that an empty file replaces.
    device: Option<Kind>,
    /// Attributes that the kernel refused.
    xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
}

impl StandIns {
    fn hold(&mut self, path: &Path) -> Result<&mut StandIn> {
        let held = OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_PATH | OFlag::O_NOFOLLOW).bits())
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let about = held.metadata()?;
        Ok(self.by_inode.entry((about.dev(), about.ino())).or_insert_with(|| StandIn {
            _held: held.into(),
            device: None,
            xattrs: BTreeMap::new(),
        }))
    }
}

/// Writes `tree` to `root`, an empty directory that nothing else writes to.
///
/// Symlinks are never followed: the tree's own invariant is that every parent is a directory. `advance` is called with the
/// bytes of each file.
pub fn materialise(tree: &RootTree, root: &Path, mut advance: impl FnMut(u64)) -> Result<StandIns> {
    let mut stand_ins = StandIns::default();
    let mut directories: Vec<Entry> = Vec::new();
    for entry in tree.entries() {
        let path = Reached::new(root, entry.path)?;
        if let Some(first) = entry.hard_link_to {
            let first_path = Reached::new(root, first)?;
            linkat(AT_FDCWD, first_path.path(), AT_FDCWD, path.path(), AtFlags::empty())
                .with_context(|| format!("cannot link {} to {first}", entry.path))?;
            continue;
        }
        create(&entry, tree, path.path(), false).with_context(|| format!("cannot make {}", entry.path))?;
        if let Kind::File(body) = &entry.inode.kind {
            advance(body.size);
        }
        match entry.inode.is_directory() {
            // A directory's mtime and mode are set once nothing more is created in it.
            true => directories.push(entry),
            false => set_attributes(entry.inode, entry.path, path.path(), &mut stand_ins)?,
        }
    }
    for entry in directories.iter().rev() {
        set_attributes(entry.inode, entry.path, Reached::new(root, entry.path)?.path(), &mut stand_ins)?;
    }
    Ok(stand_ins)
}

/// Adds `tree` to a root that other programs have written to: existing directories keep their attributes, other entries are
/// replaced, and parents may be symlinks. `root` must be the root directory of the process, so that no symlink leads
/// outside.
pub fn place(tree: &RootTree, root: &Path, stand_ins: &mut StandIns) -> Result<()> {
    for entry in tree.entries().filter(|entry| !entry.path.is_root()) {
        let reached = Reached::new(root, entry.path)?;
        let path = reached.path();
        if entry.inode.is_directory() && path.is_dir() {
            continue;
        }
        match fs::symlink_metadata(path) {
            Ok(there) if there.is_dir() => bail!("{} is a directory in the image already", entry.path),
            Ok(_) => fs::remove_file(path).with_context(|| format!("cannot replace {}", entry.path))?,
            Err(_) => {}
        }
        create(&entry, tree, path, true).with_context(|| format!("cannot make {}", entry.path))?;
        set_attributes(entry.inode, entry.path, path, stand_ins)?;
    }
    Ok(())
}

fn create(entry: &Entry, tree: &RootTree, path: &Path, parents: bool) -> Result<()> {
    if parents && let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match &entry.inode.kind {
        Kind::Directory if entry.path.is_root() => {}
        Kind::Directory => fs::DirBuilder::new().mode(0o700).create(path)?,
        Kind::Symlink(target) => std::os::unix::fs::symlink(OsStr::from_bytes(target), path)?,
        Kind::File(body) => write_body(body, tree.bodies(), path)?,
        // An empty file in its place: device nodes cannot be created in a user namespace.
        Kind::CharacterDevice { .. } | Kind::BlockDevice { .. } => drop(File::create_new(path)?),
        Kind::Fifo => mknod(path, SFlag::S_IFIFO, Mode::S_IRUSR, 0)?,
        Kind::Socket => mknod(path, SFlag::S_IFSOCK, Mode::S_IRUSR, 0)?,
    }
    Ok(())
}

fn write_body(body: &Body, source: &BodySource, path: &Path) -> Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut buffer = Vec::new();
    for range in body.extents.as_slice() {
        let mut done = 0;
        while done < range.length {
            let step = usize::try_from(range.length - done).unwrap_or(usize::MAX).min(COPY_BUFFER);
            buffer.resize(step, 0);
            source.read_exact_at(&mut buffer, range.source + done)?;
            std::os::unix::fs::FileExt::write_all_at(&file, &buffer, range.offset + done)?;
            done += step as u64;
        }
    }
    // Nothing is written after a hole at the end.
    if body.extents.as_slice().last().is_none_or(|last| last.offset + last.length < body.size) {
        file.set_len(body.size)?;
    }
    Ok(())
}

/// Sets owner, mode, attributes and time, in this order: each of them can reset those after it.
fn set_attributes(inode: &Inode, name: &TreePath, path: &Path, stand_ins: &mut StandIns) -> Result<()> {
    fchownat(
        AT_FDCWD,
        path,
        Some(Uid::from_raw(inode.uid)),
        Some(Gid::from_raw(inode.gid)),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .map_err(|errno| match errno {
        nix::Error::EINVAL => anyhow::anyhow!(
            "{name} belongs to {}:{}, ids that this user namespace does not have\n\
             hint: give the user more subordinate ids in /etc/subuid and /etc/subgid, or build as root",
            inode.uid,
            inode.gid
        ),
        other => anyhow::Error::new(other).context(format!("cannot give {name} to {}:{}", inode.uid, inode.gid)),
    })?;
    if !matches!(inode.kind, Kind::Symlink(_)) {
        fs::set_permissions(path, fs::Permissions::from_mode(u32::from(inode.mode)))
            .with_context(|| format!("cannot set the mode of {name}"))?;
    }
    for (attribute, value) in &inode.xattrs {
        match xattr::set(path, OsStr::from_bytes(attribute), value) {
            Ok(()) => {}
            Err(error) if is_refusal(&error) || is_too_much(&error) => {
                stand_ins.hold(path)?.xattrs.insert(attribute.clone(), value.clone());
            }
            Err(error) => {
                let attribute = attribute.escape_ascii();
                return Err(anyhow::Error::new(error).context(format!("cannot set {attribute} of {name}")));
            }
        }
    }
    if matches!(inode.kind, Kind::CharacterDevice { .. } | Kind::BlockDevice { .. }) {
        stand_ins.hold(path)?.device = Some(inode.kind.clone());
    }
    let mtime = TimeSpec::new(inode.mtime.seconds, i64::from(inode.mtime.nanoseconds));
    utimensat(AT_FDCWD, path, &mtime, &mtime, UtimensatFlags::NoFollowSymlink)
        .with_context(|| format!("cannot set the time of {name}"))?;
    Ok(())
}

/// Whether the kernel or the filesystem does not allow attributes here.
fn is_refusal(error: &io::Error) -> bool {
    is_one_of(error, &[nix::Error::EPERM, nix::Error::EOPNOTSUPP, nix::Error::EINVAL])
}

/// Whether the filesystem has no room for an attribute (ext4 says that its disk is full, btrfs that the list is too long, XFS
/// that the value is). Where attributes are listed, this would be the loss of all of them.
fn is_too_much(error: &io::Error) -> bool {
    is_one_of(error, &[nix::Error::ENOSPC, nix::Error::E2BIG, nix::Error::ERANGE])
}

fn is_one_of(error: &io::Error, kinds: &[nix::Error]) -> bool {
    error.raw_os_error().is_some_and(|errno| kinds.contains(&nix::Error::from_raw(errno)))
}

/// Reads the files below `root` as a tree, without entering other mounts. `stand_ins` has what [`materialise`] and
/// [`place`] could not create.
///
/// The tree reads contents from the files when they are needed: nothing below `root` may change as long as it is used.
///
/// # Errors
///
/// Something cannot be read, or the tree is more than an archive may hold ([`Limits`]): what programs have left can be nested
/// deeper than any path, and have names without end.
pub fn walk(root: &Path, stand_ins: &StandIns) -> Result<RootTree> {
    tree_of(root, find(root)?, stand_ins)
}

/// A name on disk.
#[derive(Debug)]
pub(crate) struct Found {
    /// Its path from the root.
    pub(crate) path: TreePath,
    /// Its inode (lstat(2)).
    pub(crate) about: fs::Metadata,
}

impl Found {
    /// Returns device and inode number where there may be more names.
    pub(crate) fn shared_inode(&self) -> Option<(u64, u64)> {
        (self.about.nlink() > 1 && !self.about.is_dir()).then(|| (self.about.dev(), self.about.ino()))
    }
}

/// Returns every name below `root` in order, the root first, without entering other mounts. Errors are those of [`walk`].
pub(crate) fn find(root: &Path) -> Result<Vec<Found>> {
    let mut budget = Budget::new(&Limits::default());
    let about = fs::symlink_metadata(root)?;
    let device = about.dev();
    let mut found = vec![Found { path: TreePath::root(), about }];
    let mut pending = vec![TreePath::root()];
    while let Some(directory) = pending.pop() {
        let cannot_list = || format!("cannot list {}", EntryName::new(directory.as_bytes()));
        let reached = Reached::new(root, &directory).with_context(cannot_list)?;
        for entry in fs::read_dir(reached.path()).with_context(cannot_list)? {
            let entry = entry?;
            let about = entry.metadata()?;
            let path = below(&directory, entry.file_name().as_bytes())?;
            budget.charge_entry(path.as_bytes().len(), path.as_bytes())?;
            if about.is_dir() && about.dev() == device {
                pending.push(path.clone());
            }
            found.push(Found { path, about });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Makes a tree of names below `root` that are in order, the root among them. It reads contents from the files.
pub(crate) fn tree_of(root: &Path, found: impl IntoIterator<Item = Found>, stand_ins: &StandIns) -> Result<RootTree> {
    let mut files = DiskBodies { root: root.to_path_buf(), ..DiskBodies::default() };
    let mut inodes = Vec::new();
    let mut first_names: HashMap<(u64, u64), TreePath> = HashMap::new();
    for name in found {
        let first = name.shared_inode().and_then(|id| first_names.get(&id).cloned());
        if let (Some(id), None) = (name.shared_inode(), &first) {
            first_names.insert(id, name.path.clone());
        }
        let inode = match first {
            Some(first) => Err(first),
            None => Ok(inode_of(&name.path, &name.about, &mut files, stand_ins)
                .with_context(|| format!("cannot read {}", EntryName::new(name.path.as_bytes())))?),
        };
        inodes.push((name.path, inode));
    }
    let mut tree = RootTree::new(BodySource::new(files));
    for (path, inode) in inodes {
        match inode {
            Ok(inode) => drop(tree.insert(path, inode)?),
            Err(first) => tree.link(path, &first)?,
        }
    }
    Ok(tree)
}

/// Returns the path of an entry. Programs that change their directory can nest folders deeper than any path names.
fn below(directory: &TreePath, name: &[u8]) -> Result<TreePath> {
    let path = [directory.as_bytes(), b"/", name].concat();
    TreePath::new(&path).with_context(|| format!("cannot read {}", EntryName::new(&path))).map_err(|error| {
        let hint = "hint: folders are nested deeper than a path can name; what makes them has to remove them, too";
        anyhow::anyhow!("{error:#}\n{hint}")
    })
}

fn inode_of(name: &TreePath, about: &fs::Metadata, files: &mut DiskBodies, stand_ins: &StandIns) -> Result<Inode> {
    let reached = Reached::new(&files.root, name)?;
    let path = reached.path();
    let file_type = about.file_type();
    let (major, minor) = (nix::sys::stat::major(about.rdev()) as u32, nix::sys::stat::minor(about.rdev()) as u32);
    let stand_in = stand_ins.by_inode.get(&(about.dev(), about.ino()));
    let kind = if let Some(device) = stand_in.and_then(|stand_in| stand_in.device.clone()) {
        device
    } else if file_type.is_dir() {
        Kind::Directory
    } else if file_type.is_symlink() {
        Kind::Symlink(fs::read_link(path)?.into_os_string().into_vec().into_boxed_slice())
    } else if file_type.is_fifo() {
        Kind::Fifo
    } else if file_type.is_socket() {
        Kind::Socket
    } else if file_type.is_char_device() {
        Kind::CharacterDevice { major, minor }
    } else if file_type.is_block_device() {
        Kind::BlockDevice { major, minor }
    } else {
        Kind::File(files.add(name, path, about)?)
    };
    let mut xattrs = stand_in.map(|stand_in| stand_in.xattrs.clone()).unwrap_or_default();
    match xattr::list(path) {
        Ok(names) => {
            for name in names {
                // It is missing only if a program that still runs in the tree has removed it since.
                let value = xattr::get(path, &name)?.unwrap_or_default();
                xattrs.insert(name.into_vec().into_boxed_slice(), value.into_boxed_slice());
            }
        }
        Err(error) if is_refusal(&error) => {}
        Err(error) => return Err(error).context("cannot list its attributes"),
    }
    Ok(Inode {
        kind,
        mode: (about.mode() & 0o7777) as u16,
        uid: about.uid(),
        gid: about.gid(),
        mtime: Timestamp { seconds: about.mtime(), nanoseconds: about.mtime_nsec() as u32 },
        xattrs,
    })
}

/// The contents of files on disk as one address space: a file is opened when its range is read.
#[derive(Default)]
struct DiskBodies {
    root: PathBuf,
    /// Start offset and path of each file, ascending.
    files: Vec<(u64, TreePath)>,
    end: u64,
    /// The file that was read last, by its index: reads of one file follow each other.
    open: Mutex<Option<(usize, File)>>,
}

impl DiskBodies {
    fn add(&mut self, name: &TreePath, path: &Path, about: &fs::Metadata) -> Result<Body> {
        let (start, size) = (self.end, about.size());
        let end = start.checked_add(size).filter(|end| i64::try_from(*end).is_ok());
        self.end = end.context("the files are more than 2^63 bytes together")?;
        if size == 0 {
            return Ok(Body::default());
        }
        self.files.push((start, name.clone()));
        // `st_blocks` counts 512-byte units whatever the block size.
        if about.blocks() >= size.div_ceil(512) {
            return Ok(Body::contiguous(size, start));
        }
        let ranges = holes::data_ranges(&regular_file::open(path)?, size)?.into_iter();
        let range = |part: Range<u64>| DataRange {
            offset: part.start,
            length: part.end - part.start,
            source: start + part.start,
        };
        Ok(Body { size, extents: ranges.map(range).collect() })
    }
}

impl ReadAt for DiskBodies {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let index = self.files.partition_point(|(start, _)| *start <= offset).checked_sub(1);
        let index = index.ok_or(io::ErrorKind::UnexpectedEof)?;
        let (start, name) = &self.files[index];
        let mut open = self.open.lock().map_err(|_| io::Error::other("a reader panicked"))?;
        let file = match &mut *open {
            Some((last, file)) if *last == index => file,
            other => {
                let file = regular_file::open(Reached::new(&self.root, name)?.path())?;
                &mut other.insert((index, file)).1
            }
        };
        std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset - start)
    }
}

#[cfg(test)]
mod tests;
