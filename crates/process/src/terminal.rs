//! The settings of the caller's terminal, which programs on it change and a killed one does not restore.

use std::io;
use std::sync::Mutex;

use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};

use crate::interrupt::{self, Registered};

/// The settings of the terminal on standard input, set again when this is dropped or a signal ends the tool.
#[derive(Debug)]
pub struct Settings {
    before: Termios,
    _registered: Registered,
}

impl Settings {
    /// Keeps the settings; `None` where standard input is no terminal.
    pub fn keep() -> Option<Self> {
        let before = tcgetattr(io::stdin()).ok()?;
        // nix's type may be moved to another thread and not be shared with one.
        let kept = Mutex::new(before.clone());
        let registered = interrupt::do_on_interrupt(move || {
            if let Ok(settings) = kept.lock() {
                restore(&settings, SetArg::TCSANOW);
            }
        });
        Some(Settings { before, _registered: registered })
    }

    /// Returns the settings.
    pub fn get(&self) -> &Termios {
        &self.before
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        restore(&self.before, SetArg::TCSADRAIN);
    }
}

fn restore(settings: &Termios, when: SetArg) {
    // The settings of a terminal in whose background this runs are another program's, and setting them stops a process
    // (SIGTTOU).
    if tcgetpgrp(io::stdin()) == Ok(getpgrp()) {
        let _ = tcsetattr(io::stdin(), when, settings);
    }
}
