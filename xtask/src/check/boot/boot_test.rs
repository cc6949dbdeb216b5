//! The boot test of an image: it boots, accepts an SSH key, passes the spec's commands, keeps what is written, and powers
//! off.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use snug_ext4::size::SizePolicy;
use snug_formats::{Filesystem, FilesystemKind};
use snug_rootfs::tree::{BodySource, RootTree};

use super::ssh::{Answer, Key, Login};
use super::{Accelerator, BootReport, BootRequest, DEFAULT_BUDGET, Disk, Guest, Kernel, authorized_key_argument, qemu};
use crate::atomic::Scratch;
use crate::cache::Cache;
use crate::check::verdict::{Check, Finding};
use crate::filesystem;
use crate::plan::hash_file;
use crate::report::amounts;
use crate::report::progress::{Progress, human_duration};

/// How long a command of the spec may take unless it says otherwise. Emulated machines are some ten times slower than
/// what people try a command on.
const COMMAND_BUDGET: Duration = Duration::from_secs(120);
/// How long a guest may take to power off: `/init` gives its services ten seconds.
const END_BUDGET: Duration = Duration::from_secs(45);
/// What `/init` prints when all services are started.
const READY: &str = "init: ready";

/// Writes a file and reads it back, and removes a file of the image; on a read-only root, both need a working overlay.
const WRITES: &str = "set -e
echo canary >/etc/snug-written; sync; test \"$(cat /etc/snug-written)\" = canary || { echo 'what was written is not read'; exit 1; }
test -f /etc/hosts; rm /etc/hosts; sync; echo 2 >/proc/sys/vm/drop_caches
test ! -e /etc/hosts || { echo 'a removed file is still there'; exit 1; }
! ls -A /etc | grep -qx hosts || { echo 'a removed file is still listed'; exit 1; }";
/// Changes that [`KEPT`] finds again after a reboot with the same overlay.
const KEEP: &str = "echo canary >/etc/snug-kept && rm /etc/hosts && sync";
const KEPT: &str = "set -e; test \"$(cat /etc/snug-kept)\" = canary || { echo 'what was written is gone'; exit 1; }
test ! -e /etc/hosts || { echo 'what was removed is back'; exit 1; }";
const HOST_KEYS: &str = "cat /etc/ssh/ssh_host_*_key.pub | cut -d ' ' -f 1,2";
/// Keeps the overlay of a read-only root on the second disk.
pub const OVERLAY_ARGUMENT: &str = "overlay=/dev/vdb";
/// mke2fs's default ratio: sizing an empty tree would give the overlay no inodes to spare.
const BYTES_PER_INODE: u64 = 16 << 10;
/// Size of the overlay's disk in the boot test, in bytes.
const OVERLAY_BYTES: u64 = 64 << 20;

/// A command of the spec to run in the guest; it must succeed.
#[derive(Debug, Clone)]
pub struct GuestCommand {
    pub run: String,
    /// What its output must contain.
    pub prints: Option<String>,
    /// How long it may take; `None`: two minutes.
    pub within: Option<Duration>,
}

/// What a machine of the image does with a disk that is to have its overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverlayDisk {
    /// None is needed: the root can be written to.
    Unneeded,
    /// What the machine writes is kept there.
    Kept,
    /// It is left alone, since the image takes its overlay in memory only.
    LeftAlone,
}

/// The boot test of one image.
pub struct BootTest<'a> {
    pub name: &'a str,
    pub image: &'a Path,
    pub kernel: &'a Kernel,
    pub accelerator: Accelerator,
    /// Where the key lies by which the machine is logged in to.
    pub cache: &'a Cache,
    /// Why this accelerator was chosen.
    pub why: String,
    /// Further kernel arguments.
    pub arguments: Vec<String>,
    /// Run in the guest once it can be logged in to, in order.
    pub commands: Vec<GuestCommand>,
    /// Whether the image has an SSH server. Without one, only its serial console is read.
    pub has_sshd: bool,
    pub overlay_disk: OverlayDisk,
    /// Folder for the logs of the serial console.
    pub logs: &'a Path,
}

/// The results of an image's boots, as in JSON.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BootSummary {
    pub accelerator: &'static str,
    pub why: String,
    pub kernel: String,
    /// Seconds from QEMU's start to `/init`, to the network, to the SSH server's first line.
    #[serde(rename = "to-init-seconds")]
    pub to_init: Option<f64>,
    #[serde(rename = "to-network-seconds")]
    pub to_network: Option<f64>,
    #[serde(rename = "to-ssh-seconds")]
    pub to_ssh: Option<f64>,
    pub banner: Option<String>,
    /// Logs of the serial console, one for each boot.
    pub logs: Vec<PathBuf>,
    pub commands: Vec<Command>,
}

