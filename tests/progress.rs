//! The moving lines on a terminal, seen through a small one: whatever its width, and also where that changes, nothing of
//! them is left.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;
use snug_tests::{Workshop, have};

use super::streams::on_terminal;

/// A terminal (ECMA-48) with what the tool uses: rows of cells, a cursor, and a window whose width changes.
struct Screen {
    columns: usize,
    /// Whether rows that were broken are joined and broken anew where the width changes, or all are cut.
    reflows: bool,
    rows: Vec<Row>,
    row: usize,
    column: usize,
    wraps: bool,
    /// What came of an escape sequence.
    pending: String,
}

#[derive(Clone, Default)]
struct Row {
    cells: Vec<char>,
    /// Whether the next row continues it.
    broken: bool,
}

/// Ends a painting: lines are broken again.
const WRAP_ON: &[u8] = b"\x1b[?7h";

/// Stands in the second cell of a wide character.
const REST: char = '\0';

impl Screen {
    fn new(columns: usize, reflows: bool) -> Self {
        let rows = vec![Row::default()];
        Screen { columns, reflows, rows, row: 0, column: 0, wraps: true, pending: String::new() }
    }

    fn take(&mut self, text: &str) {
        for next in text.chars() {
            if !self.pending.is_empty() {
                self.pending.push(next);
                let over = self.pending.len() > 2 && ('@'..='~').contains(&next);
                if over {
                    let sequence = std::mem::take(&mut self.pending);
                    self.control(&sequence[2..]);
                }
                continue;
            }
            match next {
                '\u{1b}' => self.pending.push(next),
                '\r' => self.column = 0,
                '\n' => self.down(),
                _ => self.put(next),
            }
        }
    }

    fn down(&mut self) {
        self.row += 1;
        if self.row == self.rows.len() {
            self.rows.push(Row::default());
        }
    }

    fn put(&mut self, next: char) {
        let width = if ('\u{2e80}'..'\u{fb00}').contains(&next) { 2 } else { 1 };
        if self.column + width > self.columns {
            if !self.wraps {
                self.column = self.columns - width;
            } else {
                self.rows[self.row].broken = true;
                self.down();
                self.column = 0;
            }
        }
        let cells = &mut self.rows[self.row].cells;
        cells.resize(cells.len().max(self.column + width), ' ');
        cells[self.column] = next;
        if width == 2 {
            cells[self.column + 1] = REST;
        }
        self.column += width;
    }

    fn control(&mut self, sequence: &str) {
        match sequence {
            "K" => self.clear_row(),
            "J" => {
                self.clear_row();
                self.rows.truncate(self.row + 1);
            }
            "?7l" => self.wraps = false,
            "?7h" => self.wraps = true,
            _ if sequence.ends_with('m') => {}
            _ => {
                let up: usize = sequence.strip_suffix('A').and_then(|count| count.parse().ok()).expect("a sequence");
                self.row = self.row.checked_sub(up).expect("rows above");
            }
        }
    }

    fn clear_row(&mut self) {
        let row = &mut self.rows[self.row];
        row.cells.truncate(self.column);
        row.broken = false;
    }

    fn resize(&mut self, columns: usize) {
        self.columns = columns;
        if !self.reflows {
            self.rows.iter_mut().for_each(|row| row.cells.truncate(columns));
            self.column = self.column.min(columns - 1);
            return;
        }
        let old = std::mem::take(&mut self.rows);
        let (mut line, mut cursor) = (Vec::new(), None);
        for (number, row) in old.into_iter().enumerate() {
            if number == self.row {
                cursor = Some(line.len() + self.column);
            }
            line.extend(row.cells);
            if row.broken {
                continue;
            }
            let first = self.rows.len();
            if let Some(at) = cursor.take() {
                (self.row, self.column) = (first + at / columns, at % columns);
            }
            let pieces: Vec<Vec<char>> = line.chunks(columns).map(<[char]>::to_vec).collect();
            let count = pieces.len().max(1);
            self.rows.resize(first + count, Row::default());
            for (at, cells) in pieces.into_iter().enumerate() {
                self.rows[first + at] = Row { cells, broken: at + 1 < count };
            }
            line.clear();
        }
    }

