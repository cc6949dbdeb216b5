//! `pack`: writes an image straight from a tar of a root filesystem, without a spec.

use std::fs::File;
use std::io::{IsTerminal, stdin};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use base16ct::lower::encode_string as hex;
use clap::Args;
use nix::fcntl::{FcntlArg, fcntl};
use serde::Serialize;
use snug_ext4::Census;
use snug_ext4::size::{Headroom, SizePolicy};
use snug_formats::{Ext4Options, Ext4Writer, Filesystem, FilesystemKind};
use snug_rootfs::container_archive::ContainerArchive;
use snug_rootfs::normalise::{Normalise, normalise};
use snug_rootfs::tar::{self, TarError};
use snug_rootfs::tree::{RootTree, Timestamp};
use snug_spec::values;

use super::run::Run;
use super::{arguments, file_names};
use crate::atomic::{Accepts, Destination, Identity};
use crate::error::Failure;
use crate::filesystem;
use crate::filesystem::verity::Verity;
use crate::image::{self, Digests, ImageType};
use crate::manifest::write_list;
use crate::report::amounts::entries;
use crate::report::progress::{Progress, human_bytes};
use crate::report::render::{self, Render};
use crate::report::{shell, table};

/// The largest pipe that a process without privileges may have, by default (`/proc/sys/fs/pipe-max-size`, pipe(7)).
const PIPE_BYTES: i32 = 1 << 20;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Tar of a root filesystem, or `-` for standard input
    #[arg(value_name = "TAR|-")]
    tar: PathBuf,
    /// Image file to write, or with --force a block device
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Overwrite the block device that --output names: what is on it is lost
    #[arg(long)]
    force: bool,
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
    free_inodes: Option<u32>,
    /// Write ext4 without a journal
    #[arg(long)]
    no_journal: bool,
    /// Program that writes ext4, for comparison: mke2fs, or loop (the kernel, through a loop mount; needs root)
    #[arg(long, value_name = "WRITER")]
    writer: Option<Ext4Writer>,
    /// Normalise what container engines leave behind, as `image` does
    #[arg(long, visible_alias = "normalise")]
    normalize: bool,
    /// Write a list of all entries with their digests (mtree), or print it: `-`
    #[arg(long, value_name = "FILE|-", conflicts_with = "no_digest")]
    contents: Option<PathBuf>,
    /// Do not compute the SHA-256 of the image
    #[arg(long)]
    no_digest: bool,
    /// Do not wait until the image is on disk, as `cp` does not
    #[arg(long)]
    no_sync: bool,
    #[command(flatten)]
    strict: arguments::Strict,
    #[command(flatten)]
    format: arguments::Format,
    #[command(flatten)]
    setup: arguments::Setup,
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
        free_inodes: arguments.free_inodes.map(u64::from),
    };
    // As the reader of specs does: before anything is read.
    if let Some(max) = sizing.max_size.filter(|max| *max < sizing.min_size) {
        bail!(Failure::Usage(format!(
            "--min-size ({}) is above --max-size ({})\nhint: lower --min-size or raise --max-size",
            human_bytes(sizing.min_size),
            human_bytes(max)
        )));
    }
    // Where the results go is settled before anything is read.
    let output =
        Destination::new(&arguments.output, Accepts { device: Some(arguments.force), ..Accepts::files("an image") })?;
    let contents = arguments.contents.as_deref().map(|list| list_destination(list, &arguments, &output)).transpose()?;
    output.refuse_input(Identity::of(&arguments.tar), "the tar that is packed")?;
    let run = Run::start();
    let progress = run.progress();
    // A missing program is reported before the tar is read, and so is a folder that cannot be written to.
    let task = image::task_of(&filesystem);
    arguments.setup.prepare([task])?;
    let writer = filesystem::writer(&filesystem, progress).map_err(|error| arguments.setup.hint([task], error))?;
    let mut partial = output.begin()?;
    // The process ends with this verb: freeing every name one by one would only take time.
    let mut tree = ManuallyDrop::new(read(&arguments, output.folder().as_deref(), progress)?);
    if arguments.normalize {
        let clamp_mtime = Timestamp::source_date_epoch();
        normalise(&mut tree, &Normalise { clamp_mtime, ..Normalise::default() });
    }
    let adjustments = image::fit(&mut tree, &filesystem, arguments.strict.strictness(), None, progress)?;
    let verity = arguments.filesystem.is_some_and(|named| named.verity);
    let digests = match (&arguments.contents, arguments.no_digest) {
        (Some(_), _) => Digests::All,
        (None, false) => Digests::Image,
        (None, true) => Digests::None,
    };
    if !arguments.no_sync && !output.is_device() {
        partial = partial.sync_ahead()?;
    }
    let written = image::write(&tree, &*writer, verity, &sizing, partial, digests, progress)?;
    let to_stdout = contents.as_ref().is_some_and(Destination::is_stdout);
    let image = output.named().to_path_buf();
    let finish = || output.finish(written.partial, !arguments.no_sync, progress);
    match contents.zip(written.bodies.as_ref()) {
        // It never describes an image that is not there.
        Some((list, bodies)) => list.write_behind(progress, finish, |out| Ok(write_list(&tree, bodies, out)?))?,
        None => finish()?,
    }
    let sha256 = written.sha256.map(|digest| hex(&digest));
    let (census, verity) = (Census { adjustments, ..written.census }, written.verity);
    let packed = Packed { image, filesystem, sha256, census, verity };
    if to_stdout {
        // The list is what was asked for there.
        progress.note(packed.text().trim_end());
    } else {
        arguments.format.print(&packed)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Decides where the list goes: not where the image, the tar or JSON is.
fn list_destination(list: &Path, arguments: &Arguments, image: &Destination) -> Result<Destination> {
    file_names::list(list)?;
    let list = Destination::new(list, Accepts::STREAMS)?;
    if list.is_stdout() && arguments.format.is_json() {
        bail!(Failure::Usage("--json and the list would both be printed\nhint: name a file for --contents".to_owned()));
    }
    image.refuse_both(&list)?;
    list.refuse_input(Identity::of(&arguments.tar), "the tar that is packed")?;
    list.probe()?;
    Ok(list)
}

/// The image that was written.
#[derive(Debug, Serialize)]
struct Packed {
    #[serde(serialize_with = "render::path")]
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
    let kind = file_names::image(&arguments.output, arguments.filesystem.map(|named| named.kind), "-o")?;
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

/// Reads the tar; what comes from a pipe is kept in `folder` or, where there is none, in a temporary one.
fn read(arguments: &Arguments, folder: Option<&Path>, progress: &Progress) -> Result<RootTree> {
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
        let spool = match folder {
            Some(folder) => tempfile::tempfile_in(folder).context("cannot make a temporary file beside the output")?,
            None => tempfile::tempfile().context("cannot make a temporary file")?,
        };
        // With a larger pipe, writer and reader wait less for each other. It fails where input is no pipe, which is fine.
        let _ = fcntl(stdin(), FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        tar::read_stream(stdin().lock(), spool, &limits, &mut meter)
    } else {
        let file = File::open(&arguments.tar).with_context(|| format!("cannot open {shown}"))?;
        if file.metadata()?.is_dir() {
            bail!(Failure::Usage(format!(
                "{shown} is a folder, not a tar\nhint: tar -C {} --xattrs -c . | cargo xtask pack - -o {}",
                shell::path(&arguments.tar),
                shell::path(&arguments.output)
            )));
        }
        // A named pipe or a process substitution is a stream like any other.
        if file.metadata()?.is_file() {
            tar::read_file(file, &limits, &mut meter)
        } else {
            let spool = tempfile::tempfile().context("cannot make a temporary file")?;
            tar::read_stream(file, spool, &limits, &mut meter)
        }
    };
    let tree = tree.map_err(|error| match error {
        TarError::Compressed { format, command, .. } if !piped => anyhow!(
            "{shown} is {format}-compressed, not a tar\nhint: {command} {} | cargo xtask pack - -o {}",
            shell::path(&arguments.tar),
            shell::path(&arguments.output)
        ),
        error => anyhow::Error::new(error).context(format!("cannot read {shown}")),
    })?;
    if let Some(archive) = ContainerArchive::of(&tree) {
        bail!(Failure::Usage(format!(
            "{shown} cannot be packed: {archive}\n\
             hint: docker create IMAGE, then docker export CONTAINER | cargo xtask pack - -o rootfs.ext4; or name the \
             image as a spec's base = {{ oci = \"…\" }}"
        )));
    }
    stage.finish(&entries(tree.len()));
    Ok(tree)
}
