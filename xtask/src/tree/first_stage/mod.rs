//! The first process of every image: a script of the tool's own that makes the root writable, by an overlay where it is
//! read-only by nature, and becomes the image's own init.
//!
//! It is put into the finished tree, not into what the steps see: trees are cached, and the script may change without
//! any of them being built again.

use anyhow::{Context, Result};
use snug_rootfs::tree::image_time;
use snug_rootfs::tree::{Inode, Kind, RootTree, Timestamp, TreePath};

/// The script, for `sh` of Debian and of Alpine.
pub const SCRIPT: &str = include_str!("init.sh");

/// What the kernel is told to start.
const ENTRY: &str = "init";
/// The folder that the script looks into.
const FOLDER: &str = "usr/lib/snug";
/// The image's own init, and the bytes that an overlay in memory may take.
const OWN_INIT: &str = "usr/lib/snug/init";
const OVERLAY_SIZE: &str = "usr/lib/snug/overlay";

/// Where the script mounts what it needs. On a read-only root they must be there.
const MOUNT_POINTS: [(&str, u16); 4] = [("dev", 0o755), ("proc", 0o555), ("run", 0o755), ("sys", 0o555)];

/// Makes the script the tree's `/init`. What was called so before becomes the image's own init; `overlay` bounds the
/// bytes of an overlay in memory. The same tree comes out the same.
pub fn install(tree: &mut RootTree, overlay: Option<u64>) -> Result<()> {
    let time = Timestamp::from_seconds(image_time(tree));
    let entry = TreePath::new(ENTRY)?;
    for (name, mode) in MOUNT_POINTS {
        let path = TreePath::new(name)?;
        if tree.get(&path).is_none() {
            tree.insert(path, Inode { mtime: time, ..Inode::directory(mode) })?;
        }
    }
    // Links on the way, as from /usr/lib, are followed as they will be in the image.
    let at = |tree: &RootTree, path: &str| -> Result<TreePath> { Ok(tree.resolve_parent(&TreePath::new(path)?)) };
    let (folder, size) = (at(tree, FOLDER)?, at(tree, OVERLAY_SIZE)?);
    if tree.get(&folder).is_none() {
        tree.insert(folder, Inode { mtime: time, ..Inode::directory(0o755) })?;
    }
    if tree.get(&entry).is_some() {
        let own = at(tree, OWN_INIT)?;
        tree.link(own.clone(), &entry).context("/init cannot be the image's own init")?;
        tree.remove(&entry);
        if let Some(Kind::Symlink(target)) = tree.get_mut(&own).map(|inode| &mut inode.kind)
            && target.first() != Some(&b'/')
        {
            // It was relative to the root.
            *target = [b"/", &**target].concat().into();
        }
    }
    let mut put = |path: TreePath, content: &[u8], mode: u16| -> Result<()> {
        let body = tree.add_body(content);
        tree.insert(path, Inode { mtime: time, ..Inode::new(Kind::File(body), mode) })?;
        Ok(())
    };
    put(entry, SCRIPT.as_bytes(), 0o755)?;
    if let Some(bytes) = overlay {
        put(size, format!("{bytes}\n").as_bytes(), 0o644)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;
    use snug_rootfs::tree::BodySource;
    use snug_tests::have;

    fn path(raw: &str) -> TreePath {
        TreePath::new(raw).unwrap()
    }

    fn content(tree: &RootTree, name: &str) -> String {
        match &tree.get(&path(name)).unwrap_or_else(|| panic!("no {name}")).kind {
            Kind::File(body) => String::from_utf8(tree.bodies().read_to_vec(body).unwrap()).unwrap(),
            Kind::Symlink(target) => format!("-> {}", String::from_utf8_lossy(target)),
            kind => kind.noun().to_owned(),
        }
    }

    #[test]
    fn the_images_own_init_moves_and_the_script_takes_its_place() {
        let mut tree = RootTree::new(BodySource::new(Vec::new()));
        let body = tree.add_body(b"its own");
        let mut own = Inode::new(Kind::File(body), 0o700);
        own.mtime = Timestamp::from_seconds(77);
        tree.insert(path("init"), own).unwrap();
        install(&mut tree, Some(1 << 20)).unwrap();
        assert_eq!(content(&tree, "init"), SCRIPT);
        assert_eq!(content(&tree, "usr/lib/snug/init"), "its own");
        assert_eq!(content(&tree, "usr/lib/snug/overlay"), "1048576\n");
        assert_eq!(tree.get(&path("usr/lib/snug/init")).unwrap().mode, 0o700);
        let names: Vec<String> = tree.entries().map(|entry| entry.path.to_string()).collect();
        assert_eq!(
            names,
            [
                "/",
                "/dev",
                "/init",
                "/proc",
                "/run",
                "/sys",
                "/usr",
                "/usr/lib",
                "/usr/lib/snug",
                "/usr/lib/snug/init",
                "/usr/lib/snug/overlay"
            ]
        );
        assert_eq!(tree.get(&path("init")).unwrap().mtime, Timestamp::from_seconds(77));
    }

    #[test]
    fn a_link_to_an_init_still_leads_there() {
        let mut tree = RootTree::new(BodySource::new(Vec::new()));
        tree.insert(path("init"), Inode::new(Kind::Symlink(b"sbin/init".as_slice().into()), 0o777)).unwrap();
        install(&mut tree, None).unwrap();
        assert_eq!(content(&tree, "usr/lib/snug/init"), "-> /sbin/init");
        assert!(tree.get(&path("usr/lib/snug/overlay")).is_none());
    }

    #[test]
    fn every_shell_and_the_linter_accept_the_script() {
        if !have(&["shellcheck", "dash", "busybox"]) {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("init");
        fs::write(&script, SCRIPT).unwrap();
        for words in [&["shellcheck", "--shell=sh"][..], &["dash", "-n"], &["busybox", "ash", "-n"]] {
            let output = Command::new(words[0]).args(&words[1..]).arg(&script).output().unwrap();
            assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stdout));
        }
    }
}