/// A command of the spec and its result.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Command {
    pub run: String,
    pub passed: bool,
    pub seconds: f64,
    pub printed: String,
}

impl BootSummary {
    fn new(test: &BootTest) -> Self {
        BootSummary {
            accelerator: test.accelerator.as_str(),
            why: test.why.clone(),
            kernel: test.kernel.version.clone(),
            to_init: None,
            to_network: None,
            to_ssh: None,
            banner: None,
            logs: Vec::new(),
            commands: Vec::new(),
        }
    }

    fn add_times(&mut self, report: &BootReport) {
        let seconds = |time: Option<Duration>| time.map(|time| (time.as_secs_f64() * 100.0).round() / 100.0);
        self.to_init = seconds(report.to_init);
        self.to_network = seconds(report.to_network);
        self.to_ssh = seconds(report.to_ssh);
        self.banner = report.ssh_banner.clone();
    }
}

impl BootTest<'_> {
    /// Boots the image once and returns the times that it took.
    ///
    /// # Errors
    ///
    /// If QEMU cannot be run, or the image does not come up.
    pub fn measure(&self) -> Result<BootSummary> {
        let mut summary = BootSummary::new(self);
        let key = Key::make(self.cache)?;
        let (report, _guest) = start(self, &key, &mut summary, None)?;
        summary.add_times(&report);
        Ok(summary)
    }

    /// Boots the image and, if it has an SSH server, boots a fresh copy of it as well. Returns the checks that this made; a
    /// boot that fails is a failed check.
    ///
    /// # Errors
    ///
    /// If QEMU does not tell its version.
    pub fn run(&self, progress: &Progress) -> Result<(Vec<Check>, BootSummary)> {
        let judge = format!("{} ({}), Linux {}", qemu::version()?, self.accelerator.as_str(), self.kernel.version);
        let mut summary = BootSummary::new(self);
        let mut checks = Vec::new();
        if let Err(error) = run_boots(self, &judge, &mut summary, &mut checks, progress) {
            checks.push(Check::broken("boot", judge, &error));
        }
        Ok((checks, summary))
    }
}

fn run_boots(
    test: &BootTest,
    judge: &str,
    summary: &mut BootSummary,
    checks: &mut Vec<Check>,
    progress: &Progress,
) -> Result<()> {
    let key = Key::make(test.cache)?;
    let stage = progress.stage(format!("boot ({})", test.accelerator.as_str()));
    let started = Instant::now();
    let (report, mut guest) = start(test, &key, summary, None)?;
    summary.add_times(&report);
    stage.finish("");
    checks.push(Check::passed("boot", judge, times(&report)).took(started.elapsed()));
    if !test.has_sshd {
        let mut ready = Check::passed("serial", judge, format!("{READY:?} on the serial console"));
        if !test.commands.is_empty() {
            ready.notes.push("the image has no SSH server: the spec's commands were not run".to_owned());
        }
        checks.push(ready);
        return Ok(());
    }

    let login = Login { address: guest.ssh_address(), key: &key };
    if !test.commands.is_empty() {
        checks.push(commands(test, &login, summary, progress)?);
    }
    let begun = Instant::now();
    let mut state = writes(&login)?;
    let keys = host_keys(&login)?;
    checks.push(end(&login, &mut guest)?);
    drop(guest);

    let folder = Scratch::new().context("cannot make a temporary folder for a disk")?;
    let overlay = match test.overlay_disk {
        OverlayDisk::Unneeded => None,
        OverlayDisk::Kept | OverlayDisk::LeftAlone => Some(empty_disk(&folder.path().join("overlay"), OVERLAY_BYTES)?),
    };
    let empty = overlay.as_deref().map(|disk| hash_file(disk, &mut |_| {})).transpose()?;
    let stage = progress.stage("boot a fresh copy");
    let (_, mut guest) = start(test, &key, summary, overlay.as_deref())?;
    let login = Login { address: guest.ssh_address(), key: &key };
    let others = host_keys(&login)?;
    stage.finish("");
    let shared = keys.lines().filter(|key| others.lines().any(|other| other == *key));
    state.extend(shared.map(|key| Finding {
        place: "host keys".into(),
        what: format!("two machines of this image have the same: {key}"),
    }));
    let mut said =
        "what is written is read back, what is removed stays away, two machines have their own host keys".to_owned();
    if overlay.is_some() {
        must(&login, KEEP)?;
        end(&login, &mut guest)?;
        drop(guest);
    }
    if let Some(overlay) = &overlay
        && test.overlay_disk == OverlayDisk::LeftAlone
    {
        if Some(hash_file(overlay, &mut |_| {})?) != empty {
            let what = "it was written to, and the image is to take its overlay in memory only".to_owned();
            state.push(Finding { place: "overlay disk".into(), what });
        }
        said += ", a disk for an overlay is left alone";
    } else if let Some(overlay) = &overlay {
        let stage = progress.stage("boot again with the same overlay");
        let (_, guest) = start(test, &key, summary, Some(overlay))?;
        let login = Login { address: guest.ssh_address(), key: &key };
        let again = host_keys(&login)?;
        let kept = login.run(KEPT, COMMAND_BUDGET)?;
        stage.finish("");
        state
            .extend(wrong_with(&kept, None, COMMAND_BUDGET).map(|what| Finding { place: "overlay disk".into(), what }));
        if again != others {
            state.push(Finding { place: "overlay disk".into(), what: "the host keys were not kept".into() });
        }
        said += ", an overlay on a disk survives";
    }
    checks.push(Check::passed("state", "SSH", said).with_findings(state).took(begun.elapsed()));
    Ok(())
}

