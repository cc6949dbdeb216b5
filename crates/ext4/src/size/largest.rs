//! What takes the most space in a tree, for people whose image is too large.

use snug_rootfs::tree::{Kind, RootTree, TreePath};

use super::{BLOCK_SIZE, SizeError, human_bytes};

/// A path and the space that it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weight {
    /// A file or a directory.
    pub path: TreePath,
    /// Bytes of the file, or of all files below the directory, each rounded up to blocks; hard links count once.
    pub bytes: u64,
}

/// Returns the `count` paths that take the most space, largest first. A directory is left out if more than half of its bytes
/// are those of one child, which is listed in its place; so is the root.
pub fn largest(tree: &RootTree, count: usize) -> Vec<Weight> {
    struct Open<'tree> {
        path: &'tree TreePath,
        bytes: u64,
        largest_child: u64,
    }
    fn close<'tree>(open: &mut Vec<Open<'tree>>, weights: &mut Vec<(u64, &'tree TreePath)>) {
        let Some(done) = open.pop() else { return };
        if let Some(parent) = open.last_mut() {
            parent.bytes = parent.bytes.saturating_add(done.bytes);
            parent.largest_child = parent.largest_child.max(done.bytes);
            if done.bytes > 0 && done.largest_child <= done.bytes / 2 {
                weights.push((done.bytes, done.path));
            }
        }
    }
    let (mut open, mut weights) = (Vec::<Open>::new(), Vec::new());
    for entry in tree.entries() {
        while open.last().is_some_and(|last| !entry.path.is_within(last.path)) {
            close(&mut open, &mut weights);
        }
        let bytes = match &entry.inode.kind {
            Kind::File(body) if entry.hard_link_to.is_none() => {
                body.data_bytes().div_ceil(BLOCK_SIZE).saturating_mul(BLOCK_SIZE)
            }
            _ => 0,
        };
        open.push(Open { path: entry.path, bytes, largest_child: 0 });
    }
    while !open.is_empty() {
        close(&mut open, &mut weights);
    }
    weights.sort_by(|(a_bytes, a), (b_bytes, b)| b_bytes.cmp(a_bytes).then_with(|| a.cmp(b)));
    weights.into_iter().take(count).map(|(bytes, path)| Weight { path: path.clone(), bytes }).collect()
}

/// How many paths [`explain`] lists.
const LARGEST_NAMED: usize = 10;

/// Adds the largest paths of `tree` to [`SizeError::ExceedsMax`], as text for people; other errors stay as they are.
pub fn explain(error: SizeError, tree: &RootTree) -> anyhow::Error {
    if !matches!(error, SizeError::ExceedsMax { .. }) {
        return error.into();
    }
    let mut text = String::from("the content is too large for its max-size; the largest paths:");
    for Weight { path, bytes } in largest(tree, LARGEST_NAMED) {
        text.push_str(&format!("\n  {:>10}  {path}", human_bytes(bytes)));
    }
    text.push_str("\nhint: `exclude` what the image does not need, or raise max-size");
    anyhow::Error::new(error).context(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use snug_rootfs::tree::{Body, BodySource, Inode};

    #[test]
    fn a_size_above_max_is_refused_with_the_largest_paths() {
        let mut tree = RootTree::new(BodySource::new(Vec::new()));
        let file = |size| Inode::new(Kind::File(Body::contiguous(size, 0)), 0o644);
        for (path, size) in
            [("usr/lib/node/a", 900_000), ("usr/lib/node/b", 800_000), ("usr/bin/sh", 5000), ("etc/x", 10)]
        {
            tree.insert(TreePath::new(path).unwrap(), file(size)).unwrap();
        }
        tree.link(TreePath::new("usr/bin/ash").unwrap(), &TreePath::new("usr/bin/sh").unwrap()).unwrap();
        let error = SizeError::ExceedsMax { needed: 597 * 4096, max: 1 << 20 };
        insta::assert_snapshot!(explain(error, &tree), @r"
        the content is too large for its max-size; the largest paths:
             880 KiB  /usr/lib/node/a
             784 KiB  /usr/lib/node/b
              8192 B  /usr/bin/ash
              4096 B  /etc/x
        hint: `exclude` what the image does not need, or raise max-size
        ");
    }
}
