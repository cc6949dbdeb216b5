//! Processes that never outlive their parent, and what they say.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use std::{mem, thread};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, getpid, getppid};

use crate::interrupt::{self, Registered};

/// Lines of a failing program's standard error that are worth showing.
const STDERR_LINES: usize = 12;
/// A line longer than this is cut: some programs print whole progress bars in one.
const STDERR_LINE_BYTES: usize = 2048;

/// A running process. It is killed when its parent ends, when a signal ends the tool ([`interrupt`]), and when this is
/// dropped before the process has ended.
///
/// As in [`std::process::Child`], the pipes that the command asked for are fields to take.
#[derive(Debug)]
pub struct Child {
    /// The writing end of the process's standard input, if that is a pipe.
    pub stdin: Option<ChildStdin>,
    /// The reading end of the process's standard output, if that is a pipe.
    pub stdout: Option<ChildStdout>,
    /// The reading end of the process's standard error, if that is a pipe.
    pub stderr: Option<ChildStderr>,
    name: String,
    process: std::process::Child,
    ended: Option<ExitStatus>,
    registered: Registered,
}

/// The signal that a process gets when its parent ends (`PR_SET_PDEATHSIG`, prctl(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeathSignal {
    /// SIGKILL.
    #[default]
    Kill,
    /// SIGTERM, for a program that has to clear up after itself: a client of a daemon, for one.
    Terminate,
}

/// What a process took, with its own children as far as it waited for them (getrusage(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// User and system time.
    pub cpu: Duration,
    /// Largest resident set, in bytes.
    pub peak_memory: u64,
}

/// Is told of every command before it starts.
static OBSERVER: OnceLock<fn(&Command)> = OnceLock::new();

/// Has `observe` called with every command before it starts, except those that clear up after a signal; the first such function
/// is kept.
pub fn on_start(observe: fn(&Command)) {
    let _ = OBSERVER.set(observe);
}

/// A program that cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {program}")]
pub struct StartError {
    /// The program's name, without its folder.
    pub program: String,
    /// Why.
    pub source: io::Error,
}

