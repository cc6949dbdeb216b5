//! A tree while an archive is read into it.

use super::tree::{Inode, InodeId, RootTree, TreeError, TreePath};

/// A [`RootTree`] that takes names quickly as long as they come in its own order, as in most archives they do: then a name
/// is compared with the one before it, and not with one in every level of a map. From the first name on that is out of
/// order, all goes the ordinary way.
pub(crate) struct TreeBuilder {
    tree: RootTree,
    /// All names but the root's, as long as they ascend.
    ascending: Option<Vec<(TreePath, InodeId)>>,
}

impl TreeBuilder {
    /// `tree` has nothing but its root.
    pub(crate) fn new(tree: RootTree) -> Self {
        debug_assert!(tree.is_empty());
        TreeBuilder { tree, ascending: Some(Vec::new()) }
    }

    /// See [`RootTree::insert`].
    pub(crate) fn insert(&mut self, path: TreePath, inode: Inode) -> Result<InodeId, TreeError> {
        if path.is_root() {
            return self.tree.insert(path, inode);
        }
        if let Some(names) = &mut self.ascending {
            if follows(&path, names, &self.tree) {
                let id = self.tree.add_unnamed(inode);
                names.push((path, id));
                return Ok(id);
            }
            self.settle();
        }
        self.tree.insert(path, inode)
    }

    /// See [`RootTree::link`].
    pub(crate) fn link(&mut self, path: TreePath, target: &TreePath) -> Result<(), TreeError> {
        if let Some(names) = &mut self.ascending {
            if let Ok(at) = names.binary_search_by(|(name, _)| name.cmp(target)) {
                let id = names[at].1;
                if !self.tree.inode(id).is_directory() && follows(&path, names, &self.tree) {
                    names.push((path, id));
                    self.tree.mark_linked(id);
                    return Ok(());
                }
            }
            self.settle();
        }
        self.tree.link(path, target)
    }

    /// See [`RootTree::get_mut`].
    pub(crate) fn get_mut(&mut self, path: &TreePath) -> Option<&mut Inode> {
        self.settle();
        self.tree.get_mut(path)
    }

    /// See [`RootTree::inode_slots`].
    pub(crate) fn inode_slots(&self) -> usize {
        self.tree.inode_slots()
    }

    /// The tree with all that was put in.
    pub(crate) fn finish(mut self) -> RootTree {
        self.settle();
        self.tree
    }

    fn settle(&mut self) {
        if let Some(names) = self.ascending.take() {
            self.tree.name_all(names);
        }
    }
}

/// Does `path` come after all of `names`, and is its parent a directory that is there already?
fn follows(path: &TreePath, names: &[(TreePath, InodeId)], tree: &RootTree) -> bool {
    let Some(parent) = path.parent_bytes() else {
        return false;
    };
    let Some((last, id)) = names.last() else {
        return parent.is_empty();
    };
    // What has names below it is a directory; only the last name itself may be something else.
    let parent_stands = match last.as_bytes().strip_prefix(parent) {
        Some([]) => tree.inode(*id).is_directory(),
        Some(below) => parent.is_empty() || below[0] == b'/',
        None => false,
    };
    parent_stands && path.cmp_behind(last, parent.len()).is_gt()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tree::{BodySource, Kind};

    #[derive(Debug, Clone)]
    enum Step {
        Directory(String),
        File(String),
        Link(String, String),
        Touch(String),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let path = || "[ab-]{1,2}(/[ab-]){0,3}";
        let step = prop_oneof![
            3 => path().prop_map(Step::Directory),
            3 => path().prop_map(Step::File),
            1 => (path(), path()).prop_map(|(path, target)| Step::Link(path, target)),
            1 => path().prop_map(Step::Touch),
        ];
        (prop::collection::vec(step, 0..30), any::<bool>()).prop_map(|(mut steps, sorted)| {
            // Nearly sorted input is what the quick way is for.
            if sorted {
                steps.sort_by_key(|step| match step {
                    Step::Directory(path) | Step::File(path) | Step::Link(path, _) | Step::Touch(path) => {
                        TreePath::new(path).unwrap()
                    }
                });
            }
            steps
        })
    }

    fn listing(tree: &RootTree) -> Vec<String> {
        tree.entries().map(|entry| format!("{} {:?} {:?}", entry.path, entry.inode.kind, entry.hard_link_to)).collect()
    }

    proptest! {
        #[test]
        fn it_is_the_tree_that_the_ordinary_way_makes(steps in steps()) {
            let new = || RootTree::new(BodySource::new(Vec::new()));
            let (mut growing, mut ordinary) = (TreeBuilder::new(new()), new());
            let path = |text: &str| TreePath::new(text).unwrap();
            for step in &steps {
                match step {
                    Step::Directory(name) => {
                        let inode = Inode::directory(0o755);
                        prop_assert_eq!(growing.insert(path(name), inode.clone()), ordinary.insert(path(name), inode));
                    }
                    Step::File(name) => {
                        let inode = Inode::new(Kind::Fifo, 0o644);
                        prop_assert_eq!(growing.insert(path(name), inode.clone()), ordinary.insert(path(name), inode));
                    }
                    Step::Link(name, target) => {
                        let target = path(target);
                        prop_assert_eq!(growing.link(path(name), &target), ordinary.link(path(name), &target));
                    }
                    Step::Touch(name) => {
                        prop_assert_eq!(growing.get_mut(&path(name)).cloned(), ordinary.get_mut(&path(name)).cloned());
                    }
                }
            }
            prop_assert_eq!(listing(&growing.finish()), listing(&ordinary));
        }
    }
}
