//! How a command that did not succeed says so: to a person on standard error, to a program by its exit code.

use std::process::ExitCode;

use snug_process::program::Missing;
use snug_spec::SpecErrors;

/// An error that decides how the command ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The command line or the spec is sound, and still asks for what cannot be done.
    #[error("{0}")]
    Usage(String),
    /// An image failed its checks, with what they found.
    #[error("the image is not what it should be\n{0}")]
    Check(String),
}

/// Something failed.
const FAILED: u8 = 1;
/// Wrong usage or a wrong spec, as clap answers wrong usage.
const WRONG_USAGE: u8 = 2;
/// A check of an image failed.
pub const CHECK_FAILED: u8 = 4;

/// How a line begins that says what to do.
const HINT: &str = "hint: ";

/// The exit code that an error stands for.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    let code = error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(Failure::Usage(_)) => Some(WRONG_USAGE),
        Some(Failure::Check(_)) => Some(CHECK_FAILED),
        None => cause.is::<SpecErrors>().then_some(WRONG_USAGE),
    });
    ExitCode::from(code.unwrap_or(FAILED))
}

/// Is it something that this host, or this version of the tool, cannot do at all, and neither a wrong spec nor a build
/// that went wrong?
pub fn is_beyond_this_host(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<Missing>() || matches!(cause.downcast_ref(), Some(Failure::Usage(_))))
}

/// What failed and why, in one line for a table.
pub fn in_short(error: &anyhow::Error) -> String {
    if error.is::<SpecErrors>() {
        return "the spec has errors".to_owned();
    }
    // The innermost cause that a person can act on is the reason; what stands before it says where it came up.
    let cause = error.chain().find(|cause| cause.is::<Missing>());
    let first_line = |text: &str| text.lines().next().unwrap_or_default().to_owned();
    if let Some(cause) = cause {
        return first_line(&cause.to_string());
    }
    let said: Vec<String> = error.chain().take(2).map(|cause| first_line(&cause.to_string())).collect();
    // Paths of specs are whole ones; a table has no room for where the reader stands.
    let here = std::env::current_dir().map(|here| format!("{}/", here.display())).unwrap_or_default();
    said.join(": ").replacen(&here, "", usize::from(here.len() > 1))
}

/// Says an error to a person on standard error.
pub fn say(error: &anyhow::Error) {
    eprintln!("{}", describe(error));
}

/// An error for a person: what failed, then why; `hint:` lines stand last, on lines of their own.
pub fn describe(error: &anyhow::Error) -> String {
    // Spec errors bring their own frame.
    if let Some(errors) = error.downcast_ref::<SpecErrors>() {
        return errors.to_string();
    }
    let (said, hints) = parts(error);
    let mut lines: Vec<String> = said.iter().map(|text| format!("  because: {text}")).collect();
    if let (Some(line), Some(first)) = (lines.first_mut(), said.first()) {
        *line = format!("error: {first}");
    }
    lines.extend(hints.iter().map(|hint| format!("{HINT}{hint}")));
    lines.join("\n")
}

/// What an error's sentences say, from what failed to its last cause, and apart from them what its hints say.
pub fn parts(error: &anyhow::Error) -> (Vec<String>, Vec<String>) {
    let (mut sentences, mut hints) = (Vec::new(), Vec::new());
    for cause in error.chain() {
        let text = cause.to_string();
        let (hinted, said): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with(HINT));
        hints.extend(hinted.iter().filter_map(|line| line.strip_prefix(HINT)).map(str::to_owned));
        sentences.push(said.join("\n"));
    }
    (sentences, hints)
}
