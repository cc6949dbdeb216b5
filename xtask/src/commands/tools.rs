//! `tools` (hidden): unpacks packages of a Debian suite into the cache, for tests and scripts, and prints their folder.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::run::Run;
use crate::bases::unpacked::Tools;
use crate::report::streams;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Debian release, such as trixie
    suite: String,
    /// Packages to unpack, with all they depend on
    #[arg(required = true, value_name = "PACKAGE")]
    packages: Vec<String>,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let run = Run::start();
    let packages: Vec<&str> = arguments.packages.iter().map(String::as_str).collect();
    let tools = Tools::fetch(run.swept_cache()?, &arguments.suite, &packages, run.progress())?;
    streams::print(&format!("{}\n", tools.root().display()))?;
    Ok(ExitCode::SUCCESS)
}
