//! A tree as files on disk, and programs that see these with the owners that they have in the image.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use snug_rootfs::tar::{self, TarOptions};
use snug_rootfs::tree::RootTree;
use snug_sandbox::{Action, Event, Job, Program};

use crate::cache::{Cache, WorkFolder};
use crate::report::progress::Stage;

/// How many of the last lines of a failing program are part of the error.
const LAST_LINES: usize = 12;

/// A tree as files on disk, created by `snug_rootfs::disk`.
pub trait MaterialisedTree {
    /// Returns the directory that is the root of the tree.
    fn root(&self) -> &Path;
    /// Runs a command that sees the files with the owners that they have in the image.
    fn run(&self, command: &mut Command) -> Result<()>;
}

/// A tree in the cache, its files owned by the ids of our user namespace.
pub(super) struct InNamespace {
    /// Removes the files when it is dropped.
    _work: WorkFolder,
    root: PathBuf,
}

impl InNamespace {
    pub(super) fn new(tree: &RootTree, stage: &Stage) -> Result<Self> {
        let work = Cache::open()?.work_folder("mke2fs")?;
        let (archive, root) = (work.path().join("tree.tar"), work.path().join("root"));
        let file = File::create(&archive).with_context(|| format!("cannot make {}", archive.display()))?;
        tar::write(tree, BufWriter::new(file), TarOptions::FAITHFUL, &mut |_| {})
            .with_context(|| format!("cannot write {}", archive.display()))?;
        let job = Job { actions: vec![Action::materialise(archive.clone(), root.clone())] };
        snug_sandbox::run_silent(&job, |event| {
            if let Event::Bytes { count, .. } = event {
                stage.advance(*count);
            }
        })?;
        fs::remove_file(&archive)?;
        Ok(InNamespace { _work: work, root })
    }
}

impl MaterialisedTree for InNamespace {
    fn root(&self) -> &Path {
        &self.root
    }

    fn run(&self, command: &mut Command) -> Result<()> {
        let text = |word: &std::ffi::OsStr| {
            word.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", word.display()))
        };
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let set = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
        let program = Program {
            command: words.map(text).collect::<Result<_>>()?,
            environment: set.map(|(name, value)| Ok((text(name)?, text(value)?))).collect::<Result<_>>()?,
            // The command may have paths relative to the current directory.
            directory: Some(std::env::current_dir().context("there is no current folder")?),
            network: true,
        };
        let said = Mutex::new(Vec::new());
        let mut failure = None;
        let outcome = snug_sandbox::run_silent(&Job { actions: vec![Action::Run(program)] }, |event| match event {
            Event::Line { text, .. } => {
                if let Ok(mut said) = said.lock() {
                    said.push(text.clone());
                }
            }
            Event::Failed { message, .. } => failure = Some(message.clone()),
            _ => {}
        });
        let Err(error) = outcome else { return Ok(()) };
        let Some(message) = failure else { return Err(error) };
        let said = said.into_inner().unwrap_or_default();
        let last = said[said.len().saturating_sub(LAST_LINES)..].iter().map(|line| format!("\n  {line}"));
        bail!("{message}{}", last.collect::<String>())
    }
}
