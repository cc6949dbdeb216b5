//! Archives that mean harm, or were cut short, each made by hand: every one is an error that names the entry.

use super::super::header::{BLOCK, Header, seal};
use super::identity::{from_file, from_pipe};
use super::*;
use crate::acl::{Acl, TextAcl};

/// A header block under construction, with its data.
pub(super) struct Raw(Vec<u8>);

const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

impl Raw {
    pub(super) fn new(typeflag: u8, name: &[u8], data: &[u8]) -> Self {
        let mut block = [0; BLOCK];
        block[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        block[100..108].copy_from_slice(b"0000644\0");
        block[108..116].copy_from_slice(b"0000000\0");
        block[116..124].copy_from_slice(b"0000000\0");
        block[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
        block[136..148].copy_from_slice(b"00000000000\0");
        block[156] = typeflag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        let mut raw = Raw(block.to_vec());
        raw.0.extend_from_slice(data);
        raw.0.resize(raw.0.len().next_multiple_of(BLOCK), 0);
        raw.seal()
    }

    pub(super) fn file(name: &[u8], data: &[u8]) -> Self {
        Raw::new(b'0', name, data)
    }

    pub(super) fn link(typeflag: u8, name: &[u8], target: &[u8]) -> Self {
        Raw::new(typeflag, name, b"").set(157, target)
    }

    pub(super) fn pax(records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            super::super::pax::put_record(&mut data, key.as_bytes(), value);
        }
        Raw::new(b'x', b"PaxHeaders/x", &data)
    }

    /// Overwrites a part of the header.
    pub(super) fn set(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self.seal()
    }

    fn seal(mut self) -> Self {
        let block: &mut [u8; BLOCK] = (&mut self.0[..BLOCK]).try_into().unwrap();
        seal(block);
        assert!(Header(*block).checksum_fits());
        self
    }

    /// Damages a byte behind the checksum's back.
    fn damage(mut self, at: usize) -> Self {
        self.0[at] ^= 1;
        self
    }
}

/// The entries and an end marker.
pub(super) fn archive(entries: impl IntoIterator<Item = Raw>) -> Vec<u8> {
    let mut bytes: Vec<u8> = entries.into_iter().flat_map(|raw| raw.0).collect();
    bytes.extend_from_slice(&END);
    bytes
}

fn sparse(map: &[u8], size: &str) -> Vec<u8> {
    let pax = Raw::pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"holes"),
        ("GNU.sparse.realsize", size.as_bytes()),
    ]);
    let mut data = map.to_vec();
    data.resize(BLOCK, 0);
    data.extend_from_slice(b"12345678");
    archive([pax, Raw::file(b"GNUSparseFile.0/holes", &data)])
}

