//! Standard error: what is said to people, and the lines at the end of a terminal that move while work runs.
//!
//! The cursor rests at the beginning of the first of them. So they are erased by clearing the screen from the cursor on,
//! however the terminal broke or cut them when its window became narrower, and nothing above them is touched.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::amounts::human_duration;
use super::escapes::{plain, visible, with_styles};
use super::{proxies, streams};

/// Interval at which the lines are painted.
pub(super) const REPAINT: Duration = Duration::from_millis(100);
/// What is moving shows that the program lives.
const SPINNER: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
/// The size of a terminal that does not tell it.
const UNKNOWN_SIZE: (usize, usize) = (80, 24);

// Control sequences (ECMA-48; the last two are DEC's private mode 7).
const CLEAR_TO_END_OF_LINE: &str = "\x1b[K";
const CLEAR_TO_END_OF_SCREEN: &str = "\x1b[J";
const CYAN: &str = "\x1b[36m";
const DIM: &str = "\x1b[2m";
const DEFAULT_STYLE: &str = "\x1b[0m";
/// Between these, a line that is too long is cut and not broken.
const WRAP_OFF: &str = "\x1b[?7l";
const WRAP_ON: &str = "\x1b[?7h";

/// What is shown. It is locked for moments only, never while something is written: work must not wait for a terminal.
static SHOWN: Mutex<Shown> = Mutex::new(Shown { lines: BTreeMap::new(), next: 0, painting: false });

/// Held while something is written to the terminal.
static TERMINAL: Mutex<Terminal> = Mutex::new(Terminal { painted: false, closed: false });

struct Shown {
    lines: BTreeMap<u64, Line>,
    next: u64,
    /// Whether the thread runs that paints.
    painting: bool,
}

struct Terminal {
    /// Whether there are lines below the cursor.
    painted: bool,
    /// Whether nothing is painted any more.
    closed: bool,
}

#[derive(Debug, Clone)]
struct Line {
    label: String,
    detail: String,
    started: Instant,
}

/// A moving line on the screen.
#[derive(Debug)]
pub(super) struct Moving(u64);

impl Moving {
    pub(super) fn begin(label: &str) -> Self {
        let mut shown = lock(&SHOWN);
        let key = shown.next;
        shown.next += 1;
        let line = Line { label: in_a_line(label), detail: String::new(), started: Instant::now() };
        shown.lines.insert(key, line);
        if !shown.painting {
            shown.painting = thread::Builder::new().name("progress".to_owned()).spawn(keep_painting).is_ok();
        }
        Moving(key)
    }

    /// Shows the last line of `text` behind the label.
    pub(super) fn detail(&self, text: &str) {
        if let Some(line) = lock(&SHOWN).lines.get_mut(&self.0) {
            line.detail = in_a_line(text.lines().next_back().unwrap_or_default());
        }
    }

    /// Removes the line and writes `text` in its place.
    pub(super) fn end(&self, text: &str) {
        lock(&SHOWN).lines.remove(&self.0);
        say(text);
    }
}

/// Writes text and the end of its line to standard error, above the moving lines.
pub fn say(text: &str) {
    say_shown(&visible(text));
}

/// As [`say`], with the styles that the text has.
pub fn say_styled(text: &str) {
    say_shown(&with_styles(text));
}

fn say_shown(text: &str) {
    let text = proxies::mask(text);
    let mut terminal = lock(&TERMINAL);
    let mut written = String::new();
    if terminal.painted {
        written = format!("\r{CLEAR_TO_END_OF_SCREEN}");
        terminal.painted = false;
    }
    written += &text;
    written.push('\n');
    if !terminal.closed {
        let lines: Vec<Line> = lock(&SHOWN).lines.values().cloned().collect();
        terminal.painted = !lines.is_empty();
        written += &painted(&lines, size());
    }
    streams::write_error(written.as_bytes());
}

/// As [`say`], and paints no moving lines from then on. The process may end at any moment after it.
pub fn say_last(text: &str) {
    lock(&TERMINAL).closed = true;
    say(text);
    streams::end_fence();
}

/// What a program says, as a part of a moving line.
fn in_a_line(text: &str) -> String {
    visible(&plain(&proxies::mask(text))).into_owned()
}

fn keep_painting() {
    loop {
        thread::sleep(REPAINT);
        let mut terminal = lock(&TERMINAL);
        let mut shown = lock(&SHOWN);
        if shown.lines.is_empty() || terminal.closed {
            shown.painting = false;
            return;
        }
        let lines: Vec<Line> = shown.lines.values().cloned().collect();
        drop(shown);
        terminal.painted = true;
        streams::write_error(painted(&lines, size()).as_bytes());
    }
}

