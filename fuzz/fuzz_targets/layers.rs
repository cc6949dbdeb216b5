//! Any layers are a tree or a typed error. A tree that came out holds together, knows no whiteouts, is the same each
//! time, and can be written as an archive that reads back as itself. One layer without whiteouts that is also a good
//! archive is the tree of that archive.
//!
//! The steps of merging are bounded by the length of the input.
//!
//! The input is cut into layers at blocks that begin with `NEXT`.

#![no_main]

mod seal;
mod steps;

use libfuzzer_sys::fuzz_target;
use snug_rootfs::layers::{LIMITS, Layers};
use snug_rootfs::tar::{Limits, TarOptions, read_stream, write};
use snug_rootfs::tree::{Kind, RootTree};

use seal::{BLOCK, seal};

/// Trees with more data than this are not written back: holes make small inputs large.
const MAX_DATA: u64 = 1 << 20;

fn cut(bytes: &[u8]) -> Vec<&[u8]> {
    let mut layers = Vec::new();
    let mut start = 0;
    for at in (0..bytes.len()).step_by(BLOCK).filter(|&at| bytes[at..].starts_with(b"NEXT")) {
        layers.push(&bytes[start..at]);
        start = (at + BLOCK).min(bytes.len());
    }
    layers.push(&bytes[start..]);
    layers
}

fn spool() -> std::fs::File {
    tempfile::tempfile().expect("a temporary file")
}

fn merge(layers: &[&[u8]], limits: &Limits) -> Result<RootTree, String> {
    let mut merged = Layers::new(spool(), limits).expect("a tree of nothing");
    for layer in layers {
        merged.apply(*layer).map_err(|error| error.to_string())?;
    }
    merged.finish().map_err(|error| error.to_string())
}

fn archive(tree: &RootTree) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(tree, &mut bytes, TarOptions::FAITHFUL, &mut |_| {}).expect("a tree can be written");
    bytes
}

fuzz_target!(|input: &[u8]| {
    let mut bytes = input.to_vec();
    seal(&mut bytes);
    let limits = Limits { entries: 10_000, metadata_bytes: 16 << 20, sparse_ranges: 10_000, ..LIMITS };
    let layers = cut(&bytes);
    let once = steps::within(bytes.len(), || merge(&layers, &limits));
    let tree = match (once, merge(&layers, &limits)) {
        (Ok(tree), Ok(_)) => tree,
        (Err(one), Err(two)) => {
            assert_eq!(one, two);
            return;
        }
        (one, two) => panic!("the same layers merge and do not: {one:?}, {two:?}"),
    };
    assert!(tree.len() <= limits.entries + 1);
    for entry in tree.entries() {
        assert!(entry.path.components().all(|name| !name.starts_with(b".wh.")), "{} stayed", entry.path);
        if let Some(parent) = entry.path.parent() {
            let parent = tree.get(&parent).unwrap_or_else(|| panic!("{} has no parent", entry.path));
            assert!(parent.is_directory(), "{} stands below what is no directory", entry.path);
        }
    }
    let data = |kind: &Kind| if let Kind::File(body) = kind { body.data_bytes() } else { 0 };
    if tree.entries().map(|entry| data(&entry.inode.kind)).sum::<u64>() > MAX_DATA {
        return;
    }
    let once = archive(&tree);
    let again = read_stream(once.as_slice(), spool(), &Limits::default(), &mut |_| {}).expect("our archive is read");
    assert!(archive(&again) == once);
    if let [only] = layers.as_slice()
        && let Ok(plain) = read_stream(*only, spool(), &limits, &mut |_| {})
        && plain.entries().all(|entry| entry.path.components().all(|name| !name.starts_with(b".wh.")))
    {
        assert!(archive(&plain) == once, "one layer and the archive that it is differ");
    }
});
