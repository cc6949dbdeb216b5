//! What a step changed in the entered root, as the tree of a layer.

use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use nix::unistd::{chdir, fchdir};
use snug_rootfs::changes::Snapshot;
use snug_rootfs::disk::StandIns;
use snug_rootfs::tree::{Body, Inode, Kind, RootTree, TreePath};

/// `OPEN_TREE_CLONE` of open_tree(2): a mount of its own.
const OPEN_TREE_CLONE: libc::c_uint = 1;

/// Follows the changes of an entered root from step to step.
pub(super) struct Changes {
    snapshot: Snapshot,
    /// Files that the sandbox writes for steps, which are no part of what a step did.
    own: Vec<OwnFile>,
}

/// A file that the sandbox writes into the root.
struct OwnFile {
    path: TreePath,
    text: Vec<u8>,
    /// Whether the tree had a file there before. Where it had none, it gets an empty one.
    was_there: bool,
}

impl Changes {
    /// Begins with the root at `root`, into which `tree` was laid out and which is not entered yet. The sandbox will write
    /// `own` into its /etc: names, and their contents.
    pub(super) fn begin(root: &Path, tree: &RootTree, own: Vec<(&str, String)>) -> Result<Self> {
        let own = own.into_iter().map(|(name, text)| {
            let path = TreePath::new(format!("etc/{name}"))?;
            let was_there = tree.get(&path).is_some_and(|inode| matches!(inode.kind, Kind::File(_)));
            Ok(OwnFile { path, text: text.into_bytes(), was_there })
        });
        Ok(Changes { own: own.collect::<Result<_>>()?, snapshot: Snapshot::take(root)? })
    }

    /// Hands the tree of what changed since the last call to `write`. No other process may run in the root.
    pub(super) fn write(&mut self, stand_ins: &StandIns, write: impl FnOnce(&RootTree) -> Result<()>) -> Result<()> {
        fchdir(bare_root()?).context("cannot enter the root without its mounts")?;
        let result = self.tree(stand_ins).and_then(|tree| write(&tree));
        chdir("/")?;
        result
    }

    fn tree(&mut self, stand_ins: &StandIns) -> Result<RootTree> {
        let mut tree = self.snapshot.changes(Path::new("."), stand_ins)?;
        for own in &self.own {
            let Some(Kind::File(body)) = tree.get(&own.path).map(|inode| &inode.kind) else { continue };
            let unchanged = body.size == own.text.len() as u64 && tree.bodies().read_to_vec(body)? == own.text;
            if unchanged && own.was_there {
                tree.remove(&own.path);
            } else if unchanged && let Some(inode) = tree.get(&own.path) {
                // Not the inode, of which a step may have made another name.
                let empty = Inode { kind: Kind::File(Body::default()), ..inode.clone() };
                tree.insert(own.path.clone(), empty)?;
            }
        }
        Ok(tree)
    }
}

/// Returns the root directory as a mount of its own, without what is mounted below it: its own /proc, /dev, /run and /tmp are
/// seen there.
fn bare_root() -> Result<OwnedFd> {
    // SAFETY: the path is a C string; the call touches no other memory.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_open_tree,
            libc::AT_FDCWD,
            c"/".as_ptr(),
            OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint,
        )
    };
    let descriptor = i32::try_from(answer).ok().filter(|descriptor| *descriptor >= 0);
    let descriptor =
        descriptor.ok_or_else(std::io::Error::last_os_error).context("cannot open the bare root (open_tree)")?;
    // SAFETY: the kernel has just made the descriptor, and nothing else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
