//! Runs commands on root filesystems in namespaces of their own, without root: user, mount, pid, uts, ipc and, where a command
//! is to have no network, network.
//!
//! A [`Job`] is a list of [`Action`]s: laying out a tree, entering it, running commands in it, writing what they changed as a
//! tar. [`run`] starts the program itself again under a hidden verb ([`VERB`]), since `unshare(2)` of a user namespace needs a
//! process of one thread. It starts a copy in memory, so that no command can reach the program's file. That child unshares,
//! waits for its id maps, and starts the first process of the pid namespace, which does the job. Root works in the same way, with all ids mapped to themselves.
//!
//! The job is JSON on the child's standard input, [`Event`]s are JSON lines on its standard error, and a tar stream or a
//! command's output is its standard output.
//!
//! The program's `main` has to hand the verb over before it does anything else:
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! use snug_sandbox::{Action, Job};
//!
//! fn main() -> ExitCode {
//!     let arguments: Vec<String> = std::env::args().collect();
//!     if arguments.get(1).is_some_and(|verb| verb == snug_sandbox::VERB) {
//!         return snug_sandbox::child_main(&arguments[2..]);
//!     }
//!     let lay_out = Action::materialise("root.tar".into(), "/tmp/root".into());
//!     match snug_sandbox::run_silent(&Job { actions: vec![lay_out] }, |event| println!("{event:?}")) {
//!         Ok(()) => ExitCode::SUCCESS,
//!         Err(error) => {
//!             eprintln!("{error:#}");
//!             ExitCode::FAILURE
//!         }
//!     }
//! }
//! ```

#![warn(missing_docs)]

mod binfmt;
mod child;
pub mod emulator;
mod idmap;
mod layer;
mod mounts;
mod network;
mod own_folder;
mod policy;
mod reach;
mod remove;
mod sealed;
mod seccomp;
mod steps;
mod terminal;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use snug_process::Child;
use snug_rootfs::stamp::Stamp;

pub use child::main as child_main;
pub use idmap::probe;
pub use policy::{POLICY_PATH, POLICY_SCRIPT};
pub use terminal::{ShellEnd, Terminal};

use self::sealed::SealedProgram;

/// The first argument with which the program starts itself again.
pub const VERB: &str = "__namespace";

/// Work to do in the namespaces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// In order; the first one that fails ends the job.
    pub actions: Vec<Action>,
}

/// One step of a [`Job`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Action {
    /// Lays out the tree of a tar file.
    Materialise {
        /// The tar file, on the host.
        tar: PathBuf,
        /// Whether the tar is one of our own ([`TarOptions::OWN`](snug_rootfs::tar::TarOptions::OWN)).
        own: bool,
        /// Layers over it, the lowest first, on the host.
        layers: Vec<PathBuf>,
        /// The folder to make, which must not exist.
        root: PathBuf,
    },
    /// Fails unless a tar file, as the job has it open, is still the one that was hashed.
    Unchanged {
        /// The tar file, on the host.
        tar: PathBuf,
        /// Of the file that was hashed.
        stamp: Stamp,
    },
    /// Has programs of another platform run from here on.
    Emulate(Emulator),
    /// Makes `root` the root directory of all that follows, with fresh /proc, /dev, /run and /tmp.
    Enter(Enter),
    /// Has a shell opened in the entered root if a later action fails, on the job's [`Terminal`].
    ShellOnFailure(Program),
    /// Runs a command and reports its output line by line.
    Run(Program),
    /// Adds the tree of a tar file to the entered root.
    Place {
        /// The tar file, on the host.
        tar: PathBuf,
    },
    /// Kills every other process and writes what changed in the entered root since it was laid out, or since the last layer, as
    /// a tar of our own ([`changes`](snug_rootfs::changes)). What follows finds /tmp, /run and the files by which names resolve as
    /// the first command did.
    Layer {
        /// An empty file, on the host.
        to: PathBuf,
    },
    /// Mounts a folder of the host on /tmp, so that the temporary files of a program that is killed can be removed.
    Scratch {
        /// The folder, on the host.
        folder: PathBuf,
    },
    /// Unmounts the caches.
    DropCaches,
    /// Runs a command whose standard output becomes the job's.
    Pipe(Program),
    /// Removes a folder whose files belong to ids of the namespace.
    Remove {
        /// The folder, on the host.
        folder: PathBuf,
    },
}

