//! `boot --print`: the command that starts the machine, to be run by hand or by another program.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use crate::cache::Cache;
use crate::check::boot::ssh::OwnKey;
use crate::check::boot::{
    self, Accelerator, DEFAULT_BUDGET, Disk, Kernel, Machine, keep_initramfs, kernel_arguments, terminal_command,
};
use crate::commands::arguments;
use crate::error::Failure;
use crate::report::progress::Progress;
use crate::report::render::Render;
use crate::report::shell;

/// The first port of this host that is tried for the machine's SSH server, unless `--port` names one.
const FIRST_PORT: u16 = 2222;
/// Bytes of a command line that the kernel takes on x86, with the zero at its end (`COMMAND_LINE_SIZE`,
/// arch/x86/include/asm/setup.h); it drops the rest without a word.
const COMMAND_LINE_BYTES: usize = 2048;

/// The options of `--print`.
#[derive(Debug, Args)]
#[group(id = "printed", multiple = true)]
pub(super) struct Options {
    /// Port of this machine that leads to the printed machine's SSH server [default: the first free one from 2222]
    #[arg(long, value_name = "PORT", requires = "print", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Public key that may log in to the printed machine [default: yours in ~/.ssh]
    #[arg(long, value_name = "FILE", requires = "print")]
    key: Option<PathBuf>,
    #[command(flatten)]
    format: arguments::Format,
}

/// What `--print` prints.
#[derive(Debug, Serialize)]
struct Printed {
    /// The program and its arguments.
    command: Vec<String>,
    /// The command that logs in to the machine, where a key was found.
    ssh: Option<Vec<String>>,
    kernel: PathBuf,
    initramfs: Option<PathBuf>,
    port: u16,
}

impl Options {
    /// Returns the key that may log in: the one of `--key`, else the user's own, if there is one.
    pub(super) fn key(&self) -> Result<Option<OwnKey>> {
        match &self.key {
            Some(file) => OwnKey::read(file).map(Some),
            None => Ok(OwnKey::of_user()),
        }
    }

    /// Prints the command. The initramfs is kept in the cache for it.
    pub(super) fn print(
        &self,
        disks: &[Disk],
        kernel: &Kernel,
        accelerator: Accelerator,
        (mut words, key): (Vec<String>, Option<OwnKey>),
        cache: &Cache,
        progress: &Progress,
    ) -> Result<ExitCode> {
        let port = match self.port {
            Some(port) => port,
            None => free_port()?,
        };
        words.extend(key.iter().map(|key| boot::authorized_key_argument(&key.line)));
        let line = kernel_arguments(kernel, &words);
        if line.len() >= COMMAND_LINE_BYTES {
            bail!(Failure::Usage(format!(
                "the kernel's command line takes {} bytes, and Linux reads {} of it\n\
                 hint: name a shorter key, as those of ed25519 are, with --key",
                line.len(),
                COMMAND_LINE_BYTES - 1
            )));
        }
        let paths = disks.iter().map(|disk| Ok((std::path::absolute(disk.path)?, disk.written)));
        let paths = paths.collect::<Result<Vec<_>>>()?;
        let disks: Vec<Disk> = paths.iter().map(|(path, written)| Disk { path, written: *written }).collect();
        let image = std::path::absolute(&kernel.image)?;
        let initramfs = keep_initramfs(kernel, cache)?;
        let command = terminal_command(
            &Machine {
                kernel: &image,
                initramfs: initramfs.as_deref(),
                disks: &disks,
                arguments: &line,
                accelerator,
                log: Path::new(""),
                budget: DEFAULT_BUDGET,
            },
            SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        )?;
        let text = |word: &std::ffi::OsStr| word.to_string_lossy().into_owned();
        let command: Vec<String> = [command.get_program()].into_iter().chain(command.get_args()).map(text).collect();
        let ssh = key.map(|key| client(port, key.private.as_deref()));
        match &ssh {
            Some(ssh) => progress.note(format!("log in with: {}", shell::line(ssh))),
            None => progress.warn(
                "warning: there is no key to log in with by SSH, only the console\n\
                 hint: name one with --key, or make one with ssh-keygen",
            ),
        }
        progress.note("hint: to give the machine the network, remove restrict=on from its -netdev option");
        self.format.print(&Printed { command, ssh, kernel: image, initramfs, port })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Render for Printed {
    fn text(&self) -> String {
        shell::lines(&self.command) + "\n"
    }
}

/// Returns the command that logs in. The machine makes its host keys anew at each boot whose writes are discarded.
fn client(port: u16, key: Option<&Path>) -> Vec<String> {
    let mut words: Vec<String> =
        ["ssh", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"].map(str::to_owned).into();
    if let Some(key) = key {
        words.extend(["-i".to_owned(), key.display().to_string()]);
    }
    words.extend(["-p".to_owned(), port.to_string(), format!("root@{}", Ipv4Addr::LOCALHOST)]);
    words
}

fn free_port() -> Result<u16> {
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    (FIRST_PORT..=u16::MAX).find(is_free).context("this host has no free port\nhint: name one with --port")
}
