//! A pseudo-terminal for a shell in the namespace, so that what runs there can neither type into the caller's terminal nor
//! change its settings.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use snug_process::terminal::Settings;

/// The file descriptor by which the child inherits the shell's end.
pub(super) const INHERITED: i32 = 3;

/// How often the size of the caller's window is compared, in milliseconds.
const WINDOW_PACE: u16 = 250;
/// How long the signal of a hangup may take to come after the terminal has gone: far longer than it does. It ends the tool.
const HANGUP_TIME: Duration = Duration::from_secs(2);

/// The caller's end of a pseudo-terminal.
#[derive(Debug)]
pub struct Terminal(File);

/// The shell's end of a pseudo-terminal.
#[derive(Debug)]
pub struct ShellEnd(OwnedFd);

impl Terminal {
    /// Opens a pseudo-terminal with the settings and size of the caller's. Fails if standard input is no terminal.
    pub fn open() -> Result<(Self, ShellEnd)> {
        let settings = tcgetattr(io::stdin()).context("cannot read the terminal's settings")?;
        let (ours, theirs) = open_pair().context("cannot open a pseudo-terminal")?;
        tcsetattr(&theirs, SetArg::TCSANOW, &settings).context("cannot set the pseudo-terminal")?;
        set_window(&ours, window(&io::stdin()));
        Ok((Terminal(ours), ShellEnd(theirs)))
    }

    /// Copies between the caller's terminal and the shell, until no process has the shell's end open.
    pub fn attach(self) -> Result<()> {
        let mut ours = self.0;
        let _kept = raw()?;
        let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let mut output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let mut bytes = [0; 4096];
        let mut size = window(&io::stdin());
        loop {
            let mut sources =
                [PollFd::new(ours.as_fd(), PollFlags::POLLIN), PollFd::new(input.as_fd(), PollFlags::POLLIN)];
            match poll(&mut sources, PollTimeout::from(WINDOW_PACE)) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(errno).context("cannot wait for the terminal"),
            }
            let ready = |place: usize| sources.get(place).is_some_and(|source| source.any().unwrap_or(false));
            let (printed, typed) = (ready(0), ready(1));
            if printed {
                // EIO: no process has the shell's end open any more.
                match ours.read(&mut bytes) {
                    Ok(0) | Err(_) => return Ok(()),
                    Ok(count) if output.write_all(&bytes[..count]).is_err() => return hung_up(),
                    Ok(_) => {}
                }
            }
            if typed {
                match input.read(&mut bytes) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // In raw mode no key ends the input: the terminal is gone.
                    Ok(0) | Err(_) => return hung_up(),
                    Ok(count) => ours.write_all(&bytes[..count])?,
                }
            }
            let now = window(&io::stdin());
            if now != size {
                size = now;
                set_window(&ours, size);
            }
        }
    }
}

/// Waits for the signal that comes with the end of a terminal, which its reader may see first. Where none comes, closing our
/// end of the shell's terminal ends the shell.
fn hung_up() -> Result<()> {
    thread::sleep(HANGUP_TIME);
    Ok(())
}

impl ShellEnd {
    /// Has the command inherit it as file descriptor [`INHERITED`].
    pub(super) fn hand_to(&self, command: &mut Command) {
        let theirs = self.0.as_raw_fd();
        // SAFETY: both calls are safe between fork and exec. The descriptor that dup2 makes is not closed on exec; where it
        // is the same one, the flag is cleared.
        unsafe {
            command.pre_exec(move || {
                let answer = match theirs {
                    INHERITED => libc::fcntl(theirs, libc::F_SETFD, 0),
                    _ => libc::dup2(theirs, INHERITED),
                };
                if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
            });
        }
    }
}

/// Returns the two ends of a new pseudo-terminal. No process inherits them by chance: one that had our end open would keep
/// the shell from its end.
fn open_pair() -> Result<(File, OwnedFd)> {
    let ours = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let theirs = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(ptsname_r(&ours)?)?;
    Ok((File::from(OwnedFd::from(ours)), theirs.into()))
}

fn set_window(terminal: &impl AsFd, size: Winsize) {
    // SAFETY: the descriptor is open and the pointer is to a whole structure.
    unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
}

fn window(terminal: &impl AsFd) -> Winsize {
    let mut size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open and the pointer is to a whole structure, which stays as it is on an error.
    unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    size
}

/// Sets the caller's terminal to raw mode, until the result is dropped or a signal ends the tool.
fn raw() -> Result<Settings> {
    let kept = Settings::keep().context("standard input is no terminal")?;
    let mut raw = kept.get().clone();
    cfmakeraw(&mut raw);
    tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).context("cannot set the terminal")?;
    Ok(kept)
}

/// Has commands not inherit the shell's end.
pub(super) fn keep_from_commands() -> Result<()> {
    // SAFETY: fcntl takes numbers and touches no memory.
    let answer = unsafe { libc::fcntl(INHERITED, libc::F_SETFD, libc::FD_CLOEXEC) };
    ensure!(answer >= 0, "the terminal was not inherited: {}", io::Error::last_os_error());
    Ok(())
}

/// Makes the inherited end the controlling terminal of the command, in a session of its own.
pub(super) fn give_to(command: &mut Command) {
    // SAFETY: all of these are safe between fork and exec.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            if libc::ioctl(INHERITED, libc::TIOCSCTTY, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            for stream in 0..3 {
                if libc::dup2(INHERITED, stream) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}
