//! The files and devices of a plan as a tree, and their attributes, which are applied once more after the steps.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use snug_rootfs::accounts::{Accounts, Owner};
use snug_rootfs::digest::{self, Digest};
use snug_rootfs::spool::Spool;
use snug_rootfs::tree::{Body, BodySource, Inode, Kind, RootTree, Timestamp, TreePath};
use snug_sandbox::POLICY_PATH;

use crate::plan::{self, DeviceKind, FileSource, PlannedDevice, PlannedFile, SourceContent, SourceEntry};

/// Returns a tree of nothing but the files, and the folders that they are in.
///
/// Of a checkout's modes only the executable bit is taken, as the others depend on the umask it was made under, and no
/// times: they would differ with every clone. Owners that only the image can resolve become root until
/// [`apply_attributes`].
pub fn file_tree(files: &[PlannedFile]) -> Result<RootTree> {
    let spool = tempfile::tempfile().and_then(Spool::new);
    let mut spool = spool.context("cannot make a temporary file")?;
    let mut found: Vec<(TreePath, Inode)> = Vec::new();
    let mut planned: Vec<(PathBuf, Body, Digest)> = Vec::new();
    for file in files {
        for entry in entries(file)? {
            let kind = match &entry.content {
                Content::Directory => Kind::Directory,
                Content::Symlink(target) => Kind::Symlink(target.clone()),
                Content::Text(text) => Kind::File(spool.add_bytes(text.as_bytes())?),
                Content::File(path, sha256) => {
                    let file = plan::open(path).with_context(|| format!("cannot open {}", path.display()))?;
                    let body = spool.add_file(&file).with_context(|| format!("cannot read {}", path.display()))?;
                    planned.push((path.clone(), body.clone(), *sha256));
                    Kind::File(body)
                }
            };
            let mut inode = Inode::new(kind, entry.mode);
            (inode.uid, inode.gid) = file.owner.as_ref().and_then(Owner::ids).unwrap_or_default();
            inode.mtime = Timestamp::from_seconds(build_time());
            if !entry.below {
                set_xattrs(&mut inode, file);
            }
            found.push((entry.path, inode));
        }
    }
    let bodies = BodySource::new(spool.finish()?);
    // What was read is hashed, and not what is there: that may be another file again.
    for (path, body, sha256) in planned {
        let found = digest::of_reader(BodyReader { bodies: &bodies, body: &body, at: 0 }, &mut |_| {})
            .with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(
            found == sha256,
            "{} was changed since the build began\nhint: build again, once nothing writes to it",
            path.display()
        );
    }
    let mut tree = RootTree::new(bodies);
    for (path, inode) in found {
        tree.insert(path, inode)?;
    }
    Ok(tree)
}

/// Reads a body from its start to its end.
struct BodyReader<'a> {
    bodies: &'a BodySource,
    body: &'a Body,
    /// Bytes read so far.
    at: u64,
}

impl Read for BodyReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.body.size - self.at).unwrap_or(usize::MAX);
        let length = left.min(buffer.len());
        let piece = &mut buffer[..length];
        self.bodies.read_body_at(piece, self.body, self.at)?;
        self.at += piece.len() as u64;
        Ok(piece.len())
    }
}

/// Returns the directories that got their time from what every engine does beside the steps, since the time `began` (seconds
/// since 1970): making mount points in the root directory, putting a policy on services next to the system's programs, and
/// putting the files of the spec where they belong. That time says nothing of the tree, and is another with every build.
pub fn directories_changed(tree: &RootTree, files: &[PlannedFile], began: i64) -> Result<Vec<TreePath>> {
    let mut changed = BTreeSet::from([TreePath::root()]);
    changed.extend(TreePath::new(POLICY_PATH)?.parent());
    for file in files {
        for entry in entries(file)? {
            let mut above = Some(entry.path);
            while let Some(path) = above {
                above = path.parent();
                changed.insert(path);
            }
        }
    }
    let directories: BTreeSet<TreePath> = changed.iter().filter_map(|path| tree.resolve(path)).collect();
    let is_new =
        |path: &TreePath| tree.get(path).is_some_and(|inode| inode.is_directory() && inode.mtime.seconds >= began);
    Ok(directories.into_iter().filter(is_new).collect())
}

