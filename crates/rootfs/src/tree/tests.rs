//! Trees by their public interface, and the two forms of their names against each other.

use proptest::prelude::*;

use super::*;

fn path(raw: &str) -> TreePath {
    TreePath::new(raw).unwrap()
}

#[test]
fn the_first_name_in_order_is_the_file_and_removal_promotes_the_next() {
    let mut tree = RootTree::new(BodySource::new(Vec::new()));
    tree.insert(path("z"), Inode::new(Kind::File(Body::default()), 0o644)).unwrap();
    tree.link(path("b"), &path("z")).unwrap();
    tree.link(path("c"), &path("b")).unwrap();
    let links = |tree: &RootTree| {
        tree.entries().map(|e| (e.path.to_string(), e.hard_link_to.map(ToString::to_string))).collect::<Vec<_>>()
    };
    let linked = |name: &str, to: Option<&str>| (name.to_string(), to.map(ToString::to_string));
    assert_eq!(
        links(&tree),
        [linked("/", None), linked("/b", None), linked("/c", Some("/b")), linked("/z", Some("/b"))]
    );
    assert_eq!(tree.inode_count(), 2);
    tree.remove(&path("b"));
    assert_eq!(links(&tree), [linked("/", None), linked("/c", None), linked("/z", Some("/c"))]);
}

#[test]
fn a_file_cannot_serve_as_a_directory() {
    let mut tree = RootTree::new(BodySource::new(Vec::new()));
    tree.insert(path("etc"), Inode::new(Kind::Symlink(b"/etc".as_slice().into()), 0o777)).unwrap();
    let error = tree.insert(path("etc/passwd"), Inode::new(Kind::Fifo, 0o644)).unwrap_err();
    assert_eq!(error.to_string(), "/etc/passwd needs /etc to be a directory, and it is a symlink");
}

#[test]
fn a_directory_that_was_replaced_is_no_parent_any_more() {
    let mut tree = RootTree::new(BodySource::new(Vec::new()));
    let file = || Inode::new(Kind::File(Body::default()), 0o644);
    tree.insert(path("a/b"), file()).unwrap();
    tree.remove(&path("a"));
    tree.insert(path("a"), file()).unwrap();
    assert!(matches!(tree.insert(path("a/c"), file()), Err(TreeError::NotADirectory { .. })));
    tree.insert(path("d/e"), file()).unwrap();
    tree.remove(&path("d/e"));
    tree.insert(path("d"), file()).unwrap();
    assert!(matches!(tree.insert(path("d/f"), file()), Err(TreeError::NotADirectory { .. })));
}

#[test]
fn links_resolve_inside_the_tree() {
    let mut tree = RootTree::new(BodySource::new(Vec::new()));
    let link = |target: &str| Inode::new(Kind::Symlink(target.as_bytes().into()), 0o777);
    tree.insert(path("usr/bin/dash"), Inode::new(Kind::Fifo, 0o644)).unwrap();
    for (name, target) in [("bin", "usr/bin"), ("usr/bin/sh", "dash"), ("abs", "/../bin/sh"), ("a", "b"), ("b", "a")] {
        tree.insert(path(name), link(target)).unwrap();
    }
    assert_eq!(tree.resolve(&path("bin/sh")), Some(path("usr/bin/dash")));
    assert_eq!(tree.resolve(&path("abs")), Some(path("usr/bin/dash")));
    assert_eq!(tree.resolve(&path("a")), None);
    assert_eq!(tree.resolve(&path("bin/none")), None);
    assert_eq!(tree.resolve_parent(&path("bin/new")), path("usr/bin/new"));
    // Few links, each of them allowed, through many names.
    tree.insert(path("there"), link(&"usr/../".repeat(500))).unwrap();
    assert_eq!(tree.resolve(&path("there/there/bin")), Some(path("usr/bin")));
    assert_eq!(tree.follow(&path(&"there/".repeat(5)), Missing::Refused, &mut 0), Err(FollowError::Loop));
}

#[test]
fn link_counts_are_the_kernels() {
    let mut tree = RootTree::new(BodySource::new(Vec::new()));
    tree.insert(path("usr/bin/a"), Inode::new(Kind::Fifo, 0o644)).unwrap();
    tree.link(path("b"), &path("usr/bin/a")).unwrap();
    let counts = tree.link_counts();
    let of = |name: &str| counts[RootTree::slot(tree.id(&path(name)).unwrap())];
    assert_eq!((of("/"), of("usr"), of("usr/bin"), of("b")), (3, 3, 2, 2));
}

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
    fn a_sorted_vector_of_names_is_the_same_tree_as_a_map(steps in steps()) {
        let mut sorted = RootTree::new(BodySource::new(Vec::new()));
        let mut mapped = sorted.clone();
        mapped.names.map_mut();
        let path = |text: &str| TreePath::new(text).unwrap();
        for step in &steps {
            match step {
                Step::Directory(name) => {
                    let inode = Inode::directory(0o755);
                    prop_assert_eq!(sorted.insert(path(name), inode.clone()), mapped.insert(path(name), inode));
                }
                Step::File(name) => {
                    let inode = Inode::new(Kind::Fifo, 0o644);
                    prop_assert_eq!(sorted.insert(path(name), inode.clone()), mapped.insert(path(name), inode));
                }
                Step::Link(name, target) => {
                    let target = path(target);
                    prop_assert_eq!(sorted.link(path(name), &target), mapped.link(path(name), &target));
                }
                Step::Touch(name) => {
                    prop_assert_eq!(sorted.get_mut(&path(name)).cloned(), mapped.get_mut(&path(name)).cloned());
                }
            }
        }
        prop_assert_eq!(listing(&sorted), listing(&mapped));
    }
}