/// Runs a command that must succeed for the test to go on.
fn must(login: &Login, command: &str) -> Result<()> {
    let answer = login.run(command, COMMAND_BUDGET)?;
    match wrong_with(&answer, None, COMMAND_BUDGET) {
        None => Ok(()),
        Some(what) => bail!("{command}: {what}"),
    }
}

/// Writes a disk image of `bytes` bytes with an empty ext4 filesystem, for an overlay. Returns its path.
pub fn empty_disk(place: &Path, bytes: u64) -> Result<PathBuf> {
    let sizing = SizePolicy { min_size: bytes, free_inodes: Some(bytes / BYTES_PER_INODE), ..SizePolicy::default() };
    let tree = RootTree::new(BodySource::new(Vec::new()));
    let writer = filesystem::writer(&Filesystem::default_of(FilesystemKind::Ext4), &Progress::hidden())?;
    writer.write(&tree, &sizing, place, &Progress::hidden().stage("")).context("cannot make an empty disk")?;
    Ok(place.to_path_buf())
}

/// Boots the image once, until its SSH server answers or `/init` is ready. With `overlay`, that disk keeps the writes.
fn start(test: &BootTest, key: &Key, summary: &mut BootSummary, overlay: Option<&Path>) -> Result<(BootReport, Guest)> {
    let log = test.logs.join(match summary.logs.len() {
        0 => "boot.log".to_owned(),
        earlier => format!("boot-{}.log", earlier + 1),
    });
    let mut arguments = test.arguments.clone();
    arguments.push(authorized_key_argument(&key.line));
    let mut disks = vec![Disk::discarding_writes(test.image)];
    if let Some(overlay) = overlay {
        disks.push(Disk::keeping_writes(overlay));
        arguments.push(OVERLAY_ARGUMENT.to_owned());
    }
    summary.logs.push(log.clone());
    let expectations: &[&str] = if test.has_sshd { &[] } else { &[READY] };
    super::boot_and_keep(&BootRequest {
        kernel: test.kernel,
        disks: &disks,
        arguments: &arguments,
        expectations,
        ssh: test.has_sshd,
        accelerator: test.accelerator,
        budget: DEFAULT_BUDGET,
        log: log.clone(),
    })
    .with_context(|| format!("{} does not come up; its serial console is in {}", test.name, log.display()))
}

/// `/init after 3.1 s, network after 5.0 s, ssh after 9.8 s`
fn times(report: &BootReport) -> String {
    let stages = [("/init", report.to_init), ("network", report.to_network), ("ssh", report.to_ssh)];
    let said: Vec<String> =
        stages.into_iter().filter_map(|(what, time)| Some(format!("{what} after {}", human_duration(time?)))).collect();
    if said.is_empty() { "it came up".to_owned() } else { said.join(", ") }
}

/// Runs the spec's commands in order.
fn commands(test: &BootTest, login: &Login, summary: &mut BootSummary, progress: &Progress) -> Result<Check> {
    let started = Instant::now();
    let mut findings = Vec::new();
    for command in &test.commands {
        let stage = progress.stage(format!("in the guest: {}", command.run));
        let budget = command.within.unwrap_or(COMMAND_BUDGET);
        let begun = Instant::now();
        let answer = login.run(&command.run, budget)?;
        let wrong = wrong_with(&answer, command.prints.as_deref(), budget);
        summary.commands.push(Command {
            run: command.run.clone(),
            passed: wrong.is_none(),
            seconds: (begun.elapsed().as_secs_f64() * 100.0).round() / 100.0,
            printed: answer.stdout.trim_end().to_owned(),
        });
        stage.finish(if wrong.is_none() { "" } else { "FAILED" });
        findings.extend(wrong.map(|what| Finding { place: command.run.clone(), what }));
    }
    let count = test.commands.len();
    let said = match findings.len() {
        0 => format!("{count} of the spec's commands passed"),
        wrong => format!("{wrong} of the spec's {} failed", amounts::count(count, "command")),
    };
    Ok(Check::passed("commands", "SSH", said).with_findings(findings).took(started.elapsed()))
}

