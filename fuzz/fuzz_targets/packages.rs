//! Any bytes in the place of dpkg's or apk's database are packages or none, in bounded steps, the same each time, and sorted.

#![no_main]

mod steps;

use libfuzzer_sys::fuzz_target;
use snug_rootfs::accounts::Accounts;
use snug_rootfs::packages::installed;
use snug_rootfs::tree::{BodySource, Inode, Kind, RootTree, TreePath};

/// Where the bytes are put: databases, and the files of accounts, which have lines as well.
const PLACES: [&str; 5] =
    ["var/lib/dpkg/status", "usr/lib/apk/db/installed", "lib/apk/db/installed", "etc/passwd", "etc/group"];

fuzz_target!(|bytes: &[u8]| {
    let mut tree = RootTree::new(BodySource::new(Vec::new()));
    let body = tree.add_body(bytes);
    for place in PLACES {
        let path = TreePath::new(place).expect("a clean path");
        tree.insert(path, Inode::new(Kind::File(body.clone()), 0o644)).expect("a tree without them");
    }
    let packages = steps::within(PLACES.len() * bytes.len(), || installed(&tree).expect("it is small"));
    assert!(packages.is_sorted());
    assert_eq!(packages, installed(&tree).expect("it is small"));
    steps::within(PLACES.len() * bytes.len(), || Accounts::read(&tree).expect("it is in memory"));
});
