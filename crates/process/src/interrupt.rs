//! Ctrl-C, SIGTERM and SIGHUP: what is under way ends, and nothing of it is left behind.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::ThreadId;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What to end and to remove when a signal comes, by a key of its own each.
static UNDER_WAY: Mutex<BTreeMap<u64, Victim>> = Mutex::new(BTreeMap::new());

/// The thread that handles a signal, once one came.
static HANDLER: OnceLock<ThreadId> = OnceLock::new();

/// Does not return once a signal came: a child that ended by it is no failure to report, and the handler is about to end
/// the program. The handler itself goes on.
pub fn hold_if_interrupted() {
    while HANDLER.get().is_some_and(|handler| *handler != std::thread::current().id()) {
        std::thread::park();
    }
}

#[derive(Clone)]
enum Victim {
    Child(i32),
    /// With how it is removed.
    Path(PathBuf, fn(&Path) -> Result<()>),
    /// Something that another program holds, and how it is told to let go.
    Elsewhere(Arc<dyn Fn() + Send + Sync>),
}

/// How often, and after which pause each, the removal of something is tried.
const REMOVAL_TRIES: usize = 20;
const REMOVAL_PAUSE: Duration = Duration::from_millis(50);

/// Exit code of a program ended by SIGINT, as shells say it.
const EXIT_CODE: i32 = 130;

/// Installs the handler. Once, before anything is under way.
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
        if let Victim::Elsewhere(let_go) = victim {
            let_go();
        }
        if let Victim::Path(path, remove) = victim {
            // Processes that were killed may write for a moment yet. What cannot be removed now is removed by the next
            // run.
            (0..REMOVAL_TRIES).any(|_| {
                remove(path).is_ok() || {
                    std::thread::sleep(REMOVAL_PAUSE);
                    false
                }
            });
        }
    }
}

/// Has the kernel kill the command's process when the thread that starts it ends, by `kill -9` of the tool for one.
pub fn die_with_parent(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: the closure makes one system call, which is safe between fork and exec.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
}

/// An entry of the register; it goes when this is dropped or forgotten.
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

/// Has `child` killed if a signal comes.
pub fn kill_on_interrupt(child: &Child) -> Registered {
    register(Victim::Child(child.id() as i32))
}

/// Has `let_go` called if a signal comes, once the children are killed.
pub fn do_on_interrupt(let_go: impl Fn() + Send + Sync + 'static) -> Registered {
    register(Victim::Elsewhere(Arc::new(let_go)))
}

fn register(victim: Victim) -> Registered {
    let mut under_way = UNDER_WAY.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let key = under_way.last_key_value().map_or(0, |(last, _)| last + 1);
    under_way.insert(key, victim);
    Registered(key)
}
