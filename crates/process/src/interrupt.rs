//! Ctrl-C, SIGTERM and SIGHUP: children are killed, and files in the making are removed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::ThreadId;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The register of what to kill and to remove when a signal comes, by keys of its own.
static UNDER_WAY: Mutex<BTreeMap<u64, Victim>> = Mutex::new(BTreeMap::new());

/// The thread that handles a signal, once one came.
static HANDLER: OnceLock<ThreadId> = OnceLock::new();

/// Does not return once a signal came, except on the handler's own thread: the handler is about to end the program, and
/// that a child was killed is no failure to report.
pub fn hold_if_interrupted() {
    while HANDLER.get().is_some_and(|handler| *handler != std::thread::current().id()) {
        std::thread::park();
    }
}

#[derive(Clone)]
enum Victim {
    Child(i32),
    /// A path, and how it is removed.
    Path(PathBuf, fn(&Path) -> Result<()>),
    /// What another program holds, a daemon's container for one, and how it is removed there.
    Elsewhere(Arc<dyn Fn() + Send + Sync>),
}

/// Removing is tried again for a second: killed processes may write for a moment yet.
const REMOVAL_TRIES: usize = 20;
const REMOVAL_PAUSE: Duration = Duration::from_millis(50);

/// The exit code that shells give a program ended by SIGINT: 128 and the signal's number.
const EXIT_CODE: i32 = 130;

/// Installs the handler. To be called once, before anything is registered; an error where another handler is installed.
pub fn install() -> Result<()> {
    ctrlc::set_handler(|| {
        let _ = HANDLER.set(std::thread::current().id());
        clear_up();
        eprintln!("interrupted: nothing was changed");
        std::process::exit(EXIT_CODE);
    })
    .context("cannot handle signals")
}

fn clear_up() {
    let victims = std::mem::take(&mut *UNDER_WAY.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    for victim in victims.values() {
        if let Victim::Child(pid) = victim {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
    }
    for victim in victims.values() {
        if let Victim::Elsewhere(undo) = victim {
            undo();
        }
        if let Victim::Path(path, remove) = victim {
            // What cannot be removed now is removed by the next run.
            (0..REMOVAL_TRIES).any(|_| {
                remove(path).is_ok() || {
                    std::thread::sleep(REMOVAL_PAUSE);
                    false
                }
            });
        }
    }
}

/// An entry of the register, taken out when this is dropped.
#[derive(Debug)]
pub struct Registered(u64);

impl Registered {
    /// Takes the entry out.
    pub fn forget(&mut self) {
        UNDER_WAY.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).remove(&self.0);
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

/// Has `undo` called if a signal comes, after the children are killed.
pub fn do_on_interrupt(undo: impl Fn() + Send + Sync + 'static) -> Registered {
    register(Victim::Elsewhere(Arc::new(undo)))
}

fn register(victim: Victim) -> Registered {
    let mut under_way = UNDER_WAY.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let key = under_way.last_key_value().map_or(0, |(last, _)| last + 1);
    under_way.insert(key, victim);
    Registered(key)
}
