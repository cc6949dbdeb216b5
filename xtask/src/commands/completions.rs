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
use snug_formats::{Ext4Writer, FilesystemKind};
use snug_rootfs::platform::Platform;
use snug_spec::ImageSet;
use snug_spec::model::EngineKind;

use super::clean;
use crate::bench::candidates;
use crate::check::Reader;
use crate::check::boot::AcceleratorChoice;
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
    let words = as_given(question.words.iter().map(|word| word.to_string_lossy().into_owned()));
    let line = |(word, about): Candidate| match about.is_empty() {
        true => format!("{word}\n"),
        false => format!("{word}\t{about}\n"),
    };
    streams::print(&candidates(tool, &words, &images).into_iter().map(line).collect::<String>())?;
    Ok(ExitCode::SUCCESS)
}

/// The words as they reach the tool: bash makes three of `--option=value`.
fn as_given(words: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut given: Vec<String> = Vec::new();
    let mut equals = false;
    for word in words {
        // What follows completes the word behind the sign, as it does behind a space.
        if word == "=" && !equals && given.last().is_some_and(|before| before.starts_with("--")) {
            equals = true;
        } else {
            equals = false;
            given.push(word);
        }
    }
    if equals {
        given.push(String::new());
    }
    given
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
    // `--option=va` is completed as `--option va`, and a list by its last value.
    if let Some((name, value)) = last.split_once('=').filter(|(name, _)| name.starts_with("--")) {
        let apart = [before, &[name.to_owned(), value.to_owned()]].concat();
        return prefixed(&format!("{name}="), candidates(tool, &apart, images));
    }
    let asked = before.split_first().and_then(|(verb, rest)| option(tool.find_subcommand(verb)?, rest.last()?));
    if let Some((values, value)) = last.rsplit_once(',')
        && asked.is_some_and(|option| option.get_value_delimiter() == Some(','))
    {
        let one = [before, &[value.to_owned()]].concat();
        let mut others = candidates(tool, &one, images);
        others.retain(|(word, _)| !values.split(',').any(|given| given == word));
        return prefixed(&format!("{values},"), others);
    }
    let mut found = match before.split_first().map(|(verb, rest)| (tool.find_subcommand(verb), rest)) {
        None => verbs(tool),
        Some((None, _)) => Vec::new(),
        Some((Some(verb), rest)) => {
            let asks =
                rest.last().and_then(|word| option(verb, word)).filter(|option| option.get_action().takes_values());
            match asks {
                Some(option) => values(option, words, images),
                None if last.starts_with('-') => options(verb, rest).into_iter().chain(options(tool, rest)).collect(),
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

fn prefixed(prefix: &str, found: Vec<Candidate>) -> Vec<Candidate> {
    let prefix =
        |(word, about): Candidate| if word == FILES { (word, about) } else { (format!("{prefix}{word}"), about) };
    found.into_iter().map(prefix).collect()
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
    match arg.get_value_names().and_then(|names| names.first()).map(|name| name.trim_end_matches(",…")) {
        Some("NAME") => images(words),
        Some("TYPE") => {
            let kinds = FilesystemKind::ALL.map(FilesystemKind::as_str);
            let sealed = kinds.map(|kind| (format!("{kind}+verity"), "sealed with dm-verity".to_owned()));
            kinds.map(plain).into_iter().chain(sealed).collect()
        }
        Some("PLATFORM") => Platform::ALL.iter().map(|platform| plain(platform.as_str())).collect(),
        Some("ACCELERATOR") => AcceleratorChoice::NAMES.map(plain).into(),
        Some("READER") => Reader::NAMES.map(plain).into(),
        Some("WRITER") => Ext4Writer::NAMES.map(plain).into(),
        Some("CANDIDATE") => candidates::Candidate::ALL.iter().map(|candidate| plain(candidate.name())).collect(),
        Some("CACHE") => clean::CACHES.map(|(name, purpose)| (name.to_owned(), purpose.to_owned())).into(),
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
        assert_eq!(complete(&["image", "--filesystem", "sq"]), ["squashfs", "squashfs+verity"]);
        assert_eq!(complete(&["image", "--qu"]), ["--quiet"]);
        assert_eq!(complete(&["image", "--output", ""]), [FILES]);
        assert_eq!(complete(&["completions", ""]), ["bash", "zsh", "fish"]);
        assert_eq!(complete(&["clean", "t"]), ["tools", "trees"]);
        assert_eq!(complete(&["clean", "trees", "t"]), ["tools"]);
        assert_eq!(complete(&["image", "--platform", ""]), ["linux/amd64", "linux/arm64"]);
        assert_eq!(complete(&["image", "--platform", "linux/amd64,"]), ["linux/amd64,linux/arm64"]);
        assert_eq!(complete(&["image", "--platform=linux/ar"]), ["--platform=linux/arm64"]);
        assert_eq!(complete(&["export", "x", "--platform", "linux/ar"]), ["linux/arm64"]);
        assert_eq!(complete(&["boot", "x", "--accel", ""]), ["auto", "kvm", "tcg"]);
        assert_eq!(complete(&["check", "--reader", "k"]), ["kernel"]);
        assert_eq!(complete(&["bench", "--only", "mke2"]), ["mke2fs"]);
        assert_eq!(
            complete(&["report", "x", "--filesystem", "erofs,squ"]),
            ["erofs,squashfs", "erofs,squashfs+verity"]
        );
        let as_bash = |words: &[&str]| as_given(words.iter().map(|word| (*word).to_owned()));
        assert_eq!(as_bash(&["image", "--platform", "=", "l"]), ["image", "--platform", "l"]);
        assert_eq!(as_bash(&["image", "--platform", "="]), ["image", "--platform", ""]);
        assert_eq!(complete(&["new", ""]), [""; 0]);
        assert_eq!(complete(&["new", "x", "--from", "node"]), ["node-24"]);
        assert_eq!(complete(&["no-such-verb", ""]), [""; 0]);
    }
}
