//! What is written and read back is the tree that it was.

use std::sync::LazyLock;

use super::*;
use crate::adjustments::Adjustment;

fn path(raw: impl AsRef<[u8]>) -> TreePath {
    TreePath::new(raw).unwrap()
}

/// A tree with one of everything.
pub(super) fn everything() -> RootTree {
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
pub(super) fn describe(tree: &RootTree) -> Vec<String> {
    let body = |body: &Body| {
        let ranges = body.runs().map(|run| {
            let mut data = vec![0; (run.end - run.start) as usize];
            tree.bodies().read_body_at(&mut data, body, run.start).unwrap();
            (run.start, data)
        });
        format!("{} {:?}", body.size, ranges.collect::<Vec<_>>())
    };
    let describe = |entry: crate::tree::Entry<'_>| {
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

pub(super) fn to_bytes(tree: &RootTree, options: TarOptions) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(tree, &mut bytes, options, &mut |_| {}).unwrap();
    bytes
}

pub(super) fn from_pipe(bytes: &[u8]) -> Result<RootTree, TarError> {
    read_stream(bytes, tempfile::tempfile().unwrap(), &Limits::default(), &mut |_| {})
}

pub(super) fn from_file(bytes: &[u8]) -> Result<RootTree, TarError> {
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

#[test]
fn an_archive_of_our_own_keeps_what_tar_has_no_form_for_and_nobody_else_believes_it() {
    let mut tree = everything();
    tree.insert(path("run/socket"), Inode::new(Kind::Socket, 0o660)).unwrap();
    tree.link(path("run/the-same"), &path("run/socket")).unwrap();
    let none = to_bytes(&tree, TarOptions::OWN);
    tree.note(Adjustment::AbsoluteName, || "/etc/\n passwd".into());
    tree.note(Adjustment::AbsoluteName, || "/etc/group".into());
    let bytes = to_bytes(&tree, TarOptions::OWN);

    let file = |bytes: &[u8]| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    };
    let spool = tempfile::tempfile().unwrap();
    let read = read_own(file(&bytes), &Limits::default(), &mut |_| {}).unwrap();
    let piped = read_own_stream(bytes.as_slice(), spool, &Limits::default(), &mut |_| {}).unwrap();
    for read in [&read, &piped] {
        assert_eq!(describe(read), describe(&tree));
        assert_eq!(read.adjustments(), tree.adjustments());
        assert!(to_bytes(read, TarOptions::OWN) == bytes);
    }
    assert_eq!(own_adjustments(file(&bytes)).unwrap(), *tree.adjustments());
    assert!(own_adjustments(file(&none)).unwrap().is_empty());

    let strangers = from_file(&bytes).unwrap();
    assert_eq!(describe(&strangers), describe(&from_pipe(&bytes).unwrap()));
    assert!(strangers.adjustments().is_empty());
    assert_eq!(strangers.get(&path("run/socket")).unwrap().kind, Kind::Fifo);
    // For others, there are no sockets.
    assert!(from_file(&to_bytes(&tree, TarOptions::FAITHFUL)).unwrap().get(&path("run/socket")).is_none());
}

/// A member of these blocks, zeros where `false`, as an archive with the zeros written out.
fn member(blocks: &[bool]) -> Vec<u8> {
    let content: Vec<u8> = blocks.iter().flat_map(|data| [if *data { 3 } else { 0 }; 4096]).chain([1, 2]).collect();
    let mut tree = RootTree::new(BodySource::new(content.clone()));
    tree.insert(path("before"), Inode::new(Kind::File(Body::contiguous(1, 0)), 0o644)).unwrap();
    let body = Body::contiguous(content.len() as u64, 0);
    tree.insert(path("file"), Inode::new(Kind::File(body), 0o644)).unwrap();
    to_bytes(&tree, TarOptions::PLAIN)
}

#[test]
fn zeros_of_a_pipe_are_not_spooled() {
    // More than the reader holds at once, in which blocks are anywhere.
    let blocks: Vec<bool> = (0..2000).map(|block| block % 7 == 0 || block > 1900).collect();
    let bytes = member(&blocks);
    let spool = tempfile::tempfile().unwrap();
    let tree = read_stream(bytes.as_slice(), spool.try_clone().unwrap(), &Limits::default(), &mut |_| {}).unwrap();
    let data = blocks.iter().filter(|data| **data).count() as u64;
    // And the two bytes of its end, and the one of the file before it.
    assert_eq!(spool.metadata().unwrap().len(), data * 4096 + 2 + 1);
    let Kind::File(body) = &tree.get(&path("file")).unwrap().kind else { panic!("a file") };
    assert_eq!(body.data_bytes(), data * 4096 + 2);
    // By whichever way it came, and written with its holes or without, it is the same tree.
    let (plain, sparse) = (to_bytes(&tree, TarOptions::PLAIN), to_bytes(&tree, TarOptions::FAITHFUL));
    assert!(plain == bytes && sparse.len() < plain.len() / 4);
    for archive in [&plain, &sparse] {
        for tree in [from_file(archive).unwrap(), from_pipe(archive).unwrap()] {
            assert!(to_bytes(&tree, TarOptions::FAITHFUL) == sparse && to_bytes(&tree, TarOptions::PLAIN) == plain);
        }
    }
}

use proptest::prelude::*;

/// Archives to damage: all that the writer uses, and GNU's own forms.
static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let hostile = super::hostile::cases().into_iter().map(|(_, bytes)| bytes);
    hostile.filter(|bytes| !bytes.is_empty()).chain([to_bytes(&everything(), TarOptions::FAITHFUL)]).collect()
});

