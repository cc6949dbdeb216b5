//! What is written and read back is the tree that it was.

use super::*;

fn path(raw: impl AsRef<[u8]>) -> TreePath {
    TreePath::new(raw).unwrap()
}

/// A tree with one of everything.
pub fn everything() -> RootTree {
    let data: Vec<u8> = (0..20_000_u32).map(|n| n as u8).collect();
    let mut tree = RootTree::new(BodySource::new(data));
    let mut add = |name: &[u8], kind: Kind, mode: u16, change: &dyn Fn(&mut Inode)| {
        let mut inode = Inode::new(kind, mode);
        inode.mtime = Timestamp::from_seconds(1_700_000_000);
        change(&mut inode);
        tree.insert(path(name), inode).unwrap();
    };
    let file = |size, source| Kind::File(Body::contiguous(size, source));
    add(b"", Kind::Directory, 0o755, &|_| {});
    add(b"bin/su", file(5000, 7), 0o4755, &|inode| {
        inode.xattrs.insert(b"security.capability".as_slice().into(), b"\x01\0\n=\xff".as_slice().into());
        inode.xattrs.insert(b"user.a=b%3D".as_slice().into(), b"".as_slice().into());
    });
    add(b"caf\xe9\n\x01", file(512, 0), 0o600, &|inode| inode.uid = 4_000_000_000);
    add(&[b"d/".as_slice(), &[b'n'; 255]].concat(), file(1, 3), 0o644, &|inode| inode.gid = 2_097_152);
    add(&b"0123456789/".repeat(20), Kind::Directory, 0o1777, &|_| {});
    add(&b"\xff\xfe/".repeat(500), Kind::Directory, 0o700, &|_| {});
    add(b"old", file(0, 0), 0o644, &|inode| inode.mtime = Timestamp { seconds: -2, nanoseconds: 750_000_000 });
    add(b"far", file(0, 0), 0o644, &|inode| inode.mtime = Timestamp { seconds: 1 << 33, nanoseconds: 1 });
    add(b"link", Kind::Symlink(b"/absolute/../target".as_slice().into()), 0o777, &|_| {});
    add(b"long-link", Kind::Symlink([b'x'; 4095].as_slice().into()), 0o777, &|_| {});
    add(b"dev/null", Kind::CharacterDevice { major: 1, minor: 3 }, 0o666, &|_| {});
    add(b"dev/vda", Kind::BlockDevice { major: 4095, minor: (1 << 20) - 1 }, 0o660, &|_| {});
    add(b"run/fifo", Kind::Fifo, 0o644, &|_| {});
    let ranges = [(4096, 100, 50), (8192, 4096, 9000)];
    let extents = ranges.map(|(offset, length, source)| DataRange { offset, length, source });
    let sparse = Body { size: 1 << 40, extents: extents.into_iter().collect() };
    add(b"sparse", Kind::File(sparse), 0o644, &|_| {});
    add(b"hole", Kind::File(Body { size: 12345, ..Body::default() }), 0o644, &|_| {});
    let end = Body { size: 600, extents: [DataRange { offset: 500, length: 100, source: 1 }].into_iter().collect() };
    add(b"sparse-to-the-end", Kind::File(end), 0o644, &|_| {});
    tree.link(path("z-link"), &path("bin/su")).unwrap();
    tree.link(path("a-link"), &path("bin/su")).unwrap();
    tree
}

/// Everything that two trees can differ in, as text: bodies by their bytes, not by where they are stored.
pub fn describe(tree: &RootTree) -> Vec<String> {
    let body = |body: &Body| {
        let ranges = body.extents.as_slice().iter().map(|range| {
            let mut data = vec![0; range.length as usize];
            tree.bodies().read_exact_at(&mut data, range.source).unwrap();
            (range.offset, data)
        });
        format!("{} {:?}", body.size, ranges.collect::<Vec<_>>())
    };
    let describe = |entry: crate::rootfs::tree::Entry<'_>| {
        let Inode { kind, mode, uid, gid, mtime, xattrs } = entry.inode;
        let kind = match kind {
            Kind::File(content) => body(content),
            other => format!("{other:?}"),
        };
        let link = entry.hard_link_to;
        format!("{:?} {link:?} {kind} {mode:o} {uid} {gid} {mtime:?} {xattrs:?}", entry.path)
    };
    tree.entries().map(describe).collect()
}

pub fn to_bytes(tree: &RootTree, options: TarOptions) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(tree, &mut bytes, options, &mut |_| {}).unwrap();
    bytes
}

pub fn from_pipe(bytes: &[u8]) -> Result<RootTree, TarError> {
    read_stream(bytes, tempfile::tempfile().unwrap(), &Limits::default(), &mut |_| {})
}

pub fn from_file(bytes: &[u8]) -> Result<RootTree, TarError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    read_file(file, &Limits::default(), &mut |_| {})
}

#[test]
fn a_tree_survives_its_archive() {
    let tree = everything();
    let bytes = to_bytes(&tree, TarOptions::FAITHFUL);
    assert_eq!(bytes.len() % 10_240, 0);
    let from_file = from_file(&bytes).unwrap();
    let from_pipe = from_pipe(&bytes).unwrap();
    for (wanted, (file, pipe)) in describe(&tree).iter().zip(describe(&from_file).iter().zip(&describe(&from_pipe))) {
        assert_eq!(wanted, file);
        assert_eq!(wanted, pipe);
    }
    assert_eq!(tree.len(), from_file.len());
    assert_eq!(to_bytes(&from_pipe, TarOptions::FAITHFUL), bytes);
}
