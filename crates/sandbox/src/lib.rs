//! Work on root filesystems inside namespaces of their own: user, mount, pid, uts and ipc.
//!
//! The tool is threaded, and `unshare(2)` of a user namespace wants a single thread: so it starts itself again under a
//! hidden verb ([`VERB`]), which unshares, waits for its id maps, and starts the first process of the pid namespace,
//! which does the [`Job`]. Root takes the same way, with all ids mapped to themselves.
//!
//! The job arrives as JSON on standard input, [`Event`]s leave as JSON lines on standard error, and bytes (a tar stream)
//! leave on standard output.

#![warn(missing_docs)]

mod binfmt;
mod child;
pub mod emulator;
mod idmap;
mod mounts;
mod policy;
mod steps;
mod terminal;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use snug_process::Child;

pub use child::main as child_main;
pub use idmap::probe;
pub use policy::{POLICY_PATH, POLICY_SCRIPT};
pub use terminal::{ShellEnd, Terminal};

/// The hidden verb under which the tool starts itself again.
pub const VERB: &str = "__namespace";

/// What to do inside, in order. A failing action ends the job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub actions: Vec<Action>,
}

/// One thing to do inside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Action {
    /// Lays the tree of a tar file out in `root`, which is made and must not exist.
    Materialise { tar: PathBuf, root: PathBuf },
    /// Runs programs of another machine from here on.
    Emulate(Emulator),
    /// Makes `root` the root directory of all that follows, with fresh /proc, /dev, /run and /tmp.
    Enter(Enter),
    /// Has a shell opened in the entered root when a later action fails, on the [`Terminal`] that the job comes with.
    ShellOnFailure(Program),
    /// Runs a command and reports its output line by line.
    Run(Program),
    /// Adds the tree of a tar file, named on the host, to the entered root.
    Place { tar: PathBuf },
    /// Shows a folder of the host at /tmp, for a program that works there and may be killed.
    Scratch { folder: PathBuf },
    /// Takes the mounted caches away.
    DropCaches,
    /// Runs a command whose standard output becomes the job's.
    Pipe(Program),
    /// Ends every other process, takes the mounts away and writes the entered root as a tar.
    Export,
    /// Removes a folder of trees, owned by ids of the namespace.
    Remove { folder: PathBuf },
}

/// A command with all of its environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Program {
    pub command: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// Working directory, where not the root directory.
    pub directory: Option<PathBuf>,
}

/// Who runs the programs of another machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Emulator {
    /// A statically linked program of the host.
    pub interpreter: PathBuf,
    /// The low byte of ELF's `e_machine`; the high one is zero.
    pub elf_machine: u8,
}

/// What an entered root has beside its own files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Enter {
    pub root: PathBuf,
    pub hostname: String,
    /// Text of /etc/resolv.conf while steps run.
    pub resolv_conf: String,
    /// Certificates to trust while steps run, as PEM: written to [`CA_BUNDLE`].
    pub ca_bundle: Option<PathBuf>,
    /// Folders of the host to mount below [`CACHES`], by name.
    pub caches: Vec<(String, PathBuf)>,
    /// Files to show below [`SECRETS`], by name; they never leave memory.
    pub secrets: Vec<(String, Vec<u8>)>,
}

/// Where the host's certificates stand while steps run.
pub const CA_BUNDLE: &str = "/run/build/ca.crt";
/// Where download caches are mounted for package steps.
pub const CACHES: &str = "/run/build/cache";
/// Where secrets are shown while steps run, each under its id: container engines have them there, too.
pub const SECRETS: &str = "/run/secrets";

/// What the inside reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event {
    /// The user namespace exists and waits for its id maps.
    Unshared,
    Started {
        action: usize,
    },
    /// A line of a command's output.
    Line {
        action: usize,
        text: String,
    },
    /// Bytes laid out or exported.
    Bytes {
        action: usize,
        count: u64,
    },
    Finished {
        action: usize,
    },
    /// The action failed and the job ends. `status` is the exit status of a command that ran.
    Failed {
        action: usize,
        status: Option<i32>,
        message: String,
    },
    /// The namespace could not be set up at all.
    Refused {
        message: String,
    },
}

/// Writes one event, from the inside. Whoever listened may be gone; then there is nobody to tell.
fn report(event: &Event) {
    if let Ok(mut line) = serde_json::to_vec(event) {
        line.push(b'\n');
        let _ = std::io::stderr().lock().write_all(&line);
    }
}

/// A job that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// An action failed: `status` is the exit status of the command that ran, if one did.
    #[error("{message}")]
    Action { action: usize, status: Option<i32>, message: String },
    /// No namespace could be made here.
    #[error("{0}")]
    Refused(String),
}

/// Does a job and hands its output stream to `consume`, which reads to the end; events go to `observe`, on a thread of
/// its own. A failed action is a [`JobError`] in the chain of the answer, and counts more than an error of `consume`,
/// which it causes.
pub fn run<T>(
    job: &Job,
    observe: impl FnMut(&Event) + Send,
    consume: impl FnOnce(ChildStdout) -> Result<T>,
) -> Result<T> {
    run_with(job, None, observe, consume)
}

/// As [`run`], with an end of a [`Terminal`] for the job's shell: `observe` is to [attach](Terminal::attach) the other end
/// when an action fails.
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

/// As [`run`], for a job without an output stream.
pub fn run_silent(job: &Job, observe: impl FnMut(&Event) + Send) -> Result<()> {
    run(job, observe, |mut stdout| {
        std::io::copy(&mut stdout, &mut std::io::sink())?;
        Ok(())
    })
}

/// Removes a folder that may hold files of subordinate ids, which only their namespace may touch. One that is not there
/// is no error.
pub fn remove_folder(folder: &Path) -> Result<()> {
    if std::fs::remove_dir_all(folder).is_err() && folder.exists() {
        run_silent(&Job { actions: vec![Action::Remove { folder: folder.to_path_buf() }] }, |_| {})
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

fn spawn(shell: Option<ShellEnd>) -> Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(VERB)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(shell) = &shell {
        shell.hand_to(&mut command);
    }
    Child::start(&mut command).context("cannot start the tool again inside a namespace")
}

/// Reads events to the end. Answers the failure among them, and lines that are no events: a panic's last words.
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
