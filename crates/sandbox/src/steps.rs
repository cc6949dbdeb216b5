//! Commands in the namespace: their output, their capabilities, their end.

use std::io::BufReader;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use snug_process::lines::read_line;

use super::{Event, Program, network, report, terminal};

/// The capabilities in the bounding set of commands, by number (capabilities(7), linux/capability.h): those that container
/// engines grant. Without CAP_SYS_ADMIN a command cannot undo the read-only mounts.
const KEPT_CAPABILITIES: [libc::c_ulong; 14] = [
    0,  // CAP_CHOWN
    1,  // CAP_DAC_OVERRIDE
    3,  // CAP_FOWNER
    4,  // CAP_FSETID
    5,  // CAP_KILL
    6,  // CAP_SETGID
    7,  // CAP_SETUID
    8,  // CAP_SETPCAP
    10, // CAP_NET_BIND_SERVICE
    13, // CAP_NET_RAW
    18, // CAP_SYS_CHROOT
    27, // CAP_MKNOD
    29, // CAP_AUDIT_WRITE
    31, // CAP_SETFCAP
];

/// Capabilities below this number are dropped; the kernel gives EINVAL for those that it does not know.
const CAPABILITY_END: libc::c_ulong = 64;

/// How long to wait for output after a command has ended: a daemon that it started may keep the pipe open.
const OUTPUT_GRACE: Duration = Duration::from_millis(500);

/// A command that ran and failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct StepError {
    /// Exit status; 128 + n for signal n, as in shells.
    pub(super) status: Option<i32>,
    message: String,
}

/// Drops all other capabilities from the bounding set. This process keeps its own; what it starts from now on cannot have
/// them.
pub(super) fn limit_capabilities() -> Result<()> {
    for capability in (0..CAPABILITY_END).filter(|number| !KEPT_CAPABILITIES.contains(number)) {
        // SAFETY: PR_CAPBSET_DROP takes a number and touches no memory.
        let answer = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        let error = std::io::Error::last_os_error();
        if answer != 0 && error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error).context("cannot drop capabilities");
        }
    }
    Ok(())
}

/// Runs a command and reports its output, both streams in one, line by line.
pub(super) fn run(action: usize, program: &Program) -> Result<()> {
    let (reader, writer) = std::io::pipe()?;
    let mut command = command(program)?;
    command.stdout(writer.try_clone()?).stderr(writer);
    watch_output(action, program, command, reader)
}

/// Runs a command with the job's standard output, and reports its standard error line by line.
pub(super) fn pipe(action: usize, program: &Program) -> Result<()> {
    let (reader, writer) = std::io::pipe()?;
    let mut command = command(program)?;
    command.stdout(Stdio::inherit()).stderr(writer);
    watch_output(action, program, command, reader)
}

/// Runs a shell on the job's terminal, whatever its exit status.
pub(super) fn open_shell(program: &Program) -> Result<()> {
    let mut command = command(program)?;
    terminal::give_to(&mut command);
    let child = command.spawn().context("cannot start a shell")?;
    wait_for(Pid::from_raw(i32::try_from(child.id())?))?;
    Ok(())
}

fn watch_output(action: usize, program: &Program, mut command: Command, reader: std::io::PipeReader) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let child = command.spawn().map_err(|error| {
        let hint = network::why_refused(program, &error).map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
        StepError { status: None, message: format!("cannot start {name}: {error}{hint}") }
    })?;
    // It has the writing end of the pipe open.
    drop(command);
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(reader);
        let mut line = Vec::new();
        while read_line(&mut lines, &mut line).is_ok_and(|found| found) {
            report(&Event::Line { action, text: String::from_utf8_lossy(&line).trim_end().to_owned() });
        }
        let _ = done.send(());
    });
    let status = wait_for(Pid::from_raw(i32::try_from(child.id())?))?;
    let _ = ended.recv_timeout(OUTPUT_GRACE);
    match status {
        0 => Ok(()),
        _ => Err(StepError { status: Some(status), message: format!("{name} ended with status {status}") }.into()),
    }
}

fn command(program: &Program) -> Result<Command> {
    let (name, arguments) = program.command.split_first().context("the job names an empty command")?;
    let mut command = Command::new(name);
    command
        .args(arguments)
        .env_clear()
        .envs(program.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(program.directory.as_deref().unwrap_or("/".as_ref()))
        .stdin(Stdio::null());
    if !program.network {
        network::leave(&mut command);
    }
    Ok(command)
}

/// Waits for one process, and reaps the orphans that end meanwhile, as the first process of a pid namespace has to.
fn wait_for(wanted: Pid) -> Result<i32> {
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, status)) if pid == wanted => return Ok(status),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == wanted => return Ok(128 + signal as i32),
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno).context("cannot wait for a command"),
        }
    }
}

/// Kills every other process of the namespace and reaps them.
pub(super) fn end_all_others() {
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    while matches!(waitpid(None, None), Ok(_) | Err(nix::Error::EINTR)) {}
}