/// What one file of a plan puts at one path.
struct Entry {
    path: TreePath,
    content: Content,
    mode: u16,
    /// Whether it is inside the folder that the plan names.
    below: bool,
}

enum Content {
    Directory,
    Symlink(Box<[u8]>),
    Text(String),
    /// A file of the host, with its digest when the build was planned.
    File(PathBuf, Digest),
}

/// Returns everything that `file` puts into the image, folders before what is in them, as it was when the build was planned.
fn entries(file: &PlannedFile) -> Result<Vec<Entry>> {
    let source = match &file.source {
        FileSource::Text(text) => {
            let mode = file.mode.unwrap_or(PlannedFile::DEFAULT_MODE);
            let content = Content::Text(text.clone());
            return Ok(vec![Entry { path: file.to.clone(), content, mode, below: false }]);
        }
        FileSource::Host(source) => source,
    };
    let entry = |SourceEntry { below, path, content }: &SourceEntry| {
        let is_below = !below.as_os_str().is_empty();
        let at = match is_below {
            true => TreePath::new([file.to.as_bytes(), b"/", below.as_os_str().as_bytes()].concat())?,
            false => file.to.clone(),
        };
        let (content, mode) = match content {
            SourceContent::Directory => (Content::Directory, 0o755),
            SourceContent::File { executable, sha256 } => {
                let mode = if *executable { 0o755 } else { PlannedFile::DEFAULT_MODE };
                (Content::File(path.clone(), *sha256), mode)
            }
            SourceContent::Symlink(target) => (Content::Symlink(target.clone()), 0o755),
        };
        let mode = file.mode.filter(|_| !is_below).unwrap_or(mode);
        Ok(Entry { path: at, content, mode, below: is_below })
    };
    source.entries.iter().map(entry).collect()
}

/// Returns the time of the files, in seconds: SOURCE_DATE_EPOCH where it is set, else 0.
fn build_time() -> i64 {
    Timestamp::source_date_epoch().unwrap_or(0)
}

fn set_xattrs(inode: &mut Inode, file: &PlannedFile) {
    for (name, value) in &file.xattrs {
        inode.xattrs.insert(name.as_bytes().into(), value.as_slice().into());
    }
}

/// Applies mode, owner and attributes of the files that still exist once more, as an engine or a step may have lost them;
/// resolves owners by the image's own accounts; and adds the devices. Errors name the place in the spec.
pub fn apply_attributes(tree: &mut RootTree, files: &[PlannedFile], devices: &[PlannedDevice]) -> Result<()> {
    let accounts = Accounts::read(tree).context("cannot read the accounts of the image")?;
    let ids = |owner: Option<&Owner>, place: &str| match owner {
        None => Ok((0, 0)),
        Some(owner) => accounts.ids(owner).with_context(|| place.to_owned()),
    };
    for file in files {
        let owner = ids(file.owner.as_ref(), &file.place)?;
        for entry in entries(file)? {
            let path = tree.resolve(&entry.path);
            let Some(inode) = path.and_then(|path| tree.get_mut(&path)) else { continue };
            let folder = inode.is_directory();
            // A folder that the image has anyway stays as it is unless the spec says how it should be.
            if !folder || file.owner.is_some() {
                (inode.uid, inode.gid) = owner;
            }
            if !folder || (file.mode.is_some() && !entry.below) {
                inode.mode = entry.mode;
            }
            if !entry.below {
                set_xattrs(inode, file);
            }
        }
    }
    for device in devices {
        let (major, minor) = (device.major, device.minor);
        let kind = match device.kind {
            DeviceKind::Character => Kind::CharacterDevice { major, minor },
            DeviceKind::Block => Kind::BlockDevice { major, minor },
        };
        let mut inode = Inode::new(kind, device.mode);
        (inode.uid, inode.gid) = ids(device.owner.as_ref(), &device.place)?;
        inode.mtime = Timestamp::from_seconds(build_time());
        let path = tree.resolve_parent(&device.path);
        tree.insert(path, inode).with_context(|| device.place.clone())?;
    }
    Ok(())
}
