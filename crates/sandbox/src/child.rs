//! The processes in the namespaces: the one that unshares, and the first process of the pid namespace.
//!
//! They start processes by the standard library: the first process of a pid namespace reaps every orphan, and it has no
//! handler of signals.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::{set_dumpable, set_pdeathsig};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, getppid, setgroups, setresgid, setresuid, setsid};
use snug_process::privilege::as_root;
use snug_rootfs::disk::{self, StandIns};
use snug_rootfs::layers::{Lowest, stack};
use snug_rootfs::stamp::Stamp;
use snug_rootfs::tar::{self, TarOptions};

use super::binfmt::{Emulation, emulate};
use super::layer::Changes;
use super::policy::ServicePolicy;
use super::steps::StepError;
use super::{Action, Enter, Event, Job, Program, mounts, reach, remove, report, steps, terminal};

/// Argument that marks the first process of the pid namespace.
const FIRST: &str = "first";

/// Does the job on standard input, for a program whose first argument is [`VERB`](super::VERB). `arguments` are those after
/// it.
pub fn main(arguments: &[String]) -> ExitCode {
    let result = match arguments {
        [] => outer(),
        [word] if word == FIRST => first(),
        _ => Err(anyhow::anyhow!("this verb is for the tool's own use")),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            report(&Event::Refused { message: format!("{error:#}") });
            ExitCode::FAILURE
        }
    }
}

/// Unshares, waits for the id maps (the job follows once they are written) and starts the first process.
fn outer() -> Result<ExitCode> {
    let parent = getppid();
    // Out of the session of the caller's terminal: steps must not type into it (TIOCSTI), and Ctrl-C is for the parent.
    let _ = setsid();
    let flags = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    unshare(flags).map_err(|errno| anyhow::anyhow!("{}", why_refused(errno)))?;
    report(&Event::Unshared);
    let mut job = String::new();
    std::io::stdin().read_to_string(&mut job)?;
    if job.is_empty() {
        bail!("the parent ended before it sent the job");
    }
    setgroups(&[]).context("cannot drop the caller's groups")?;
    setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0)).context("cannot become group 0")?;
    setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).context("cannot become user 0")?;
    die_with(parent)?;
    let mut child = Command::new("/proc/self/exe")
        .args([super::VERB, FIRST])
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot start the first process of the namespace")?;
    child.stdin.take().context("the first process has no input")?.write_all(job.as_bytes())?;
    let status = child.wait()?;
    Ok(ExitCode::from(u8::from(!status.success())))
}

/// Has this process die with `parent`. Must follow every change of ids, which would undo it (prctl(2)).
fn die_with(parent: nix::unistd::Pid) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != parent {
        bail!("the parent ended");
    }
    Ok(())
}

fn why_refused(errno: nix::Error) -> String {
    let restricted = fs::read_to_string("/proc/sys/kernel/apparmor_restrict_unprivileged_userns");
    let disabled = fs::read_to_string("/proc/sys/kernel/unprivileged_userns_clone");
    let hint = if restricted.is_ok_and(|text| text.trim() == "1") {
        let allow = as_root("sysctl -w kernel.apparmor_restrict_unprivileged_userns=0");
        format!("AppArmor restricts unprivileged user namespaces here: {allow}")
    } else if disabled.is_ok_and(|text| text.trim() == "0") {
        let allow = as_root("sysctl -w kernel.unprivileged_userns_clone=1");
        format!("unprivileged user namespaces are switched off: {allow}")
    } else {
        "see user.max_user_namespaces in sysctl, or build as root".to_owned()
    };
    format!("cannot make a user namespace: {errno}\nhint: {hint}")
}

/// Does the job as the first process of the pid namespace: when it ends, the kernel kills all others.
fn first() -> Result<ExitCode> {
    set_pdeathsig(Signal::SIGKILL)?;
    // Its files in /proc are not for commands (ptrace(2), "Ptrace access mode checking").
    set_dumpable(false)?;
    umask(Mode::from_bits_truncate(0o022));
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let job: Job = serde_json::from_reader(std::io::stdin()).context("cannot read the job")?;
    reach::stay_in_scope()?;
    reach::refuse_keyrings()?;
    mounts::make_private()?;
    let mut inside = Inside::open(&job)?;
    for (index, action) in job.actions.iter().enumerate() {
        report(&Event::Started { action: index });
        if let Err(error) = inside.act(index, action) {
            let status = error.downcast_ref::<StepError>().and_then(|error| error.status);
            report(&Event::Failed { action: index, status, message: format!("{error:#}") });
            if let Some(shell) = &inside.shell {
                steps::open_shell(shell)?;
            }
            return Ok(ExitCode::FAILURE);
        }
        report(&Event::Finished { action: index });
    }
    Ok(ExitCode::SUCCESS)
}

/// The state of a job between its actions.
struct Inside {
    /// The tars of the job, opened before the host's paths are out of reach.
    tars: HashMap<PathBuf, File>,
    /// The files for its layers, likewise.
    outputs: HashMap<PathBuf, File>,
    /// The root that it will enter.
    enter: Option<Enter>,
    /// What changes in it, if the job has layers.
    changes: Option<Changes>,
    stand_ins: StandIns,
    caches: Vec<PathBuf>,
    policy: ServicePolicy,
    /// The shell to open if an action fails.
    shell: Option<Program>,
    emulation: Option<Emulation>,
}

