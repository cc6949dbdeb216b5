//! Any bytes are a tree or a typed error, the same from a file and from a pipe; and a tree that was read can be written
//! as an archive that reads back as itself. The steps of reading are bounded by the length of the input.

#![no_main]

mod seal;
mod steps;

use std::cell::OnceCell;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use libfuzzer_sys::fuzz_target;
use snug_rootfs::tar::{Limits, TarOptions, read_file, read_stream, write};
use snug_rootfs::tree::{Kind, RootTree};

use seal::seal;

/// Trees with more data than this are not written back: holes make small inputs large.
const MAX_DATA: u64 = 1 << 20;

thread_local! {
    static FILES: OnceCell<[File; 2]> = const { OnceCell::new() };
}

/// An archive file and a spool, the same two each time.
fn files() -> [File; 2] {
    FILES.with(|files| {
        let files = files.get_or_init(|| [(); 2].map(|()| tempfile::tempfile().expect("a temporary file")));
        files.each_ref().map(|file| empty(file.try_clone().expect("a descriptor")))
    })
}

fn empty(mut file: File) -> File {
    file.set_len(0).expect("a file can be emptied");
    file.seek(SeekFrom::Start(0)).expect("a file has a start");
    file
}

fn archive(tree: &RootTree) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(tree, &mut bytes, TarOptions::FAITHFUL, &mut |_| {}).expect("what was read can be written");
    bytes
}

fuzz_target!(|input: &[u8]| {
    let mut bytes = input.to_vec();
    seal(&mut bytes);
    let limits = Limits { entries: 10_000, metadata_bytes: 16 << 20, sparse_ranges: 10_000, ..Limits::default() };
    let [mut file, spool] = files();
    file.write_all(&bytes).expect("a file can be written");
    let from_file = steps::within(bytes.len(), || read_file(file, &limits, &mut |_| {}));
    let spool_again = spool.try_clone().expect("a descriptor");
    let from_pipe = read_stream(bytes.as_slice(), spool, &limits, &mut |_| {});
    let tree = match (from_file, from_pipe) {
        (Ok(file), Ok(pipe)) => {
            assert_eq!(file.len(), pipe.len());
            file
        }
        (Err(file), Err(pipe)) => {
            assert_eq!(file.to_string(), pipe.to_string());
            return;
        }
        (file, pipe) => panic!("a file and a pipe differ: {file:?}, {pipe:?}"),
    };
    let data = |kind: &Kind| if let Kind::File(body) = kind { body.data_bytes() } else { 0 };
    if tree.entries().any(|entry| data(&entry.inode.kind) > MAX_DATA) {
        return;
    }
    let once = archive(&tree);
    // The spool is not needed any more; the tree reads from the archive file.
    let again =
        read_stream(once.as_slice(), empty(spool_again), &Limits::default(), &mut |_| {}).expect("our archive is read");
    assert_eq!(archive(&again), once);
});
