//! What is printed may fail: a reader that ended, a full disk, a closed terminal. And a signal ends the command whatever its
//! streams are.

use std::fs::{self, File};
use std::io::{self, Read, Write, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::{Pid, setsid};
use snug_tests::{Workshop, have, number_of_its_own, xtask};

/// Far longer than the end of a process takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What prints a result: verbs with and without JSON, the help, and what is wrong with a command line.
const PRINTING: [&[&str]; 9] = [
    &["list"],
    &["list", "--json"],
    &["clean", "--dry-run"],
    &["check", "--all"],
    &["image", "small"],
    &["image", "small", "--dry-run"],
    &["export", "small", "-o", "-"],
    &["image", "--help"],
    &["--version"],
];

fn printing(workshop: &Workshop, words: &[&str]) -> Command {
    match words[0] {
        "clean" => {
            let mut command = xtask();
            command.args(words).arg("--output").arg(workshop.path("out")).env("XDG_CACHE_HOME", workshop.path("cache"));
            command
        }
        word if word.starts_with('-') => {
            let mut command = xtask();
            command.args(words);
            command
        }
        _ => workshop.xtask(words),
    }
}

fn full() -> File {
    File::options().write(true).open("/dev/full").expect("/dev/full")
}

/// A pipe whose reader has ended.
fn unread() -> Stdio {
    pipe().expect("a pipe").1.into()
}

#[test]
fn a_result_that_cannot_be_written_is_an_error_and_one_that_nobody_reads_is_none() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("small", "");
    assert!(workshop.build("small").status.success());
    for words in PRINTING {
        let output = printing(&workshop, words).stdout(full()).output().expect("xtask runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
        assert!(
            said.contains("cannot write to standard output\n") && said.contains("No space left"),
            "{words:?}: {said}"
        );

        let output = printing(&workshop, words).stdout(unread()).output().expect("xtask runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(Signal::SIGPIPE as i32), "{words:?}: {said}");
        assert!(!said.contains("error") && !said.contains("panicked"), "{words:?}: {said}");
    }
}

#[test]
fn work_goes_on_where_nobody_hears_of_it() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("small", "run = [\"echo said\"]");
    workshop.spec("failing", "run = [\"false\"]");
    for what in ["a full device", "an unread pipe"] {
        let stderr = || if what == "a full device" { full().into() } else { unread() };
        let status = |words: &[&str]| workshop.xtask(words).stdout(Stdio::null()).stderr(stderr()).status();
        let code = |words: &[&str]| status(words).expect("xtask runs").code();
        assert_eq!(code(&["image", "small", "--refresh"]), Some(0), "{what}");
        assert_eq!(code(&["image", "failing"]), Some(1), "{what}");
        assert_eq!(code(&["image", "no-such-image"]), Some(2), "{what}");
        assert_eq!(code(&["image", "--no-such-option"]), Some(2), "{what}");
    }
    // Streams that are closed from the start.
    let mut closed = Command::new("sh");
    closed.args(["-c", "exec \"$@\" <&- >&- 2>&-", "sh"]).arg(xtask().get_program());
    let command = workshop.xtask(&["image", "small", "--refresh"]);
    closed.args(command.get_args()).env("XDG_CACHE_HOME", workshop.path("cache")).current_dir(snug_tests::workspace());
    assert!(closed.status().expect("sh runs").success());
    assert!(workshop.image("small").exists());
}

/// A build that waits for a signal, and by what it is recognised.
pub(super) struct Waiting {
    pub(super) process: Child,
    number: String,
}

impl Waiting {
    /// Waits until the build's step runs.
    pub(super) fn reach_step(&mut self) {
        while self.step().is_none() {
            assert!(self.process.try_wait().expect("a child").is_none(), "the build ended by itself");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The process of the build's step, while it runs.
    fn step(&self) -> Option<Pid> {
        let mut processes = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
        let words = format!("sleep\0{}\0", self.number);
        let step =
            processes.find(|process| fs::read_to_string(process.path().join("cmdline")).is_ok_and(|own| own == words));
        step.and_then(|step| Some(Pid::from_raw(step.file_name().to_str()?.parse().ok()?)))
    }

    fn send(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.process.id()).expect("an id")), signal).expect("a child");
    }

    /// Fails unless the process ends by `signal` and leaves nothing.
    #[track_caller]
    fn ends_by(mut self, signal: Signal, workshop: &Workshop) {
        let started = Instant::now();
        let status = loop {
            match self.process.try_wait().expect("a child") {
                Some(status) => break status,
                None if started.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(20)),
                None => {
                    self.process.kill().expect("a child");
                    panic!("it survives {signal}");
                }
            }
        };
        assert_eq!(status.signal(), Some(signal as i32), "{signal}: {status}");
        assert_eq!(workshop.names("cache/snug/work"), [""; 0], "{signal}");
        while self.step().is_some() {
            assert!(started.elapsed() < PATIENCE, "the step outlives {signal}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Starts the build of an image whose step sleeps. `prepare` sets its streams.
pub(super) fn start(workshop: &Workshop, words: &[&str], prepare: impl FnOnce(&mut Command)) -> Waiting {
    let number = number_of_its_own();
    workshop.spec("slow", &format!("run = [\"sleep {number}\"]"));
    let mut command = workshop.xtask(words);
    command.stdout(Stdio::null());
    prepare(&mut command);
    // SAFETY: signal(2) is safe between fork and exec. Whoever runs the tests may have ignored it.
    unsafe {
        command.pre_exec(|| {
            for default in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
                signal(default, SigHandler::SigDfl)?;
            }
            Ok(())
        })
    };
    Waiting { process: command.spawn().expect("xtask runs"), number }
}

#[test]
fn a_signal_ends_a_build_whatever_its_streams_are() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        let mut running = start(&workshop, &["image", "slow"], |command| {
            command.stderr(unread());
        });
        running.reach_step();
        running.send(signal);
        running.ends_by(signal, &workshop);
    }
    let mut running = start(&workshop, &["image", "slow"], |command| {
        command.stderr(full());
    });
    running.reach_step();
    running.send(Signal::SIGTERM);
    running.ends_by(Signal::SIGTERM, &workshop);

    // Nobody reads the pipe, and it is full: whatever says something waits.
    let (reader, mut writer) = pipe().expect("a pipe");
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a pipe");
    while writer.write(&[b'x'; 4096]).is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).expect("a pipe");
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let running = start(&workshop, &["image", "slow"], |command| {
            command.stderr(writer.try_clone().expect("a pipe"));
        });
        // Its handler is installed when signals are caught: SigCgt of proc_pid_status(5).
        let status = format!("/proc/{}/status", running.process.id());
        let caught = || fs::read_to_string(&status).expect("a status").contains("SigCgt:\t0000000000000000");
        while caught() {
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(300));
        running.send(signal);
        running.ends_by(signal, &workshop);
    }
    drop(reader);
}

