//! Reads an image through the kernel, mounted read-only on a loop device in the mount namespace of one thread. When the
//! thread ends, the kernel removes the mount and the loop device.

use std::path::{Path, PathBuf};
use std::{fs, thread};

use anyhow::{Context, Result, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use snug_formats::FilesystemKind;
use snug_process::child;
use snug_process::program::HostProgram;
use snug_rootfs::disk::{self, StandIns};
use snug_rootfs::listing::Listing;
use snug_rootfs::tree::TreePath;

use super::{ReadBack, ReadError};
use crate::report::progress::Stage;

const MOUNT: HostProgram = HostProgram { name: "mount", package: "mount" };

/// Mount points: the first that exists on this host is used.
const PLACES: [&str; 3] = ["/mnt", "/media", "/sys"];

pub(super) fn read(image: &Path, kind: FilesystemKind, bodies: bool, stage: &Stage) -> Result<ReadBack, ReadError> {
    let image = image.canonicalize().with_context(|| format!("cannot find {}", image.display()))?;
    thread::scope(|scope| {
        let reader = scope.spawn(|| read_apart(&image, kind, bodies, stage));
        reader.join().unwrap_or_else(|_| Err(anyhow!("the reader of the mounted image panicked").into()))
    })
}

fn read_apart(image: &Path, kind: FilesystemKind, bodies: bool, stage: &Stage) -> Result<ReadBack, ReadError> {
    let place = mount_apart(image, kind)?;
    let mut tree = disk::walk(&place, &StandIns::default())?;
    if kind == FilesystemKind::Ext4 {
        // ext4's own.
        tree.remove(&TreePath::new("lost+found").map_err(anyhow::Error::from)?);
    }
    let (listing, unreadable) = match bodies {
        true => Listing::read(&tree, |bytes| stage.advance(bytes)),
        false => (Listing::of(&tree), Vec::new()),
    };
    Ok(ReadBack::new(listing, unreadable, name()?))
}

/// Mounts the image for this thread alone.
fn mount_apart(image: &Path, kind: FilesystemKind) -> Result<PathBuf, ReadError> {
    let refused = |what: &str, error: nix::Error| ReadError::CannotMount(format!("{what}: {error}"));
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| refused("no mount namespace", error))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(|error| refused("mounts cannot be made private", error))?;
    let place = PLACES.into_iter().map(PathBuf::from).find(|place| place.is_dir()).context("no folder to mount on")?;
    let options = match kind {
        // The journal is clean; replaying it would need a writable device.
        FilesystemKind::Ext4 => "ro,nosuid,nodev,noexec,loop,noload",
        FilesystemKind::Squashfs | FilesystemKind::Erofs => "ro,nosuid,nodev,noexec,loop",
    };
    let mut mount = MOUNT.command().map_err(|missing| ReadError::CannotMount(missing.in_a_line()))?;
    mount.args(["-n", "-t", kind.as_str(), "-o", options]).arg(image).arg(&place);
    let output = child::output(&mut mount).map_err(|error| ReadError::CannotMount(format!("{error:#}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(ReadError::CannotMount(said.trim().replace('\n', " ")));
    }
    Ok(place)
}

fn name() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    Ok(format!("mount by Linux {}", release.trim()))
}
