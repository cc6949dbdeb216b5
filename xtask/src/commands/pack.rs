//! `pack`: writes an image straight from a tar of a root filesystem, without a spec.

use std::fs::File;
use std::io::{IsTerminal, stdin};
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use base16ct::lower::encode_string as hex;
use clap::Args;
use nix::fcntl::{FcntlArg, fcntl};
use serde::Serialize;
use snug_ext4::Census;
use snug_ext4::size::{Headroom, SizePolicy};
use snug_formats::{Ext4Options, Ext4Writer, Filesystem, FilesystemKind};
use snug_rootfs::container_archive::ContainerArchive;
use snug_rootfs::normalise::{Normalise, normalise};
use snug_rootfs::tar;
use snug_rootfs::tree::{RootTree, Timestamp};
use snug_spec::values;

use super::arguments;
use super::run::Run;
use crate::atomic::Partial;
use crate::error::Failure;
use crate::filesystem;
use crate::filesystem::verity::Verity;
use crate::image::{self, Digests, ImageType};
use crate::manifest::write_contents;
use crate::report::progress::{Progress, human_bytes};
use crate::report::render::Render;
use crate::report::table;

/// The largest pipe that a process without privileges may have, by default (`/proc/sys/fs/pipe-max-size`, pipe(7)).
const PIPE_BYTES: i32 = 1 << 20;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Tar of a root filesystem, or `-` for standard input
    #[arg(value_name = "TAR|-")]
    tar: PathBuf,
    /// Image file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Filesystem type, or squashfs+verity and the like [default: by the extension of the output, else ext4]
    #[arg(long, value_name = "TYPE")]
    filesystem: Option<ImageType>,
    /// Smallest size of an ext4 image, such as 256MiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    min_size: Option<u64>,
    /// Largest size of an ext4 image: what needs more fails before anything is written
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_size: Option<u64>,
    /// Size as a factor of the content, to leave free space; 1.0 for an exactly full ext4 [default: 1.4]
    #[arg(long, value_name = "FACTOR", value_parser = headroom)]
    headroom: Option<Headroom>,
    /// Free inodes to leave, where that is more than the headroom gives
    #[arg(long, value_name = "COUNT")]
    free_inodes: Option<u64>,
    /// Write ext4 without a journal
    #[arg(long)]
    no_journal: bool,
    /// Program that writes ext4, for comparison: mke2fs, or loop (the kernel, through a loop mount; needs root)
    #[arg(long, value_name = "WRITER")]
    writer: Option<Ext4Writer>,
    /// Normalise what container engines leave behind, as `image` does
    #[arg(long, visible_alias = "normalise")]
    normalize: bool,
    /// Write a list of all entries with their digests (mtree)
    #[arg(long, value_name = "FILE", conflicts_with = "no_digest")]
    contents: Option<PathBuf>,
    /// Do not compute the SHA-256 of the image
    #[arg(long)]
    no_digest: bool,
    /// Do not wait until the image is on disk, as `cp` does not
    #[arg(long)]
    no_sync: bool,
    #[command(flatten)]
    format: arguments::Format,
}

/// A size as specs write it.
fn size(text: &str) -> Result<u64, String> {
    values::size(text).map_err(|problem| problem.to_string())
}

/// A headroom as specs write it.
fn headroom(text: &str) -> Result<Headroom, String> {
    values::headroom(text).map_err(|problem| problem.to_string())
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let filesystem = chosen_filesystem(&arguments)?;
    let sizing = SizePolicy {
        min_size: arguments.min_size.unwrap_or(0),
        max_size: arguments.max_size,
        headroom: arguments.headroom.unwrap_or(Headroom::DEFAULT),
        free_inodes: arguments.free_inodes,
    };
    // As the reader of specs does: before anything is read.
    if let Some(max) = sizing.max_size.filter(|max| *max < sizing.min_size) {
        bail!(Failure::Usage(format!(
            "--min-size ({}) is above --max-size ({})\nhint: lower --min-size or raise --max-size",
            human_bytes(sizing.min_size),
            human_bytes(max)
        )));
    }
    let run = Run::start();
    let progress = run.progress();
    // A missing program is reported before the tar is read.
    let writer = filesystem::writer(&filesystem, progress)?;
    // The process ends with this verb: freeing every name one by one would only take time.
    let mut tree = ManuallyDrop::new(read(&arguments, progress)?);
    if arguments.normalize {
        let clamp_mtime = Timestamp::source_date_epoch();
        normalise(&mut tree, &Normalise { hostname: None, clamp_mtime });
    }
    let verity = arguments.filesystem.is_some_and(|named| named.verity);
    let digests = match (&arguments.contents, arguments.no_digest) {
        (Some(_), _) => Digests::All,
        (None, false) => Digests::Image,
        (None, true) => Digests::None,
    };
    let mut partial = Partial::begin(&arguments.output)?;
    if !arguments.no_sync {
        partial = partial.sync_ahead()?;
    }
    let written = image::write(&tree, &*writer, verity, &sizing, partial, digests, progress)?;
    if let Some((list, bodies)) = arguments.contents.as_ref().zip(written.bodies.as_ref()) {
        write_contents(&tree, bodies, list)?.0.publish()?;
    }
    let image = if arguments.no_sync { written.partial.publish_unsynced()? } else { written.partial.publish()? };
    let sha256 = written.sha256.map(|digest| hex(&digest));
    let (census, verity) = (written.census, written.verity);
    arguments.format.print(&Packed { image, filesystem, sha256, census, verity })?;
    Ok(ExitCode::SUCCESS)
}

