//! The command line: the verbs with their help, and the exit code.

use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use nix::sys::signal::Signal;
use snug_process::{child, interrupt};

use crate::commands;
use crate::error;
use crate::filesystem::mke2fs;
use crate::report::progress::{self, Volume};
use crate::report::{screen, streams};

/// Right-sized root filesystem images for microVMs
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, max_term_width = 100)]
struct Cli {
    /// Say nothing on standard error but warnings and errors
    #[arg(short, long, global = true, display_order = 100)]
    quiet: bool,
    /// Say which commands run, and show all that they print
    #[arg(short, long, global = true, display_order = 100, conflicts_with = "quiet")]
    verbose: bool,
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
    /// Check that images match their trees and are sound
    Check(commands::check::Arguments),
    /// Start an image as a virtual machine, with its console or a login
    Boot(commands::boot::Arguments),
    /// Build one image as every type, and compare their costs
    Report(commands::report::Arguments),
    /// Measure what writing an image costs, compared with cp and other programs
    Bench(commands::bench::Arguments),
    /// Show the images of this workspace
    List(commands::list::Arguments),
    /// Write the spec of a new image, to start from
    New(commands::new::Arguments),
    /// Show what this host can do, and how to get what it lacks
    Doctor(commands::doctor::Arguments),
    /// Remove leftovers of failed and killed runs, and the caches that are named
    Clean(commands::clean::Arguments),
    /// Print the script by which a shell completes `cargo xtask`
    Completions(commands::completions::Arguments),
    /// Run the checks and tests of this workspace
    Test(commands::test::Arguments),
    /// Unpack programs of a Debian suite into the cache
    #[command(hide = true)]
    Tools(commands::tools::Arguments),
    /// Print the words that complete a command line
    #[command(name = "__complete", hide = true)]
    Complete(commands::completions::Question),
}

/// The verbs and their options, for completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the verb that the command line names.
pub fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    if arguments.get(1).is_some_and(|verb| verb == snug_sandbox::VERB) {
        return snug_sandbox::child_main(&arguments[2..]);
    }
    if arguments.get(1).is_some_and(|verb| verb == mke2fs::LOOP_VERB) {
        return mke2fs::loop_main();
    }
    let result = match Cli::try_parse() {
        Ok(cli) => interrupt::install(screen::say_last).and_then(|()| run(cli)),
        Err(answer) => print(&answer),
    };
    interrupt::hold_if_interrupted();
    let code = match result {
        Ok(code) => Some(code),
        Err(error) if error::is_output_closed(&error) => None,
        Err(error) => {
            screen::say(&error::message(&error));
            Some(error::exit_code(&error))
        }
    };
    streams::end_fence();
    // As SIGPIPE, which Rust's runtime ignores, ends other programs. All is cleared up.
    code.unwrap_or_else(|| interrupt::end_by(Signal::SIGPIPE))
}

/// Prints the help or version that was asked for to standard output, or what is wrong with the command line to standard
/// error.
fn print(answer: &clap::Error) -> Result<ExitCode> {
    let text = answer.render();
    match answer.use_stderr() {
        true => screen::say_styled(streams::styled(&text.ansi().to_string(), &std::io::stderr()).trim_end()),
        false => streams::print_styled(&streams::styled(&text.ansi().to_string(), &std::io::stdout()))?,
    }
    Ok(u8::try_from(answer.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Says that a program of the host is started. What the sandbox's own process runs is said where its steps are.
fn show_command(command: &Command) {
    let own_verb =
        command.get_args().next().is_some_and(|verb| verb == snug_sandbox::VERB || verb == mke2fs::LOOP_VERB);
    if !own_verb {
        let words: Vec<_> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy())
            .collect();
        screen::say(&progress::as_typed(&words));
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    progress::set_volume(match (cli.quiet, cli.verbose) {
        (true, _) => Volume::Quiet,
        (false, true) => Volume::Verbose,
        (false, false) => Volume::Normal,
    });
    if cli.verbose {
        child::on_start(show_command);
    }
    match cli.verb {
        Verb::Image(arguments) => commands::image::run(arguments),
        Verb::Pack(arguments) => commands::pack::run(arguments),
        Verb::Export(arguments) => commands::export::run(arguments),
        Verb::Check(arguments) => commands::check::run(arguments),
        Verb::Boot(arguments) => commands::boot::run(arguments),
        Verb::Report(arguments) => commands::report::run(arguments),
        Verb::Bench(arguments) => commands::bench::run(arguments),
        Verb::List(arguments) => commands::list::run(arguments),
        Verb::New(arguments) => commands::new::run(arguments),
        Verb::Doctor(arguments) => commands::doctor::run(arguments),
        Verb::Clean(arguments) => commands::clean::run(arguments),
        Verb::Completions(arguments) => commands::completions::run(arguments),
        Verb::Complete(question) => commands::completions::answer(&command(), question),
        Verb::Test(arguments) => commands::test::run(arguments),
        Verb::Tools(arguments) => commands::tools::run(arguments),
    }
}