/// The bytes that paint the lines over what is there, and leave the cursor at the beginning of the first.
fn painted(lines: &[Line], (columns, rows): (usize, usize)) -> String {
    if lines.is_empty() {
        return String::new();
    }
    // The last column stays free: some terminals go on to the next row as soon as it is written.
    let width = columns.saturating_sub(1).max(1);
    // So does the last row.
    let room = rows.saturating_sub(1).max(1);
    let mut texts: Vec<String> = lines.iter().take(room).map(|line| line.shown(width)).collect();
    if lines.len() > room
        && let Some(last) = texts.last_mut()
    {
        *last = cut(&format!("… and {} more", lines.len() - room + 1), width).into_owned();
    }
    let up = match texts.len() {
        1 => String::new(),
        count => format!("\x1b[{}A", count - 1),
    };
    let between = format!("{CLEAR_TO_END_OF_LINE}\r\n");
    format!("{WRAP_OFF}\r{}{CLEAR_TO_END_OF_LINE}{CLEAR_TO_END_OF_SCREEN}{up}\r{WRAP_ON}", texts.join(&between))
}

impl Line {
    /// The line in at most `width` columns: of a long label the beginning, and its time.
    fn shown(&self, width: usize) -> String {
        let elapsed = self.started.elapsed();
        let spinner = SPINNER[(elapsed.as_millis() / REPAINT.as_millis()) as usize % SPINNER.len()];
        let mut text = format!("{CYAN}{spinner}{DEFAULT_STYLE}");
        let mut left = width - 1;
        let time = human_duration(elapsed);
        let label = cut(&self.label, left.saturating_sub(time.width() + 2));
        for (style, part) in [("", &*label), (DIM, &time), (DIM, &self.detail)] {
            let part = cut(part, left.saturating_sub(1));
            if !part.is_empty() {
                left -= part.width() + 1;
                let _ = write!(text, " {style}{part}{DEFAULT_STYLE}");
            }
        }
        text
    }
}

/// Returns the text, or as much of its beginning as fits into `columns` with an ellipsis. A character may take no column, one
/// or two.
fn cut(text: &str, columns: usize) -> std::borrow::Cow<'_, str> {
    if text.width() <= columns {
        return text.into();
    }
    let (mut kept, mut taken) = (String::new(), 1);
    if columns == 0 {
        return kept.into();
    }
    for next in text.chars() {
        taken += next.width().unwrap_or(0);
        if taken > columns {
            break;
        }
        kept.push(next);
    }
    kept.push('…');
    kept.into()
}

/// Columns and rows of the terminal on standard error, as they are now.
fn size() -> (usize, usize) {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the pointer is to a whole structure, which stays as it is on an error.
    unsafe { libc::ioctl(std::io::stderr().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    let or = |told: u16, unknown| if told == 0 { unknown } else { usize::from(told) };
    (or(size.ws_col, UNKNOWN_SIZE.0), or(size.ws_row, UNKNOWN_SIZE.1))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(label: &str, detail: &str) -> Line {
        Line { label: label.to_owned(), detail: detail.to_owned(), started: Instant::now() }
    }

    #[test]
    fn text_is_cut_by_columns_and_not_by_bytes_or_characters() {
        assert_eq!(cut("naïve", 5), "naïve");
        assert_eq!(cut("naïveté", 5), "naïv…");
        assert_eq!(cut("東京都庁", 8), "東京都庁");
        assert_eq!(cut("東京都庁", 7), "東京都…");
        assert_eq!(cut("東京都庁", 6), "東京…");
        assert_eq!(cut("e\u{301}e\u{301}e\u{301}", 2), "e\u{301}…");
        assert_eq!(cut("text", 1), "…");
        assert_eq!(cut("text", 0), "");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_a_narrow_one_still_shows_the_time() {
        let long = line("bookworm-minimal: mmdebstrap 東京 bookworm (minbase)", "I: running --setup-hook 東京都庁");
        for columns in 1..130 {
            let shown = long.shown(columns);
            assert!(plain(&shown).width() <= columns, "{columns}: {shown:?}");
        }
        assert_eq!(plain(&long.shown(19)), "⠋ bookworm-m… 0.0 s");
        let rows = painted(&vec![long; 9], (40, 4));
        assert_eq!(rows.matches("\r\n").count(), 2);
        assert!(rows.contains("… and 7 more") && rows.contains("\x1b[2A\r"), "{rows:?}");
    }
}