impl Action {
    /// Lays out the tree of a tar file of any origin, on the host, as the folder `root`, which must not exist.
    pub fn materialise(tar: PathBuf, root: PathBuf) -> Self {
        Action::Materialise { tar, own: false, layers: Vec::new(), root }
    }
}

/// A command with its whole environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Names and values.
    pub environment: Vec<(String, String)>,
    /// The working directory; `None`: the root directory.
    pub directory: Option<PathBuf>,
    /// Whether it has the caller's network; else it has one of its own, with nothing but a loopback device.
    pub network: bool,
}

/// An emulator for programs of another platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Emulator {
    /// A statically linked program, on the host.
    pub interpreter: PathBuf,
    /// The low byte of ELF's `e_machine`; the high one is zero.
    pub elf_machine: u8,
}

/// A root directory to enter, and what commands see there beside its files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Enter {
    /// The folder that becomes the root directory.
    pub root: PathBuf,
    /// The host name in the namespace.
    pub hostname: String,
    /// The content of /etc/resolv.conf while commands run.
    pub resolv_conf: String,
    /// A PEM file of certificates to trust, on the host; copied to [`CA_BUNDLE`].
    pub ca_bundle: Option<PathBuf>,
    /// Folders of the host to mount below [`CACHES`].
    pub caches: Vec<MountedFolder>,
    /// Contents of files below [`SECRETS`], by name; they are never written to a disk.
    pub secrets: Vec<(String, Vec<u8>)>,
}

/// A folder of the host that commands see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountedFolder {
    /// Its name where it is mounted.
    pub name: String,
    /// The folder, on the host.
    pub folder: PathBuf,
    /// Whether commands can only read it.
    pub read_only: bool,
}

/// The copy of the certificates to trust while commands run.
pub const CA_BUNDLE: &str = "/run/build/ca.crt";
/// The folder of the mounted caches.
pub const CACHES: &str = "/run/build/cache";
/// The folder of the secrets, which container engines use as well.
pub const SECRETS: &str = "/run/secrets";

/// What the child reports of a job. Actions are counted from 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event {
    /// The user namespace exists and waits for its id maps.
    Unshared,
    /// An action begins.
    Started {
        /// The action.
        action: usize,
    },
    /// A command printed a line.
    Line {
        /// The action.
        action: usize,
        /// The line, without its end.
        text: String,
    },
    /// Files were laid out or stored.
    Bytes {
        /// The action.
        action: usize,
        /// Bytes since the last event of this kind.
        count: u64,
    },
    /// An action succeeded.
    Finished {
        /// The action.
        action: usize,
    },
    /// An action failed, and the job ends.
    Failed {
        /// The action.
        action: usize,
        /// The exit status, if a command ran; 128 and the signal's number for one that a signal ended.
        status: Option<i32>,
        /// Why.
        message: String,
    },
    /// The namespaces could not be set up.
    Refused {
        /// Why, with a hint.
        message: String,
    },
}

/// Writes an event, in the child. Errors are ignored: the parent may be gone.
fn report(event: &Event) {
    if let Ok(mut line) = serde_json::to_vec(event) {
        line.push(b'\n');
        let _ = std::io::stderr().lock().write_all(&line);
    }
}

/// A job that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// An action failed.
    #[error("{message}")]
    Action {
        /// The action, counted from 0.
        action: usize,
        /// The exit status, if a command ran.
        status: Option<i32>,
        /// Why.
        message: String,
    },
    /// The namespaces could not be set up.
    #[error("{0}")]
    Refused(String),
}

/// Does a job, with its standard output for `consume`, which has to read to the end, and its events for `observe`, which is
/// called on another thread. A failed action is an error with a [`JobError`] in its chain; it takes precedence over the
/// error of `consume` that it causes.
pub fn run<T>(
    job: &Job,
    observe: impl FnMut(&Event) + Send,
    consume: impl FnOnce(ChildStdout) -> Result<T>,
) -> Result<T> {
    run_with(job, None, observe, consume)
}