/// Has a command start without what the caller of this program left to it beside the standard streams: descriptors that it has
/// open, and its session keyring (keyrings(7)), in whose place a new one comes where the kernel gives one. For commands that run
/// what strangers wrote. Descriptors that are to be inherited are for a later `pre_exec` of the command to make.
pub fn leave_inheritance(command: &mut Command) -> io::Result<&mut Command> {
    /// KEYCTL_JOIN_SESSION_KEYRING (linux/keyctl.h).
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    // All that this program opens itself is closed on exec: those that are not are here since it was started.
    let names = fs::read_dir("/proc/self/fd")?.map(|entry| entry.map(|entry| entry.file_name()));
    let open: Vec<i32> = names.filter_map(|name| name.ok()?.to_str()?.parse().ok()).filter(|open| *open > 2).collect();
    let leave = move || {
        for descriptor in &open {
            // SAFETY: the call takes numbers; that of a descriptor that is closed by now is an error without effect.
            unsafe { libc::fcntl(*descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
        // SAFETY: without a name, the call touches no memory.
        unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) };
        Ok(())
    };
    // SAFETY: the closure makes system calls, which are safe between fork and exec, and allocates nothing.
    Ok(unsafe { command.pre_exec(leave) })
}

impl Child {
    /// Starts a command. The kernel counts the thread that starts it as its parent: keep that thread alive until the
    /// process has ended.
    pub fn start(command: &mut Command) -> Result<Self, StartError> {
        Self::start_with(command, DeathSignal::Kill)
    }

    /// As [`Self::start`], with the signal that the process gets when its parent ends.
    pub fn start_with(command: &mut Command, signal: DeathSignal) -> Result<Self, StartError> {
        // What a signal is ending starts nothing new.
        interrupt::hold_if_interrupted();
        if let Some(observe) = OBSERVER.get().filter(|_| !interrupt::clears_up()) {
            observe(command);
        }
        let name = name_of(command);
        let signal = match signal {
            DeathSignal::Kill => Signal::SIGKILL,
            DeathSignal::Terminate => Signal::SIGTERM,
        };
        let parent = getpid();
        let die_with_parent = move || {
            set_pdeathsig(signal)?;
            // The parent may have ended before the signal was asked for.
            if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
        };
        // SAFETY: the closure makes two system calls, which are safe between fork and exec, and allocates nothing.
        unsafe { command.pre_exec(die_with_parent) };
        let mut process = match command.spawn() {
            Ok(process) => process,
            Err(source) => return Err(StartError { program: name, source }),
        };
        let registered = interrupt::kill_on_interrupt(process.id());
        let (stdin, stdout, stderr) = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        Ok(Child { stdin, stdout, stderr, name, process, ended: None, registered })
    }

    /// Returns the program's name, without its folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the process's id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Closes the pipe to the process's standard input, if it was not taken, and waits for the end. Does not return where
    /// a signal is ending the tool: that the process was killed is then no failure to report.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.reap()?;
        interrupt::hold_if_interrupted();
        Ok(status)
    }

    /// As [`Self::wait`], with what the process took.
    pub fn wait_with_usage(&mut self) -> io::Result<(ExitStatus, Usage)> {
        self.wait_for_zombie();
        let mut status = 0;
        // SAFETY: a rusage is numbers only, and all zeros is one.
        let mut usage: libc::rusage = unsafe { mem::zeroed() };
        // SAFETY: both places outlive the call; the process is not reaped yet, so that its id is its own.
        while unsafe { libc::wait4(self.raw_id(), &mut status, 0, &mut usage) } < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        let status = ExitStatus::from_raw(status);
        self.ended = Some(status);
        interrupt::hold_if_interrupted();
        let time = |time: libc::timeval| {
            Duration::from_secs(time.tv_sec.max(0) as u64) + Duration::from_micros(time.tv_usec.max(0) as u64)
        };
        let cpu = time(usage.ru_utime) + time(usage.ru_stime);
        // ru_maxrss is in KiB.
        Ok((status, Usage { cpu, peak_memory: usage.ru_maxrss.max(0) as u64 * 1024 }))
    }

    /// Returns the exit status if the process has ended.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.process.try_wait()?;
            if self.ended.is_some() {
                self.registered.forget();
                interrupt::hold_if_interrupted();
            }
        }
        Ok(self.ended)
    }

    /// Reads both output pipes to their ends, and waits.
    pub fn wait_with_output(mut self) -> io::Result<Output> {
        drop(self.stdin.take());
        let (stdout, stderr) = (self.stdout.take(), self.stderr.take());
        let (stdout, stderr) = thread::scope(|scope| {
            let stderr = scope.spawn(|| read_all(stderr));
            (read_all(stdout), stderr.join().expect("reading does not panic"))
        });
        let status = self.wait()?;
        Ok(Output { status, stdout: stdout?, stderr: stderr? })
    }

    /// Kills the process. It still has to be waited for, which dropping this does.
    pub fn kill(&mut self) -> io::Result<()> {
        if self.ended.is_some() { Ok(()) } else { self.process.kill() }
    }

    fn reap(&mut self) -> io::Result<ExitStatus> {
        drop(self.stdin.take());
        if let Some(status) = self.ended {
            return Ok(status);
        }
        self.wait_for_zombie();
        let status = self.process.wait()?;
        self.ended = Some(status);
        Ok(status)
    }

    /// Waits until the process has ended but still holds its id, and takes it out of the register: a signal must not kill
    /// another process that got the id.
    fn wait_for_zombie(&mut self) {
        let id = Pid::from_raw(self.raw_id());
        while waitid(Id::Pid(id), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
        self.registered.forget();
    }

    fn raw_id(&self) -> libc::pid_t {
        // Linux has no id above 2^22.
        self.process.id() as libc::pid_t
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.process.kill();
            let _ = self.reap();
        }
    }
}

