//! Finds a program and runs it. Whatever ends this program ends the other one, too: Ctrl-C, SIGTERM, or `kill -9`.
//!
//! ```text
//! cargo run -p snug-process --example run -- sleep 60
//! ```

use std::io::{self, Write};
use std::process::{Command, ExitCode};

use snug_process::{child, interrupt, program};

fn main() -> anyhow::Result<ExitCode> {
    // A macro would panic where nobody reads what it prints.
    interrupt::install(|text| drop(writeln!(io::stderr(), "{text}")))?;
    let mut words = std::env::args().skip(1);
    let Some(name) = words.next() else {
        eprintln!("usage: run PROGRAM [ARGUMENT]...");
        return Ok(ExitCode::from(2));
    };
    let Some(path) = program::find(&name) else {
        eprintln!("there is no {name}");
        return Ok(ExitCode::FAILURE);
    };
    eprintln!("{}", path.display());
    let status = child::status(Command::new(path).args(words))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
