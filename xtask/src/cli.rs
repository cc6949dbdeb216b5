//! The command line: the verbs and their help, and how an outcome becomes an exit code.

use std::fmt;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::plan::PlanError;
use crate::spec::SpecErrors;
use crate::{commands, interrupt, namespace};

/// Right-sized root filesystem images for microVMs
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Build images from their specs
    Image(commands::image::Arguments),
    /// Write an image straight from a tar of a root filesystem, without a spec
    Pack(commands::pack::Arguments),
    /// Write the finished tree of an image as a tar
    Export(commands::export::Arguments),
    /// Show the images of this workspace
    List(commands::list::Arguments),
    /// Run the checks and tests of this workspace
    Test(commands::test::Arguments),
}

/// Why a command did not succeed, as its exit code says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    Failed = 1,
    /// Wrong usage or a wrong spec.
    Usage = 2,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Failure::Failed => "failed",
            Failure::Usage => "wrong usage",
        })
    }
}

/// Runs the verb that the command line names.
pub fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    if arguments.get(1).is_some_and(|verb| verb == namespace::VERB) {
        return namespace::inside_main(&arguments[2..]);
    }
    let cli = Cli::parse();
    let result = interrupt::install().and_then(|()| match cli.verb {
        Verb::Image(arguments) => commands::image::run(arguments),
        Verb::Pack(arguments) => commands::pack::run(arguments),
        Verb::Export(arguments) => commands::export::run(arguments),
        Verb::List(arguments) => commands::list::run(arguments),
        Verb::Test(arguments) => commands::test::run(arguments),
    });
    match result {
        Ok(code) => code,
        Err(error) => {
            say(&error);
            ExitCode::from(failure(&error) as u8)
        }
    }
}

pub(crate) fn failure(error: &anyhow::Error) -> Failure {
    if error.chain().any(|cause| cause.is::<SpecErrors>() || cause.is::<PlanError>()) {
        Failure::Usage
    } else {
        Failure::Failed
    }
}

/// Says an error to a person: what failed, then why; `hint:` lines stand last, on lines of their own.
pub(crate) fn say(error: &anyhow::Error) {
    // Spec errors bring their own frame.
    if let Some(errors) = error.downcast_ref::<SpecErrors>() {
        eprintln!("{errors}");
        return;
    }
    let mut hints = Vec::new();
    let mut head = "error: ";
    for cause in error.chain() {
        let text = cause.to_string();
        let (said, hinted): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| !line.starts_with("hint: "));
        hints.extend(hinted.into_iter().map(str::to_owned));
        eprintln!("{head}{}", said.join("\n"));
        head = "  because: ";
    }
    for hint in hints {
        eprintln!("{hint}");
    }
}