/// Returns why a command's result is not the expected one; `None` if it is.
fn wrong_with(answer: &Answer, wanted: Option<&str>, budget: Duration) -> Option<String> {
    let said = || {
        let all = [answer.stdout.trim(), answer.stderr.trim()].into_iter().filter(|text| !text.is_empty());
        match all.collect::<Vec<_>>().join("\n") {
            said if said.is_empty() => "it printed nothing".to_owned(),
            said => format!("it printed: {said}"),
        }
    };
    match (answer.status, wanted) {
        _ if answer.timed_out => Some(format!("it did not end within {}; {}", human_duration(budget), said())),
        (Some(0), Some(wanted)) if !answer.stdout.contains(wanted) => {
            Some(format!("it did not print {wanted:?}; {}", said()))
        }
        (Some(0), _) => None,
        (Some(status), _) => Some(format!("exit status {status}; {}", said())),
        (None, _) => Some(format!("it was killed; {}", said())),
    }
}

fn writes(login: &Login) -> Result<Vec<Finding>> {
    let answer = login.run(WRITES, COMMAND_BUDGET)?;
    let wrong = wrong_with(&answer, None, COMMAND_BUDGET);
    Ok(wrong.map(|what| Finding { place: "writing".into(), what }).into_iter().collect())
}

fn host_keys(login: &Login) -> Result<String> {
    let answer = login.run(HOST_KEYS, COMMAND_BUDGET)?;
    anyhow::ensure!(
        answer.succeeded() && !answer.stdout.trim().is_empty(),
        "the guest shows no host keys: {}",
        answer.stderr.trim()
    );
    Ok(answer.stdout)
}

/// Powers the machine off and waits until it has ended.
fn end(login: &Login, guest: &mut Guest) -> Result<Check> {
    let started = Instant::now();
    login.power_off(END_BUDGET)?;
    guest.allow(END_BUDGET);
    let check = match guest.wait_for_end() {
        Ok(_) => Check::passed("power-off", "QEMU", format!("it ended after {}", human_duration(started.elapsed()))),
        Err(error) => Check::broken("power-off", "QEMU", &error.into()),
    };
    Ok(check.took(started.elapsed()))
}

/// Removes the logs of an earlier boot test.
pub fn remove_logs(folder: &Path) {
    for name in ["boot.log", "boot-2.log", "boot-3.log"] {
        // Some may not exist.
        let _ = fs::remove_file(folder.join(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_judged_by_status_and_words() {
        let answer = |status, stdout: &str| Answer {
            status,
            timed_out: status.is_none(),
            stdout: stdout.into(),
            stderr: String::new(),
        };
        let budget = Duration::from_secs(5);
        assert_eq!(wrong_with(&answer(Some(0), "v24.19.0\n"), Some("24.19"), budget), None);
        let said = [
            wrong_with(&answer(Some(0), "v22\n"), Some("v24"), budget),
            wrong_with(&answer(Some(3), ""), None, budget),
            wrong_with(&answer(None, "half"), None, budget),
        ];
        insta::assert_snapshot!(said.map(Option::unwrap).join("\n"), @r#"
        it did not print "v24"; it printed: v22
        exit status 3; it printed nothing
        it did not end within 5.0 s; it printed: half
        "#);
    }

    #[test]
    fn an_overlay_runs_out_of_blocks_before_it_runs_out_of_inodes() {
        let folder = tempfile::tempdir().unwrap();
        let disk = empty_disk(&folder.path().join("disk"), OVERLAY_BYTES).unwrap();
        let superblock = fs::read(&disk).unwrap()[1024..2048].to_vec();
        let field = |at: usize| u32::from_le_bytes(superblock[at..at + 4].try_into().unwrap());
        // The kernel's Documentation/filesystems/ext4/super.rst: s_blocks_count_lo, s_free_inodes_count.
        let (blocks, free_inodes) = (field(0x4), field(0x10));
        assert_eq!(u64::from(blocks) * 4096, OVERLAY_BYTES);
        assert!(free_inodes >= 4096, "{free_inodes}");
    }
}