/// Starts the build on a terminal of its own, and returns the other end of that.
pub(super) fn on_terminal(workshop: &Workshop, words: &[&str], set: &dyn Fn(&OwnedFd)) -> (Waiting, OwnedFd) {
    // Closed when it is dropped: no other process inherits it.
    let terminal = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).expect("a pseudo-terminal");
    grantpt(&terminal).expect("a pseudo-terminal");
    unlockpt(&terminal).expect("a pseudo-terminal");
    let name = ptsname_r(&terminal).expect("a name");
    let mut slave = File::options();
    let slave = slave.read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(name).expect("a terminal");
    let terminal = OwnedFd::from(terminal);
    set(&terminal);
    let stream = || Stdio::from(slave.try_clone().expect("a stream"));
    let running = start(workshop, words, |command| {
        command.stdin(stream()).stdout(stream()).stderr(stream());
        // SAFETY: both calls are safe between fork and exec.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                match nix::libc::ioctl(0, nix::libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            })
        };
    });
    (running, terminal)
}

/// Reads what is printed until it contains `text`.
#[track_caller]
fn read_until(terminal: &OwnedFd, text: &str) {
    let mut terminal = File::from(terminal.try_clone().expect("a terminal"));
    let (mut said, mut bytes) = (String::new(), [0; 4096]);
    while !said.contains(text) {
        let count = terminal.read(&mut bytes).unwrap_or_default();
        assert!(count > 0, "it ended without {text:?}: {said}");
        said += &String::from_utf8_lossy(&bytes[..count]);
    }
}

