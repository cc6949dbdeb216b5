//! Ctrl-C, SIGTERM, SIGHUP and SIGQUIT: children are killed, files in the making are removed, and the process ends by the
//! signal, whatever its other threads wait for.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{PipeReader, Read, pipe};
use std::os::fd::IntoRawFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::{self, SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, kill};
use nix::unistd::Pid;

/// The register of what to kill and to remove when a signal comes, by keys of its own.
static UNDER_WAY: Mutex<BTreeMap<u64, Victim>> = Mutex::new(BTreeMap::new());

/// No key is used twice: an entry that was cleared may yet be forgotten.
static NEXT_KEY: AtomicU64 = AtomicU64::new(0);

/// Whether a signal came that ends the process.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Whether this thread clears up after the signal.
    static CLEARS: Cell<bool> = const { Cell::new(false) };
}

/// The writing end of the pipe by which the handler hands signals over.
static CAUGHT: AtomicI32 = AtomicI32::new(-1);

/// Does not return once a signal came, except on the threads that clear up: the program is about to end, and that a child
/// was killed is no failure to report.
pub fn hold_if_interrupted() {
    while INTERRUPTED.load(Ordering::SeqCst) && !clears_up() {
        thread::park();
    }
}

/// Whether this thread clears up after a signal. Then it takes no lock that another thread may hold for ever: who shows a
/// command may wait for a stopped terminal.
pub(crate) fn clears_up() -> bool {
    CLEARS.get()
}

enum Victim {
    Child(i32),
    /// A path, and how it is removed.
    Path(PathBuf, fn(&Path) -> Result<()>),
    /// What another program holds, a daemon's container for one, and how it is removed there.
    Elsewhere(Box<dyn Fn() + Send + Sync>),
}

/// Removing is tried again for a second: killed processes may write for a moment yet.
const REMOVAL_TRIES: usize = 20;
const REMOVAL_PAUSE: Duration = Duration::from_millis(50);

/// The signals that end the tool.
const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
/// Shells show a program that a signal ended by this and the signal's number.
const BY_SIGNAL: i32 = 128;
/// Clearing up that takes longer is announced. From then on a second Ctrl-C ends the tool at once.
const SOON: Duration = Duration::from_secs(2);
/// Clearing up that takes longer is left to the next run: a daemon may never answer. The removal of containers is tried for
/// half of it.
const AT_MOST: Duration = Duration::from_secs(60);
/// How long a message may take: the terminal may be stopped, or nobody may read the pipe.
const MESSAGE_TIME: Duration = Duration::from_millis(300);

/// What the thread that ends the process waits for.
enum Event {
    Caught(Signal),
    Cleared,
}

/// Installs the handler, to be called once. `say` writes a line for the user; it may fail or block.
///
/// A SIGHUP that the caller has ignored, as nohup(1) does, stays ignored.
pub fn install(say: fn(&str)) -> Result<()> {
    let (caught, writer) = pipe().context("cannot make a pipe for signals")?;
    CAUGHT.store(writer.into_raw_fd(), Ordering::SeqCst);
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || attend(caught, say))
        .context("cannot start a thread for signals")?;
    let action = SigAction::new(SigHandler::Handler(hand_over), SaFlags::SA_RESTART, SigSet::empty());
    for signal in ENDING {
        if signal == Signal::SIGHUP && is_ignored(signal) {
            continue;
        }
        // SAFETY: the handler only calls write(2), which is safe in one (signal-safety(7)).
        unsafe { signal::sigaction(signal, &action) }.context("cannot handle signals")?;
    }
    Ok(())
}

