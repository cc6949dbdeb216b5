//! `completions`: scripts by which shells complete `cargo xtask`, image names included.
//!
//! The shells complete a command by its first word, and here that is `cargo`: so the scripts catch `cargo xtask …` and
//! leave everything else to what completed `cargo` before. They ask the built tool itself, under a hidden verb, so that
//! they know the verbs, options and images of the checkout they are used in; nothing is compiled for a press of a key.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Arg, Args, Command, ValueEnum};
use snug_formats::FilesystemKind;
use snug_spec::ImageSet;
use snug_spec::model::EngineKind;

use crate::report::streams;
use crate::workspace::Workspace;

/// Tells a script to complete names of files.
const FILES: &str = ":files";

/// A word and what it means.
type Candidate = (String, String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Args)]
pub struct Arguments {
    /// Shell to print the script for
    shell: Shell,
}

/// Prints the script, which says in its head how it is installed.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    streams::print(match arguments.shell {
        Shell::Bash => include_str!("completions/cargo-xtask.bash"),
        Shell::Zsh => include_str!("completions/cargo-xtask.zsh"),
        Shell::Fish => include_str!("completions/cargo-xtask.fish"),
    })?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Args)]
pub struct Question {
    /// The words after `cargo xtask`; the last one, perhaps empty, is the one to complete
    #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
    words: Vec<OsString>,
}

/// Prints the completions of the last word, one a line, each with a tab and its description where it has one.
pub fn answer(tool: &Command, question: Question) -> Result<ExitCode> {
    let words: Vec<String> = question.words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let line = |(word, about): Candidate| match about.is_empty() {
        true => format!("{word}\n"),
        false => format!("{word}\t{about}\n"),
    };
    streams::print(&candidates(tool, &words, &images).into_iter().map(line).collect::<String>())?;
    Ok(ExitCode::SUCCESS)
}

/// The names in the folder that `--images` names, or the workspace's own. A broken folder has none.
fn images(words: &[String]) -> Vec<Candidate> {
    let named = words.windows(2).find(|pair| pair[0] == "--images").map(|pair| PathBuf::from(&pair[1]));
    let folder = named.or_else(|| Workspace::find().ok().map(|workspace| workspace.images()));
    let set = folder.and_then(|folder| ImageSet::load(&folder).ok());
    let about =
        |spec: Option<&snug_spec::ImageSpec>| spec.and_then(|spec| spec.description.clone()).unwrap_or_default();
    set.iter().flat_map(ImageSet::iter).map(|(name, spec)| (name.to_owned(), about(spec.ok()))).collect()
}

/// All completions of the last of `words`, in the order of the help. `images` returns the names of the images.
fn candidates(tool: &Command, words: &[String], images: &dyn Fn(&[String]) -> Vec<Candidate>) -> Vec<Candidate> {
    let Some((last, before)) = words.split_last() else { return Vec::new() };
    let mut found = match before.split_first().map(|(verb, rest)| (tool.find_subcommand(verb), rest)) {
        None => verbs(tool),
        Some((None, _)) => Vec::new(),
        Some((Some(verb), rest)) => {
            let asks =
                rest.last().and_then(|word| option(verb, word)).filter(|option| option.get_action().takes_values());
            match asks {
                Some(option) => values(option, words, images),
                None if last.starts_with('-') => options(verb, rest),
                None => {
                    let given = positionals_given(verb, rest);
                    let wanted: Vec<_> = verb.get_positionals().collect();
                    let wanted = wanted.get(given).or_else(|| wanted.last().filter(|arg| takes_many(arg)));
                    wanted.map(|arg| values(arg, words, images)).unwrap_or_default()
                }
            }
        }
    };
    // A name is not offered twice.
    found.retain(|(word, _)| {
        word == FILES || (word.starts_with(last.as_str()) && !before[1.min(before.len())..].contains(word))
    });
    found
}

fn verbs(tool: &Command) -> Vec<Candidate> {
    let shown = tool.get_subcommands().filter(|verb| !verb.is_hide_set());
    shown.map(|verb| (verb.get_name().to_owned(), first_line(verb.get_about()))).collect()
}