pub(super) fn cases() -> Vec<(&'static str, Vec<u8>)> {
    let a = || Raw::file(b"a", b"data");
    let directory = || Raw::new(b'5', b"d/", b"");
    let long = |n: usize| vec![b'n'; n];
    let gnu_long = |typeflag, name: &[u8]| Raw::new(typeflag, b"././@LongLink", name);
    let bytes = |parts: &[&[u8]]| parts.concat();
    let old_sparse =
        |map: &[u8]| Raw::new(b'S', b"old", b"1234").set(257, b"ustar  \0").set(386, map).set(483, b"00000010000\0");
    vec![
        // Not a tar at all.
        ("empty input", vec![]),
        ("gzip", b"\x1f\x8b\x08 and so on".to_vec()),
        ("zstd", b"\x28\xb5\x2f\xfd and so on".to_vec()),
        ("xz", b"\xfd7zXZ\0 and so on".to_vec()),
        ("bzip2", b"BZh9 and so on".to_vec()),
        ("zip", b"PK\x03\x04 and so on".to_vec()),
        ("a text", b"hello\n".repeat(200)),
        ("a short text", b"hello\n".to_vec()),
        // Names that leave the root, or are none.
        ("dot-dot", archive([Raw::file(b"a/../../etc/passwd", b"")])),
        ("dot-dot alone", archive([Raw::new(b'5', b"..", b"")])),
        ("dot-dot in pax", archive([Raw::pax(&[("path", b"x/../../y")]), a()])),
        ("absolute dot-dot", archive([Raw::file(b"/../etc/passwd", b"")])),
        ("empty name", archive([Raw::file(b"", b"")])),
        ("NUL in a pax name", archive([Raw::pax(&[("path", b"a\0b")]), a()])),
        ("NUL in a GNU name", archive([gnu_long(b'L', b"a\0b\0"), a()])),
        ("name of 256 bytes", archive([Raw::pax(&[("path", &long(256))]), a()])),
        ("path over 4096 bytes", archive([gnu_long(b'L', &b"abc/".repeat(1025)), a()])),
        ("root as a file", archive([Raw::file(b"./", b"").set(156, b"6")])),
        // Links.
        ("hard link to nowhere", archive([a(), Raw::link(b'1', b"b", b"nowhere")])),
        ("hard link to a later entry", archive([Raw::link(b'1', b"b", b"a"), a()])),
        ("hard link to itself", archive([Raw::link(b'1', b"a", b"./a"), a()])),
        ("hard link loop", archive([Raw::link(b'1', b"a", b"b"), Raw::link(b'1', b"b", b"a")])),
        ("hard link to a directory", archive([directory(), Raw::link(b'1', b"b", b"d")])),
        ("hard link onto the root", archive([a(), Raw::link(b'1', b"./", b"a")])),
        ("hard link onto its target's directory", archive([Raw::file(b"d/a", b""), Raw::link(b'1', b"d", b"d/a")])),
        ("hard link out of the root", archive([a(), Raw::link(b'1', b"b", b"../a")])),
        ("absolute hard link out of the root", archive([a(), Raw::link(b'1', b"b", b"/b/../../a")])),
        ("hard link through a loop", archive([Raw::link(b'2', b"s", b"s"), Raw::link(b'1', b"b", b"s/a")])),
        (
            "hard link with data to a symlink",
            archive([Raw::link(b'2', b"s", b"x"), Raw::pax(&[("linkpath", b"s")]), Raw::new(b'1', b"b", b"data")]),
        ),
        ("symlink to nothing", archive([Raw::link(b'2', b"s", b"")])),
        ("symlink with a NUL", archive([Raw::pax(&[("linkpath", b"a\0b")]), Raw::link(b'2', b"s", b"")])),
        ("symlink of 4096 bytes", archive([gnu_long(b'K', &long(4096)), Raw::link(b'2', b"s", b"")])),
        // Types that contradict each other.
        ("file as directory", archive([a(), Raw::file(b"a/b", b"")])),
        ("below a symlink to itself", archive([Raw::link(b'2', b"etc", b"/etc"), Raw::file(b"etc/passwd", b"")])),
        (
            "below symlinks in a circle",
            archive([Raw::link(b'2', b"s", b"t/x"), Raw::link(b'2', b"t", b"s"), Raw::file(b"s/a/b", b"")]),
        ),
        ("below a symlink to a file", archive([a(), Raw::link(b'2', b"s", b"/a"), Raw::file(b"s/t/x", b"")])),
        ("below a symlink that lengthens the path", {
            let target = b"1234567/".repeat(500);
            archive([
                gnu_long(b'K', &target),
                Raw::link(b'2', b"s", b""),
                gnu_long(b'L', &[&b"s/"[..], &long(200)].concat()),
                a(),
            ])
        }),
        ("directory with data", archive([Raw::new(b'5', b"d", b"data")])),
        ("unknown type", archive([Raw::new(b'Z', b"z", b"")])),
        ("GNU incremental", archive([Raw::new(b'D', b"d", b"")])),
        ("multi-volume", archive([Raw::new(b'M', b"m", b"")])),
        // Numbers.
        ("size not octal", archive([a().set(124, b"9999999999\0")])),
        ("mode not octal", archive([a().set(100, b"rw-r--r-")])),
        ("negative size", archive([a().set(124, &[0xff; 12])])),
        ("size beyond 64 bits", archive([a().set(124, &[0x80, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])])),
        ("size of 2^63", archive([Raw::pax(&[("size", b"9223372036854775808")]), a()])),
        ("uid −1", archive([Raw::pax(&[("uid", b"4294967295")]), a()])),
        ("uid beyond 32 bits", archive([Raw::pax(&[("uid", b"4294967296")]), a()])),
        ("negative gid", archive([a().set(116, &[0xff; 8])])),
        ("device major 4096", archive([Raw::new(b'3', b"dev", b"").set(329, b"0010000\0")])),
        // Lies about length.
        ("size past the end", archive([a().set(124, b"00000777777\0")])),
        ("size too small", archive([Raw::file(b"first", &[b'x'; 2048]).set(124, b"00000000000\0")])),
        ("cut inside a header", archive([a(), a()])[..1200].to_vec()),
        ("cut inside data", Raw::file(b"cut", &[1; 600]).0[..700].to_vec()),
        ("cut after data", a().0),
        ("one zero block", bytes(&[&a().0, &END[..BLOCK]])),
        ("a lone zero block inside", bytes(&[&a().0, &END[..BLOCK], &archive([a()])])),
        ("bad checksum first", archive([a().damage(3)])),
        ("bad checksum later", archive([a(), Raw::file(b"b", b"").damage(3)])),
        ("two archives", bytes(&[&archive([a()]), &archive([a()])])),
        ("data after the end", bytes(&[&archive([a()]), b"\0\0\0x"])),
        // Extended headers.
        ("oversized pax", archive([Raw::new(b'x', b"PaxHeaders/x", &vec![b'x'; (16 << 20) + 1]), a()])),
        ("pax size lie", archive([Raw::pax(&[]).set(124, b"77777777777\0"), a()])),
        ("oversized GNU name", archive([gnu_long(b'L', &long((16 << 20) + 1)), a()])),
        ("pax without length", archive([Raw::new(b'x', b"p", b"path=a\n"), a()])),
        ("pax length lie", archive([Raw::new(b'x', b"p", b"99 path=a\n"), a()])),
        ("pax length of zero", archive([Raw::new(b'x', b"p", b"0 path=a\n"), a()])),
        ("pax length overflow", archive([Raw::new(b'x', b"p", b"99999999999999999999 a=b\n"), a()])),
        ("pax without newline", archive([Raw::new(b'x', b"p", b"8 path=a"), a()])),
        ("pax without equals", archive([Raw::new(b'x', b"p", b"7 path\n"), a()])),
        ("pax size not a number", archive([Raw::pax(&[("size", b"-1")]), a()])),
        ("pax time not a number", archive([Raw::pax(&[("mtime", b"noon")]), a()])),
        ("pax twice", archive([Raw::pax(&[("uid", b"1")]), Raw::pax(&[("gid", b"1")]), a()])),
        ("pax for nothing", archive([a(), Raw::pax(&[("uid", b"1")])])),
        ("xattr not base64", archive([Raw::pax(&[("LIBARCHIVE.xattr.user.x", b"?")]), a()])),
        // Sparse maps.
        ("sparse range past the end", sparse(b"1\n4090\n8\n", "4096")),
        ("sparse overflow", sparse(b"1\n18446744073709551615\n8\n", "18446744073709551615")),
        ("sparse overlap", sparse(b"2\n0\n6\n4\n2\n", "4096")),
        ("sparse unsorted", sparse(b"2\n8\n4\n0\n4\n", "4096")),
        ("sparse data missing", sparse(b"1\n0\n16\n", "4096")),
        ("sparse data too much", sparse(b"1\n0\n4\n", "4096")),
        ("sparse count lie", sparse(b"999999999\n0\n4\n", "4096")),
        ("sparse letters", sparse(b"one\n", "4096")),
        ("sparse endless number", sparse(&[b'1'; 400], "4096")),
        ("sparse real size above off_t", sparse(b"1\n0\n8\n", "9223372036854775808")),
        ("sparse map odd", archive([Raw::pax(&[("GNU.sparse.map", b"0,4,8"), ("GNU.sparse.size", b"9")]), a()])),
        ("sparse without size", archive([Raw::pax(&[("GNU.sparse.map", b"0,4")]), a()])),
        ("sparse 0.0 out of step", archive([Raw::pax(&[("GNU.sparse.numbytes", b"4")]), a()])),
        ("sparse version 2", archive([Raw::pax(&[("GNU.sparse.major", b"2"), ("GNU.sparse.size", b"4")]), a()])),
        ("old sparse past the end", archive([old_sparse(b"00000007777\x0000000000004\0")])),
        ("old sparse extension missing", {
            let header = old_sparse(b"00000000000\x0000000000004\0").set(482, b"\x01");
            header.0[..BLOCK].to_vec()
        }),
    ]
}

