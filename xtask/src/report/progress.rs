//! Live progress on standard error: a moving line per stage on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use snug_ext4::Meter;

use super::escapes::plain;
use super::screen::{Moving, REPAINT};
use super::{screen, shell};

pub use super::amounts::{human_bytes, human_duration};

/// How long work goes on before somebody wonders what is going on.
const PATIENCE: Duration = Duration::from_secs(1);
/// Off a terminal, a stage reports that it still runs at this interval.
const PLAIN_HEARTBEAT: Duration = Duration::from_secs(10);

/// How much is said on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Volume {
    /// Warnings and errors.
    Quiet,
    /// What is done, as well.
    Normal,
    /// The commands that run and what they print, as well.
    Verbose,
}

/// The command line's.
static VOLUME: OnceLock<Volume> = OnceLock::new();

/// Sets how much is said, once, before anything is.
pub fn set_volume(volume: Volume) {
    let _ = VOLUME.set(volume);
}

/// How much is said.
pub fn volume() -> Volume {
    VOLUME.get().copied().unwrap_or(Volume::Normal)
}

/// Says something that is neither warning nor error, unless that is not wanted.
pub fn note(text: &str) {
    if volume() > Volume::Quiet {
        screen::say(text);
    }
}

/// Says what the user should look at, also where little is to be said.
pub fn warn(text: &str) {
    screen::say(text);
}

/// Where stages are shown. Clones share the same screen.
#[derive(Clone)]
pub struct Progress {
    kind: Kind,
    prefix: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Hidden,
    /// Warnings and errors.
    Quiet,
    /// A line when a stage begins, one when it ends, and one now and then.
    Plain,
    /// As plain, with every line that the programs print.
    Verbose,
    /// A moving line on a terminal.
    Live,
}

impl Progress {
    /// Live on a terminal, plain lines elsewhere.
    pub fn on_stderr() -> Self {
        let moves = || std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let kind = match volume() {
            Volume::Quiet => Kind::Quiet,
            Volume::Verbose => Kind::Verbose,
            Volume::Normal if moves() => Kind::Live,
            Volume::Normal => Kind::Plain,
        };
        Progress { kind, prefix: String::new() }
    }

    /// Shows nothing, for tests and callers with a display of their own.
    pub fn hidden() -> Self {
        Progress { kind: Kind::Hidden, prefix: String::new() }
    }

    /// The same screen, with every stage marked as `name`'s.
    pub fn for_image(&self, name: &str) -> Self {
        Progress { kind: self.kind, prefix: format!("{name}: ") }
    }

    /// Says what is done, and why. Warnings and errors have [a method](Self::warn) of their own.
    pub fn note(&self, text: impl AsRef<str>) {
        if !matches!(self.kind, Kind::Hidden | Kind::Quiet) {
            screen::say(text.as_ref());
        }
    }

    /// Says what the user should look at, also where little is to be said.
    pub fn warn(&self, text: impl AsRef<str>) {
        if self.kind != Kind::Hidden {
            screen::say(text.as_ref());
        }
    }

    /// Says which command runs where that is wanted.
    pub fn command(&self, words: &[impl AsRef<str>]) {
        if self.kind == Kind::Verbose {
            screen::say(&format!("{}{}", self.prefix, as_typed(words)));
        }
    }

    /// Does work that nearly always takes moments. It is shown as a stage once it takes longer.
    pub fn aside<T: Send>(&self, title: &str, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let (working, ended) = mpsc::channel::<()>();
            let worker = scope.spawn(move || {
                let result = work();
                drop(working);
                result
            });
            if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                let stage = self.stage(title);
                while ended.recv_timeout(PLAIN_HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                    stage.detail("");
                }
                stage.finish("");
            }
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a stage, which ends with [`Stage::finish`]. A stage that is dropped before that is shown as failed.
    pub fn stage(&self, title: impl Into<String>) -> Stage {
        let label = plain(&format!("{}{}", self.prefix, title.into()));
        let moving = match self.kind {
            Kind::Hidden | Kind::Quiet => None,
            Kind::Plain | Kind::Verbose => {
                screen::say(&going_on(&label));
                None
            }
            Kind::Live => Some(Moving::begin(&label)),
        };
        let state = State { bytes: 0, total: None, also: 0, last_said: Instant::now() };
        let prefix = self.prefix.clone();
        Stage {
            kind: self.kind,
            prefix,
            label,
            moving,
            started: Instant::now(),
            state: Mutex::new(state),
            finished: false,
        }
    }
}

