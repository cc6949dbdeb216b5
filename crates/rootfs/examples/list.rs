//! Prints the mtree(5) listing of a tar: `cargo run --example list -- rootfs.tar`.

use std::error::Error;
use std::fs::File;
use std::io;
use std::sync::atomic::AtomicBool;

use snug_rootfs::digest::BodyDigests;
use snug_rootfs::listing::Listing;
use snug_rootfs::mtree;
use snug_rootfs::tar::{self, Limits};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: list ROOTFS.tar")?;
    let tree = tar::read_file(File::open(path)?, &Limits::default(), &mut |_| {})?;
    let digests = BodyDigests::of(&tree, 1, &AtomicBool::new(false), &|_| {})?;
    mtree::write(&Listing::of_hashed(&tree, &digests), &mut io::stdout().lock())?;
    Ok(())
}
