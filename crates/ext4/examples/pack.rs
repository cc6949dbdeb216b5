//! Writes a root filesystem tar as an ext4 image: `cargo run --example pack -- rootfs.tar rootfs.ext4`

use std::env;
use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result};
use snug_ext4::size::{Headroom, SizePolicy};
use snug_ext4::{Ext4Options, NativeExt4};
use snug_rootfs::tar::{self, Limits};

fn main() -> Result<()> {
    let mut arguments = env::args_os().skip(1).map(PathBuf::from);
    let (tar, image) = arguments.next().zip(arguments.next()).context("usage: pack TAR IMAGE")?;
    let archive = File::open(&tar).with_context(|| format!("cannot open {}", tar.display()))?;
    let tree = tar::read_file(archive, &Limits::default(), &mut |_| {})?;

    let options = Ext4Options { label: Some("rootfs".into()), ..Ext4Options::default() };
    // Free space equal to half of the content.
    let policy = SizePolicy { headroom: Headroom { millionths: 1_500_000 }, ..SizePolicy::default() };
    let census = NativeExt4::new(&options)?.write(&tree, &policy, &image, &())?;
    for part in &census.parts {
        println!("{:>14}  {}", part.bytes, part.name);
    }
    println!("{:>14}  in all", census.size);
    Ok(())
}
