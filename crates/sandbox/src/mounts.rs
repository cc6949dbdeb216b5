//! The mounts of an entered root: its own /proc, /dev, /run and /tmp, and nothing of the host's but a few device nodes.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root, sethostname};

use super::{CA_BUNDLE, CACHES, Enter, SECRETS};

/// Character devices that programs expect, bound from the host.
const DEVICE_NODES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Parts of /proc that act on the whole machine: they become read-only. The first process of a pid namespace owned by
/// root could write them, since their files belong to the same uid.
const READ_ONLY_PROC: [&str; 5] = ["sys", "sysrq-trigger", "irq", "bus", "fs"];

/// What is mounted over the entered root, in the order to take it away again.
const MOUNTED: [&str; 4] = ["/tmp", "/run", "/dev", "/proc"];

const NO_DATA: Option<&str> = None;

/// Cuts this mount namespace off from the host's: nothing mounted here shows there.
pub(super) fn make_private() -> Result<()> {
    mount(NO_DATA, "/", NO_DATA, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NO_DATA)
        .context("cannot make the mounts private")
}

/// Shows `folder` at /tmp: reachable for every user id, however closed the way to the folder itself is.
pub(super) fn scratch(folder: &Path) -> Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o1777))?;
    bind(folder, Path::new("/tmp"))
}

/// Mounts what a step needs and makes `enter.root` the root directory. Answers the mounted caches.
pub(super) fn enter(enter: &Enter) -> Result<Vec<PathBuf>> {
    let root = &enter.root;
    bind(root, root)?;
    // The bind is a mount of its own only for paths looked up again from here on.
    chdir(root.as_path())?;
    for name in ["proc", "sys", "dev", "run", "tmp"] {
        own_directory(Path::new(name))?;
    }
    mount_proc(Path::new("proc"))?;
    mount_dev(Path::new("dev"))?;
    tmpfs(Path::new("run"), "mode=0755")?;
    tmpfs(Path::new("tmp"), "mode=1777")?;
    fs::create_dir("run/lock")?;
    fs::set_permissions("run/lock", fs::Permissions::from_mode(0o1777))?;
    fs::create_dir_all(relative(CACHES))?;
    if let Some(bundle) = &enter.ca_bundle {
        fs::copy(bundle, relative(CA_BUNDLE)).with_context(|| format!("cannot copy {}", bundle.display()))?;
    }
    let mut caches = Vec::new();
    for (name, folder) in &enter.caches {
        let place = Path::new(CACHES).join(name);
        let inside = relative(&place);
        fs::create_dir(&inside)?;
        bind(folder, &inside)?;
        caches.push(place);
    }
    lay_secrets(enter)?;
    // With both arguments the same, the old root ends on top of the new one, and is taken off there (pivot_root(2)).
    pivot_root(".", ".").context("cannot make the tree the root directory")?;
    umount2(".", MntFlags::MNT_DETACH).context("cannot let the host's root go")?;
    chdir("/")?;
    sethostname(&enter.hostname)?;
    write_network_files(enter)?;
    Ok(caches)
}

/// Writes the secrets into the fresh /run, which is memory, for root alone.
fn lay_secrets(enter: &Enter) -> Result<()> {
    if enter.secrets.is_empty() {
        return Ok(());
    }
    let folder = relative(SECRETS);
    fs::create_dir(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
    for (id, value) in &enter.secrets {
        let file = folder.join(id);
        fs::write(&file, value).with_context(|| format!("cannot show the secret `{id}`"))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o400))?;
    }
    Ok(())
}

fn relative(path: impl AsRef<Path>) -> PathBuf {
    path.as_ref().strip_prefix("/").unwrap_or(path.as_ref()).to_path_buf()
}

/// Makes sure that a mount point is a real directory: a link there would lead a mount elsewhere.
fn own_directory(path: &Path) -> Result<()> {
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

fn tmpfs(at: &Path, options: &str) -> Result<()> {
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options))
        .with_context(|| format!("cannot mount a tmpfs on /{}", at.display()))
}

fn mount_proc(at: &Path) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if mount(Some("proc"), at, Some("proc"), flags, NO_DATA).is_err() {
        // A container may hide parts of its /proc; the kernel then allows no fresh one, only what is there already.
        bind(Path::new("/proc"), at)?;
    }
    for name in READ_ONLY_PROC {
        let path = at.join(name);
        if path.exists() {
            bind(&path, &path)?;
            let again = flags | MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(NO_DATA, &path, NO_DATA, again, NO_DATA)
                .with_context(|| format!("cannot make /{} read-only", path.display()))?;
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
    }
    for (link, target) in
        [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2"), ("ptmx", "pts/ptmx")]
    {
        symlink(target, at.join(link))?;
    }
    fs::create_dir(at.join("pts"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("devpts"), &at.join("pts"), Some("devpts"), flags, Some("newinstance,ptmxmode=0666,mode=0620"))
        .context("cannot mount /dev/pts")?;
    fs::create_dir(at.join("shm"))?;
    tmpfs(&at.join("shm"), "mode=1777")
}

/// Names resolve while steps run; normalising empties both files again.
fn write_network_files(enter: &Enter) -> Result<()> {
    if !Path::new("/etc").is_dir() {
        return Ok(());
    }
    let hosts = format!("127.0.0.1 localhost {}\n::1 localhost\n", enter.hostname);
    for (path, text) in [("/etc/resolv.conf", &enter.resolv_conf), ("/etc/hosts", &hosts)] {
        // Often a link into /run, which is empty here.
        if fs::symlink_metadata(path).is_ok_and(|there| !there.is_dir()) {
            fs::remove_file(path)?;
        }
        fs::write(path, text).with_context(|| format!("cannot write {path}"))?;
    }
    Ok(())
}

/// Takes mounts away, whoever still uses them.
pub(super) fn detach(places: &[PathBuf]) -> Result<()> {
    for place in places {
        umount2(place, MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount {}", place.display()))?;
    }
    Ok(())
}

/// Takes all mounts of the entered root away, so that only its own files are seen.
pub(super) fn detach_all() -> Result<()> {
    detach(&MOUNTED.map(PathBuf::from))
}

/// Debian's word that no service may be started (policy-rc.d, /usr/share/doc/init-system-helpers), as a path from the
/// root: package scripts would otherwise start daemons on the host's network.
pub const POLICY_PATH: &str = "usr/sbin/policy-rc.d";
/// 101: action forbidden by policy.
pub const POLICY_SCRIPT: &str = "#!/bin/sh\nexit 101\n";

/// The policy while it lies in an entered root.
#[derive(Default)]
pub(super) struct QuietServices {
    laid: bool,
}

impl QuietServices {
    /// Forbids services in the entered root, unless it has a policy of its own.
    pub(super) fn lay() -> Result<Self> {
        let path = Path::new("/").join(POLICY_PATH);
        let wanted = path.parent().is_some_and(Path::is_dir) && fs::symlink_metadata(&path).is_err();
        if wanted {
            fs::write(&path, POLICY_SCRIPT)
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))?;
        }
        Ok(QuietServices { laid: wanted })
    }

    /// Takes the policy away, unless a step made it its own.
    pub(super) fn lift(&self) -> Result<()> {
        let path = Path::new("/").join(POLICY_PATH);
        if self.laid && fs::read(&path).is_ok_and(|text| text == POLICY_SCRIPT.as_bytes()) {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}
