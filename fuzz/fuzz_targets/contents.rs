//! Any text is a list of contents or an error, in bounded steps. What was read is read again when it is written, if its links and
//! names are those of a tree.

#![no_main]

mod steps;

use libfuzzer_sys::fuzz_target;
use snug_rootfs::mtree::{parse, write};

/// What every list begins with: the fuzzer need not find it out.
const HEAD: &str = "#mtree\n/set type=file uid=0 gid=0 mode=644\n";

fuzz_target!(|text: &str| {
    let _ = steps::within(text.len(), || parse(text));
    let text = format!("{HEAD}{text}");
    let Ok(listing) = steps::within(text.len(), || parse(&text)) else { return };
    let mut once = Vec::new();
    write(&listing, &mut once).expect("memory takes everything");
    let once = String::from_utf8(once).expect("lists are ASCII");
    let again = parse(&once).unwrap_or_else(|error| panic!("{error:#} in {once:?}"));
    let mut twice = Vec::new();
    write(&again, &mut twice).expect("memory takes everything");
    // A first reading may have put together what a tree would not: a link that comes before its file.
    let third = parse(std::str::from_utf8(&twice).expect("lists are ASCII")).expect("it was read before");
    let mut thrice = Vec::new();
    write(&third, &mut thrice).expect("memory takes everything");
    assert!(twice == thrice, "a list that was written and read differs");
});