/// Runs a command to its end with nothing on its standard input, and returns its exit status and all that it printed.
pub fn output(command: &mut Command) -> Result<Output> {
    let child = Child::start(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let name = child.name.clone();
    child.wait_with_output().with_context(|| format!("cannot read what {name} says"))
}

/// Runs a command to its end, with the streams that it was given or else our own.
pub fn status(command: &mut Command) -> Result<ExitStatus> {
    let mut child = Child::start(command)?;
    child.wait().with_context(|| format!("cannot wait for {}", child.name))
}

/// Runs a command to its end and returns its standard output. Another exit status than 0, or than one of `accepted`,
/// is an error with the last lines of its standard error.
pub fn run(command: &mut Command, accepted: &[i32]) -> Result<Vec<u8>> {
    feed(command, accepted, |_| Ok(()))
}

/// As [`run`], with `write` providing the standard input. Where the program dies early, its own words are the error,
/// not the broken pipe.
pub fn feed(
    command: &mut Command,
    accepted: &[i32],
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<Vec<u8>> {
    feed_any(command.stdout(Stdio::piped()), accepted, write)
}

/// As [`feed`], with the standard output in a file.
pub fn feed_into(command: &mut Command, output: File, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    feed_any(command.stdout(output), &[], write).map(drop)
}

fn feed_any(
    command: &mut Command,
    accepted: &[i32],
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<Vec<u8>> {
    let mut child = Child::start(command.stdin(Stdio::piped()).stderr(Stdio::piped()))?;
    let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (written, said, tail) = thread::scope(|scope| {
        let said = scope.spawn(|| read_all(output));
        let tail = scope.spawn(|| errors.map(last_lines).unwrap_or_default());
        let written = input.map_or(Ok(()), |mut input| write(&mut input));
        (written, said.join().expect("reading does not panic"), tail.join().expect("reading does not panic"))
    });
    let name = child.name.clone();
    let status = child.wait().with_context(|| format!("cannot wait for {name}"))?;

    let accept = status.success() || status.code().is_some_and(|code| accepted.contains(&code));
    match written {
        Err(error) if !is_broken_pipe(&error) => Err(error.context(format!("cannot feed {name}"))),
        Err(error) if accept => Err(error.context(format!("{name} closed its input early{}", indent(&tail)))),
        _ if !accept => bail!("{name} failed with {}{}", describe(status), indent(&tail)),
        _ => said.with_context(|| format!("cannot read what {name} says")),
    }
}

fn name_of(command: &Command) -> String {
    let program = Path::new(command.get_program());
    program.file_name().unwrap_or(OsStr::new("program")).to_string_lossy().into_owned()
}

fn read_all(pipe: Option<impl Read>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|io| io.kind() == io::ErrorKind::BrokenPipe)
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".into(),
    }
}

fn indent(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n  {line}")).collect()
}

fn last_lines(errors: ChildStderr) -> Vec<String> {
    let mut tail = VecDeque::with_capacity(STDERR_LINES);
    let mut reader = BufReader::new(errors);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.by_ref().take(STDERR_LINE_BYTES as u64).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return tail.into(),
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        // A progress bar overwrites its line by carriage returns: its last state is what counts.
        let text = text.trim_end().rsplit('\r').next().unwrap_or_default();
        if !text.is_empty() {
            if tail.len() == STDERR_LINES {
                tail.pop_front();
            }
            tail.push_back(text.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::program::HostProgram;

    fn shell(script: &str) -> Command {
        let mut command = HostProgram { name: "sh", package: "dash" }.command().unwrap();
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failing_program_is_quoted_and_not_its_broken_pipe() {
        let error = feed(&mut shell("echo first >&2; echo why >&2; exit 3"), &[], |input| {
            loop {
                input.write_all(&[0; 65536])?;
            }
        })
        .unwrap_err();
        assert_eq!(error.to_string(), "sh failed with exit status 3\n  first\n  why");
    }

    #[test]
    fn a_program_that_stops_reading_has_not_succeeded() {
        let error = feed(&mut shell("exit 0"), &[], |input| {
            loop {
                input.write_all(&[0; 65536])?;
            }
        })
        .unwrap_err();
        assert_eq!(error.to_string(), "sh closed its input early");
    }

    #[test]
    fn input_and_output_pass_each_other() {
        let output = feed(&mut shell("cat"), &[], |input| Ok(input.write_all(&vec![7; 1 << 20])?)).unwrap();
        assert_eq!(output.len(), 1 << 20);
        assert!(run(&mut shell("exit 1"), &[1]).is_ok());
    }

    #[test]
    fn both_outputs_are_read_and_the_status_is_kept() {
        let script = "head -c 300000 /dev/zero; head -c 200000 /dev/zero >&2; cat; exit 3";
        let output = output(&mut shell(script)).unwrap();
        assert_eq!((output.status.code(), output.stdout.len(), output.stderr.len()), (Some(3), 300_000, 200_000));
        let mut child = Child::start(&mut shell("exit 4")).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(4));
        assert_eq!(child.try_wait().unwrap().and_then(|status| status.code()), Some(4));
        let error = Child::start(&mut Command::new("/no/such/program")).unwrap_err();
        assert_eq!(error.to_string(), "cannot start program");
        assert_eq!(error.source.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_dropped_child_is_killed_and_reaped() {
        let started = Instant::now();
        let child = Child::start(&mut shell("exec sleep 600")).unwrap();
        let folder = format!("/proc/{}", child.id());
        assert!(Path::new(&folder).exists());
        drop(child);
        assert!(!Path::new(&folder).exists() && started.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn a_child_dies_with_the_thread_that_started_it() {
        let mut child = thread::spawn(|| Child::start(&mut shell("exec sleep 600")).unwrap()).join().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        let start = || Child::start_with(&mut shell("exec sleep 600"), DeathSignal::Terminate).unwrap();
        let mut child = thread::spawn(start).join().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
    }

    #[test]
    fn what_a_process_took_is_counted_with_its_children() {
        let busy = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done";
        let mut child = Child::start(&mut shell(&format!("{busy}; sh -c '{busy}'; exit 5"))).unwrap();
        let (status, usage) = child.wait_with_usage().unwrap();
        assert_eq!(status.code(), Some(5));
        assert!(usage.cpu > Duration::ZERO && usage.peak_memory > 0);
        assert_eq!(child.wait().unwrap().code(), Some(5));
    }
}
