//! `test`: every check that CI runs, in one command.

use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Args;
use snug_process::child;

use super::run::Run;
use crate::filesystem::erofs::ErofsUtils;
use crate::host::requirements::Task;
use crate::host::setup;
use crate::report::screen;

/// The variable by which the test runner takes the number of tests that run at once.
const TEST_THREADS: &str = "RUST_TEST_THREADS";
/// Tests that run at once on each processor: while one waits for a disk, an archive or an image that another builds, the next
/// goes on.
const TESTS_A_PROCESSOR: usize = 2;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Install what the tests need first; nothing may then be skipped
    #[arg(long)]
    setup: bool,
    /// Passed on to `cargo test`: a part of the names of the tests to run, or `--` and options of the test runner
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs rustfmt and clippy where they are installed, builds the documentation, and runs all tests. With words behind the
/// verb only the tests that they name run.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let shared = Run::start();
    let root = &shared.workspace()?.root;
    if arguments.setup {
        setup::prepare(&Task::ALL)?;
        // Unpacked by the tool in a namespace, which unit tests cannot make: they run in a program of their own.
        ErofsUtils::find(shared.progress())?;
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut failed = Vec::new();
    let mut run = |words: &[&str], tail: &[String], environment: &[(&str, &str)]| -> Result<()> {
        let words: Vec<&str> = words.iter().copied().chain(tail.iter().map(String::as_str)).collect();
        let shown = format!("cargo {}", words.join(" "));
        screen::say(&format!("test: {shown}"));
        let mut command = Command::new(&cargo);
        command.args(words).current_dir(root);
        command.env("SNUG_XTASK", std::env::current_exe()?).envs(environment.iter().copied());
        if arguments.setup {
            command.env("SNUG_TESTS_NO_SKIP", "1");
        }
        if std::env::var_os(TEST_THREADS).is_none() {
            let processors = std::thread::available_parallelism().map_or(1, usize::from);
            command.env(TEST_THREADS, (processors * TESTS_A_PROCESSOR).to_string());
        }
        if !child::status(&mut command)?.success() {
            failed.push(shown);
        }
        Ok(())
    };
    if arguments.rest.is_empty() {
        for (check, words) in [
            ("fmt", &["fmt", "--all", "--check"][..]),
            ("clippy", &["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"]),
        ] {
            if is_installed(&cargo, check) {
                run(words, &[], &[])?;
            } else {
                screen::say(&format!("test: SKIPPED cargo {check}, which is not installed"));
            }
        }
        // Uses the dependencies as clippy has checked them, so that only the workspace's own crates are read again.
        run(&["doc", "--no-deps", "--workspace", "--quiet"], &[], &[("RUSTDOCFLAGS", "--deny warnings")])?;
    }
    // Documentation tests of the libraries included: they link to what the other tests compiled. One failure hides no other.
    run(&["test", "--workspace", "--profile", "xtask", "--no-fail-fast"], &arguments.rest, &[])?;
    // Repeated at the end, since the first failure may have scrolled away.
    for shown in &failed {
        screen::say(&format!("test: FAILED {shown}"));
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn is_installed(cargo: &std::ffi::OsStr, check: &str) -> bool {
    child::output(Command::new(cargo).args([check, "--version"])).is_ok_and(|output| output.status.success())
}
