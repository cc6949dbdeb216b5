//! How a command that did not succeed says so: to a person on standard error, to a program by its exit code.

use std::process::ExitCode;

use crate::plan::PlanError;
use crate::spec::SpecErrors;

/// Something failed.
const FAILED: u8 = 1;
/// Wrong usage or a wrong spec, as clap answers wrong usage.
const WRONG_USAGE: u8 = 2;
/// A check of an image failed.
pub const CHECK_FAILED: u8 = 4;

/// The exit code that an error stands for.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    let usage = error.chain().any(|cause| cause.is::<SpecErrors>() || cause.is::<PlanError>());
    ExitCode::from(if usage { WRONG_USAGE } else { FAILED })
}

/// Says an error to a person: what failed, then why; `hint:` lines stand last, on lines of their own.
pub fn say(error: &anyhow::Error) {
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
