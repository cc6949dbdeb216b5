use std::process::Command;

use super::*;

/// Removes what is nested too deep for the standard library.
fn remove(folder: tempfile::TempDir) {
    assert!(Command::new("rm").arg("-rf").arg(folder.path()).status().unwrap().success());
}

#[test]
fn the_longest_path_of_a_tree_is_laid_out_and_read_back_wherever_that_is() {
    let mut tree = RootTree::new(BodySource::new(Vec::new()));
    let deep = TreePath::new([&b"0123456/".repeat(511)[..], b"1234567"].concat()).unwrap();
    let body = tree.add_body(b"content");
    let mut inode = Inode::new(Kind::File(body), 0o640);
    (inode.uid, inode.gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    inode.xattrs.insert(b"user.note".as_slice().into(), b"value".as_slice().into());
    tree.insert(deep.clone(), inode).unwrap();
    for inode in tree.inodes_mut() {
        (inode.uid, inode.gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    }
    tree.link(TreePath::new("second").unwrap(), &deep).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("a name that makes every path longer still");
    fs::create_dir(&root).unwrap();
    let stand_ins = materialise(&tree, &root, |_| {}).unwrap();
    let found = walk(&root, &stand_ins).unwrap();
    let names = |tree: &RootTree| tree.entries().map(|entry| entry.path.clone()).collect::<Vec<_>>();
    assert_eq!(names(&found), names(&tree));
    let inode = found.get(&deep).unwrap();
    let Kind::File(body) = &inode.kind else { panic!("a file") };
    assert_eq!(found.bodies().read_to_vec(body).unwrap(), b"content");
    assert_eq!((inode.mode, &inode.xattrs), (0o640, &tree.get(&deep).unwrap().xattrs));
    assert_eq!(found.id(&TreePath::new("second").unwrap()), found.id(&deep));
    remove(folder);
}

#[test]
fn folders_that_no_path_names_are_an_error_that_names_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let chain: PathBuf = std::iter::repeat_n("a", 1000).collect();
    for _ in 0..30 {
        // The chain so far goes below a new one: no path is ever long.
        let next = folder.path().join("next");
        fs::create_dir_all(next.join(&chain)).unwrap();
        let top = folder.path().join("top");
        if top.exists() {
            fs::rename(&top, next.join(&chain).join("b")).unwrap();
        }
        fs::rename(&next, &top).unwrap();
    }
    let error = format!("{:#}", walk(folder.path(), &StandIns::default()).unwrap_err());
    assert!(error.contains("more than 4096") && error.contains("\nhint: ") && error.len() < 1000, "{error}");
    remove(folder);
}