    /// The lines as they were written, without those that are empty.
    fn lines(&self) -> Vec<String> {
        let mut lines = vec![String::new()];
        for row in &self.rows {
            let text: String = row.cells.iter().filter(|cell| **cell != REST).collect();
            *lines.last_mut().expect("a line") += &text;
            if !row.broken {
                lines.push(String::new());
            }
        }
        lines.retain(|line| !line.trim().is_empty());
        lines
    }
}

fn set_width(terminal: &OwnedFd, columns: usize) {
    let size = libc::winsize { ws_row: 24, ws_col: columns as u16, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open and the pointer is to a whole structure.
    assert_eq!(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }, 0);
}

/// Builds two images at a time in windows of these widths, one after the other, and returns the screen.
fn build(widths: &[usize], reflows: bool) -> Vec<String> {
    let workshop = Workshop::new();
    // Output as programs print it: colours, tabs, wide characters, and lines that are far too long.
    let said = "\\u001b[31m東京都庁 is a line\\t of output that is longer than the window, whatever its width is";
    for name in ["first", "second"] {
        workshop.spec(name, &format!("run = [\"for n in $(seq 30); do echo '{said}'; sleep 0.05; done\"]"));
    }
    let (mut running, terminal) = on_terminal(&workshop, &["image", "first", "second", "--jobs", "2"], &|terminal| {
        set_width(terminal, widths[0])
    });
    let mut screen = Screen::new(widths[0], reflows);
    let mut output = File::from(terminal.try_clone().expect("a terminal"));
    let (mut bytes, mut read, mut pending, mut next_resize) = (vec![0; 65536], 0, Vec::new(), 10);
    let mut widths = widths.iter().skip(1);
    let mut moved = false;
    while let Ok(count @ 1..) = output.read(&mut bytes) {
        read += 1;
        pending.extend_from_slice(&bytes[..count]);
        let valid = pending.utf8_chunks().next().map_or(0, |chunk| chunk.valid().len());
        moved |= String::from_utf8_lossy(&pending).contains("⠙");
        screen.take(std::str::from_utf8(&pending[..valid]).expect("text"));
        // A read may end amid the bytes of one painting, where the cursor does not rest: no terminal could break lines there
        // without leaving something behind.
        let rests = pending.ends_with(WRAP_ON);
        pending.drain(..valid);
        if read >= next_resize
            && rests
            && let Some(&width) = widths.next()
        {
            next_resize = read + 10;
            // What was painted for the old width is on the way: the terminal takes it first.
            set_width(&terminal, width);
            screen.resize(width);
        }
    }
    assert!(running.process.wait().expect("a child").success(), "{:?}", screen.lines());
    assert!(moved, "nothing moved");
    screen.lines()
}

#[test]
fn moving_lines_leave_nothing_behind_in_a_window_of_any_width() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    for (widths, reflows) in [
        (&[80][..], false),
        (&[60], false),
        (&[20], false),
        (&[100, 40, 60, 20, 90], true),
        (&[100, 40, 60, 20, 90], false),
    ] {
        let lines = build(widths, reflows);
        let permanent = ["note: ", "first: ", "second: ", "✓ ", "image ", "first ", "second "];
        let garbage: Vec<_> =
            lines.iter().filter(|line| !permanent.iter().any(|start| line.starts_with(start))).collect();
        // A window that is cut loses the ends of its lines, and a later line that is broken there is no garbage.
        assert!(garbage.is_empty(), "{widths:?}, {reflows}: {lines:#?}");
        let spinner = |line: &String| line.contains(|c| ('\u{2800}'..'\u{2900}').contains(&c));
        assert!(!lines.iter().any(spinner), "{widths:?}, {reflows}: {lines:#?}");
        assert!(lines.iter().filter(|line| line.starts_with('✓')).count() >= 6, "{lines:#?}");
    }
}
