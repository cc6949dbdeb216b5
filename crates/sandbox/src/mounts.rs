//! The mounts of an entered root: a /proc, /dev, /run and /tmp of its own, and of the host only a few device nodes.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root, sethostname};

use super::own_folder::OwnFolder;
use super::{CA_BUNDLE, CACHES, Enter, SECRETS, remove};

/// Character devices that programs expect, bound from the host: a user namespace can make none. They are read-only mounts:
/// a device can be written there, and its mode, owner and attributes, which are the host's, cannot.
const DEVICE_NODES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Parts of /proc that act on the whole machine: they become read-only. Where the tool runs as root, root of the namespace
/// is the same uid and could write them.
const READ_ONLY_PROC: [&str; 5] = ["sys", "sysrq-trigger", "irq", "bus", "fs"];

/// Parts of /proc that name the keys of the caller's user: they become empty.
const HIDDEN_PROC: [&str; 2] = ["keys", "key-users"];

/// Links in /dev, and what they lead to.
const DEVICE_LINKS: [(&str, &str); 5] =
    [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2"), ("ptmx", "pts/ptmx")];

const NO_DATA: Option<&str> = None;

/// Makes the mounts private (mount_namespaces(7)): nothing that is mounted here appears on the host.
pub(super) fn make_private() -> Result<()> {
    mount(NO_DATA, "/", NO_DATA, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NO_DATA)
        .context("cannot make the mounts private")
}

/// Mounts `folder` on /tmp, writable for every user id: folders above it may be closed to them.
pub(super) fn mount_scratch(folder: &Path) -> Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o1777))?;
    bind(folder, Path::new("/tmp"))
}

/// Mounts what a step needs and makes `enter.root` the root directory. Returns where the caches are mounted.
pub(super) fn enter(enter: &Enter) -> Result<Vec<PathBuf>> {
    let root = &enter.root;
    bind(root, root)?;
    // Paths that were looked up before the bind mount lead below it: look it up again.
    chdir(root.as_path())?;
    for name in ["proc", "sys", "dev", "run", "tmp"] {
        ensure_directory(Path::new(name))?;
    }
    mount_proc(Path::new("proc"))?;
    mount_dev(Path::new("dev"))?;
    tmpfs(Path::new("run"), "mode=0755")?;
    tmpfs(Path::new("tmp"), "mode=1777")?;
    make_lock_folder(Path::new("run/lock"))?;
    fs::create_dir_all(relative(CACHES))?;
    if let Some(bundle) = &enter.ca_bundle {
        fs::copy(bundle, relative(CA_BUNDLE)).with_context(|| format!("cannot copy {}", bundle.display()))?;
    }
    let mut caches = Vec::new();
    for mounted in &enter.caches {
        let place = Path::new(CACHES).join(&mounted.name);
        let inside = relative(&place);
        fs::create_dir(&inside)?;
        bind(&mounted.folder, &inside)?;
        if mounted.read_only {
            make_read_only(&inside, MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC)?;
        }
        caches.push(place);
    }
    write_secrets(enter)?;
    // With both arguments the same, the old root is mounted on top of the new one, and unmounted there (pivot_root(2)).
    pivot_root(".", ".").context("cannot make the tree the root directory")?;
    umount2(".", MntFlags::MNT_DETACH).context("cannot unmount the host's root")?;
    chdir("/")?;
    sethostname(&enter.hostname)?;
    write_network_files(enter)?;
    Ok(caches)
}

/// Writes the secrets into the fresh /run, which is memory, for root alone.
fn write_secrets(enter: &Enter) -> Result<()> {
    if enter.secrets.is_empty() {
        return Ok(());
    }
    let folder = relative(SECRETS);
    fs::create_dir(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
    for (id, value) in &enter.secrets {
        let file = folder.join(id);
        fs::write(&file, value).with_context(|| format!("cannot write the secret `{id}`"))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o400))?;
    }
    Ok(())
}

fn relative(path: impl AsRef<Path>) -> PathBuf {
    path.as_ref().strip_prefix("/").unwrap_or(path.as_ref()).to_path_buf()
}

/// Makes a mount point a real directory: a mount would follow a symlink out of the root.
fn ensure_directory(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => return Ok(()),
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    fs::create_dir(path).with_context(|| format!("cannot make /{}", path.display()))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, NO_DATA, MsFlags::MS_BIND | MsFlags::MS_REC, NO_DATA)
        .with_context(|| format!("cannot bind {} to {}", from.display(), to.display()))
}

