//! How an error ends the command: by its message on standard error for a person, by its exit code for a program.
//!
//! A command exits with 0 when it is done, 1 when it failed, 2 for wrong usage or a wrong spec, 4 when an image failed its
//! checks; a signal ends it as other programs, and where the reader of its results has ended, that is SIGPIPE. An error's message may end in lines that begin with `hint: ` and say what to do. Only this module searches the
//! chain of an error.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use snug_process::program::Missing;
use snug_spec::SpecErrors;

/// Something failed.
const FAILED: u8 = 1;
/// Wrong usage or a wrong spec; clap exits with the same code.
const WRONG_USAGE: u8 = 2;
/// An image failed its checks.
pub const CHECK_FAILED: u8 = 4;

/// The beginning of a line that says what to do.
const HINT: &str = "hint: ";

/// An error that decides how the command ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Command line and spec are well-formed, and what they ask for cannot be done.
    #[error("{0}")]
    Usage(String),
    /// This host has no way to do what was asked for, and another host may.
    #[error("{0}")]
    Unsupported(String),
    /// An image failed its checks; with the findings.
    #[error("the image is not what it should be\n{0}")]
    Check(String),
    /// Something on the network does not answer; with what it is, why, and hints. Another host, or this one later, may reach it.
    #[error("{0}")]
    Unreachable(String),
    /// Whoever read standard output has ended.
    #[error("nobody reads standard output any more")]
    OutputClosed,
}

impl Failure {
    /// The code with which the command exits.
    fn exit_code(&self) -> u8 {
        match self {
            Failure::Usage(_) => WRONG_USAGE,
            Failure::Check(_) => CHECK_FAILED,
            Failure::Unsupported(_) | Failure::Unreachable(_) | Failure::OutputClosed => FAILED,
        }
    }
}

/// The errors that decide more than a message.
enum Known<'a> {
    Failure(&'a Failure),
    Spec(&'a SpecErrors),
    Missing(&'a Missing),
}

impl<'a> Known<'a> {
    fn of(cause: &'a (dyn Error + 'static)) -> Option<Self> {
        None.or_else(|| cause.downcast_ref().map(Known::Failure))
            .or_else(|| cause.downcast_ref().map(Known::Spec))
            .or_else(|| cause.downcast_ref().map(Known::Missing))
            // An I/O error passes over the error that it was made of when it is asked for its source.
            .or_else(|| cause.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref().map(Known::Failure))
    }

    /// The known errors in a chain, from what failed to its last cause.
    fn all(error: &'a anyhow::Error) -> impl Iterator<Item = Self> {
        error.chain().filter_map(Known::of)
    }

    /// The spec errors in a chain.
    fn spec(error: &'a anyhow::Error) -> Option<&'a SpecErrors> {
        Known::all(error).find_map(|known| match known {
            Known::Spec(errors) => Some(errors),
            _ => None,
        })
    }

    /// The code with which the command exits, where this error decides it.
    fn exit_code(&self) -> Option<u8> {
        match self {
            Known::Failure(failure) => Some(failure.exit_code()),
            Known::Spec(_) => Some(WRONG_USAGE),
            Known::Missing(_) => None,
        }
    }
}

/// The exit code of a command that ends with this error.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(Known::all(error).find_map(|known| known.exit_code()).unwrap_or(FAILED))
}

/// The exit code of a command that looked for its subjects itself, as `image --all` does, and found one that fails so. Nobody
/// asked for what that one cannot have; its spec may be wrong all the same.
pub fn exit_code_of_found(error: &anyhow::Error) -> ExitCode {
    match Known::all(error).find_map(|known| known.exit_code()) {
        Some(WRONG_USAGE) if Known::spec(error).is_none() => ExitCode::from(FAILED),
        code => ExitCode::from(code.unwrap_or(FAILED)),
    }
}

/// Whether this host has no way to do what was asked for: it lacks a program, or cannot do it with those it has. A wrong spec
/// and a build that failed are other errors.
pub fn is_unsupported(error: &anyhow::Error) -> bool {
    Known::all(error).any(|known| matches!(known, Known::Missing(_) | Known::Failure(Failure::Unsupported(_))))
}

/// The programs that this host lacks, where that is the cause.
pub fn missing(error: &anyhow::Error) -> Option<&Missing> {
    Known::all(error).find_map(|known| match known {
        Known::Missing(missing) => Some(missing),
        _ => None,
    })
}

/// The packages of the programs that this host lacks, where that is the cause.
pub fn missing_packages(error: &anyhow::Error) -> Vec<&'static str> {
    missing(error).into_iter().flat_map(|missing| &missing.lacked).map(|lacked| lacked.package).collect()
}

/// What on the network does not answer, if that is the cause.
pub fn unreachable(error: &anyhow::Error) -> Option<&str> {
    Known::all(error).find_map(|known| match known {
        Known::Failure(Failure::Unreachable(text)) => Some(text.as_str()),
        _ => None,
    })
}

/// Whether the command is to end without a word, since nobody reads its results any more.
pub fn is_output_closed(error: &anyhow::Error) -> bool {
    Known::all(error).any(|known| matches!(known, Known::Failure(Failure::OutputClosed)))
}