/// The image that was written.
#[derive(Debug, Serialize)]
struct Packed {
    image: PathBuf,
    filesystem: Filesystem,
    /// `None` after `--no-digest`.
    sha256: Option<String>,
    census: Census,
    #[serde(skip_serializing_if = "Option::is_none")]
    verity: Option<Verity>,
}

impl Render for Packed {
    fn text(&self) -> String {
        let (image, kind, census) = (self.image.display(), self.filesystem.kind(), &self.census);
        let mut text = format!("{image}: {kind}, {} bytes, by {}\n", census.size, census.writer);
        if let Some(sha256) = &self.sha256 {
            text += &format!("sha256 {sha256}\n");
        }
        text += &parts(census);
        if let Some(verity) = &self.verity {
            text += &verity.lines();
        }
        text
    }
}

/// The census as a table.
fn parts(census: &Census) -> String {
    let rows: Vec<[String; 2]> = census.parts.iter().map(|part| [part.name.clone(), human_bytes(part.bytes)]).collect();
    table::columns(["what", "bytes"], &rows)
}

fn chosen_filesystem(arguments: &Arguments) -> Result<Filesystem> {
    let by_name = arguments.output.extension().and_then(|extension| extension.to_str()?.parse().ok());
    let kind = arguments.filesystem.map(|named| named.kind).or(by_name).unwrap_or(FilesystemKind::Ext4);
    if kind == FilesystemKind::Ext4 {
        return Ok(Filesystem::Ext4(Ext4Options {
            journal: !arguments.no_journal,
            writer: arguments.writer.unwrap_or_default(),
            ..Ext4Options::default()
        }));
    }
    let given = [
        ("--min-size", arguments.min_size.is_some()),
        ("--max-size", arguments.max_size.is_some()),
        ("--headroom", arguments.headroom.is_some()),
        ("--free-inodes", arguments.free_inodes.is_some()),
        ("--no-journal", arguments.no_journal),
        ("--writer", arguments.writer.is_some()),
    ];
    if let Some((option, _)) = given.iter().find(|(_, given)| *given) {
        bail!(Failure::Usage(format!("{option} does not apply to {kind}, which is as large as its content")));
    }
    Ok(Filesystem::default_of(kind))
}

fn read(arguments: &Arguments, progress: &Progress) -> Result<RootTree> {
    let limits = tar::Limits::default();
    let piped = arguments.tar.as_os_str() == "-";
    if piped && stdin().is_terminal() {
        bail!(Failure::Usage(
            "standard input is a terminal, not a tar\n\
             hint: docker export CONTAINER | cargo xtask pack - -o rootfs.ext4"
                .to_owned()
        ));
    }
    let shown = if piped { "standard input".to_owned() } else { arguments.tar.display().to_string() };
    let stage = progress.stage(format!("read {shown}"));
    let mut meter = |bytes| stage.advance_to(bytes);
    let tree = if piped {
        // In the folder of the output, whose disk has to hold about as much anyway.
        let folder = arguments.output.parent().filter(|folder| !folder.as_os_str().is_empty());
        let spool = tempfile::tempfile_in(folder.unwrap_or(".".as_ref()))
            .context("cannot make a temporary file beside the output")?;
        // With a larger pipe, writer and reader wait less for each other. It fails where input is no pipe, which is fine.
        let _ = fcntl(stdin(), FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        tar::read_stream(stdin().lock(), spool, &limits, &mut meter)
    } else {
        let file = File::open(&arguments.tar).with_context(|| format!("cannot open {shown}"))?;
        // A named pipe or a process substitution is a stream like any other.
        if file.metadata()?.is_file() {
            tar::read_file(file, &limits, &mut meter)
        } else {
            let spool = tempfile::tempfile().context("cannot make a temporary file")?;
            tar::read_stream(file, spool, &limits, &mut meter)
        }
    };
    let tree = tree.with_context(|| format!("cannot read {shown}"))?;
    if let Some(archive) = ContainerArchive::of(&tree) {
        bail!(Failure::Usage(format!(
            "{shown} cannot be packed: {archive}\n\
             hint: docker create IMAGE, then docker export CONTAINER | cargo xtask pack - -o rootfs.ext4; or name the \
             image as a spec's base = {{ oci = \"…\" }}"
        )));
    }
    stage.finish(&format!("{} entries", tree.len()));
    for adjusted in tree.adjustments().iter() {
        progress.note(format!("warning: {adjusted}"));
    }
    Ok(tree)
}