/// Whether this process was started with the signal ignored.
fn is_ignored(signal: Signal) -> bool {
    // SAFETY: a sigaction is numbers only, and all zeros is one.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: the place outlives the call, which changes nothing without a new action.
    let answer = unsafe { libc::sigaction(signal as i32, std::ptr::null(), &mut action) };
    answer == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// The handler of signals.
extern "C" fn hand_over(signal: i32) {
    let before = Errno::last_raw();
    let byte = signal as u8;
    // SAFETY: the pointer is to one byte, and the descriptor is never closed.
    unsafe { libc::write(CAUGHT.load(Ordering::SeqCst), (&raw const byte).cast(), 1) };
    Errno::set_raw(before);
}

/// Waits for the first signal, has the process ended, and hands over the signals that follow.
fn attend(mut caught: PipeReader, say: fn(&str)) {
    let mut ending: Option<Sender<Event>> = None;
    let mut byte = [0];
    while caught.read_exact(&mut byte).is_ok() {
        let Ok(signal) = Signal::try_from(i32::from(byte[0])) else { continue };
        match &ending {
            Some(ending) => drop(ending.send(Event::Caught(signal))),
            None => {
                let (sender, events) = mpsc::channel();
                let cleared = sender.clone();
                thread::spawn(move || end(signal, cleared, &events, say));
                ending = Some(sender);
            }
        }
    }
}

/// Clears up, and ends the process by the signal. No lock is taken that a thread may hold while it writes to a terminal or
/// to a pipe.
fn end(signal: Signal, cleared: Sender<Event>, events: &Receiver<Event>, say: fn(&str)) {
    let started = Instant::now();
    thread::spawn(move || {
        INTERRUPTED.store(true, Ordering::SeqCst);
        clear_up();
        let _ = cleared.send(Event::Cleared);
    });
    let mut announced = false;
    let text = loop {
        let left = if announced { AT_MOST } else { SOON }.saturating_sub(started.elapsed());
        match events.recv_timeout(left) {
            Ok(Event::Cleared) => break "interrupted: what was not finished is removed",
            Ok(Event::Caught(Signal::SIGINT | Signal::SIGQUIT)) if announced => {
                break "interrupted: the next run removes what is left";
            }
            Ok(Event::Caught(_)) => {}
            Err(RecvTimeoutError::Timeout) if !announced => {
                announced = true;
                in_time(say, "interrupted: clearing up; Ctrl-C once more leaves that to the next run");
            }
            Err(_) => break "interrupted: the next run removes what is left",
        }
    };
    in_time(say, text);
    end_by(signal);
}

/// Says something, unless that takes too long.
fn in_time(say: fn(&str), text: impl Into<String>) {
    let (sender, said) = mpsc::channel();
    let text = text.into();
    thread::spawn(move || {
        say(&text);
        let _ = sender.send(());
    });
    let _ = said.recv_timeout(MESSAGE_TIME);
}

/// Ends the process by a signal's default action, without a core dump, so that whoever started it can tell: a shell shows
/// 128 and the signal's number, and ends the loop or script that a Ctrl-C was meant for.
pub fn end_by(signal: Signal) -> ! {
    let _ = prctl::set_dumpable(false);
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action is no handler.
    let _ = unsafe { signal::sigaction(signal, &default) };
    let mut only = SigSet::empty();
    only.add(signal);
    let _ = signal::pthread_sigmask(SigmaskHow::SIG_UNBLOCK, Some(&only), None);
    // To this thread, which cannot run on before it takes the signal.
    let _ = signal::raise(signal);
    // The first process of a pid namespace has no default actions. Nothing may be waited for: a thread may hold a lock.
    // SAFETY: the call does not return.
    unsafe { libc::_exit(BY_SIGNAL + signal as i32) }
}

/// Clears the register, until nothing is in it and all that is undone elsewhere is done.
///
/// Other threads run until they start a process, wait for one or register something; what they register is cleared, too.
/// Nothing waits for what is undone elsewhere, which may take as long as a daemon does.
fn clear_up() {
    CLEARS.set(true);
    let mut elsewhere: Vec<JoinHandle<()>> = Vec::new();
    loop {
        let victims = std::mem::take(&mut *UNDER_WAY.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        let is_empty = victims.is_empty();
        elsewhere.extend(clear(victims.into_values()));
        elsewhere.retain(|undoing| !undoing.is_finished());
        if is_empty && elsewhere.is_empty() {
            return;
        }
        if is_empty {
            thread::sleep(REMOVAL_PAUSE);
        }
    }
}

/// Kills the children, and removes the paths. Returns the threads that undo what is elsewhere.
fn clear(victims: impl Iterator<Item = Victim>) -> Vec<JoinHandle<()>> {
    let (mut children, mut paths, mut undos) = (Vec::new(), Vec::new(), Vec::new());
    for victim in victims {
        match victim {
            Victim::Child(pid) => children.push(pid),
            Victim::Path(path, remove) => paths.push((path, remove)),
            Victim::Elsewhere(undo) => undos.push(undo),
        }
    }
    if !children.is_empty() {
        for pid in with_descendants(children) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    let undoing = undos.into_iter().filter_map(|undo| {
        let undo = move || {
            CLEARS.set(true);
            undo();
        };
        // Where there can be no further thread, the next run removes it.
        thread::Builder::new().spawn(undo).ok()
    });
    let undoing = undoing.collect();
    for _ in 0..REMOVAL_TRIES {
        // What cannot be removed in time is removed by the next run.
        paths.retain(|(path, remove)| remove(path).is_err() && fs::symlink_metadata(path).is_ok());
        if paths.is_empty() {
            break;
        }
        thread::sleep(REMOVAL_PAUSE);
    }
    undoing
}

/// The processes and all that descend from them, in no order: what cargo or make started would outlive them.
fn with_descendants(mut found: Vec<i32>) -> BTreeSet<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The parent is the second field behind the name, which is in parentheses and may contain any (proc_pid_stat(5)).
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        children.entry(parent.unwrap_or_default()).or_default().push(pid);
    }
    let mut all = BTreeSet::new();
    while let Some(pid) = found.pop() {
        if all.insert(pid) {
            found.extend(children.get(&pid).into_iter().flatten());
        }
    }
    all
}

/// An entry of the register, taken out when this is dropped. What clears up has none.
#[derive(Debug)]
pub struct Registered(Option<u64>);

impl Registered {
    /// Takes the entry out.
    pub fn forget(&mut self) {
        if let Some(key) = self.0.take() {
            UNDER_WAY.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).remove(&key);
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.forget();
    }
}

/// Has `path`, a file or a folder in the making, removed by `remove` if a signal comes.
pub fn remove_on_interrupt(path: &Path, remove: fn(&Path) -> Result<()>) -> Registered {
    register(Victim::Path(path.to_path_buf(), remove))
}

/// Has the child of this process id killed if a signal comes.
pub(crate) fn kill_on_interrupt(id: u32) -> Registered {
    register(Victim::Child(id as i32))
}

/// Has `undo` called if a signal comes, on a thread of its own after the children are killed.
pub fn do_on_interrupt(undo: impl Fn() + Send + Sync + 'static) -> Registered {
    register(Victim::Elsewhere(Box::new(undo)))
}

/// Has `text` said if a signal comes, as a part of clearing up that waits for no terminal. `say` may fail or block.
pub fn say_on_interrupt(text: String, say: fn(&str)) -> Registered {
    do_on_interrupt(move || in_time(say, text.clone()))
}

/// Does not return where a signal is ending the process: the entry is cleared with the others.
fn register(victim: Victim) -> Registered {
    if clears_up() {
        return Registered(None);
    }
    let key = NEXT_KEY.fetch_add(1, Ordering::SeqCst);
    UNDER_WAY.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(key, victim);
    hold_if_interrupted();
    Registered(Some(key))
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;
    use crate::child;

    /// Names the folder to the process that a signal ends.
    const FOLDER: &str = "SNUG_INTERRUPTED_FOLDER";

    fn remove(path: &Path) -> Result<()> {
        Ok(fs::remove_file(path)?)
    }

    fn wait_until(is_so: impl Fn() -> bool) {
        while !is_so() {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// What is removed elsewhere here ends only when the files are gone: the one that was registered behind it, and one that
    /// another thread registers when clearing up is under way already.
    #[test]
    fn nothing_waits_for_what_is_elsewhere_and_what_comes_late_is_cleared() {
        let Some(folder) = env::var_os(FOLDER) else { return end_another() };
        let (behind, late) = (Path::new(&folder).join("behind"), Path::new(&folder).join("late"));
        install(|text| eprintln!("{text}")).unwrap();
        // As one that waits for the terminal: clearing up must not call it.
        child::on_start(|_| wait_until(|| false));
        let (paths, ran) = ((behind.clone(), late.clone()), Path::new(&folder).join("ran"));
        let _first = do_on_interrupt(move || {
            let late = paths.1.clone();
            thread::spawn(move || {
                fs::write(&late, "").unwrap();
                let _held = remove_on_interrupt(&late, remove);
                // Nothing that is ended comes here.
                fs::write(late.with_extension("not held"), "").unwrap();
            });
            wait_until(|| !paths.0.exists());
            child::status(Command::new("touch").arg(&ran)).unwrap();
            wait_until(|| !paths.1.exists());
        });
        fs::write(&behind, "").unwrap();
        fs::write(&late, "").unwrap();
        let _second = remove_on_interrupt(&behind, remove);
        signal::kill(Pid::this(), Signal::SIGTERM).unwrap();
        wait_until(|| false);
    }

    fn end_another() {
        let folder = env::temp_dir().join(format!("snug-interrupted-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let name = "interrupt::tests::nothing_waits_for_what_is_elsewhere_and_what_comes_late_is_cleared";
        let mut command = Command::new(env::current_exe().unwrap());
        let output = command.args(["--exact", name, "--nocapture"]).env(FOLDER, &folder).output().unwrap();
        let mut left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(left, ["ran"]);
        assert_eq!(output.status.signal(), Some(libc::SIGTERM), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("what was not finished is removed"), "{output:?}");
    }
}
