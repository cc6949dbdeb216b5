//! Jobs of the sandbox with their progress on the terminal, and failures that name the place in the spec.

use std::io::Read;
use std::process::ChildStdout;
use std::sync::Mutex;

use anyhow::Result;
use snug_sandbox::{Action, Event, Job, ShellEnd, Terminal};

use super::mask::Mask;
use super::secret::Secret;
use super::{StepFailed, Tail};
use crate::error;
use crate::report::escapes::plain;
use crate::report::progress::{Progress, Stage, human_bytes};

/// An action in messages.
pub struct Title {
    /// The action, in one line.
    pub text: String,
    /// `path:line` of the spec, or a description of the place.
    pub place: String,
    /// Whether all that it does is to fetch and install packages.
    pub fetches: bool,
    /// Whether it has a network.
    pub network: bool,
}

/// Does a job, with its standard output for `consume`. Actions without a title are not shown; secrets are masked.
pub fn run(
    job: &Job,
    titles: &[Option<Title>],
    secrets: &[Secret],
    progress: &Progress,
    consume: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
) -> Result<()> {
    run_with(job, titles, secrets, None, progress, &mut |_| {}, consume)
}

/// As [`run`], for a job that opens a shell if an action fails: the failure is shown, then the shell has the caller's
/// terminal until it ends. `finished` is called with the number of each action that succeeded.
pub fn run_with(
    job: &Job,
    titles: &[Option<Title>],
    secrets: &[Secret],
    terminal: Option<(Terminal, ShellEnd)>,
    progress: &Progress,
    finished: &mut (dyn FnMut(usize) + Send),
    consume: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
) -> Result<()> {
    let (mut terminal, shell) = terminal.unzip();
    let tail = Mutex::new(Tail::default());
    let mask = Mask::new(secrets);
    let mut output = mask.over_lines();
    let mut stage: Option<Stage> = None;
    let mut failure = None;
    let observe = |event: &Event| match event {
        Event::Started { action } => {
            *lock(&tail) = Tail::default();
            output = mask.over_lines();
            stage = titles.get(*action).and_then(Option::as_ref).map(|title| progress.stage(title.text.as_str()));
            if let Some(Action::Run(program) | Action::Pipe(program)) = job.actions.get(*action) {
                let words: Vec<_> = program.command.iter().map(|word| mask.text(word)).collect();
                progress.command(&words);
            }
        }
        Event::Line { text, .. } => {
            // Colours within a secret would keep it from being found.
            show(&output.push(&plain(text)), &tail, stage.as_ref());
        }
        Event::Bytes { count, .. } => {
            if let Some(stage) = &stage {
                stage.advance(*count);
            }
        }
        Event::Finished { action } => {
            finished(*action);
            show(&output.end(), &tail, stage.as_ref());
            if let Some(stage) = stage.take() {
                let bytes = stage.bytes();
                stage.finish(&if bytes > 0 { human_bytes(bytes) } else { String::new() });
            }
        }
        Event::Failed { action, status, message } => {
            show(&output.end(), &tail, stage.as_ref());
            stage = None;
            // What is not shown belongs to the step before it.
            let title = titles.iter().take(action + 1).rev().flatten().next();
            let Some(title) = title else { return };
            let failed = failure.insert(failed(title, *status, &mask.text(message), &lock(&tail)));
            if let Some(terminal) = terminal.take() {
                progress.warn(error::message(&failed.clone().into()));
                progress.warn("a shell in the tree as the step left it: `exit` ends the shell and removes the tree");
                if let Err(error) = terminal.attach() {
                    progress.warn(error::message(&error));
                }
            }
        }
        Event::Refused { .. } | Event::Unshared => stage = None,
    };
    let result = snug_sandbox::run_with(job, shell, observe, |mut stdout: ChildStdout| consume(&mut stdout));
    // The step's failure says more than what the sandbox makes of it.
    result.map_err(|error| failure.map_or(error, StepFailed::into_error))
}

/// Shows lines of a step's output as the stage's detail, and keeps them for a failure.
fn show(lines: &[String], tail: &Mutex<Tail>, stage: Option<&Stage>) {
    for line in lines {
        lock(tail).push(line);
        if let Some(stage) = stage {
            stage.detail(line);
        }
    }
}

/// `message` says why the step could not be run.
fn failed(title: &Title, status: Option<i32>, message: &str, tail: &Tail) -> StepFailed {
    let mut last_lines = tail.lines();
    if status.is_none() {
        last_lines.push(plain(message));
    }
    let (what, place) = (title.text.clone(), title.place.clone());
    StepFailed { what, place, status, last_lines, fetches: title.fetches, network: title.network }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
