//! `tools`, hidden: packages of a Debian suite, unpacked into the cache for tests and scripts. Prints the folder.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::bases::unpacked::Tools;
use crate::cache::Cache;
use crate::report::progress::Progress;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Debian release, such as trixie
    suite: String,
    /// Packages to unpack, with all they depend on
    #[arg(required = true, value_name = "PACKAGE")]
    packages: Vec<String>,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let cache = Cache::open()?;
    cache.sweep()?;
    let packages: Vec<&str> = arguments.packages.iter().map(String::as_str).collect();
    let tools = Tools::fetch(&cache, &arguments.suite, &packages, &Progress::on_stderr())?;
    println!("{}", tools.root().display());
    Ok(ExitCode::SUCCESS)
}