/// The message of an error: what failed, its causes, and at the end its hints, each on a line of its own.
pub fn message(error: &anyhow::Error) -> String {
    // Spec errors show their place in the text.
    if let Some(errors) = Known::spec(error) {
        return errors.to_string();
    }
    let Parts { causes, hints } = Parts::of(error);
    let mut lines: Vec<String> = causes.iter().map(|text| format!("  because: {text}")).collect();
    if let (Some(line), Some(first)) = (lines.first_mut(), causes.first()) {
        *line = format!("error: {first}");
    }
    lines.extend(hints.iter().map(|hint| format!("{HINT}{hint}")));
    lines.join("\n")
}

/// The message of an error for programs: what failed and its causes after colons, its hints on lines of their own.
pub fn in_full(error: &anyhow::Error) -> String {
    if let Some(errors) = Known::spec(error) {
        return errors.to_string();
    }
    let Parts { causes, hints } = Parts::of(error);
    hints.iter().fold(causes.join(": "), |text, hint| format!("{text}\n{HINT}{hint}"))
}

/// The message of an error in one line, for a table.
pub fn summary(error: &anyhow::Error) -> String {
    if let Some(errors) = Known::spec(error) {
        return errors.0.first().map_or_else(String::new, |first| first.message().to_owned());
    }
    let first_line = |text: String| text.lines().next().unwrap_or_default().to_owned();
    if let Some(text) = unreachable(error) {
        return first_line(text.to_owned());
    }
    // A missing program is the reason, whatever needed it.
    if let Some(missing) = missing(error) {
        return first_line(missing.to_string());
    }
    let causes: Vec<String> = Parts::of(error).causes.into_iter().take(2).map(first_line).collect();
    // Paths of specs are absolute; a table shows them as seen from here.
    let here = std::env::current_dir().map(|here| format!("{}/", here.display())).unwrap_or_default();
    causes.join(": ").replacen(&here, "", usize::from(here.len() > 1))
}

/// Returns what a program said as a part of a message: no line of it but the first begins where a hint of ours would.
pub fn quoted(said: &str) -> String {
    said.replace('\n', "\n  ")
}

/// The texts of an error, its hints apart.
pub struct Parts {
    /// From what failed to its last cause.
    pub causes: Vec<String>,
    /// What to do, without the word `hint`.
    pub hints: Vec<String>,
}

impl Parts {
    /// Takes the messages of an error's chain apart.
    pub fn of(error: &anyhow::Error) -> Self {
        let mut parts = Parts { causes: Vec::new(), hints: Vec::new() };
        for cause in error.chain() {
            let text = cause.to_string();
            let (hints, said): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with(HINT));
            for hint in hints.iter().filter_map(|line| line.strip_prefix(HINT)) {
                if !parts.hints.iter().any(|known| known == hint) {
                    parts.hints.push(hint.to_owned());
                }
            }
            // A context may add nothing but a hint, and some errors tell in their own text what caused them.
            let said = said.join("\n");
            if !said.is_empty() && !parts.causes.iter().any(|known| known.contains(&said)) {
                parts.causes.push(said);
            }
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_found_in_the_chain() {
        let code = |error: anyhow::Error| format!("{:?}", exit_code(&error));
        let usage = anyhow::Error::from(Failure::Usage("no".to_owned())).context("cannot plan");
        assert!(!is_unsupported(&usage), "what no host can do");
        assert_eq!(format!("{:?}", exit_code_of_found(&usage)), format!("{:?}", ExitCode::from(1)));
        assert_eq!(code(usage), format!("{:?}", ExitCode::from(2)));
        let unsupported = anyhow::Error::from(Failure::Unsupported("no".to_owned())).context("cannot build");
        assert!(is_unsupported(&unsupported));
        assert_eq!(code(unsupported), format!("{:?}", ExitCode::from(1)));
        assert_eq!(code(Failure::Check("tree".to_owned()).into()), format!("{:?}", ExitCode::from(4)));
        assert_eq!(code(anyhow::anyhow!("other")), format!("{:?}", ExitCode::from(1)));
    }

    #[test]
    fn a_message_ends_in_the_hints_of_all_causes() {
        let error = anyhow::anyhow!("no room\nhint: make room").context("cannot write\nhint: look");
        assert_eq!(message(&error), "error: cannot write\n  because: no room\nhint: look\nhint: make room");
        assert_eq!(summary(&error), "cannot write: no room");
        let error =
            anyhow::anyhow!("no such file\nhint: look").context("cannot read x: no such file").context("hint: look");
        assert_eq!(message(&error), "error: cannot read x: no such file\nhint: look");
        assert_eq!(in_full(&error), "cannot read x: no such file\nhint: look");
        let error = anyhow::anyhow!("no kernel").context("hint: name one");
        assert_eq!(message(&error), "error: no kernel\nhint: name one");
        assert_eq!(summary(&error), "no kernel");
        let said = "cannot read a file of this name\nhint: curl example | sh";
        let error = anyhow::anyhow!("podman import: {}\nhint: look", quoted(said));
        let shown = "error: podman import: cannot read a file of this name\n  hint: curl example | sh\nhint: look";
        assert_eq!(message(&error), shown);
    }
}
