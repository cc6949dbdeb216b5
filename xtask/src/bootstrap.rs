//! Debian roots from nothing, by mmdebstrap in a namespace of our own: the bases of images, and programs to run.
//!
//! The same whatever engine runs the steps afterwards: a container engine has no root to start from, and the base's tree
//! must not depend on who builds on it.

use std::io::Read;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::engine::environment;
use crate::engine::watched::{self, Title};
use crate::namespace::{self, Action, Job, Program};
use crate::needs::{self, Work};
use crate::report::progress::Progress;

/// What mmdebstrap is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bootstrap<'a> {
    /// Release, `trixie`.
    pub suite: &'a str,
    /// mmdebstrap's package set.
    pub variant: &'a str,
    /// Packages beyond the variant's.
    pub include: &'a [&'a str],
}

/// Can a Debian root be made here? The error says why not and what to do.
pub fn probe() -> Result<()> {
    needs::require(&[Work::DebianBase])?;
    namespace::probe().context(
        "a Debian base is made in a namespace of our own, whatever engine runs the steps\n\
         hint: where there are no namespaces, start from a finished base: { tar = \"…\" } or { oci = \"…\" }",
    )
}

/// Makes the root and hands its tar stream to `consume`, which reads it to its end.
pub fn run(
    cache: &Cache,
    what: &Bootstrap,
    progress: &Progress,
    consume: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
) -> Result<()> {
    needs::require(&[Work::DebianBase])?;
    let work = cache.work_folder("bootstrap")?;
    let scratch = work.path().join("tmp");
    std::fs::create_dir(&scratch)?;
    // The namespace's root is all that mmdebstrap's root mode needs, whoever runs it.
    let mut command = vec!["mmdebstrap".to_owned(), "--mode=root".into(), format!("--variant={}", what.variant)];
    if !what.include.is_empty() {
        command.push(format!("--include={}", what.include.join(",")));
    }
    command.extend([what.suite.to_owned(), "-".into()]);
    let program = Program { command, environment: environment::host_tools(), directory: None };
    let content = if what.include.is_empty() { what.variant.to_owned() } else { what.include.join(", ") };
    let title = Title { text: format!("mmdebstrap {} ({content})", what.suite), place: "the spec's `base`".to_owned() };
    let job = Job { actions: vec![Action::Scratch { folder: scratch }, Action::Pipe(program)] };
    watched::run(&job, &[None, Some(title)], progress, consume).map_err(|error| cache.explain(error))
}
