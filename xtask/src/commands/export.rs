//! `export`: writes the finished tree of an image as a tar, for other tools.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use snug_formats::file_name::Compression;
use snug_process::child;
use snug_process::program::HostProgram;
use snug_rootfs::tar::{self, TarOptions};
use snug_spec::model::{Base, FileSource, SecretSource};
use snug_spec::{ImageSet, SPEC_FILE};

use super::run::Run;
use super::{arguments, file_names};
use crate::atomic::{Accepts, Destination, Identity};
use crate::engine::OnFailure;
use crate::engine::choose::Choice;
use crate::error::Failure;
use crate::host::requirements::Task;
use crate::image::{Order, Target};
use crate::report::progress::{Progress, human_bytes};
use crate::report::render::{self, Render};
use crate::tree::{Assembly, Refresh};

/// Bytes of a write to a compressor's standard input: the capacity of a pipe.
const PIPE_BYTES: usize = 64 << 10;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Image whose tree to write; it is built if it is not in the cache
    #[arg(value_name = "NAME")]
    name: String,
    /// Tar file to write, compressed where its name says so (.tar.gz, .tar.zst, .tar.xz), or `-` for standard output
    #[arg(short, long, value_name = "FILE|-")]
    output: PathBuf,
    #[command(flatten)]
    platform: arguments::OnePlatform,
    #[command(flatten)]
    images: arguments::Images,
    #[command(flatten)]
    engine: arguments::Engine,
    #[command(flatten)]
    strict: arguments::Strict,
    #[command(flatten)]
    format: arguments::Format,
    #[command(flatten)]
    setup: arguments::Setup,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let setup = arguments.setup;
    // Not known in full before the image is planned: the engine's own, and what bases are made with.
    let tasks = [Task::Builtin, Task::DebianBase, Task::OciBase, Task::Emulation];
    export(arguments).map_err(|error| setup.hint(tasks, error))
}

fn export(arguments: Arguments) -> Result<ExitCode> {
    // Where the tar goes is settled before anything is built.
    let compressor = file_names::tar(&arguments.output, "-o")?.map(Compressor::find).transpose()?;
    let output = Destination::new(&arguments.output, Accepts::STREAMS)?;
    if output.is_terminal() {
        bail!(Failure::Usage("a terminal takes no tar\nhint: name a file, or pipe it on".to_owned()));
    }
    let (to_stdout, to_stream) = (output.is_stdout(), output.is_stream());
    if to_stdout && arguments.format.is_json() {
        bail!(Failure::Usage("--json and the tar would both be printed\nhint: name a file with -o".to_owned()));
    }
    let run = Run::with_images(&arguments.images);
    let (set, progress) = (run.images()?, run.progress().for_image(&arguments.name));
    refuse_inputs(&output, set, &arguments.name)?;
    output.probe()?;
    let target = Target::all(set.get(&arguments.name)?, arguments.platform.platform.as_slice())?[0];
    arguments.setup.prepare_planning(set, [&arguments.name])?;
    let order = Order::new(set, &arguments.name, target, None, &run.providers()?)?;
    arguments.setup.prepare(order.tree_tasks())?;
    let cache = run.swept_cache()?;
    let Choice { engine, .. } = run.engine(&arguments.engine, &order, &progress)?;
    let assembly = Assembly {
        cache,
        engine: &*engine,
        refresh: &Refresh::default(),
        on_failure: OnFailure::default(),
        strictness: arguments.strict.strictness(),
    };
    let (tree, _held) = order.finished_tree(&assembly, &progress)?;
    assembly.strictness.judge(tree.adjustments(), Some(&arguments.name), &progress)?;
    // Whoever reads it shows progress, and may end when it has enough.
    let stage = if to_stdout { Progress::hidden() } else { progress.clone() }.stage("write the tar");
    let write =
        |out: &mut dyn Write| Ok(tar::write(&tree, out, TarOptions::FAITHFUL, &mut |bytes| stage.advance_to(bytes))?);
    let compressed = compressor.is_some();
    match compressor {
        None => output.write(&progress, write)?,
        Some(compressor) => output.write_by(&progress, |file| {
            compressor.run(file, |input| {
                let mut input = BufWriter::with_capacity(PIPE_BYTES, input);
                write(&mut input)?;
                Ok(input.flush()?)
            })
        })?,
    }
    let tar_bytes = stage.bytes();
    stage.finish(&human_bytes(tar_bytes));
    if !to_stdout {
        // A stream has no size, or that of all that was ever written to it.
        let size_bytes = match to_stream {
            false => Some(fs::metadata(&arguments.output).context("the tar is gone")?.len()),
            true => (!compressed).then_some(tar_bytes),
        };
        arguments.format.print(&Exported { tar: arguments.output, size_bytes })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses to overwrite what the image is made from: specs, tars, files that are copied in, secrets.
fn refuse_inputs(output: &Destination, set: &ImageSet, name: &str) -> Result<()> {
    let resolved = set.resolve(name)?;
    for spec in resolved.ancestors.iter().copied().chain([resolved.spec]) {
        let name = &spec.name;
        let is = |what: &str| format!("{what} of {name}");
        output.refuse_input(Identity::of(&set.folder().join(name).join(SPEC_FILE)), &is("the spec"))?;
        if let Base::Tar { path, .. } = &spec.base.value {
            output.refuse_input(Identity::of(path), &is("the base"))?;
        }
        if let Some(init) = &spec.init {
            output.refuse_input(Identity::of(init), &is("the init"))?;
        }
        for file in &spec.files {
            if let FileSource::From(from) = &file.source {
                output.refuse_input(Identity::of(from), &is("a file"))?;
            }
        }
        for secret in &spec.secrets {
            if let SecretSource::File(file) = &secret.source {
                output.refuse_input(Identity::of(file), &is("a secret"))?;
            }
        }
    }
    Ok(())
}

/// A program that compresses its standard input to its standard output. The same program gives the same bytes again.
struct Compressor(Command);

impl Compressor {
    /// Finds the program on this host.
    fn find(by: Compression) -> Result<Self> {
        // gzip stores a name and a time unless it is told not to; the others store none.
        let (package, words): (&str, &[&str]) = match by {
            Compression::Gzip => ("gzip", &["-n", "-c"]),
            Compression::Xz => ("xz-utils", &["-c"]),
            Compression::Zstd => ("zstd", &["-q", "-c"]),
            Compression::Lz4 => ("lz4", &["-q", "-c"]),
            Compression::Bzip2 | Compression::Other(_) => (by.program(), &["-c"]),
        };
        let mut command = HostProgram { name: by.program(), package }.command()?;
        // Their options from the environment would give other bytes.
        for variable in ["GZIP", "XZ_DEFAULTS", "XZ_OPT", "BZIP", "BZIP2", "ZSTD_CLEVEL", "ZSTD_NBTHREADS"] {
            command.env_remove(variable);
        }
        command.args(words);
        Ok(Compressor(command))
    }

    fn run(mut self, output: &File, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        child::feed_into(&mut self.0, output.try_clone()?, write)
    }
}

/// The tar that was written.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Exported {
    #[serde(serialize_with = "render::path")]
    tar: PathBuf,
    /// What was written; `None` where a compressor wrote it to a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u64>,
}

impl Render for Exported {
    fn text(&self) -> String {
        let tar = self.tar.display();
        self.size_bytes.map_or_else(|| format!("{tar}\n"), |bytes| format!("{tar}: {}\n", human_bytes(bytes)))
    }
}
