//! Reads squashfs without privileges: names and contents with unsquashfs, extended attributes with sqfs2tar. They are of two
//! projects, so that at least one of them is not by the authors of the image's writer.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use snug_process::program::HostProgram;
use snug_process::{Child, child};
use snug_rootfs::listing::Listing;
use snug_rootfs::tar;

use super::{ReadBack, pseudo};
use crate::check::compare::Property;
use crate::error::quoted;
use crate::report::progress::Stage;

pub(super) const UNSQUASHFS: HostProgram = HostProgram { name: "unsquashfs", package: "squashfs-tools" };
const SQFS2TAR: HostProgram = HostProgram { name: "sqfs2tar", package: "squashfs-tools-ng" };

/// Offset in the superblock of the position of the table of extended attributes, in bytes, and the value for no table (the
/// kernel's `fs/squashfs/squashfs_fs.h`).
const XATTR_TABLE: u64 = 56;
const NO_TABLE: u64 = u64::MAX;

pub(super) fn read(image: &Path, bodies: bool, stage: &Stage) -> Result<ReadBack> {
    let mut command = UNSQUASHFS.command()?;
    command.args(["-no-progress", "-quiet", "-pf", "/dev/stdout"]).arg(image);
    let mut listing = streamed(command, bodies, |stream| {
        pseudo::read(&mut BufReader::new(stream), bodies, |bytes| stage.advance(bytes))
    })?;
    let mut judge = unsquashfs_name()?;
    let mut unseen = Vec::new();
    if has_xattrs(image)? {
        match SQFS2TAR.find() {
            Some(_) => {
                read_xattrs(image, &mut listing)?;
                judge += ", sqfs2tar";
            }
            None => unseen.push((Property::Xattrs, SQFS2TAR.missing().in_a_line())),
        }
    }
    Ok(ReadBack { unseen, ..ReadBack::new(listing, Vec::new(), judge) })
}

/// Runs a program and has `consume` read its standard output: all of it, or without `to_the_end` only a part.
fn streamed<T>(mut command: Command, to_the_end: bool, consume: impl FnOnce(&mut dyn Read) -> Result<T>) -> Result<T> {
    let mut child = Child::start(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let name = child.name().to_owned();
    let mut output = child.stdout.take().expect("a pipe was asked for");
    let mut errors = child.stderr.take().expect("a pipe was asked for");
    let (consumed, said) = std::thread::scope(|scope| {
        let said = scope.spawn(move || {
            let mut said = Vec::new();
            let _ = errors.read_to_end(&mut said);
            quoted(String::from_utf8_lossy(&said).trim())
        });
        let consumed = consume(&mut output);
        drop(output);
        if consumed.is_ok() && !to_the_end {
            let _ = child.kill();
        }
        (consumed, said.join().unwrap_or_default())
    });
    let status = child.wait().with_context(|| format!("cannot wait for {name}"))?;
    match consumed {
        Ok(value) => {
            ensure!(status.success() || !to_the_end, "{name} failed with {status}: {said}");
            Ok(value)
        }
        // The program's own words explain more than what became of its output.
        Err(error) if !status.success() && !said.is_empty() => Err(error.context(said)),
        Err(error) => Err(error),
    }
}

fn has_xattrs(image: &Path) -> Result<bool> {
    let mut table = [0; 8];
    File::open(image)?.read_exact_at(&mut table, XATTR_TABLE).context("cannot read the superblock")?;
    Ok(u64::from_le_bytes(table) != NO_TABLE)
}

fn read_xattrs(image: &Path, listing: &mut Listing) -> Result<()> {
    let mut command = SQFS2TAR.command()?;
    command.args(["--root-becomes", "."]).arg(image);
    // Bodies are no matter here.
    let nowhere = File::options().write(true).open("/dev/null")?;
    let tree = streamed(command, true, |stream| {
        tar::read_stream(stream, nowhere, &tar::Limits::default(), &mut |_| {}).context("the stream of sqfs2tar")
    })?;
    let mut xattrs: BTreeMap<_, _> = tree.entries().map(|entry| (entry.path.clone(), &entry.inode.xattrs)).collect();
    for (path, record) in &mut listing.records {
        record.inode.xattrs = xattrs.remove(path).cloned().unwrap_or_default();
    }
    Ok(())
}

fn unsquashfs_name() -> Result<String> {
    let output = child::output(UNSQUASHFS.command()?.arg("-version"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(said.split(" (").next().unwrap_or("unsquashfs").replace(" version", ""))
}
