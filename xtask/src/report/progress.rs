//! Live progress on standard error: a moving line per stage on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use snug_ext4::Meter;

use super::streams;

pub use snug_ext4::size::human_bytes;

/// Off a terminal, a stage reports that it still runs at this interval.
const PLAIN_HEARTBEAT: Duration = Duration::from_secs(10);
/// Interval at which a moving line is repainted.
const REPAINT: Duration = Duration::from_millis(100);

/// Where stages are shown. Clones share the same screen.
#[derive(Clone)]
pub struct Progress(Screen);

#[derive(Clone)]
enum Screen {
    Hidden,
    Plain { prefix: String },
    Live { lines: MultiProgress, prefix: String },
}

impl Progress {
    /// Live on a terminal, plain lines elsewhere.
    pub fn on_stderr() -> Self {
        if std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb") {
            Progress(Screen::Live { lines: MultiProgress::new(), prefix: String::new() })
        } else {
            Progress(Screen::Plain { prefix: String::new() })
        }
    }

    /// Shows nothing, for tests and callers with a display of their own.
    pub fn hidden() -> Self {
        Progress(Screen::Hidden)
    }

    /// The same screen, with every stage marked as `name`'s.
    pub fn for_image(&self, name: &str) -> Self {
        let marked = format!("{name}: ");
        Progress(match &self.0 {
            Screen::Hidden => Screen::Hidden,
            Screen::Plain { .. } => Screen::Plain { prefix: marked },
            Screen::Live { lines, .. } => Screen::Live { lines: lines.clone(), prefix: marked },
        })
    }

    /// Prints a line, above any moving ones.
    pub fn note(&self, text: impl AsRef<str>) {
        match &self.0 {
            Screen::Hidden => {}
            Screen::Plain { .. } => print_line(text.as_ref()),
            Screen::Live { lines, .. } => lines.suspend(|| print_line(text.as_ref())),
        }
    }

    /// Starts a stage, which ends with [`Stage::finish`]. A stage that is dropped before that is shown as failed.
    pub fn stage(&self, title: impl Into<String>) -> Stage {
        let title = title.into();
        let show = match &self.0 {
            Screen::Hidden => Show::Hidden,
            Screen::Plain { prefix } => {
                print_line(&format!("{prefix}{title} …"));
                Show::Plain { label: format!("{prefix}{title}") }
            }
            Screen::Live { lines, prefix } => {
                let line = lines.add(ProgressBar::new_spinner());
                line.set_style(style("{spinner:.cyan} {prefix} {elapsed:.dim} {wide_msg:.dim}"));
                line.set_prefix(format!("{prefix}{title}"));
                line.enable_steady_tick(REPAINT);
                Show::Live { line, label: format!("{prefix}{title}"), lines: lines.clone() }
            }
        };
        let state = State { bytes: 0, total: None, also: 0, last_said: Instant::now() };
        Stage { show, started: Instant::now(), state: Arc::new(Mutex::new(state)), finished: false }
    }
}

/// One running piece of work on the screen.
pub struct Stage {
    show: Show,
    started: Instant,
    state: Arc<Mutex<State>>,
    finished: bool,
}

enum Show {
    Hidden,
    Plain { label: String },
    Live { line: ProgressBar, label: String, lines: MultiProgress },
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
        let pace = match &self.show {
            Show::Hidden => return,
            Show::Plain { .. } => PLAIN_HEARTBEAT,
            Show::Live { .. } => REPAINT,
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
        self.say(&mut self.state.lock().expect("no panic while locked"), text);
    }

    fn say(&self, state: &mut State, text: &str) {
        match &self.show {
            Show::Hidden => {}
            Show::Plain { label } => {
                if state.last_said.elapsed() >= PLAIN_HEARTBEAT {
                    state.last_said = Instant::now();
                    print_line(&format!("{label} … {} {text}", human_duration(self.started.elapsed())));
                }
            }
            Show::Live { line, .. } => {
                state.last_said = Instant::now();
                line.set_message(text.to_owned());
            }
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
        match &self.show {
            Show::Hidden => {}
            Show::Plain { label } => print_line(&format!("{mark} {label}: {time}{gap}{summary}")),
            Show::Live { line, label, lines } => {
                line.finish_and_clear();
                lines.suspend(|| print_line(&format!("{mark} {label}: {time}{gap}{summary}")));
            }
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

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates are constants")
}

fn print_line(text: &str) {
    streams::say(text);
}

/// `0.4 s`, `17.5 s`, `2 min 05 s`
pub fn human_duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 100.0 {
        format!("{seconds:.1} s")
    } else {
        let whole = time.as_secs();
        format!("{} min {:02} s", whole / 60, whole % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_well() {
        assert_eq!(human_duration(Duration::from_millis(17_480)), "17.5 s");
        assert_eq!(human_duration(Duration::from_secs(125)), "2 min 05 s");
    }
}
