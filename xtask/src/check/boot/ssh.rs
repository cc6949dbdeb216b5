//! SSH into a guest: a throw-away key, and commands with a time limit.

use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use snug_process::program::HostProgram;
use snug_process::{Child, child};
use snug_rootfs::regular_file;

use crate::cache::{Cache, WorkFolder};
use crate::error::Failure;

const SSH: HostProgram = HostProgram { name: "ssh", package: "openssh-client" };
const SSH_KEYGEN: HostProgram = HostProgram { name: "ssh-keygen", package: "openssh-client" };
/// How long the client waits for the server, in seconds; emulated machines are slow.
const CONNECT_TIMEOUT: &str = "ConnectTimeout=60";
/// Our `/init` powers off on SIGTERM; other init systems have a program.
const POWER_OFF: &str = "sync; if grep -q '^init$' /proc/1/comm; then kill -TERM 1; else poweroff; fi";
/// Interval at which a running command is polled.
const PAUSE: Duration = Duration::from_millis(20);

/// A key pair for one machine; its files are in the cache, which is closed to other users, and are removed when it is dropped, or
/// by the next run where this one is killed.
pub struct Key {
    folder: WorkFolder,
    /// The public key as a line of `authorized_keys`.
    pub line: String,
}

impl Key {
    pub fn make(cache: &Cache) -> Result<Self> {
        let folder = cache.work_folder("key")?;
        let path = folder.path().join("key");
        let mut command = SSH_KEYGEN.command()?;
        command.args(["-q", "-t", "ed25519", "-N", "", "-C", "throw-away", "-f"]).arg(&path);
        child::run(&mut command, &[])?;
        let line = std::fs::read_to_string(path.with_extension("pub")).context("ssh-keygen wrote no public key")?;
        Ok(Key { line, folder })
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("key")
    }
}

/// The types that a public key's line begins with (sshd(8), "AUTHORIZED_KEYS FILE FORMAT").
const KEY_TYPES: [&str; 4] = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"];

/// Bytes of the largest file that a key is looked for in: thousands of keys.
const KEY_FILE_MAX: u64 = 1 << 20;

/// The public key of a person, and the private one where it lies beside it.
pub struct OwnKey {
    /// As a line of `authorized_keys`.
    pub line: String,
    pub private: Option<PathBuf>,
}

impl OwnKey {
    /// Reads a public key; of a private one, the public key beside it.
    pub fn read(file: &Path) -> Result<Self> {
        let public = match file.extension() {
            Some(extension) if extension == "pub" => file.to_path_buf(),
            _ if beside(file).is_file() => beside(file),
            _ => file.to_path_buf(),
        };
        let text = regular_file::read(&public, KEY_FILE_MAX)
            .map_err(|error| Failure::Usage(format!("cannot read the key {}: {error}", public.display())))?;
        let text = String::from_utf8_lossy(&text);
        let is_key = |line: &&str| KEY_TYPES.iter().any(|kind| line.starts_with(kind));
        let line = text.lines().map(str::trim).find(is_key).ok_or_else(|| {
            Failure::Usage(format!(
                "{} holds no public SSH key\nhint: name the file that ends in .pub",
                public.display()
            ))
        })?;
        let private = Some(public.with_extension("")).filter(|private| *private != public && private.is_file());
        Ok(OwnKey { line: line.to_owned(), private })
    }

    /// Returns the user's own key: the first in `~/.ssh` of those that ssh(1) would try.
    pub fn of_user() -> Option<Self> {
        let folder = PathBuf::from(std::env::var_os("HOME")?).join(".ssh");
        let files = ["id_ed25519.pub", "id_ecdsa.pub", "id_ed25519_sk.pub", "id_ecdsa_sk.pub", "id_rsa.pub"];
        files.iter().find_map(|name| Self::read(&folder.join(name)).ok())
    }
}

/// Returns where ssh-keygen writes the public key of a private one.
fn beside(private: &Path) -> PathBuf {
    let mut name = private.as_os_str().to_owned();
    name.push(".pub");
    PathBuf::from(name)
}

/// The result of a command in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Exit status; `None` if the command timed out or was killed by a signal.
    pub status: Option<i32>,
    pub timed_out: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Answer {
    pub fn succeeded(&self) -> bool {
        self.status == Some(0)
    }
}

/// SSH access to a guest as root.
pub struct Login<'a> {
    pub address: SocketAddr,
    pub key: &'a Key,
}

impl Login<'_> {
    /// Returns the ssh client, to which a command can be added. It ignores the user's configuration and never prompts.
    pub fn client(&self) -> Result<Command> {
        let mut command = SSH.command()?;
        command
            .args(["-F", "/dev/null", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR"])
            .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes", "-o", CONNECT_TIMEOUT, "-i"])
            .arg(self.key.path())
            .args(["-p", &self.address.port().to_string(), "-l", "root", &self.address.ip().to_string()]);
        Ok(command)
    }

    /// Has the guest shut down. ssh's exit status is ignored: the connection breaks with the machine.
    pub fn power_off(&self, budget: Duration) -> Result<()> {
        self.run(POWER_OFF, budget).map(drop)
    }

    /// Runs a shell command in the guest, and kills the client after `budget`.
    pub fn run(&self, command: &str, budget: Duration) -> Result<Answer> {
        let mut client = self.client()?;
        client.arg("--").arg(command).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = Child::start(&mut client)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        thread::scope(move |scope| {
            // An error below drops the client, and so kills it, before its output is waited for.
            let mut child = child;
            let stdout = scope.spawn(move || text(stdout));
            let stderr = scope.spawn(move || text(stderr));
            let status = loop {
                if let Some(status) = child.try_wait().context("cannot wait for ssh")? {
                    break Some(status);
                }
                if started.elapsed() >= budget {
                    child.kill().context("cannot end ssh")?;
                    child.wait().context("cannot wait for ssh")?;
                    break None;
                }
                thread::sleep(PAUSE);
            };
            Ok(Answer {
                status: status.and_then(|status| status.code()),
                timed_out: status.is_none(),
                stdout: stdout.join().unwrap_or_default(),
                stderr: stderr.join().unwrap_or_default(),
            })
        })
    }
}

fn text(stream: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        // On an error, what was read before it is kept.
        let _ = stream.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_private_and_goes_when_it_is_dropped() {
        if SSH_KEYGEN.find().is_none() {
            assert!(std::env::var_os("SNUG_TESTS_NO_SKIP").is_none(), "needs ssh-keygen");
            eprintln!("SKIPPED: needs ssh-keygen");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let key = Key::make(&Cache::at(folder.path().join("snug")).unwrap()).unwrap();
        let path = key.path();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0);
        assert!(key.line.starts_with("ssh-ed25519 "));
        drop(key);
        assert!(!path.exists());
    }
}
