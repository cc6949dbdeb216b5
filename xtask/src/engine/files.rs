//! The `[[file]]` and `[[device]]` entries of a spec as a tree, and their attributes put back after the steps.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use snug_rootfs::tree::{Body, BodySource, Inode, Kind, RootTree, Timestamp, TreePath};
use snug_spec::model::{Account, DeviceKind, DeviceSpec, FileSource, FileSpec, Located, Owner};

/// The attribute that holds file capabilities (capabilities(7)).
const CAPABILITY_XATTR: &[u8] = b"security.capability";

/// A tree of nothing but the files, and the folders they stand in.
///
/// Only the executable bit is taken from a checkout, whose other bits depend on the umask it was made under, and no
/// times: they would differ with every clone. Owners that the image has yet to name become root until
/// [`apply_attributes`].
pub fn file_tree(files: &[Located<FileSpec>]) -> Result<RootTree> {
    let mut spool = Spool { file: tempfile::tempfile().context("cannot make a temporary file")?, end: 0 };
    let mut found: Vec<(TreePath, Inode)> = Vec::new();
    for file in files {
        let spec = &file.value;
        for source in sources(spec)? {
            let kind = match &source.content {
                Content::Directory => Kind::Directory,
                Content::Symlink(target) => Kind::Symlink(target.clone()),
                Content::Text(text) => Kind::File(spool.add(&mut text.as_bytes())?),
                Content::File(path) => {
                    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
                    Kind::File(spool.add(&mut file)?)
                }
            };
            let mut inode = Inode::new(kind, source.mode);
            (inode.uid, inode.gid) = spec.owner.as_ref().and_then(Owner::ids).unwrap_or_default();
            inode.mtime = Timestamp::from_seconds(build_time());
            if !source.below {
                give_xattrs(&mut inode, spec);
            }
            found.push((source.path, inode));
        }
    }
    let mut tree = RootTree::new(BodySource::new(spool.file));
    for (path, inode) in found {
        tree.insert(path, inode)?;
    }
    Ok(tree)
}

/// What one entry of a spec puts at one path.
struct Source {
    path: TreePath,
    content: Content,
    mode: u16,
    /// Is it something in a folder that the entry names, and not what the entry itself is about?
    below: bool,
}

enum Content {
    Directory,
    Symlink(Box<[u8]>),
    Text(String),
    File(PathBuf),
}

/// Everything that one entry of a spec puts into the image, folders before what is in them.
fn sources(spec: &FileSpec) -> Result<Vec<Source>> {
    let from = match &spec.source {
        FileSource::Content(text) => {
            let mode = spec.mode.unwrap_or(FileSpec::DEFAULT_MODE);
            return Ok(vec![Source {
                path: spec.to.clone(),
                content: Content::Text(text.clone()),
                mode,
                below: false,
            }]);
        }
        FileSource::From(from) => from,
    };
    let mut found = Vec::new();
    // The entry's own path may be a link to the file; what is below a folder is taken as it is.
    let mut pending = vec![(fs::canonicalize(from).with_context(|| format!("cannot find {from}"))?, spec.to.clone())];
    while let Some((host, path)) = pending.pop() {
        let about = fs::symlink_metadata(&host).with_context(|| format!("cannot read {}", host.display()))?;
        let below = path != spec.to;
        let executable = about.permissions().mode() & 0o100 != 0;
        let mode = if about.is_dir() || executable { 0o755 } else { FileSpec::DEFAULT_MODE };
        let mode = spec.mode.filter(|_| !below).unwrap_or(mode);
        let content = if about.is_dir() {
            let mut names = fs::read_dir(&host)?.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
            names.sort();
            for name in names.iter().rev() {
                let inside = [path.as_bytes(), b"/", name.as_bytes()].concat();
                pending.push((host.join(name), TreePath::new(inside)?));
            }
            Content::Directory
        } else if about.is_symlink() {
            Content::Symlink(fs::read_link(&host)?.as_os_str().as_bytes().into())
        } else if about.is_file() {
            Content::File(host)
        } else {
            bail!("{} is neither a file nor a folder nor a symlink", host.display());
        };
        found.push(Source { path, content, mode, below });
    }
    Ok(found)
}

