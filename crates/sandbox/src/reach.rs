//! What commands could reach of the host without a file's name: keyrings, abstract sockets, processes.

use std::io;
use std::mem::size_of;

use anyhow::{Context, Result};
use nix::errno::Errno;

use super::seccomp::Filter;

/// `struct landlock_ruleset_attr` (linux/landlock.h).
#[repr(C)]
struct Ruleset {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// LANDLOCK_CREATE_RULESET_VERSION: asks for the version of the interface instead.
const ASK_VERSION: libc::c_ulong = 1;
/// The version of Landlock's interface that knows scopes: that of Linux 6.12.
const SCOPES_SINCE: libc::c_long = 6;
/// LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET and LANDLOCK_SCOPE_SIGNAL.
const SCOPES: u64 = 1 << 0 | 1 << 1;

/// Refuses keyrings to this process and all that it starts: a keyring can be linked by its number, whoever left it, and that
/// of the caller's user has the caller's keys.
pub(super) fn refuse_keyrings() -> Result<()> {
    Filter::keyrings().install_where_known().context("cannot filter system calls (seccomp(2))")
}

/// Keeps this process and all that it starts from the abstract sockets (unix(7)) and the signals of other processes, where the
/// kernel can (landlock(7)). Abstract sockets belong to the network, which is the host's.
pub(super) fn stay_in_scope() -> Result<()> {
    // SAFETY: without a ruleset, the call touches no memory.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, ASK_VERSION) };
    if version < SCOPES_SINCE {
        return Ok(());
    }
    let rules = Ruleset { handled_access_fs: 0, handled_access_net: 0, scoped: SCOPES };
    let scoped = || -> io::Result<()> {
        // SAFETY: the pointer is to a whole structure of that size; the descriptor is closed once.
        unsafe {
            let rules = libc::syscall(libc::SYS_landlock_create_ruleset, &raw const rules, size_of::<Ruleset>(), 0_u32);
            let rules = Errno::result(rules)?;
            let answer = Errno::result(libc::syscall(libc::SYS_landlock_restrict_self, rules, 0_u32));
            libc::close(rules as i32);
            answer?;
        }
        Ok(())
    };
    scoped().context("cannot keep the build from the sockets of other processes (landlock(7))")
}