/// A command as it is typed at a prompt.
pub fn as_typed(words: &[impl AsRef<str>]) -> String {
    format!("$ {}", shell::line(words))
}

/// The label of work that is not done yet; one that was shortened ends so anyway.
fn going_on(label: &str) -> String {
    format!("{} …", label.trim_end_matches(" …"))
}

/// One running piece of work on the screen.
pub struct Stage {
    kind: Kind,
    prefix: String,
    label: String,
    moving: Option<Moving>,
    started: Instant,
    state: Mutex<State>,
    finished: bool,
}

struct State {
    bytes: u64,
    total: Option<u64>,
    /// Bytes beyond `total`.
    also: u64,
    last_said: Instant,
}

impl Meter for Stage {
    fn expect_bytes(&self, total: u64) {
        Stage::expect_bytes(self, total);
    }

    fn advance(&self, bytes: u64) {
        Stage::advance(self, bytes);
    }
}

impl Stage {
    /// Sets the number of bytes that the stage will process.
    pub fn expect_bytes(&self, total: u64) {
        self.state.lock().expect("no panic while locked").total = Some(total);
    }

    /// Adds bytes of other work that the stage does at the same time to those that it will process.
    pub fn expect_also(&self, bytes: u64) {
        self.state.lock().expect("no panic while locked").also += bytes;
    }

    /// Adds to the bytes done.
    pub fn advance(&self, bytes: u64) {
        let mut state = self.state.lock().expect("no panic while locked");
        state.bytes += bytes;
        self.say_bytes(&mut state);
    }

    /// Sets the bytes done.
    pub fn advance_to(&self, bytes: u64) {
        let mut state = self.state.lock().expect("no panic while locked");
        state.bytes = bytes;
        self.say_bytes(&mut state);
    }

    /// Shows the bytes done, no more often than a person can read: this is called for every write.
    fn say_bytes(&self, state: &mut State) {
        let pace = match self.kind {
            Kind::Hidden | Kind::Quiet => return,
            Kind::Plain | Kind::Verbose => PLAIN_HEARTBEAT,
            Kind::Live => REPAINT,
        };
        if state.last_said.elapsed() < pace {
            return;
        }
        let amount = match state.total {
            Some(total) => format!("{} of {}", human_bytes(state.bytes), human_bytes(total + state.also)),
            None => human_bytes(state.bytes),
        };
        self.say(state, &amount);
    }

    /// Bytes done so far.
    pub fn bytes(&self) -> u64 {
        self.state.lock().expect("no panic while locked").bytes
    }

    /// Shows what the stage is doing, such as the last line of a program's output.
    pub fn detail(&self, text: &str) {
        if self.kind == Kind::Verbose {
            screen::say(&format!("{}| {}", self.prefix, plain(text)));
        } else {
            self.say(&mut self.state.lock().expect("no panic while locked"), text);
        }
    }

    fn say(&self, state: &mut State, text: &str) {
        if let Some(moving) = &self.moving {
            state.last_said = Instant::now();
            moving.detail(text);
        } else if matches!(self.kind, Kind::Plain | Kind::Verbose) && state.last_said.elapsed() >= PLAIN_HEARTBEAT {
            state.last_said = Instant::now();
            let time = human_duration(self.started.elapsed());
            screen::say(format!("{} {time} {}", going_on(&self.label), plain(text)).trim_end());
        }
    }

    /// Time since the stage began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Ends the stage as succeeded. `summary` is shown behind its time; it may be empty.
    pub fn finish(mut self, summary: &str) {
        self.finished = true;
        self.close("✓", summary);
    }

    fn close(&self, mark: &str, summary: &str) {
        let time = human_duration(self.started.elapsed());
        let gap = if summary.is_empty() { "" } else { ", " };
        let text = format!("{mark} {}: {time}{gap}{summary}", self.label);
        match &self.moving {
            Some(moving) => moving.end(&text),
            None if matches!(self.kind, Kind::Plain | Kind::Verbose) => screen::say(&text),
            None => {}
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.finished {
            self.close("✗", "not finished");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_has_one_ellipsis() {
        assert_eq!(going_on("apt: git"), "apt: git …");
        assert_eq!(going_on("apt: git …"), "apt: git …");
    }

    #[test]
    fn commands_are_shown_as_they_are_typed() {
        assert_eq!(as_typed(&["sh", "-c", "echo \"it's\"", "", "a=b"]), r#"$ sh -c 'echo "it'\''s"' '' a=b"#);
    }
}