/// The time that files of a spec carry: SOURCE_DATE_EPOCH where it is set, else the epoch.
fn build_time() -> i64 {
    Timestamp::source_date_epoch().unwrap_or(0)
}

/// Bodies, one after the other in a temporary file.
struct Spool {
    file: File,
    end: u64,
}

impl Spool {
    fn add(&mut self, from: &mut impl Read) -> Result<Body> {
        let size = std::io::copy(from, &mut self.file)?;
        let body = Body::contiguous(size, self.end);
        self.end += size;
        Ok(body)
    }
}

fn give_xattrs(inode: &mut Inode, spec: &FileSpec) {
    for (name, value) in &spec.xattrs {
        inode.xattrs.insert(name.as_bytes().into(), value.as_slice().into());
    }
    if let Some(capabilities) = &spec.capabilities {
        inode.xattrs.insert(CAPABILITY_XATTR.into(), capabilities.to_xattr().as_slice().into());
    }
}

/// Gives the files that still exist their mode, owner, attributes and capabilities once more (an engine or a step may
/// have lost them), resolves owners by the image's own accounts, and adds the devices.
pub fn apply_attributes(
    tree: &mut RootTree,
    files: &[Located<FileSpec>],
    devices: &[Located<DeviceSpec>],
) -> Result<()> {
    let accounts = Accounts::read(tree)?;
    for file in files {
        let spec = &file.value;
        let owner =
            accounts.resolve(spec.owner.as_ref()).with_context(|| format!("`[[file]]` in line {}", file.line))?;
        for source in sources(spec)? {
            let path = tree.resolve(&source.path);
            let Some(inode) = path.and_then(|path| tree.get_mut(&path)) else { continue };
            let folder = inode.is_directory();
            // A folder that the image has anyway stays as it is unless the spec says how it should be.
            if !folder || spec.owner.is_some() {
                (inode.uid, inode.gid) = owner;
            }
            if !folder || (spec.mode.is_some() && !source.below) {
                inode.mode = source.mode;
            }
            if !source.below {
                give_xattrs(inode, spec);
            }
        }
    }
    for device in devices {
        let spec = &device.value;
        let (major, minor) = (spec.major, spec.minor);
        let kind = match spec.kind {
            DeviceKind::Char => Kind::CharacterDevice { major, minor },
            DeviceKind::Block => Kind::BlockDevice { major, minor },
        };
        let mut inode = Inode::new(kind, spec.mode);
        (inode.uid, inode.gid) =
            accounts.resolve(spec.owner.as_ref()).with_context(|| format!("`[[device]]` in line {}", device.line))?;
        inode.mtime = Timestamp::from_seconds(build_time());
        let path = tree.resolve_parent(&spec.path);
        tree.insert(path, inode).with_context(|| format!("`[[device]]` in line {}", device.line))?;
    }
    Ok(())
}

/// Users and groups by name, as the image's `/etc/passwd` and `/etc/group` have them.
struct Accounts {
    users: BTreeMap<String, u32>,
    groups: BTreeMap<String, u32>,
}

impl Accounts {
    fn read(tree: &RootTree) -> Result<Self> {
        let read = |path: &str| -> Result<BTreeMap<String, u32>> {
            let Some(Kind::File(body)) = tree.get(&TreePath::new(path)?).map(|inode| &inode.kind) else {
                return Ok(BTreeMap::new());
            };
            let text = tree.bodies().read_to_vec(body)?;
            let text = String::from_utf8_lossy(&text);
            let ids = text.lines().filter_map(|line| {
                let mut fields = line.split(':');
                Some((fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?))
            });
            Ok(ids.collect())
        };
        Ok(Accounts { users: read("etc/passwd")?, groups: read("etc/group")? })
    }

    fn resolve(&self, owner: Option<&Owner>) -> Result<(u32, u32)> {
        let find = |account: &Account, names: &BTreeMap<String, u32>, what: &str| match account {
            Account::Id(id) => Ok(*id),
            Account::Name(name) => {
                names.get(name).copied().with_context(|| format!("the image has no {what} `{name}`"))
            }
        };
        let Some(owner) = owner else { return Ok((0, 0)) };
        Ok((find(&owner.user, &self.users, "user")?, find(&owner.group, &self.groups, "group")?))
    }
}