/// As [`run`], with a [`Terminal`]'s end for the shell of [`Action::ShellOnFailure`]: `observe` has to
/// [attach](Terminal::attach) the other end when an action fails.
pub fn run_with<T>(
    job: &Job,
    shell: Option<ShellEnd>,
    mut observe: impl FnMut(&Event) + Send,
    consume: impl FnOnce(ChildStdout) -> Result<T>,
) -> Result<T> {
    let mut child = spawn(shell)?;
    let mut stdin = child.stdin.take().context("the namespace has no input")?;
    let stdout = child.stdout.take().context("the namespace has no output")?;
    let mut events = BufReader::new(child.stderr.take().context("the namespace reports nothing")?);

    let mut first = String::new();
    events.read_line(&mut first)?;
    match serde_json::from_str(&first) {
        Ok(Event::Unshared) => {}
        Ok(Event::Refused { message }) => {
            child.wait()?;
            return Err(JobError::Refused(message).into());
        }
        _ => {
            let rest = std::io::read_to_string(events).unwrap_or_default();
            bail!("the namespace did not start ({}): {first}{rest}", child.wait()?);
        }
    }
    idmap::write_maps(child.id())?;
    serde_json::to_writer(&mut stdin, job)?;
    stdin.flush()?;
    drop(stdin);

    let (consumed, failure, said) = std::thread::scope(|scope| {
        let watcher = scope.spawn(move || watch(events, &mut observe));
        let consumed = consume(stdout);
        let (failure, said) = watcher.join().unwrap_or_else(|_| (None, vec!["the observer panicked".into()]));
        (consumed, failure, said)
    });
    let status = child.wait()?;
    if let Some(failure) = failure {
        return Err(failure.into());
    }
    ended_well(status, &said)?;
    consumed
}

/// As [`run`], for a job that writes nothing to its standard output.
pub fn run_silent(job: &Job, observe: impl FnMut(&Event) + Send) -> Result<()> {
    run(job, observe, |mut stdout| {
        std::io::copy(&mut stdout, &mut std::io::sink())?;
        Ok(())
    })
}

/// Removes a folder that may have files of subordinate ids, which only root of their user namespace may remove. A folder
/// that does not exist is no error, and none is too deep.
pub fn remove_folder(folder: &Path) -> Result<()> {
    if remove::remove_all(folder).is_err() && folder.symlink_metadata().is_ok() {
        run_silent(&Job { actions: vec![Action::Remove { folder: folder.to_path_buf() }] }, |_| {})
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

fn spawn(shell: Option<ShellEnd>) -> Result<Child> {
    let program = SealedProgram::own()?;
    let mut command = Command::new(program.path());
    command
        .arg0("/proc/self/exe")
        .arg(VERB)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    snug_process::child::leave_inheritance(&mut command).context("cannot list the open descriptors")?;
    if let Some(shell) = &shell {
        shell.hand_to(&mut command);
    }
    // The name of the program is that of a descriptor.
    Child::start(&mut command).map_err(|error| error.source).context("cannot start the tool again inside a namespace")
}

/// Reads events to the end. Returns the failure among them, and the lines that are no events, such as a panic's message.
fn watch(events: impl BufRead, observe: &mut impl FnMut(&Event)) -> (Option<JobError>, Vec<String>) {
    let (mut failure, mut said) = (None, Vec::new());
    for line in events.lines().map_while(Result::ok) {
        match serde_json::from_str::<Event>(&line) {
            Ok(event) => {
                observe(&event);
                match event {
                    Event::Failed { action, status, message } => {
                        failure = Some(JobError::Action { action, status, message });
                    }
                    Event::Refused { message } => failure = Some(JobError::Refused(message)),
                    _ => {}
                }
            }
            Err(_) => said.push(line),
        }
    }
    (failure, said)
}

fn ended_well(status: ExitStatus, said: &[String]) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let said = said.join("\n");
    Err(anyhow!("the namespace ended with {status}{}{said}", if said.is_empty() { "" } else { ": " }))
}
