//! Standard output, which is for results, and standard error, which is for people. Both may fail at any time: a reader ends,
//! a disk is full, a terminal is closed. What is printed goes through here or, for
//! people, through [`screen`](super::screen), and a failed write is never a panic. What a terminal or a log would obey is
//! [escaped](super::escapes) on the way, except in results that are files of their own: a tar, a list of contents.
//!
//! A result that cannot be written is an error; where its reader has ended it is [`Failure::OutputClosed`], which ends the
//! command as SIGPIPE ends other programs. What is said to people is lost without a word: the work goes on.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::escapes::{plain, visible, with_styles};
use super::{github, proxies};
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
    print_shown(&visible(text))
}

/// As [`print()`], with the styles that the text has.
pub fn print_styled(text: &str) -> Result<()> {
    print_shown(&with_styles(text))
}

fn print_shown(text: &str) -> Result<()> {
    Output.write_all(github::harmless(&proxies::mask(text)).as_bytes()).context("cannot write to standard output")
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

/// Writes bytes to standard error, as they are.
pub(super) fn write_error(bytes: &[u8]) {
    begin_fence();
    write_all_to_error(bytes);
}

/// Has a runner of GitHub obey nothing that is printed from now on; to be called before another program gets the streams.
pub fn begin_fence() {
    if let Some(line) = github::begin() {
        write_all_to_error(line.as_bytes());
    }
}

/// Ends what [`begin_fence`] or a first message began. Whatever is said later begins it anew.
pub fn end_fence() {
    if let Some(line) = github::end() {
        write_all_to_error(line.as_bytes());
    }
}

fn write_all_to_error(mut bytes: &[u8]) {
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