fn options(verb: &Command, given: &[String]) -> Vec<Candidate> {
    let named = verb.get_arguments().filter_map(|arg| Some((format!("--{}", arg.get_long()?), arg)));
    named.filter(|(name, _)| !given.contains(name)).map(|(name, arg)| (name, first_line(arg.get_help()))).collect()
}

fn option<'a>(verb: &'a Command, word: &str) -> Option<&'a Arg> {
    verb.get_arguments().find(|arg| match word.strip_prefix("--") {
        Some(long) => arg.get_long() == Some(long),
        None => word.strip_prefix('-').is_some_and(|short| arg.get_short().is_some_and(|own| short == own.to_string())),
    })
}

fn positionals_given(verb: &Command, rest: &[String]) -> usize {
    let mut count = 0;
    let mut words = rest.iter();
    while let Some(word) = words.next() {
        match option(verb, word) {
            Some(option) if option.get_action().takes_values() => drop(words.next()),
            Some(_) => {}
            None => count += usize::from(!word.starts_with('-')),
        }
    }
    count
}

fn takes_many(arg: &Arg) -> bool {
    arg.get_num_args().is_some_and(|range| range.max_values() > 1)
        || matches!(arg.get_action(), clap::ArgAction::Append)
}

/// The values of an argument, by the name of its value in the help.
fn values(arg: &Arg, words: &[String], images: &dyn Fn(&[String]) -> Vec<Candidate>) -> Vec<Candidate> {
    let possible = arg.get_possible_values();
    if !possible.is_empty() {
        return possible.iter().map(|value| (value.get_name().to_owned(), first_line(value.get_help()))).collect();
    }
    let plain = |word: &str| (word.to_owned(), String::new());
    match arg.get_value_names().and_then(|names| names.first()).map(|name| name.as_str()) {
        Some("NAME") => images(words),
        Some("TYPE") => FilesystemKind::ALL.iter().map(|kind| plain(kind.as_str())).collect(),
        Some("ENGINE") => EngineKind::ALL.iter().map(|kind| plain(kind.as_str())).collect(),
        Some(name) if ["DIR", "FILE", "TAR", "PATH"].iter().any(|kind| name.contains(kind)) => vec![plain(FILES)],
        _ => Vec::new(),
    }
}

fn first_line(text: Option<&clap::builder::StyledStr>) -> String {
    text.map(|text| text.to_string().lines().next().unwrap_or_default().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(words: &[&str]) -> Vec<String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let images = |_: &[String]| ["openclaw", "node-24"].map(|name| (name.to_owned(), String::new())).to_vec();
        candidates(&crate::cli::command(), &words, &images).into_iter().map(|(word, _)| word).collect()
    }

    #[test]
    fn verbs_options_values_and_images_are_completed_where_they_stand() {
        assert_eq!(complete(&["im"]), ["image"]);
        assert!(complete(&[""]).contains(&"doctor".to_owned()));
        assert!(!complete(&[""]).iter().any(|verb| verb.starts_with("__")));
        assert_eq!(complete(&["image", ""]), ["openclaw", "node-24"]);
        assert_eq!(complete(&["image", "openclaw", ""]), ["node-24"]);
        assert_eq!(complete(&["image", "--output", "/somewhere", "op"]), ["openclaw"]);
        assert_eq!(complete(&["image", "--dry"]), ["--dry-run"]);
        assert_eq!(complete(&["image", "--filesystem", "sq"]), ["squashfs"]);
        assert_eq!(complete(&["image", "--output", ""]), [FILES]);
        assert_eq!(complete(&["completions", ""]), ["bash", "zsh", "fish"]);
        assert_eq!(complete(&["new", ""]), [""; 0]);
        assert_eq!(complete(&["new", "x", "--from", "node"]), ["node-24"]);
        assert_eq!(complete(&["no-such-verb", ""]), [""; 0]);
    }
}