/// Reads from both kinds of input and compares what they say; it must not panic.
fn read_both(bytes: &[u8]) {
    match (from_file(bytes), from_pipe(bytes)) {
        (Ok(file), Ok(pipe)) => {
            assert_eq!(file.len(), pipe.len());
            // Whatever is accepted can be written, and is then canonical.
            if pipe.entries().all(|entry| matches!(&entry.inode.kind, Kind::File(body) if body.data_bytes() < 1 << 20))
            {
                assert_eq!(describe(&from_pipe(&to_bytes(&pipe, TarOptions::FAITHFUL)).unwrap()), describe(&pipe));
            }
        }
        (Err(file), Err(pipe)) => assert_eq!(file.to_string(), pipe.to_string()),
        (file, pipe) => panic!("a file and a pipe differ: {file:?}, {pipe:?}"),
    }
}

fn reseal(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(super::super::header::BLOCK) {
        super::super::header::seal(block.try_into().unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..8192), sealed: bool) {
        if sealed {
            reseal(&mut bytes);
        }
        read_both(&bytes);
    }

    #[test]
    fn damaged_archives_never_panic(
        seed in any::<prop::sample::Index>(),
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        resealed: bool,
    ) {
        let mut bytes = seed.get(&SEEDS).clone();
        for (at, value) in hits {
            let at = at.index(bytes.len());
            bytes[at] = value;
            if resealed {
                let start = at / 512 * 512;
                if let Some(block) = bytes.get_mut(start..start + 512) {
                    super::super::header::seal(block.try_into().unwrap());
                }
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        read_both(&bytes);
    }

    #[test]
    fn any_tree_survives_its_archive(tree in trees()) {
        let bytes = to_bytes(&tree, TarOptions::FAITHFUL);
        let back = from_pipe(&bytes).unwrap();
        prop_assert_eq!(describe(&back), describe(&tree));
        prop_assert_eq!(to_bytes(&from_file(&bytes).unwrap(), TarOptions::FAITHFUL), bytes);
    }

    #[test]
    fn a_plain_archive_has_every_time_and_the_same_content(tree in trees()) {
        let back = from_pipe(&to_bytes(&tree, TarOptions::PLAIN)).unwrap();
        for entry in back.entries() {
            prop_assert_eq!(entry.inode.mtime, tree.get(entry.path).unwrap().mtime);
            if let Kind::File(body) = &entry.inode.kind {
                let Some(Kind::File(before)) = tree.get(entry.path).map(|inode| &inode.kind) else { panic!("a file") };
                prop_assert_eq!(back.bodies().read_to_vec(body).unwrap(), tree.bodies().read_to_vec(before).unwrap());
                prop_assert_eq!(body.runs().collect::<Vec<_>>(), before.runs().collect::<Vec<_>>());
            }
        }
        prop_assert_eq!(back.len(), tree.len());
    }
}

/// Trees of a few entries with everything at its edges: names of any bytes, owners, times, attributes, holes, links.
fn trees() -> impl Strategy<Value = RootTree> {
    let name =
        prop_oneof![prop::collection::vec(any::<u8>(), 1..12), (90_usize..=255).prop_map(|length| vec![b'x'; length]),]
            .prop_map(|name| name.into_iter().map(|byte| if matches!(byte, 0 | b'/') { b'_' } else { byte }).collect())
            .prop_filter("a dot is no name", |name: &Vec<u8>| name != b"." && name != b"..");
    let full_name = prop::collection::vec(name, 1..6).prop_map(|names| names.join(&b'/'));
    let id = prop_oneof![0..3_u32, Just(2_097_151), Just(2_097_152), Just(u32::MAX - 1)];
    let seconds =
        prop_oneof![any::<i64>(), -3..3_i64, Just((1 << 33) - 1), Just(1 << 33), Just(i64::MIN), Just(i64::MAX)];
    let nanos = prop_oneof![Just(0_u32), 0..1_000_000_000_u32];
    let xattr = (prop::collection::vec(1..=255_u8, 1..20), prop::collection::vec(any::<u8>(), 0..200));
    let holes = prop::collection::vec((0..3000_u64, 0..3000_u64), 0..4);
    let kind = prop_oneof![
        2 => Just(Kind::Directory),
        4 => (holes, 0..3000_u64).prop_map(|(ranges, tail)| Kind::File(holey(&ranges, tail))),
        1 => prop::collection::vec(1..=255_u8, 1..300).prop_map(|target| Kind::Symlink(target.into())),
        1 => (0..4096_u32, 0..1_u32 << 20).prop_map(|(major, minor)| Kind::CharacterDevice { major, minor }),
        1 => (0..4096_u32, 0..1_u32 << 20).prop_map(|(major, minor)| Kind::BlockDevice { major, minor }),
        1 => Just(Kind::Fifo),
    ];
    let inode = (kind, 0..=0o7777_u16, id.clone(), id, (seconds, nanos), prop::collection::vec(xattr, 0..3)).prop_map(
        |(kind, mode, uid, gid, (seconds, nanoseconds), xattrs)| Inode {
            kind,
            mode,
            uid,
            gid,
            mtime: Timestamp { seconds, nanoseconds },
            xattrs: xattrs.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
        },
    );
    let links = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (prop::collection::vec((full_name, inode), 0..12), links).prop_map(|(entries, links)| {
        let mut tree =
            RootTree::new(BodySource::new((0..100_000_u32).map(|n| (n % 255) as u8 + 1).collect::<Vec<u8>>()));
        for (name, inode) in entries {
            // What cannot stand where another thing already does is left out.
            let _ = tree.insert(path(name), inode);
        }
        for (target, place) in links {
            let names: Vec<TreePath> = tree.entries().map(|entry| entry.path.clone()).collect();
            let _ = tree.link(path(format!("hard-link-{place}")), target.get(&names));
        }
        tree
    })
}

/// A body of data ranges, each behind a gap that may be empty, and a hole at the end.
fn holey(ranges: &[(u64, u64)], tail: u64) -> Body {
    let mut extents: Vec<DataRange> = Vec::new();
    let mut size = 0;
    for &(gap, length) in ranges {
        // Ranges neither touch nor are empty.
        if length > 0 {
            let offset = size + gap + 1;
            extents.push(DataRange { offset, length, source: offset });
            size = offset + length;
        }
    }
    Body { size: size + tail, extents: extents.into_iter().collect() }
}

/// A flipped bit anywhere, or a byte that is missing, is noticed; and readers see nothing of the seal.
#[test]
fn a_sealed_archive_tells_whether_it_is_whole() {
    use std::os::unix::fs::FileExt;

    let tree = everything();
    let file = tempfile::tempfile().unwrap();
    write_sealed(&tree, &file, &mut |_| {}).unwrap();
    assert!(is_whole(&file).unwrap());
    let read = read_own(file.try_clone().unwrap(), &Limits::default(), &mut |_| {}).unwrap();
    assert_eq!(read.len(), tree.len());
    let read = read_file(file.try_clone().unwrap(), &Limits::default(), &mut |_| {}).unwrap();
    assert_eq!(read.len(), tree.len());
    let length = file.metadata().unwrap().len();
    let places = (0..length).step_by(997).chain(length - 12_000..length);
    // Nothing depends on the header's own fields: its checksum is for whoever reads it.
    let mut unnoticed = 0;
    for at in places {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        unnoticed += usize::from(is_whole(&file).unwrap());
        file.write_all_at(&byte, at).unwrap();
    }
    assert!(unnoticed <= 512, "{unnoticed}");
    assert!(is_whole(&file).unwrap());
    for shorter in [length - 1, length - 512, length - 10_240, 10_240, 512, 0] {
        file.set_len(shorter).unwrap();
        assert!(!is_whole(&file).unwrap(), "{shorter}");
    }
}
