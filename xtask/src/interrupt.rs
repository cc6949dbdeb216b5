//! Ctrl-C, SIGTERM and SIGHUP: what is under way ends, and nothing of it is left behind.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Mutex;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cache;

/// What to end and to remove when a signal comes, by a key of its own each.
static UNDER_WAY: Mutex<BTreeMap<u64, Victim>> = Mutex::new(BTreeMap::new());

#[derive(Debug, Clone)]
enum Victim {
    Child(i32),
    Path(PathBuf),
}

/// Exit code of a program ended by SIGINT, as shells say it.
const INTERRUPTED: i32 = 130;

/// Installs the handler. Once, before anything is under way.
pub fn install() -> Result<()> {
    ctrlc::set_handler(|| {
        clear_up();
        eprintln!("interrupted: nothing was changed");
        std::process::exit(INTERRUPTED);
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
        if let Victim::Path(path) = victim {
            // What cannot be removed now is removed by the next run.
            let _ =
                if path.is_dir() { cache::remove_folder(path) } else { std::fs::remove_file(path).map_err(Into::into) };
        }
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

/// Has `path`, a file or a folder in the making, removed if a signal comes.
pub fn remove_on_interrupt(path: &Path) -> Registered {
    register(Victim::Path(path.to_path_buf()))
}

/// Has `child` killed if a signal comes.
pub fn kill_on_interrupt(child: &Child) -> Registered {
    register(Victim::Child(child.id() as i32))
}

fn register(victim: Victim) -> Registered {
    let mut under_way = UNDER_WAY.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let key = under_way.last_key_value().map_or(0, |(last, _)| last + 1);
    under_way.insert(key, victim);
    Registered(key)
}
