//! Standard output, which is for results, and standard error, which is for people. Both may fail at any time: a reader ends,
//! a disk is full, a terminal is closed. What is printed goes through here or, for
//! people, through [`screen`](super::screen), and a failed write is never a panic.
//!
//! A result that cannot be written is an error; where its reader has ended it is [`Failure::OutputClosed`], which ends the
//! command as SIGPIPE ends other programs. What is said to people is lost without a word: the work goes on.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::Failure;

/// Standard output, without a buffer: what was written has arrived.
#[derive(Debug, Clone, Copy, Default)]
pub struct Output;

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_result(io::stdout().as_fd(), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Another open file that results are written to, as standard output is: `/dev/fd/3`.
#[derive(Debug, Clone, Copy)]
pub struct OpenFile<'a>(pub &'a File);

impl Write for OpenFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_result(self.0.as_fd(), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_result(stream: BorrowedFd, bytes: &[u8]) -> io::Result<usize> {
    write_some(stream, bytes).map_err(|errno| match errno {
        Errno::EPIPE => io::Error::new(io::ErrorKind::BrokenPipe, Failure::OutputClosed),
        errno => errno.into(),
    })
}

/// Writes a result to standard output.
pub fn print(text: &str) -> Result<()> {
    Output.write_all(text.as_bytes()).context("cannot write to standard output")
}

/// Returns text with its colours for a terminal that shows them, and without for all others (NO_COLOR, no-color.org).
pub fn styled(text: &str, stream: &impl IsTerminal) -> String {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    match stream.is_terminal() && !set("NO_COLOR") && !dumb {
        true => text.to_owned(),
        false => plain(text),
    }
}

/// Writes bytes to standard error.
pub(super) fn write_error(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match write_some(io::stderr().as_fd(), bytes) {
            Ok(0) => return,
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// Writes what the stream takes now. A stream that another program has made non-blocking is waited for.
fn write_some(stream: BorrowedFd, bytes: &[u8]) -> Result<usize, Errno> {
    loop {
        match nix::unistd::write(stream, bytes) {
            Err(Errno::EAGAIN) => {
                let _ = poll(&mut [PollFd::new(stream, PollFlags::POLLOUT)], PollTimeout::NONE);
            }
            result => return result,
        }
    }
}

/// Returns text without the escape sequences of terminals (ECMA-48) and without other control characters than the ends of
/// lines: a program's output must not move the cursor of our caller's terminal. Tabs become spaces.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        match next {
            // A control sequence ends in a byte from `@` to `~`, an operating system command in BEL or ESC `\`.
            '\u{1b}' => match rest.next() {
                Some('[') => drop(rest.find(|c| ('@'..='~').contains(c))),
                Some(']') => {
                    while let Some(c) = rest.next() {
                        if c == '\u{7}' || (c == '\u{1b}' && rest.next_if_eq(&'\\').is_some()) {
                            break;
                        }
                    }
                }
                // Of two characters, or of three where the second is an intermediate one.
                Some(' '..='/') => drop(rest.next()),
                _ => {}
            },
            '\t' => plain.push(' '),
            // A progress bar overwrites its line: the last state is what counts.
            '\r' if !matches!(rest.peek(), None | Some('\n')) => {
                plain.truncate(plain.rfind('\n').map_or(0, |end| end + 1));
            }
            '\n' => plain.push(next),
            c if c.is_control() => {}
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn escape_sequences_go_and_text_stays() {
        let text = "\u{1b}[1;31mred\u{1b}[0m\tand\u{1b}]0;title\u{7} \u{1b}]8;;x\u{1b}\\plain\u{1b}(B\u{8}\r\n 1 %\r99 %\rend \u{1b}[2K\u{1b}7…";
        assert_eq!(plain(text), "red and plain\nend …");
        assert_eq!(plain("\u{1b}"), "");
    }
}