/// Makes a bind mount read-only. `flags` are those that it has beside: the kernel refuses to take one away that it got outside
/// of this namespace (mount_namespaces(7)).
fn make_read_only(at: &Path, flags: MsFlags) -> Result<()> {
    let again = flags | MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(NO_DATA, at, NO_DATA, again, NO_DATA).with_context(|| format!("cannot make /{} read-only", at.display()))
}

fn tmpfs(at: &Path, options: &str) -> Result<()> {
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options))
        .with_context(|| format!("cannot mount a tmpfs on /{}", at.display()))
}

fn mount_proc(at: &Path) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if mount(Some("proc"), at, Some("proc"), flags, NO_DATA).is_err() {
        // Where a container hides parts of its /proc, the kernel allows no fresh one, only a bind mount of that.
        bind(Path::new("/proc"), at)?;
    }
    for name in READ_ONLY_PROC {
        let path = at.join(name);
        if path.exists() {
            bind(&path, &path)?;
            make_read_only(&path, flags)?;
        }
    }
    for name in HIDDEN_PROC {
        let path = at.join(name);
        if path.exists() {
            bind(Path::new("/dev/null"), &path)?;
            make_read_only(&path, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC)?;
        }
    }
    Ok(())
}

fn mount_dev(at: &Path) -> Result<()> {
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=0755"))
        .context("cannot mount a tmpfs on /dev")?;
    for node in DEVICE_NODES {
        let place = at.join(node);
        File::create(&place)?;
        bind(&Path::new("/dev").join(node), &place)?;
        make_read_only(&place, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC)?;
    }
    for (link, target) in DEVICE_LINKS {
        symlink(target, at.join(link))?;
    }
    fs::create_dir(at.join("pts"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("devpts"), &at.join("pts"), Some("devpts"), flags, Some("newinstance,ptmxmode=0666,mode=0620"))
        .context("cannot mount /dev/pts")?;
    fs::create_dir(at.join("shm"))?;
    tmpfs(&at.join("shm"), "mode=1777")
}

/// Returns the files in /etc by which names resolve while steps run, and their contents. Normalising the tree empties them again.
pub(super) fn network_files(enter: &Enter) -> Vec<(&'static str, String)> {
    let hosts = format!("127.0.0.1 localhost {}\n::1 localhost\n", enter.hostname);
    vec![("resolv.conf", enter.resolv_conf.clone()), ("hosts", hosts)]
}

fn write_network_files(enter: &Enter) -> Result<()> {
    let Some(etc) = OwnFolder::open("/etc") else { return Ok(()) };
    for (name, text) in network_files(enter) {
        if etc.read(name, text.len() as u64).is_ok_and(|found| found == text.as_bytes()) {
            continue;
        }
        // Often a symlink into /run, which is empty here.
        etc.remove(name)
            .and_then(|()| etc.create(name, &text, 0o644))
            .with_context(|| format!("cannot write /etc/{name}"))?;
    }
    Ok(())
}

/// Unmounts lazily (MNT_DETACH), whoever still uses the mounts.
pub(super) fn detach(places: &[PathBuf]) -> Result<()> {
    for place in places {
        umount2(place, MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount {}", place.display()))?;
    }
    Ok(())
}

/// Gives the next step what the first one found beside the files of the tree: an empty /tmp, /run and shared memory, and the
/// files by which names resolve. What a step leaves there is in no layer, and no step may depend on it.
pub(super) fn renew(enter: &Enter) -> Result<()> {
    for place in ["tmp", "dev/shm"].map(Path::new) {
        umount2(place, MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount /{}", place.display()))?;
        tmpfs(place, "mode=1777")?;
    }
    let links = || DEVICE_LINKS.iter().map(|(link, _)| *link);
    keep_only("/dev", |name| DEVICE_NODES.into_iter().chain(links()).chain(["pts", "shm"]).any(|kept| kept == name))?;
    keep_only("/run", |name| ["build", "secrets"].contains(&name))?;
    make_lock_folder(Path::new("/run/lock"))?;
    write_network_files(enter)
}

/// Removes all entries of a folder but those that `is_kept` names.
fn keep_only(folder: &str, is_kept: impl Fn(&str) -> bool) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_name().to_str().is_some_and(&is_kept) {
            remove::remove_all(&entry.path()).with_context(|| format!("cannot empty {folder}"))?;
        }
    }
    Ok(())
}

fn make_lock_folder(at: &Path) -> Result<()> {
    fs::create_dir(at)?;
    Ok(fs::set_permissions(at, fs::Permissions::from_mode(0o1777))?)
}
