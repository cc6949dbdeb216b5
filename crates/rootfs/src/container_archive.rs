//! Archives of container images that are given for root filesystems by mistake.
//!
//! `docker save` and `skopeo copy` write an image: layers and configuration as blobs. `docker export` writes a root
//! filesystem. A layer alone is a change to other layers, and marks with whiteouts what it removes (OCI image-spec 1.1,
//! layer.md and image-layout.md).

use crate::tree::{Kind, RootTree, TreePath};

/// What an archive is instead of a root filesystem.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContainerArchive {
    /// Written by `docker save`, before or after it adopted the OCI layout.
    #[error("it is an image as `docker save` writes it, not a root filesystem")]
    DockerSave,
    /// An OCI image layout.
    #[error("it is an OCI image layout, not a root filesystem")]
    OciLayout,
    /// One layer of an image, with the first of its whiteouts.
    #[error("it is one layer of a container image, with whiteouts ({0}), not a root filesystem")]
    Layer(TreePath),
}

impl ContainerArchive {
    /// Recognises an archive by what was read of it. `None` for a root filesystem.
    pub fn of(tree: &RootTree) -> Option<Self> {
        let is_file = |path: &str| {
            let inode = TreePath::new(path).ok().and_then(|path| tree.get(&path));
            inode.is_some_and(|inode| matches!(inode.kind, Kind::File(_)))
        };
        if is_file("manifest.json") && (is_file("repositories") || is_file("oci-layout")) {
            return Some(ContainerArchive::DockerSave);
        }
        if is_file("oci-layout") && is_file("index.json") {
            return Some(ContainerArchive::OciLayout);
        }
        // A whiteout is an empty file.
        let whiteout = tree.entries().find(|entry| {
            let empty = matches!(&entry.inode.kind, Kind::File(body) if body.size == 0);
            empty && entry.path.name().starts_with(b".wh.")
        });
        whiteout.map(|entry| ContainerArchive::Layer(entry.path.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{BodySource, Inode};

    #[test]
    fn archives_of_images_are_told_from_root_filesystems() {
        let found = |names: &[&str]| {
            let mut tree = RootTree::new(BodySource::new(Vec::new()));
            for name in names {
                let body = tree.add_body(b"");
                tree.insert(TreePath::new(name).unwrap(), Inode::new(Kind::File(body), 0o644)).unwrap();
            }
            ContainerArchive::of(&tree)
        };
        assert_eq!(found(&["manifest.json", "repositories", "0a/layer.tar"]), Some(ContainerArchive::DockerSave));
        assert_eq!(found(&["manifest.json", "oci-layout", "index.json"]), Some(ContainerArchive::DockerSave));
        assert_eq!(found(&["oci-layout", "index.json", "blobs/sha256/0a"]), Some(ContainerArchive::OciLayout));
        let whiteout = TreePath::new("etc/.wh.passwd").unwrap();
        assert_eq!(found(&["etc/.wh.passwd", "etc/hosts"]), Some(ContainerArchive::Layer(whiteout)));
        assert_eq!(found(&["etc/hosts", "srv/manifest.json", "srv/oci-layout", "manifest.json"]), None);
    }
}