impl Inside {
    fn open(job: &Job) -> Result<Self> {
        let (mut tars, mut outputs) = (HashMap::new(), HashMap::new());
        for action in &job.actions {
            match action {
                Action::Materialise { tar, layers, .. } => {
                    for tar in layers.iter().chain([tar]) {
                        tars.insert(tar.clone(), open(tar, fs::OpenOptions::new().read(true))?);
                    }
                }
                Action::Place { tar } => drop(tars.insert(tar.clone(), open(tar, fs::OpenOptions::new().read(true))?)),
                Action::Layer { to } => drop(outputs.insert(to.clone(), open(to, fs::OpenOptions::new().write(true))?)),
                _ => {}
            }
        }
        Ok(Inside {
            tars,
            outputs,
            enter: job.actions.iter().find_map(|action| match action {
                Action::Enter(enter) => Some(enter.clone()),
                _ => None,
            }),
            changes: None,
            stand_ins: StandIns::default(),
            caches: Vec::new(),
            policy: ServicePolicy::default(),
            shell: None,
            emulation: None,
        })
    }

    fn act(&mut self, index: usize, action: &Action) -> Result<()> {
        match action {
            Action::Materialise { tar, own, layers, root } => self.materialise(index, (tar, *own), layers, root),
            Action::Unchanged { tar, stamp } => {
                ensure!(
                    Stamp::of(self.opened(tar)?)? == *stamp,
                    "{} was changed after it was checked\nhint: build again, once nothing writes to it",
                    tar.display()
                );
                Ok(())
            }
            Action::Emulate(emulator) => {
                self.emulation = Some(emulate(emulator)?);
                Ok(())
            }
            Action::Enter(enter) => {
                self.caches = mounts::enter(enter)?;
                self.policy = ServicePolicy::install()?;
                steps::limit_capabilities()
            }
            Action::ShellOnFailure(program) => {
                self.shell = Some(program.clone());
                terminal::keep_from_commands()
            }
            Action::Run(program) => steps::run(index, program),
            Action::Place { tar } => disk::place(&self.tree(tar)?, Path::new("/"), &mut self.stand_ins),
            Action::Scratch { folder } => mounts::mount_scratch(folder),
            Action::DropCaches => mounts::detach(&std::mem::take(&mut self.caches)),
            Action::Pipe(program) => steps::pipe(index, program),
            Action::Layer { to } => self.write_layer(index, to),
            Action::Remove { folder } => {
                remove::remove_all(folder).with_context(|| format!("cannot remove {}", folder.display()))
            }
        }
    }

    fn opened(&self, tar: &Path) -> Result<&File> {
        self.tars.get(tar).context("the job names a tar that was not opened")
    }

    fn tree(&self, tar: &Path) -> Result<snug_rootfs::tree::RootTree> {
        let file = self.opened(tar)?.try_clone()?;
        tar::read_file(file, &tar::Limits::default(), &mut |_| {})
            .with_context(|| format!("cannot read {}", tar.display()))
    }

    fn materialise(&mut self, index: usize, (tar, own): (&Path, bool), layers: &[PathBuf], root: &Path) -> Result<()> {
        let tree = self.stacked((tar, own), layers)?;
        fs::create_dir(root).with_context(|| format!("cannot make {}", root.display()))?;
        let mut meter = Meter { action: index, reported: 0 };
        let mut done = 0;
        self.stand_ins = disk::materialise(&tree, root, |bytes| {
            done += bytes;
            meter.reached(done);
        })?;
        if let (Some(enter), false) = (&self.enter, self.outputs.is_empty()) {
            self.changes = Some(Changes::begin(root, &tree, mounts::network_files(enter))?);
        }
        Ok(())
    }

    /// Reads a tar with the layers over it.
    fn stacked(&self, (tar, own): (&Path, bool), layers: &[PathBuf]) -> Result<snug_rootfs::tree::RootTree> {
        let file =
            |path: &PathBuf| Ok(self.tars.get(path).context("the job names a tar that was not opened")?.try_clone()?);
        let lowest = Lowest { file: file(&tar.to_path_buf())?, own };
        let layers = layers.iter().map(file).collect::<Result<_>>()?;
        stack(lowest, layers, &tar::Limits::default()).with_context(|| format!("cannot read {}", tar.display()))
    }

    fn write_layer(&mut self, index: usize, to: &Path) -> Result<()> {
        steps::end_all_others();
        self.policy.remove()?;
        let changes = self.changes.as_mut().context("a layer of what was not laid out")?;
        let file = self.outputs.remove(to).context("the job names a layer that was not opened")?;
        let mut meter = Meter { action: index, reported: 0 };
        let written = changes.write(&self.stand_ins, |tree| {
            Ok(tar::write(tree, file, TarOptions::OWN, &mut |bytes| meter.reached(bytes))?)
        });
        if let Some(enter) = &self.enter {
            mounts::renew(enter)?;
        }
        self.policy = ServicePolicy::install()?;
        written
    }
}

fn open(path: &Path, options: &fs::OpenOptions) -> Result<File> {
    options.open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// Reports progress in steps, not file by file.
struct Meter {
    action: usize,
    reported: u64,
}

impl Meter {
    /// Bytes between two events.
    const STEP: u64 = 4 << 20;

    /// Reports that `bytes` are done in all, if it is time.
    fn reached(&mut self, bytes: u64) {
        if bytes >= self.reported + Self::STEP {
            report(&Event::Bytes { action: self.action, count: bytes - self.reported });
            self.reported = bytes;
        }
    }
}