#[test]
fn every_hostile_archive_is_an_error_that_names_the_entry() {
    let mut table = String::new();
    for (name, bytes) in cases() {
        let error = from_file(&bytes).map(|tree| super::identity::describe(&tree)).expect_err(name);
        let piped = from_pipe(&bytes).expect_err(name);
        assert_eq!(error.to_string(), piped.to_string(), "{name}: a pipe tells it differently");
        let variant = format!("{error:?}");
        let variant = variant.split([' ', '{', '(']).next().unwrap();
        table.push_str(&format!("{name}: {variant}\n    {}\n", error.to_string().replace('\n', "\n    ")));
    }
    insta::assert_snapshot!(table);
}

#[test]
fn attributes_that_linux_does_not_have_are_left_out_and_told() {
    let long = format!("SCHILY.xattr.{}", "n".repeat(256));
    let records: &[(&str, &[u8])] = &[
        ("SCHILY.xattr.user.x", &[0; 65537]),
        ("SCHILY.xattr.com.apple.ResourceFork", &[0; 2 << 20]),
        ("SCHILY.xattr.", b"x"),
        ("LIBARCHIVE.xattr.user.%00", b"eA"),
        (&long, b"x"),
        ("SCHILY.acl.access", b"allow@:everyone"),
        ("SCHILY.xattr.user.kept", b"x"),
    ];
    // A year beyond 64 bits of seconds.
    let file = Raw::file(b"a", b"data").set(136, &[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let tree = from_file(&archive([Raw::pax(records), file])).unwrap();
    let inode = tree.get(&TreePath::new("a").unwrap()).unwrap();
    assert_eq!(inode.xattrs.keys().map(AsRef::as_ref).collect::<Vec<&[u8]>>(), [b"user.kept"]);
    assert_eq!(inode.mtime.seconds, i64::MAX);
    insta::assert_snapshot!(tree.adjustments(), @r"
    1 invalid access control list was left out: `system.posix_acl_access` of `a`: an entry is not of the form `user:NAME:rwx`
    3 extended attributes were left out, since Linux cannot hold their names; the first is `` of `a`
    2 extended attributes were left out, since Linux has no room for them; the first is `com.apple.ResourceFork` of `a`
    1 modification time was moved to the nearest that Linux can hold: `a`, of more seconds than 64 bits hold
    ");
}

#[test]
fn names_in_access_control_lists_are_looked_up_in_the_archives_own_accounts() {
    let acl = b"user::rw-,user:joe:rwx,user:eve:r--,user:max:r-x:7,group::r--,group:wheel:r-x,mask::rwx,other::r--";
    let default = b"user::rwx,group::r-x,group:nowhere:rwx,mask::rwx,other::---";
    // The accounts come last, and the file of users is a symlink.
    let archive = archive([
        Raw::pax(&[("SCHILY.acl.access", acl)]),
        Raw::file(b"a", b""),
        Raw::link(b'1', b"b", b"a"),
        Raw::pax(&[("SCHILY.acl.default", default)]),
        Raw::new(b'5', b"d", b""),
        Raw::file(b"usr/share/passwd", b"root:x:0:0::/:/bin/sh\njoe:x:1234:5::/:/bin/sh\nmax:x:8:8:::\n"),
        Raw::link(b'2', b"etc/passwd", b"../usr/share/passwd"),
        Raw::file(b"etc/group", b"wheel:x:10:joe\njoe:x:5:\n"),
    ]);
    let tree = from_file(&archive).unwrap();
    assert_eq!(tree.adjustments(), from_pipe(&archive).unwrap().adjustments());
    insta::assert_snapshot!(tree.adjustments(), @"2 access control list entries for users or groups that the tree does not have were left out; the first is `user:eve` of /a");
    let of = |path: &str, name: &str| {
        let inode = tree.get(&TreePath::new(path).unwrap()).unwrap();
        assert_eq!(inode.xattrs.len(), 1, "{:?}", inode.xattrs.keys());
        let acl = Acl::from_xattr(&inode.xattrs[name.as_bytes()]).expect("a valid list");
        let ids = acl.entries().iter().filter_map(|entry| Some((entry.tag, entry.id?, entry.permissions)));
        (format!("{:o}", inode.mode), ids.collect::<Vec<_>>())
    };
    // ACL_USER is 2, ACL_GROUP is 8.
    let expected = ("674".to_owned(), vec![(2, 7, 5), (2, 1234, 7), (8, 10, 5)]);
    assert_eq!(of("a", "system.posix_acl_access"), expected);
    assert_eq!(of("b", "system.posix_acl_access"), expected);
    assert_eq!(of("d", "system.posix_acl_default").1, []);
}

/// A list that is left out takes the rights with it that its mask would give to the owning group.
#[test]
fn a_list_with_more_entries_than_linux_holds_is_left_out_with_its_mask() {
    let text = |count: usize, who: &str| {
        let users: String = (0..count).map(|number| format!("user:{who}{number}:rwx,")).collect();
        format!("{users}user::rw-,group::r--,mask::rwx,other::---").into_bytes()
    };
    // Linux holds 8,191 entries in 64 KiB.
    let value = TextAcl::parse(&text(8188, "")).unwrap().numeric().unwrap().to_xattr();
    let files: [(&str, &[u8]); 5] = [
        ("SCHILY.acl.access", &text(8187, "")),
        ("SCHILY.acl.access", &text(8188, "")),
        ("SCHILY.acl.access", &text(8187, "name-")),
        ("SCHILY.acl.access", &text(200_000, "n")),
        ("SCHILY.xattr.system.posix_acl_access", &value),
    ];
    let members = (0..).zip(&files).flat_map(|(at, file)| [Raw::pax(&[*file]), Raw::file(&[b'a' + at], b"")]);
    let link = [Raw::pax(&[("SCHILY.acl.access", b"user::rw-,group::r--,other::---")]), Raw::link(b'2', b"s", b"a")];
    let passwd: String = (0..8187).map(|number| format!("name-{number}:x:{number}:\n")).collect();
    let tree = from_file(&archive(members.chain(link).chain([Raw::file(b"etc/passwd", passwd.as_bytes())]))).unwrap();
    let of = |name: &str| {
        let inode = tree.get(&TreePath::new(name).unwrap()).unwrap();
        (format!("{:o}", inode.mode), inode.xattrs.get(b"system.posix_acl_access".as_slice()).map(|value| value.len()))
    };
    let (whole, without) = (("670".to_owned(), Some(4 + 8 * 8191)), ("640".to_owned(), None));
    assert_eq!(["a", "b", "c", "d", "e"].map(of), [whole.clone(), without.clone(), whole, without.clone(), without]);
    assert_eq!(of("s"), ("644".to_owned(), None));
    insta::assert_snapshot!(tree.adjustments(), @"3 extended attributes were left out, since Linux has no room for them; the first is `system.posix_acl_access` of `b`");
}

#[test]
fn limits_hold() {
    let limited = |bytes: &[u8], limits: &Limits| {
        read_stream(bytes, tempfile::tempfile().unwrap(), limits, &mut |_| {}).unwrap_err().to_string()
    };
    let few = archive([Raw::file(b"a", b""), Raw::file(b"b", b""), Raw::file(b"c", b"")]);
    let implied = archive([Raw::file(b"a/b/c/d", b"")]);
    let mut errors = vec![
        limited(&few, &Limits { entries: 2, ..Limits::default() }),
        limited(&implied, &Limits { entries: 3, ..Limits::default() }),
        limited(&few, &Limits { metadata_bytes: 100, ..Limits::default() }),
        limited(&implied, &Limits { metadata_bytes: 200, ..Limits::default() }),
        limited(&archive([Raw::file(b"a", &[1; 3000])]), &Limits { data_bytes: 2000, ..Limits::default() }),
        limited(&sparse(b"3\n0\n4\n4\n2\n8\n2\n", "99"), &Limits { sparse_ranges: 2, ..Limits::default() }),
    ];
    let attributes = Raw::pax(&[("SCHILY.xattr.user.x", &[0; 500])]);
    errors.push(limited(
        &archive([attributes, Raw::file(b"a", b"")]),
        &Limits { metadata_bytes: 400, ..Limits::default() },
    ));
    // A short name below a symlink to a long path costs what the long one does, and so does each directory on the way.
    let long = [b'd'; 90].map(|byte| [byte, b'/']).concat();
    let through = archive([Raw::link(b'2', b"l", &long[..99]), Raw::file(b"l/a", b"")]);
    let below = |count: usize| {
        let more = (0..count).map(|number| Raw::file(format!("l/{number}").as_bytes(), b""));
        archive([Raw::link(b'2', b"l", &[b'd'; 99]), Raw::new(b'5', &[b'd'; 99], b"")].into_iter().chain(more))
    };
    errors.push(limited(&through, &Limits { metadata_bytes: 5000, ..Limits::default() }));
    errors.push(limited(&below(100), &Limits { metadata_bytes: 12_000, ..Limits::default() }));
    errors.push(limited(&through, &Limits { followed_bytes: 1000, ..Limits::default() }));
    // What a global header says is kept for every entry with a header of its own, read or not.
    let global = |records: &[(&str, &[u8])]| Raw::pax(records).set(156, b"g");
    let own = || [Raw::pax(&[("mtime", b"1")]), Raw::file(b"a", b"")];
    let many = |record, value: &[u8]| archive([global(&[(record, value)])].into_iter().chain(own()).chain(own()));
    for record in ["SCHILY.xattr.user.x", "SCHILY.acl.access"] {
        errors.push(limited(&many(record, &[b'x'; 70_000]), &Limits { metadata_bytes: 200_000, ..Limits::default() }));
    }
    // As often as it is read.
    let acl = [b"user::rw-,group::r--,other::---".as_slice(), &[b'\n'; 3000]].concat();
    let read = [global(&[("SCHILY.acl.access", &acl)]), Raw::file(b"a", b""), Raw::file(b"b", b"")];
    errors.push(limited(&archive(read), &Limits { metadata_bytes: 9000, ..Limits::default() }));
    insta::assert_snapshot!(errors.join("\n"));
}

/// What is odd but common is read.
#[test]
fn the_odd_but_honest_is_read() {
    let old_directory = Raw::new(0, b"old/", b"").set(257, &[0; 8]);
    let signed = {
        // A name above ASCII under the signed checksum of old Sun tars.
        let mut raw = Raw::file(b"caf\xe9", b"");
        let sum: i64 = raw.0[..BLOCK]
            .iter()
            .enumerate()
            .map(|(at, &byte)| i64::from(if (148..156).contains(&at) { b' ' as i8 } else { byte as i8 }))
            .sum();
        raw.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        raw
    };
    let negative = Raw::file(b"before-1970", b"").set(136, &{
        let mut field = [0xff; 12];
        field[11] = 0xfe;
        field
    });
    let bytes = archive([
        Raw::new(b'g', b"global", b"14 comment=hi\n\0\0"),
        Raw::new(b'V', b"a label", b""),
        old_directory,
        signed,
        negative,
        Raw::file(b"twice", b"first"),
        Raw::link(b'1', b"link-to-first", b"./twice"),
        Raw::file(b"./twice", b"second"),
        Raw::link(b'1', b"size-but-no-data", b"twice").set(124, b"00000000006\0"),
        Raw::link(b'1', b"data-with-link", b"before-1970"),
        Raw::new(b'1', b"data-with-link", b"late").set(157, b"before-1970"),
        Raw::file(b"big-uid", b"").set(108, &[0x80, 0, 0, 0, 0xee, 0x6b, 0x28, 0]),
        Raw::new(b'7', b"contiguous", b"c"),
        Raw::pax(&[("GNU.sparse.map", b"0,2,8,2"), ("GNU.sparse.size", b"12"), ("GNU.sparse.name", b"sparse-0.1")]),
        Raw::file(b"placeholder", b"aabb"),
        Raw::new(b'5', b"./", b"").set(100, b"0040750\0"),
    ]);
    let tree = from_file(&bytes).unwrap();
    assert_eq!(super::identity::describe(&tree), super::identity::describe(&from_pipe(&bytes).unwrap()));
    insta::assert_snapshot!(super::identity::describe(&tree).join("\n"));
}

/// Who writes into the pipe must not be killed by SIGPIPE before it can say what went wrong.
#[test]
fn a_pipe_is_read_to_its_end_even_after_an_error() {
    struct Counted<'a>(&'a [u8], &'a mut usize);
    impl std::io::Read for Counted<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let count = std::io::Read::read(&mut self.0, buffer)?;
            *self.1 += count;
            Ok(count)
        }
    }
    let mut bytes = archive([Raw::file(b"../a", b"")]);
    bytes.resize(5 << 20, 7);
    let mut count = 0;
    let spool = tempfile::tempfile().unwrap();
    read_stream(Counted(&bytes, &mut count), spool, &Limits::default(), &mut |_| {}).unwrap_err();
    assert_eq!(count, bytes.len());
}