#[test]
fn a_closed_terminal_ends_a_build_and_its_shell() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    let (mut running, terminal) = on_terminal(&workshop, &["image", "slow"], &|_| {});
    running.reach_step();
    drop(terminal);
    running.ends_by(Signal::SIGHUP, &workshop);

    // Ctrl-C is typed, and the terminal is stopped (Ctrl-S), so that nothing can be said.
    let (mut running, terminal) = on_terminal(&workshop, &["image", "slow"], &|_| {});
    running.reach_step();
    let mut keys = File::from(terminal.try_clone().expect("a terminal"));
    keys.write_all(b"\x13").expect("a key");
    std::thread::sleep(Duration::from_millis(300));
    running.send(Signal::SIGINT);
    running.ends_by(Signal::SIGINT, &workshop);

    // The shell of a failed step: the terminal goes while it waits for a key.
    for signal in [Signal::SIGHUP, Signal::SIGTERM] {
        let (mut running, terminal) = on_terminal(&workshop, &["image", "slow", "--shell"], &|_| {});
        running.reach_step();
        // The step fails when its program is killed.
        running.step().into_iter().for_each(|step| kill(step, Signal::SIGKILL).expect("a step"));
        read_until(&terminal, "# ");
        match signal {
            Signal::SIGHUP => drop(terminal),
            _ => running.send(signal),
        }
        running.ends_by(signal, &workshop);
    }
}

#[test]
fn a_hangup_that_nohup_ignores_is_ignored() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    let mut running = start(&workshop, &["image", "slow"], |command| {
        command.stderr(Stdio::null());
    });
    let program = running.process.id();
    running.reach_step();
    running.send(Signal::SIGTERM);
    running.ends_by(Signal::SIGTERM, &workshop);
    let mut running = start(&workshop, &["image", "slow"], |command| {
        let mut nohup = Command::new("nohup");
        nohup.arg(command.get_program()).args(command.get_args()).current_dir(snug_tests::workspace());
        nohup.env("XDG_CACHE_HOME", workshop.path("cache")).stdout(Stdio::null()).stderr(Stdio::null());
        *command = nohup;
    });
    assert_ne!(running.process.id(), program);
    running.reach_step();
    running.send(Signal::SIGHUP);
    std::thread::sleep(Duration::from_millis(300));
    assert!(running.process.try_wait().expect("a child").is_none(), "it ended by the hangup");
    running.send(Signal::SIGTERM);
    running.ends_by(Signal::SIGTERM, &workshop);
}

#[test]
fn a_signal_ends_what_waits_for_another_run() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    let mut first = start(&workshop, &["image", "slow"], |command| {
        command.stderr(Stdio::null());
    });
    first.reach_step();
    let mut second = start(&workshop, &["image", "slow"], |command| {
        command.stderr(Stdio::piped());
    });
    let mut said = String::new();
    let mut stderr = second.process.stderr.take().expect("a pipe");
    let mut bytes = [0; 4096];
    while !said.contains("wait") {
        let count = stderr.read(&mut bytes).expect("a pipe");
        assert!(count > 0, "it does not wait: {said}");
        said += &String::from_utf8_lossy(&bytes[..count]);
    }
    second.send(Signal::SIGINT);
    assert_eq!(second.process.wait().expect("a child").signal(), Some(Signal::SIGINT as i32));
    first.send(Signal::SIGTERM);
    first.ends_by(Signal::SIGTERM, &workshop);
}

#[test]
fn children_are_ended_by_a_closed_pipe_as_everywhere() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    // The runtime ignores SIGPIPE (13); what it starts must not, or `yes | head` never ends.
    let ignored = "while read name mask; do [ $name != SigIgn: ] || echo ignored $((0x$mask >> 12 & 1)); done";
    workshop.spec("small", &format!("run = [\"{ignored} < /proc/self/status; false\"]"));
    let output = workshop.build("small");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("| ignored 0\n"), "{said}");
}
