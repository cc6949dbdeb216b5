//! A job in the namespace with its actions on the screen, and its failure in the spec's words.

use std::io::Read;
use std::process::ChildStdout;
use std::sync::Mutex;

use anyhow::Result;

use super::{StepFailed, Tail};
use crate::namespace::{self, Event, Job, JobError};
use crate::report::progress::{Progress, Stage, human_bytes};

/// How an action is called on the screen and in errors.
pub struct Title {
    pub text: String,
    /// `path:line` of the spec, or words for it.
    pub place: String,
}

/// Does the job and hands its stream to `consume`. Actions without a title are not shown.
pub fn run(
    job: &Job,
    titles: &[Option<Title>],
    progress: &Progress,
    consume: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
) -> Result<()> {
    let tail = Mutex::new(Tail::default());
    let mut stage: Option<Stage> = None;
    let observe = |event: &Event| match event {
        Event::Started { action } => {
            lock(&tail).take();
            stage = titles.get(*action).and_then(Option::as_ref).map(|title| progress.stage(title.text.as_str()));
        }
        Event::Line { text, .. } => {
            lock(&tail).push(text);
            if let Some(stage) = &stage {
                stage.detail(text);
            }
        }
        Event::Bytes { count, .. } => {
            if let Some(stage) = &stage {
                stage.advance(*count);
            }
        }
        Event::Finished { .. } => {
            if let Some(stage) = stage.take() {
                let bytes = stage.bytes();
                stage.finish(&if bytes > 0 { human_bytes(bytes) } else { String::new() });
            }
        }
        Event::Failed { .. } | Event::Refused { .. } | Event::Unshared => stage = None,
    };
    let result = namespace::run(job, observe, |mut stdout: ChildStdout| consume(&mut stdout));
    result.map_err(|error| match error.downcast_ref::<JobError>() {
        Some(JobError::Action { action, status, message }) => {
            let Some(Some(title)) = titles.get(*action) else { return error };
            let mut last_lines = lock(&tail).take();
            if status.is_none() {
                last_lines.push(message.clone());
            }
            let what = title.text.clone();
            StepFailed { what, place: title.place.clone(), status: *status, last_lines }.into()
        }
        _ => error,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
